"""How a stage's results come to stand under their names: whole, and on the disk itself."""

import os
from pathlib import Path

import pytest

from stages.core.paths import whole_directory, write_text


@pytest.fixture
def done(monkeypatch):
    """What is synced and renamed, in this order; a real power cut is not to be had."""
    seen = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor):
        seen.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    def renamed(path, target):
        seen.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    return seen


def test_a_folder_is_on_the_disk_with_all_its_files_before_it_gets_its_name_and_that_is_too(tmp_path, done):
    (tmp_path / "result").mkdir()
    (tmp_path / "result/old").touch()
    with whole_directory(tmp_path / "result") as folder:
        (folder / "deep").mkdir()
        for name in ("a", "deep/b"):
            (folder / name).write_text(name)
    assert set(done[:4]) == {"a", "b", "deep", ".result.partial"}
    assert done[3:] == [".result.partial", ".result.partial -> result", tmp_path.name]
    assert sorted(path.name for path in (tmp_path / "result").rglob("*")) == ["a", "b", "deep"]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, done):
    write_text(tmp_path / "result", "text")
    assert done == [".result.partial", ".result.partial -> result"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_in_the_middle_leaves_what_was_there(tmp_path, error):
    (tmp_path / "result").mkdir()
    (tmp_path / "result/old").touch()
    with pytest.raises(error), whole_directory(tmp_path / "result") as folder:
        (folder / "new").touch()
        raise error
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["result", "result/old"]
