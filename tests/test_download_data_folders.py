"""A folder gives the rows of its data files. Saved data sets are read; pipes and links that lead elsewhere are not."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stages._download_data import data_folders
from stages._download_data.files import path_rows
from stages.runtime.errors import UserError
from stages.runtime.integrity import check_new_paths

ROWS = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(7)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The data folder, in an own working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    data_folders.dvc_caches.cache_clear()
    yield Path("data")
    data_folders.dvc_caches.cache_clear()


def place(name: str, *rows: dict) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sources(path="data", pattern=None, split="train") -> list[str]:
    return [row["source"] for row in path_rows(Path(path), pattern, split)]


def refusal(path="data", pattern=None, split="train") -> str:
    with pytest.raises(UserError) as caught:
        sources(path, pattern, split)
    return str(caught.value)


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


@pytest.mark.parametrize("name", ["data", "data/inner/saved"])
def test_a_folder_of_save_to_disk_gives_its_rows_in_order(folder, datasets, name):
    datasets.Dataset.from_list(ROWS).save_to_disk(name, num_shards=3)
    Path(name, "cache-0123.arrow").write_bytes(b"what map() leaves there is no part of the data set")
    rows = list(path_rows(folder, None))
    assert [row["row"] for row in rows] == ROWS
    where = Path(name).relative_to(folder)
    assert rows[-1]["source"] == f"{where / 'data-00002-of-00003.arrow'}:2"


def test_shuffled_rows_that_were_saved_come_in_their_new_order(folder, datasets):
    shuffled = datasets.Dataset.from_list(ROWS).shuffle(seed=1).select(range(4))
    shuffled.save_to_disk("data")
    assert [row["row"] for row in path_rows(folder, None)] == list(shuffled)


def test_of_a_saved_dict_the_split_that_the_key_names_is_read(folder, datasets):
    splits = {"train": datasets.Dataset.from_list(ROWS[:5]), "test": datasets.Dataset.from_list(ROWS[5:])}
    datasets.DatasetDict(splits).save_to_disk("data")
    assert sources() == [f"train/data-00000-of-00001.arrow:{n}" for n in range(1, 6)]
    assert sources(split="test") == [f"test/data-00000-of-00001.arrow:{n}" for n in (1, 2)]
    assert "data.split: data has no split validation. It has train, test; set data.split" in refusal(split="validation")
    assert len(sources(pattern="**/*.arrow")) == 7


def test_a_saved_data_set_that_lacks_a_file_is_refused(folder, datasets):
    datasets.Dataset.from_list(ROWS).save_to_disk("data", num_shards=2)
    Path("data/data-00001-of-00002.arrow").unlink()
    assert "data: state.json names the file data-00001-of-00002.arrow, which is not there" in refusal()


def test_files_that_describe_a_data_set_are_no_rows(folder):
    place("data/train.jsonl", *ROWS)
    for name in ("dataset_infos.json", "README.md", "sub/dataset_info.json", "sub/dataset_dict.json/keep.txt"):
        place(f"data/{name}", {"default": {"features": {}}})
    place("data/sub/state.json", {"_data_files": []})
    expected = [f"train.jsonl:{n}" for n in range(1, 8)]
    assert sources() == expected
    assert sources(pattern="**/*.json*") == expected


def test_another_file_named_state_holds_rows(folder):
    place("data/state.json", ROWS[0])
    assert sources() == ["state.json:1"]


def test_every_row_of_a_file_with_an_object_is_read(folder):
    for n, row in enumerate(ROWS):
        place(f"data/{n}.json", row)
    assert [row["row"] for row in path_rows(folder, None)] == ROWS


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


SPECIAL = [(make_pipe, "a named pipe"), (make_socket, "a socket"), (make_link_to_device, "a device")]


@pytest.mark.parametrize(("make", "words"), SPECIAL, ids=[words for _, words in SPECIAL])
@pytest.mark.parametrize("name", ["b.jsonl", "sub/.hidden"])
def test_what_is_no_plain_file_is_refused_by_name_before_anything_is_read(folder, make, words, name):
    place("data/a.jsonl", ROWS[0])
    place("data/sub/a.jsonl", ROWS[0])
    path = folder / name
    make(path)
    text = f"data.path: {path} is {words}, not a file. Take it away"
    assert text in refusal()
    assert text in refusal(pattern="**/*.jsonl")
    assert f"data.path: {path} is {words}" in refusal(path)
    with pytest.raises(UserError, match=words):
        check_new_paths({"data.path": "data"})


@pytest.mark.parametrize("pattern", [None, "*.jsonl", "**/*.jsonl"])
def test_a_link_that_leaves_the_folder_is_refused_by_name(folder, tmp_path, pattern):
    place("data/a.jsonl", ROWS[0])
    outside = place("outside.jsonl", ROWS[1]).resolve()
    (folder / "b.jsonl").symlink_to(outside)
    assert f"data.path: the link data/b.jsonl leads out of data, to {outside}. Copy it" in refusal(pattern=pattern)


@pytest.mark.parametrize("target", ["../other", "../data-2"])
def test_a_link_to_a_folder_outside_is_refused(folder, target):
    place("data/a.jsonl", ROWS[0])
    place(f"data/{target}/rows.jsonl", ROWS[1])
    (folder / "more").symlink_to(target)
    assert "data.path: the link data/more leads out of data" in refusal()
    assert "leads out of data" in refusal(pattern="more/*.jsonl")


def test_a_link_that_leads_nowhere_is_refused(folder):
    place("data/a.jsonl", ROWS[0])
    (folder / "b.jsonl").symlink_to("absent")
    assert "the link data/b.jsonl leads to" in (message := refusal())
    assert "which does not exist" in message


def test_links_inside_the_folder_and_of_files_that_are_not_read_are_left_alone(folder):
    place("data/a.jsonl", ROWS[0])
    place("outside.txt", ROWS[1])
    (folder / "sub").mkdir()
    (folder / "sub/b.jsonl").symlink_to("../a.jsonl")
    (folder / "notes.txt").symlink_to("../outside.txt")
    (folder / "again").symlink_to("sub")
    assert sources() == ["a.jsonl:1", "sub/b.jsonl:1"]


def test_the_path_itself_may_be_a_link_that_the_user_named(folder):
    place("elsewhere/a.jsonl", ROWS[0])
    Path("link").symlink_to("elsewhere")
    Path("a.jsonl").symlink_to("elsewhere/a.jsonl")
    assert sources("link") == ["a.jsonl:1"]
    assert sources("a.jsonl") == ["a.jsonl:1"]


def dvc(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, "../big/cache"])
def test_links_that_dvc_made_into_its_cache_are_read(folder, tmp_path, monkeypatch, cache):
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir("repository")
    dvc("init", "--no-scm", "-q")
    dvc("config", "cache.type", "symlink")
    if cache:
        dvc("cache", "dir", cache)
    place("data/a.jsonl", ROWS[0])
    dvc("add", "-q", "data")
    assert Path("data/a.jsonl").is_symlink()
    assert Path("data/a.jsonl").resolve().is_relative_to(dvc("cache", "dir"))
    assert sources() == ["a.jsonl:1"]
    (folder / "b.jsonl").symlink_to(place("outside.jsonl", ROWS[1]).resolve())
    assert "leads out of data" in refusal()


def test_no_cache_is_trusted_outside_of_a_dvc_repository(folder):
    place(".elsewhere/cache/files/md5/ab/cdef.jsonl", ROWS[0])
    place("data/a.jsonl", ROWS[0])
    (folder / "b.jsonl").symlink_to("../.elsewhere/cache/files/md5/ab/cdef.jsonl")
    assert "leads out of data" in refusal()
