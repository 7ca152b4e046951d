"""A hub data set gives the rows of one config and one split, as its card or the names of its files say."""

import json
from pathlib import Path

import pytest
from datasets import load_dataset_builder
from huggingface_hub.utils import filter_repo_objects

from stages._download_data.hub import fetch_patterns, read_configs, split_files
from stages.runtime.errors import UserError


@pytest.fixture
def chosen(params_of, tmp_path):
    """chosen(names, card, **changes to the section `data`) → the files that are read."""

    def choose(names: list[str], card: str = "", **changes) -> list[str]:
        path = tmp_path / "README.md"
        path.write_text(f"---\n{card}\n---\n# The data\n" if card else "# The data\n")
        data = params_of(data={"source": "hub", "id": "owner/name", "revision": "c" * 40, **changes}).data
        return split_files(names, read_configs([path], "the data set owner/name"), data)

    return choose


@pytest.mark.parametrize(
    ("names", "split", "files"),
    [
        (["data/train-00000-of-00001-8b6e.parquet", "data/test-00000-of-00001-12ab.parquet"], "train", [0]),
        (["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"], "train_gen", [1]),
        (["train.jsonl", "test.jsonl", "pretrained.jsonl", "constraint.jsonl"], "train", [0]),
        (["training.csv", "dev.csv", "evaluation.csv"], "validation", [1]),
        (["data/train/0.jsonl", "data/train/1.jsonl", "data/valid/0.jsonl", "notes.jsonl"], "train", [0, 1]),
        (["rows.jsonl", "more/rows.jsonl"], "train", [1, 0]),
        (["train.jsonl", "train.jsonl.gz", "train-2.jsonl.zst"], "train", [2, 0, 1]),
        (["train-0.jsonl", "train-1.jsonl", "train-2.csv.gz", "train.txt"], "train", [0, 1]),
        (["train.parquet", "train.jsonl"], "train", [0]),
        (["train.jsonl", "__pycache__/train.jsonl", ".hidden/train.jsonl", "../train.jsonl"], "train", [0]),
        (["train[1].jsonl", "test*.jsonl"], "test", []),
    ],
)
def test_without_a_card_the_names_of_folders_and_files_say_the_split(chosen, names, split, files):
    if files:
        assert chosen(["README.md", ".gitattributes", *names], split=split) == [names[number] for number in files]
    else:
        with pytest.raises(UserError, match="no split test"):
            chosen(names, split=split)


NAMES = ["README.md", "en/a.jsonl", "en/b.jsonl", "en/held.jsonl", "de/a.jsonl", "de/b.jsonl", "extra/train.jsonl"]
EN = """
- config_name: en
  data_files:
  - split: train
    path: [en/a.jsonl, en/b*]
  - split: held_out
    path: en/held.jsonl
"""
DE = "- config_name: de\n  data_files: de/*.jsonl\n"
EXTRA = "- config_name: extra\n  data_dir: extra\n"


@pytest.mark.parametrize(
    ("card", "config", "split", "files"),
    [
        (EN + DE + EXTRA, "en", "train", ["en/a.jsonl", "en/b.jsonl"]),
        (EN + DE + EXTRA, "en", "held_out", ["en/held.jsonl"]),
        (EN + DE + EXTRA, "de", "train", ["de/a.jsonl", "de/b.jsonl"]),
        (EN + DE + EXTRA, "extra", "train", ["extra/train.jsonl"]),
        (EN, None, "train", ["en/a.jsonl", "en/b.jsonl"]),
        (EN + DE + "  default: true\n", None, "train", ["de/a.jsonl", "de/b.jsonl"]),
        (EN + DE.replace("name: de", "name: default"), None, "train", ["de/a.jsonl", "de/b.jsonl"]),
    ],
)
def test_the_card_says_which_files_a_config_and_a_split_have(chosen, card, config, split, files):
    assert chosen(NAMES, f"license: mit\nconfigs:\n{card}", config=config, split=split) == files


LISTED = "There are, with their splits: en (train, held_out); de (train)"


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        (None, "train", f"data.config: the data set owner/name has several configs. Set data.config to one. {LISTED}"),
        ("fr", "train", f"data.config: the data set owner/name has no config fr. {LISTED}"),
        ("en", "test", f"data.split: the data set owner/name has no split test in the config en. {LISTED}"),
    ],
)
def test_an_error_lists_the_configs_and_splits_that_there_are(chosen, config, split, message):
    with pytest.raises(UserError) as caught:
        chosen(NAMES, f"configs:\n{EN}{DE}", config=config, split=split)
    assert str(caught.value) == message


def test_an_error_without_a_card_lists_the_splits_too(chosen):
    with pytest.raises(UserError, match=r"no split dev in the config default. .* default \(train, test\)"):
        chosen(["train.csv", "test.csv"], split="dev")
    with pytest.raises(UserError, match=r"no config en. .* default \(train, test\)"):
        chosen(["train.csv", "test.csv"], config="en")


def test_files_of_another_kind_are_named(chosen, capsys):
    assert chosen(["train-0.jsonl", "train-1.jsonl", "train.csv"]) == ["train-0.jsonl", "train-1.jsonl"]
    assert "1 file of the split train is of another kind and not read: train.csv" in capsys.readouterr().out


def test_at_most_twenty_configs_are_listed(chosen):
    card = "configs:\n" + "".join(f"- config_name: c{n}\n  data_files: en/*\n" for n in range(30))
    with pytest.raises(UserError, match="c19 .train.; and 10 more"):
        chosen(NAMES, card)


def test_the_hubs_parquet_copy_has_a_config_in_each_folder(chosen):
    names = [f"{config}/{split}/0000.parquet" for config in ("en", "de") for split in ("train", "test")]
    assert chosen(names, config="de") == ["de/train/0000.parquet"]
    with pytest.raises(UserError, match=r"several configs. .*: en \(train, test\); de \(train, test\)"):
        chosen(names)


def test_a_data_set_that_is_only_a_script_is_refused(chosen):
    with pytest.raises(UserError) as caught:
        chosen(["README.md", "name.py", "dataset_infos.json"])
    assert str(caught.value).startswith(
        "data.id: the data set owner/name is a script (name.py) without data files, and no code of a data set is run. "
        "Set data.revision: refs/convert/parquet"
    )


@pytest.mark.parametrize("names", [["train.zip"], ["train.txt"], ["train.png"]])
def test_files_that_no_reader_knows_are_refused(chosen, names):
    with pytest.raises(UserError, match=r"end in none of .*\(train\.[a-z]+\)"):
        chosen(names)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x.jsonl", "a/../../x.jsonl", "https://host/x.jsonl", "file:///x", "zip://a::b.zip"]
)
def test_a_card_cannot_name_files_outside_of_the_data_set(chosen, path):
    with pytest.raises(UserError, match="which is outside of the data set or inside an archive"):
        chosen(NAMES, f"configs:\n- config_name: a\n  data_files: '{path}'\n")
    if "::" not in path:
        with pytest.raises(UserError, match="which is outside of the data set"):
            chosen(NAMES, f"configs:\n- config_name: a\n  data_dir: '{path}'\n")


@pytest.mark.parametrize(
    "card",
    [
        "configs: [1",
        "configs: 7",
        "configs: [7]",
        "configs: [{data_files: a}]",
        "configs: [{config_name: a, data_files: 7}]",
        "configs: [{config_name: a, data_files: [{split: 7, path: a}]}]",
        "configs: [{config_name: a, data_files: [{split: a b, path: a}]}]",
    ],
)
def test_a_card_that_is_not_valid_is_named(chosen, card):
    with pytest.raises(UserError, match="the configs in its card README.md are not valid"):
        chosen(NAMES, card)


def test_a_config_that_asks_for_another_reading_is_refused(chosen):
    card = "configs: [{config_name: a, data_files: en/*, field: rows, sep: ';'}]"
    with pytest.raises(UserError, match="reads the config a with field, which this pipeline does not"):
        chosen(NAMES, card)


@pytest.mark.parametrize(
    ("names", "card", "config"),
    [
        (["data/train-00000-of-00001-8b6e.parquet", "data/dev-00000-of-00001.parquet", "x/train.parquet"], "", None),
        (["train.jsonl", "a/training-1.jsonl", "test.jsonl", "my_train.jsonl", "a/b/train/c.jsonl"], "", None),
        (["train/a.csv", "train-2/b.csv", "val/a.csv", "val/b.csv", "val/c.jsonl", "readme.txt"], "", None),
        (["a.jsonl", "b/c.jsonl", "b/_d.jsonl", "__e/f.jsonl", ".g/h.jsonl", "dataset_infos.json"], "", None),
        (NAMES, f"configs:\n{EN}{DE}{EXTRA}", "en"),
        (NAMES, f"configs:\n{EN}{DE}{EXTRA}", "extra"),
        (NAMES, f"configs:\n{EN}{DE}  default: true\n", None),
    ],
)
def test_the_files_are_those_that_the_datasets_library_reads(chosen, tmp_path, names, card, config):
    folder = tmp_path / "repository"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "README.md").write_text(f"---\n{card}\n---\n" if card else "")
    builder = load_dataset_builder(str(folder), config, cache_dir=str(tmp_path / "cache"))
    assert builder.config.data_files
    for split, files in builder.config.data_files.items():
        expected = {Path(file).relative_to(folder).as_posix() for file in files}
        assert set(chosen(names, card, config=config, split=str(split))) == expected


@pytest.mark.parametrize(
    ("files", "others", "patterns"),
    [
        (["train-0.jsonl", "train-1.jsonl"], ["train-x.jsonl"], ["train-[0-9].jsonl"]),
        (["train-0.jsonl", "train-1.jsonl"], ["train-2.jsonl"], ["train-0.jsonl", "train-1.jsonl"]),
        (["train[a].jsonl"], ["traina.jsonl"], ["train[[]a].jsonl"]),
    ],
)
def test_the_files_are_fetched_by_few_patterns_that_match_no_other(files, others, patterns):
    assert fetch_patterns(files, [*files, *others]) == patterns
    assert list(filter_repo_objects([*files, *others], allow_patterns=patterns)) == files


HUB_ROWS = """
import json, sys
from stages.core.params import Params
from stages.download_data import download_data
from stages.runtime.errors import UserError
try:
    print(json.dumps(list(download_data(Params.model_validate(json.loads(sys.argv[1])).data))))
except UserError as error:
    sys.exit(f"MESSAGE {error}")
"""


@pytest.fixture
def rows(hub, python_at, params_of):
    """rows(url, **changes to the section `data`) → (source, row) of each row, or the message."""

    def read(url=None, **changes):
        data = {"source": "hub", "id": "owner/name", "revision": hub.commit, "limit": None, **changes}
        done = python_at(url or hub.url, HUB_ROWS, params_of(data=data).model_dump_json())
        assert "Traceback" not in done.stderr, done.stderr
        return (
            [(row["source"], row["row"]) for row in json.loads(done.stdout.splitlines()[-1])]
            if done.stdout
            else done.stderr
        )

    return read


def test_only_the_files_of_the_split_are_fetched(hub, rows):
    hub.files["datasets/owner/name"] = {
        "data/train-00000.jsonl": b'{"a": 1}\n',
        "data/train-00001.jsonl": b'{"a": 2}\n',
        "data/test.csv": b"a\n3\n",
        "train.txt": b"unread",
        "name.py": b"raise SystemExit('it ran')",
    }
    assert rows() == [("data/train-00000.jsonl:1", {"a": 1}), ("data/train-00001.jsonl:1", {"a": 2})]
    assert rows(split="test") == [("data/test.csv:2", {"a": "3"})], "files of the other split are still in the cache"
    assert sorted(hub.fetched()) == ["test.csv", "train-00000.jsonl", "train-00001.jsonl"]


@pytest.mark.slow
def test_the_card_of_a_hub_data_set_is_followed_without_network_too(hub, rows, closed_port):
    card = f"---\nconfigs:\n{EN}{DE}---\n"
    hub.files["datasets/owner/name"] = {name: json.dumps({"a": name}).encode() + b"\n" for name in NAMES}
    hub.files["datasets/owner/name"]["README.md"] = card.encode()
    assert LISTED in rows()
    assert hub.fetched() == ["README.md"]
    expected = [("en/a.jsonl:1", {"a": "en/a.jsonl"}), ("en/b.jsonl:1", {"a": "en/b.jsonl"})]
    assert rows(config="en") == expected
    assert sorted(hub.fetched()) == ["README.md", "a.jsonl", "b.jsonl"]
    assert rows(closed_port, config="en") == expected
    assert "the hub cannot be reached" in rows(closed_port, config="de")


@pytest.mark.slow
def test_the_second_card_file_replaces_what_the_first_says(hub, rows):
    hub.files["datasets/owner/name"] = dict.fromkeys(NAMES, b'{"a": 1}\n') | {
        "README.md": f"---\nconfigs:\n{EN}---\n".encode(),
        ".huggingface.yaml": f"configs:\n{DE}".encode(),
    }
    assert rows() == [("de/a.jsonl:1", {"a": 1}), ("de/b.jsonl:1", {"a": 1})]
