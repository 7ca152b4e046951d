"""python -m tools.profile: sparse profiles, the comments of params.yaml, and the pages about its keys."""

import json
import re
import subprocess
import sys
from typing import get_args

import pytest
from dvc.utils.hydra import apply_overrides

from stages.core.params import Params, check_params, load_params
from stages.core.yaml_files import read_yaml_text
from stages.runtime.errors import UserError
from tests.support.project import ROOT, committed
from tools import profile as tool
from tools._profile import profiles
from tools._profile.keys import as_page, params_keys
from tools._profile.yaml_lines import set_values

TINY = (ROOT / "tests/params.yaml").read_text()
SHIPPED = tool.commented(TINY)  # params.yaml with these values
PROFILES = profiles.read_profiles(ROOT / "profiles")


def apply(name, text=SHIPPED, known=PROFILES):
    return profiles.apply(known[name], known, text)


def edited(*changes, text=SHIPPED):
    """edited(("lora.r", "8"), …) → the shipped params.yaml with these values."""
    return set_values(text, dict(changes))


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A folder with the profiles and the shipped params.yaml, as the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    for path in (ROOT / "profiles").glob("*.yaml"):
        (tmp_path / "profiles" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "params.yaml").write_text(SHIPPED)
    return tmp_path


def test_params_as_committed_are_what_the_tests_run_with_and_have_the_schemas_comments():
    assert committed("params.yaml").partition("seed:")[2] == SHIPPED.partition("seed:")[2]


def test_the_comments_of_params_are_the_descriptions_of_the_schema():
    text = (ROOT / "params.yaml").read_text()
    assert tool.commented(text) == text, "run: python -m tools.profile --comments"


def test_the_page_about_the_keys_is_current():
    assert (ROOT / "docs/params.md").read_text() == as_page(), "run: python -m tools.profile --docs"


def test_there_are_the_two_profiles():
    assert list(PROFILES) == ["mistral-7b", "tiny"]


def test_the_profile_tiny_has_the_shipped_values_of_just_the_keys_that_others_set():
    others = {key for name, profile in PROFILES.items() if name != "tiny" for key in profile.values}
    assert PROFILES["tiny"].values.keys() == others
    shipped = read_yaml_text(SHIPPED)
    assert PROFILES["tiny"].values == {key: profiles.value_at(shipped, key) for key in others}


def test_a_profile_holds_only_values_that_differ():
    for key, value in PROFILES["mistral-7b"].values.items():
        assert not profiles.same(value, PROFILES["tiny"].values[key]), key


@pytest.mark.parametrize("name", PROFILES)
def test_an_applied_profile_is_legal_and_has_the_profiles_values(name):
    applied = apply(name)
    values = read_yaml_text(applied.text)
    check_params(values)
    assert {key: profiles.value_at(values, key) for key in PROFILES[name].values} == PROFILES[name].values
    assert applied.kept == []
    assert not [line for line in applied.text.splitlines() if len(line) > 120]


def test_the_way_there_and_back_restores_every_byte():
    there = apply("mistral-7b")
    assert len(there.changed) == len(PROFILES["mistral-7b"].values)
    assert apply("tiny", there.text).text == SHIPPED
    assert apply("tiny").changed == []


def test_only_the_lines_of_changed_values_change():
    after = apply("mistral-7b").text.splitlines()
    different = [line for line, before in zip(after, SHIPPED.splitlines(), strict=True) if line != before]
    assert len(different) == len(PROFILES["mistral-7b"].values)
    assert "  max_length: 2048            # most tokens in a conversation and in a packed row" in different


def test_mistral_7b_is_pinned():
    params = check_params(read_yaml_text(apply("mistral-7b").text))
    assert params.model.id == "mistralai/Mistral-7B-v0.3"
    assert len(params.model.revision) == len(params.data.revision) == 40


def test_values_of_the_users_own_stay_and_are_named():
    own = edited(("data.source", "file"), ("data.path", "data/mine.jsonl"), ("train.epochs", "5"), ("lora.r", "8"))
    applied = apply("mistral-7b", own)
    values = read_yaml_text(applied.text)
    assert (values["data"]["source"], values["data"]["path"]) == ("file", "data/mine.jsonl")
    assert (values["train"]["epochs"], values["lora"]["r"]) == (5, 8)
    assert (values["data"]["id"], values["data"]["revision"]) == (None, None), "a file has neither"
    assert applied.kept == [
        "data.source: file (your own value; the profile has hub)",
        "data.limit: 1500 (it is about your own data; the profile has null)",
        "clean.validation_fraction: 0.04 (it is about your own data; the profile has 0.02)",
        "clean.test_fraction: 0.1 (it is about your own data; the profile has 0.03)",
        "train.epochs: 5 (your own value; the profile has 2.0)",
    ]
    assert apply("tiny", applied.text).text == own


@pytest.mark.parametrize("limit", ["null", "1500", "99"])
@pytest.mark.parametrize("way", [["tiny"], ["mistral-7b", "tiny"], ["tiny", "mistral-7b", "tiny"]])
def test_the_number_of_rows_of_the_users_own_data_stays(limit, way):
    own = edited(("data.source", "file"), ("data.path", "data/mine.jsonl"), ("data.limit", limit))
    text = own
    for name in way:
        text = apply(name, text).text
    assert text == own


def test_the_number_of_rows_of_a_profiles_data_is_the_profiles():
    for own in (SHIPPED, edited(("data.path", "data/mine.jsonl"))):
        assert read_yaml_text(apply("mistral-7b", own).text)["data"]["limit"] is None


def squeezed(text):
    return re.sub(r" +#", " #", text)


def test_values_and_comments_survive_what_dvc_makes_of_the_file(tmp_path):
    """`dvc exp run -S` writes blanks for null, and spreads lists over several lines."""
    params = tmp_path / "params.yaml"
    params.write_text(SHIPPED)
    apply_overrides(params, ["seed=7"])
    rewritten = params.read_text()
    assert "  id:                         # owner/name on the hub" in rewritten
    assert squeezed(tool.commented(rewritten)) == squeezed(rewritten)
    there = apply("mistral-7b", rewritten).text
    back = apply("tiny", there).text
    for text in (there, back):
        assert "# owner/name on the hub, for source: hub" in text
        assert squeezed(tool.commented(text)) == squeezed(text)
    assert read_yaml_text(back) == read_yaml_text(rewritten)


def test_a_base_on_the_users_own_disk_stays_the_base():
    own = edited(("model.path", "/models/mistral"))
    applied = apply("mistral-7b", own)
    shipped = read_yaml_text(SHIPPED)
    assert read_yaml_text(applied.text)["model"] == shipped["model"] | {"path": "/models/mistral"}
    assert applied.kept == [
        "model.source: path (it reads your own model.path; the profile has hub)",
        "model.path: /models/mistral (your own value; the profile has assets/hub-model)",
    ]
    assert apply("tiny", applied.text).text == own


def test_a_model_of_the_users_own_from_the_hub_stays_the_base():
    own = edited(("model.source", "hub"), ("model.id", "me/mine"), ("model.revision", "f" * 40))
    for name, path in (("mistral-7b", "assets/hub-model"), ("tiny", "assets/tiny-mistral")):
        model = read_yaml_text(apply(name, own).text)["model"]
        assert (model["source"], model["id"], model["revision"], model["path"]) == ("hub", "me/mine", "f" * 40, path)


def test_the_sources_and_their_keys_are_those_of_the_schema():
    for section, sources in profiles.READ_BY_SOURCE.items():
        fields = Params.model_fields[section].annotation.model_fields
        assert sources.keys() == set(get_args(fields["source"].annotation))
        assert {key for keys in sources.values() for key in keys} <= fields.keys()


def test_a_missing_value_is_filled_in():
    text = "".join(line for line in SHIPPED.splitlines(keepends=True) if "dropout:" not in line)
    applied = apply("mistral-7b", text)
    assert read_yaml_text(applied.text)["lora"]["dropout"] == 0.05
    assert "lora.dropout: unset → 0.05" in applied.changed


def test_a_value_spelled_in_another_way_is_still_a_profiles_value():
    values = read_yaml_text(apply("mistral-7b", edited(("train.learning_rate", "0.0020"), ("train.epochs", "1"))).text)
    assert (values["train"]["learning_rate"], values["train"]["epochs"]) == (2e-4, 2.0)
    assert not profiles.same(True, 1)


def test_a_key_that_only_another_profile_sets_goes_back_to_its_usual_value():
    third = profiles.Profile("third", "", {"train.epochs": 3}, {"train.epochs": "3"})
    values = read_yaml_text(apply("third", apply("mistral-7b").text, PROFILES | {"third": third}).text)
    assert values == read_yaml_text(SHIPPED) | {"train": read_yaml_text(SHIPPED)["train"] | {"epochs": 3}}


def test_a_profile_that_does_not_go_with_the_users_values_says_what_clashes():
    text = edited(("clean.max_characters", "8000"), ("clean.min_characters", "3000"))
    with pytest.raises(UserError) as error:
        apply("tiny", text)
    assert str(error.value).splitlines() == [
        "tiny cannot be applied to your params.yaml. Nothing was written. Change this first:",
        "params.yaml: clean: min_characters is greater than max_characters.",
    ]


def test_params_that_are_not_legal_get_the_schemas_message():
    with pytest.raises(UserError, match=r"^params.yaml: lora.r is 0: Input should be greater than or equal to 1\.$"):
        apply("mistral-7b", edited(("lora.r", "0")))
    for text in ("[]", "", "seed: 1\n", SHIPPED.replace("lora:", "qlora:")):
        with pytest.raises(UserError, match=r"^params.yaml"):
            apply("mistral-7b", text)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("&rows 200", "the layout of params.yaml is unusual. Set these values by hand:\nmodel.source: hub"),
        ("200 # &rows", "evaluate.generate_rows repeats another value (*name). Write its own value there"),
    ],
)
def test_values_that_repeat_each_other_are_not_changed(rows, said):
    seed = "42" if rows.startswith("&") else "&rows 128"
    text = edited(("evaluate.max_rows", rows), ("seed", seed)).replace("generate_rows: 128 ", "generate_rows: *rows ")
    with pytest.raises(UserError) as error:
        apply("mistral-7b", text)
    assert str(error.value).startswith("mistral-7b cannot be applied to your params.yaml. Nothing was written.")
    assert said in str(error.value)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_other_layouts_keep_their_form(ending):
    text = """\
# mine
seed: 1                # the column
prompt:                # of most comments
merge: {parity_rows: 16, max_kl: 0.1} # in one line

lora:
    target_modules: # two
        - q_proj # the first

        - v_proj

    # about r
    r:   8   # small
    dropout:
"""
    changed = edited(("merge.parity_rows", "64"), ("lora.target_modules", "all-linear"), text=text)
    changed = edited(("lora.r", "4"), ("lora.dropout", "0.5"), text=changed.replace("\n", ending))
    assert changed.split(ending) == [
        *("# mine", "seed: 1                # the column", "prompt:                # of most comments"),
        *("merge: {parity_rows: 64, max_kl: 0.1} # in one line", ""),
        *("lora:", "    target_modules: all-linear  # two", "", "    # about r"),
        *("    r: 4               # small", "    dropout: 0.5", ""),
    ]


def test_comments_go_to_keys_and_leave_other_lines_alone():
    text = "# mine\nseed: 1 # old\ndata:\n  # mine too\n  columns: {user: q,\n    assistant: a}\n  limit: null\n"
    assert tool.commented(text).splitlines() == [
        "# mine",
        f"seed: 1                       # {Params.model_fields['seed'].description}",
        f"data:                         # {Params.model_fields['data'].description}",
        "  # mine too",
        "  columns: {user: q,",
        "    assistant: a}",
        "  limit: null                 # most rows to take; null: all",
    ]


def test_the_command_changes_the_file_once(inside, capsys):
    params = inside / "params.yaml"
    printed = tool.main(["mistral-7b", "--dry-run"])
    assert printed.startswith("mistral-7b: would change 24 values of params.yaml\n  model.source: path → hub\n")
    assert params.read_text() == SHIPPED
    assert tool.main(["mistral-7b"]) == printed.replace("would change", "changed")
    assert load_params(params).tokenize.max_length == 2048
    assert tool.main(["mistral-7b"]) == "mistral-7b: params.yaml has its values already"
    assert profiles.profile_values("tiny") == read_yaml_text(SHIPPED)
    assert sorted(path.name for path in inside.iterdir()) == ["params.yaml", "profiles"]


def test_nothing_is_written_when_values_clash(inside):
    text = edited(("clean.min_characters", "7000"), text=apply("mistral-7b").text)
    (inside / "params.yaml").write_text(text)
    with pytest.raises(UserError, match="tiny cannot be applied"):
        tool.main(["tiny"])
    assert (inside / "params.yaml").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of NAME (mistral-7b, tiny), --list"),
        (["big"], "there is no profile big. The profiles are mistral-7b, tiny"),
        (["../tiny"], "there is no profile ../tiny."),
        (["tiny", "--list"], "give one of NAME"),
        (["--list", "--docs"], "give one of NAME"),
        (["--dry-run", "--list"], "--dry-run needs NAME"),
        (["--keys", "loras"], "there is no section loras. The sections are seed, model"),
        (["tiny", "mistral-7b"], "unrecognized arguments: mistral-7b"),
        (["--force"], "unrecognized arguments: --force"),
    ],
)
def test_a_wrong_command_ends_with_2_and_names_what_there_is(inside, capsys, arguments, said):
    with pytest.raises(SystemExit) as end:
        tool.main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_users_mistake_ends_with_1_and_one_message(inside):
    (inside / "params.yaml").write_text("seed: 1\n")
    command = [sys.executable, "-m", "tools.profile", "tiny"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("profile: params.yaml: ")
    assert "Traceback" not in done.stderr


def test_the_list_has_every_profile_with_its_first_line(inside):
    lines = tool.main(["--list"]).splitlines()
    assert [line.split()[0] for line in lines] == list(PROFILES)
    assert all(len(line.split()) > 5 for line in lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora: {rank: 8}", "profiles/mine.yaml: params.yaml has no lora.rank. Correct the spelling or remove it"),
        ("loras: {r: 8}", "params.yaml has no loras.r."),
        ("lora: 8", "params.yaml has no lora."),
        ("", "profiles/mine.yaml has no keys."),
        ("lora: {r: 8}", "profiles/mine.yaml sets lora.r, but profiles/tiny.yaml does not."),
        ("lora: [", "profiles/mine.yaml is not valid YAML"),
    ],
)
def test_a_profile_with_a_mistake_is_refused(inside, text, said):
    (inside / "profiles/mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        tool.main(["mine"])
    assert said in str(error.value)


def test_without_the_profiles_the_command_says_where_to_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="in the repository's root"):
        tool.main(["--list"])


def test_every_key_is_explained_with_its_legal_values():
    text = tool.main(["--keys"])
    assert [line.partition(":")[0] for line in text.splitlines() if line[:1].strip()] == [
        key.name for key in params_keys()
    ]
    assert "train.learning_rate: number above 0\n    highest learning rate" in text
    assert "model.source: path | hub\n" in text
    assert "clean.near_duplicate_threshold: number from 0.5, below 1 | null\n" in text
    assert "report.gates: list of mappings\n" in text
    assert "report.gates[].bound: number | null\n" in text
    assert "machine.devices: whole number from 1 | auto\n" in text
    assert "data.columns.user: text\n" in text
    assert tool.main(["--keys", "seed"]).startswith("seed: whole number from 0\n    seed of every")
    assert tool.main(["--keys", "merge"]).splitlines()[0] == "merge"


def test_writing_the_comments_and_the_page_again_changes_nothing(inside):
    (inside / "params.yaml").write_text(TINY)
    (inside / "docs").mkdir()
    assert tool.main(["--comments"]) == "wrote params.yaml"
    assert (inside / "params.yaml").read_text() == SHIPPED
    assert tool.main(["--comments"]) == "params.yaml is up to date"
    assert tool.main(["--docs"]) == "wrote docs/params.md"
    assert tool.main(["--docs"]) == "docs/params.md is up to date"
    assert (inside / "docs/params.md").read_text() == as_page()


def test_every_profile_has_the_same_graph_of_stages(tmp_path):
    """DVC's own index resolves the templates of dvc.yaml with the profile's params.yaml."""
    code = """
import json
from dvc.repo import Repo
stages = Repo(".").index.stages
print(json.dumps({s.addressing: [sorted(map(str, s.deps)), sorted(map(str, s.outs))] for s in stages}))
"""
    graphs = []
    for name in PROFILES:
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run(["git", "init", "--quiet", folder], check=True)
        (folder / ".dvc").mkdir()
        (folder / ".dvc" / "config").touch()
        (folder / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
        (folder / "params.yaml").write_text(apply(name).text)
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        graphs.append(json.loads(done.stdout.replace("assets/tiny-mistral", "assets/hub-model")))
    assert graphs[0] == graphs[1]
    assert "evaluate@tuned" in graphs[0]
