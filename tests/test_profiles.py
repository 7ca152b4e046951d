"""The shipped profiles are whole params files, and `cp profiles/X.yaml params.yaml` is all there is to switching."""

import subprocess
import sys

import pytest

from stages.core.params import load_params
from stages.core.yaml_files import read_yaml
from tests.conftest import ROOT
from tests.pipeline import committed

PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))


def comments(path):
    """{line's key: its comment}, for keys that have one."""
    lines = [line.partition("#") for line in path.read_text().splitlines() if ":" in line.partition("#")[0]]
    return {before.split(":")[0].strip(): comment.strip() for before, _, comment in lines if comment}


def explained(path, wanted=("seed", "quantization", "lora", "train")):
    """{"lora.r": its comment, or an empty string} of the keys in these sections."""
    found, section = {}, ""
    for line in path.read_text().splitlines():
        before, _, comment = line.partition("#")
        key, colon, value = before.partition(":")
        if not colon:
            continue
        if not key.startswith(" "):
            section = key
        if section in wanted and (key.startswith(" ") or value.strip()):
            found[key if key == section else f"{section}.{key.strip()}"] = comment.strip()
    return found


def test_every_key_of_the_training_is_explained_in_its_line_and_alike_in_both_profiles():
    one, two = map(explained, PROFILES)
    values = read_yaml(PROFILES[0])
    keys = {f"{section}.{key}" for section in ("quantization", "lora", "train") for key in values[section]}
    assert one.keys() == {"seed", *keys}
    assert [key for key, comment in one.items() if not comment] == []
    assert one == two


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_is_valid(path):
    load_params(path)


def test_there_are_the_two_profiles():
    assert [path.stem for path in PROFILES] == ["mistral-7b", "tiny"]


def test_both_profiles_have_the_same_keys_and_explain_the_same_ones():
    one, two = (read_yaml(path) for path in PROFILES)
    assert {name: sorted(section) if isinstance(section, dict) else None for name, section in one.items()} == {
        name: sorted(section) if isinstance(section, dict) else None for name, section in two.items()
    }
    assert comments(PROFILES[0]).keys() >= comments(PROFILES[1]).keys() - {"id", "revision"}


def test_params_as_committed_are_the_tiny_profile():
    assert committed("params.yaml") == committed("profiles/tiny.yaml")


def test_mistral_7b_is_pinned_and_not_fetched_in_formats_that_run_code(params_of):
    params = load_params(ROOT / "profiles" / "mistral-7b.yaml")
    assert params.model.id == "mistralai/Mistral-7B-v0.3"
    assert len(params.model.revision) == len(params.data.revision) == 40


def test_both_profiles_have_the_same_graph_of_stages(tmp_path):
    """By DVC's own index, which resolves the templates with the profile as params.yaml."""
    code = """
import json
from dvc.repo import Repo
stages = Repo(".").index.stages
print(json.dumps({s.addressing: [sorted(map(str, s.deps)), sorted(map(str, s.outs))] for s in stages}))
"""
    graphs = []
    for profile in PROFILES:
        folder = tmp_path / profile.stem
        folder.mkdir()
        subprocess.run(["git", "init", "--quiet", folder], check=True)
        (folder / ".dvc").mkdir()
        (folder / ".dvc" / "config").touch()
        (folder / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
        (folder / "params.yaml").write_bytes(profile.read_bytes())
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        graphs.append(done.stdout.replace("assets/tiny-mistral", "data/source"))
    assert graphs[0] == graphs[1]
    assert '"evaluate@tuned"' in graphs[0]
