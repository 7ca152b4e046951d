"""params.yaml: what is legal, and that each mistake is answered with the file, the key, the value and what to do."""

import json
import re
from typing import get_args

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from stages.core.params import Params, load_params
from stages.core.yaml_files import read_yaml, read_yaml_text
from stages.runtime.errors import UserError
from tests.support.project import ROOT
from tools._profile.profiles import apply, read_profiles


@pytest.fixture
def edited(tmp_path, tiny):
    """edited(("train.epochs", "many"), …) → the path of a copy of the tiny profile with these values."""

    def build(*changes):
        text = tiny.read_text(encoding="utf-8")
        for key, value in changes:
            section, _, name = key.rpartition(".")
            start = rf"^{section}:\n(?:  .*\n)*?  " if section else "^"
            text, count = re.subn(rf"({start}{name}:)[^#\n]*", rf"\1 {value} ", text, flags=re.MULTILINE)
            assert count == 1, key
        path = tmp_path / "params.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return build


@pytest.fixture
def renamed(edited):
    """renamed("epochs", "epoch") → the path of a copy of the tiny profile with that key renamed."""

    def build(old, new):
        path = edited()
        text, count = re.subn(rf"^( *){old}:", rf"\1{new}:", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert count == 1, old
        path.write_text(text, encoding="utf-8")
        return path

    return build


def message(path) -> str:
    with pytest.raises(UserError) as caught:
        load_params(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    return text.replace(str(path), "params.yaml")


def test_the_tiny_profile_is_valid(tiny):
    assert load_params(tiny).model.tokenizer == "mistral-common-v3"


def test_a_number_with_an_exponent_is_a_number(edited):
    assert load_params(edited(("train.learning_rate", "2e-4"))).train.learning_rate == 0.0002


def test_a_whole_number_may_stand_for_a_fraction(edited):
    assert load_params(edited(("train.epochs", "2"))).train.epochs == 2


def test_a_misspelt_key_is_unknown_and_its_right_name_is_missing(renamed):
    assert sorted(message(renamed("epochs", "epoch")).splitlines()) == [
        "params.yaml: train.epoch is not a known key. Correct its spelling or take it out.",
        "params.yaml: train.epochs is missing. Every key must be set; `python -m tools.profile --keys` explains them.",
    ]
    assert "params.yaml: sede is not a known key." in message(renamed("seed", "sede"))
    assert "params.yaml: lora is missing." in message(renamed("lora", "qlora"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", '"42"', "seed is '42': Input should be a valid integer."),
        ("seed", "true", "seed is True: Input should be a valid integer."),
        ("seed", "42.0", "seed is 42.0: Input should be a valid integer."),
        ("seed", "", "seed is None: Input should be a valid integer."),
        ("seed", "-1", "seed is -1: Input should be greater than or equal to 0."),
        (
            "train.learning_rate",
            "fast",
            "train.learning_rate is 'fast': Input should be a valid number or a valid integer.",
        ),
        (
            "train.learning_rate",
            "true",
            "train.learning_rate is True: Input should be a valid number or a valid integer.",
        ),
        ("train.learning_rate", "0", "train.learning_rate is 0: Input should be greater than 0."),
        ("train.learning_rate", "-2e-3", "train.learning_rate is -0.002: Input should be greater than 0."),
        (
            "train.learning_rate",
            ".inf",
            "train.learning_rate is inf: Input should be a finite number or a valid integer.",
        ),
        ("clean.fix_text", "1", "clean.fix_text is 1: Input should be a valid boolean."),
        ("clean.check_code", "yes", "clean.check_code is 'yes': Input should be True, False or 'auto'."),
        ("lora.dropout", "1.0", "lora.dropout is 1.0: Input should be less than 1."),
        (
            "lora.target_modules",
            "q_proj",
            "lora.target_modules is 'q_proj': Input should be 'all-linear' or a valid list.",
        ),
        ("lora.target_modules", "[]", "lora.target_modules is []: Input should be 'all-linear' or List should"),
        ("quantization.quant_type", "int8", "quantization.quant_type is 'int8': Input should be 'nf4' or 'fp4'."),
        ("tokenize.max_length", "7", "tokenize.max_length is 7: Input should be greater than or equal to 8."),
        ("data.limit", "0", "data.limit is 0: Input should be greater than or equal to 1."),
        ("data.source", "web", "data.source is 'web': Input should be 'stdlib', 'file', 'url' or 'hub'."),
        ("data.files", "../*.jsonl", "data.files is '../*.jsonl': Input should be a glob of files below data.path"),
        ("data.files", "/etc/*", "data.files is '/etc/*': Input should be a glob of files below data.path"),
        ("data.files", "''", "data.files is '': Input should be a glob of files below data.path"),
        ("data.sha256", "abc", "data.sha256 is 'abc': String should match pattern '^[0-9a-f]{64}$'."),
        ("data.source", "url", "data: source: url needs url, the http or https address of a file."),
        ("data.format", "json", "data.format is 'json': Input should be 'auto', 'messages'"),
        ("data.format", "columns", "data: format: columns needs columns, such as {user: question, assistant: answer"),
        ("data.columns", "{user: q, assistant: a, system: null}", "data: format: columns needs columns, such as"),
        ("data.columns", "{user: q, system: null}", "data.columns.assistant is missing."),
        ("clean.test_fraction", "0.99", "clean: validation_fraction + test_fraction must stay under 1"),
        ("clean.min_characters", "999999", "clean: min_characters is greater than max_characters."),
        ("model.source", "hub", "model: source: hub needs id, a hub repository such as owner/name (it is None)."),
    ],
)
def test_a_mistake_is_one_line_with_its_key_and_value(edited, key, value, expected):
    text = message(edited((key, value)))
    assert text.startswith(f"params.yaml: {expected}")
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            [("lora.init", "pissa"), ("lora.init_from", "first")],
            "lora: init: pissa and init_from are two ways to start",
        ),
        ([("lora.init", "loftq"), ("lora.variant", "dora")], "lora: init: loftq does not go with variant: dora"),
        ([("lora.init_from", "../first")], "lora.init_from is '../first': String should match pattern"),
        ([("lora.plus_ratio", "0.5")], "lora.plus_ratio is 0.5: Input should be greater than or equal to 1"),
        ([("quantization.bits", "5")], "quantization.bits is 5: Input should be 4, 8 or 16."),
        ([("quantization.bits", "16"), ("lora.init", "loftq")], "lora.init: loftq makes up for what 4 bits lose"),
        ([("lora.init", "pissa")], "lora.init: pissa takes the base's main directions out of its weights"),
        (
            [("quantization.bits", "8"), ("merge.base", "original"), ("lora.init", "olora")],
            "lora.init: olora takes the base's main directions out of its weights. In 8 bits",
        ),
        ([("quantization.bits", "8")], "merge.base: dequantized needs quantization.bits 4 or 16"),
        (
            [("quantization.bits", "8"), ("merge.base", "original"), ("lora.variant", "dora")],
            "lora.variant: dora with quantization.bits: 8 loses the scales",
        ),
        ([("machine.report_to", "tensorboard")], "machine.report_to is 'tensorboard': Input should be"),
        ([("machine.report_to", "[]")], "machine.report_to is []: Input should be 'none' or List should"),
        ([("train.early_stopping_patience", "0")], "train.early_stopping_patience is 0: Input should be greater"),
    ],
)
def test_values_that_do_not_go_together_are_one_line_that_says_why(edited, changes, expected):
    text = message(edited(*changes))
    assert text.startswith("params.yaml: ")
    assert expected in text
    assert len(text.splitlines()) == 1


def test_a_mistake_in_a_list_is_named_with_its_place(edited):
    assert "lora.target_modules.1 is 2: Input should be a valid string." in message(
        edited(("lora.target_modules", "[q_proj, 2]"))
    )


def test_every_mistake_has_its_line(edited):
    path = edited(("seed", "no"), ("train.epochs", "-1"), ("quantization.quant_type", "int8"))
    assert [line.split(" is ")[0] for line in message(path).splitlines()] == [
        "params.yaml: seed",
        "params.yaml: quantization.quant_type",
        "params.yaml: train.epochs",
    ]


@pytest.mark.parametrize("revision", ["null", "''", "a/../b", "-x", "'a b'", "a?b"])
@pytest.mark.parametrize("section", ["model", "data"])
def test_a_hub_source_without_a_revision_is_refused(edited, section, revision):
    path = edited((f"{section}.source", "hub"), (f"{section}.id", "owner/name"), (f"{section}.revision", revision))
    assert f"{section}: source: hub needs revision, a full commit of 40 hex digits (it is" in message(path)


@pytest.mark.parametrize("url", ["ftp://host/x.csv", "https://", "https:///x.csv", "x.csv", "'https://host/a b'"])
def test_what_is_no_web_address_is_refused(edited, url):
    assert "data: source: url needs url" in message(edited(("data.source", "url"), ("data.url", url)))


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@host/x.csv",
        "https://hunter2@host/x.csv",
        "https://host/x.csv?token=hunter2",
        "https://host/x.csv?a=b&X-Amz-Signature=hunter2",
        "https://host/x.csv?api_key=hunter2",
        "https://host/x.csv?sig=hunter2",
        "https://[host/x.csv?sig=hunter2",
    ],
)
@pytest.mark.parametrize("source", ["url", "stdlib"])
def test_a_url_with_credentials_is_refused_and_not_printed(edited, url, source):
    text = message(edited(("data.source", source), ("data.url", f"'{url}'"), ("data.limit", "0")))
    assert "hunter2" not in text
    text = message(edited(("data.source", source), ("data.url", f"'{url}'")))
    assert "data: url holds a password, token or signature, which Git would keep." in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "change",
    [
        ("data.url", "[https://me:hunter2@host/x.csv]"),
        ("data.sha256", "https://host/x.csv?token=hunter2"),
        ("data.path", "https://me:hunter2@host/x.csv"),
        ("data.path", "https://host/x.csv?apiKey=hunter2"),
    ],
)
def test_a_credential_under_another_key_is_not_printed(edited, change):
    assert "hunter2" not in message(edited(change))


def test_a_branch_passes_so_that_the_download_can_say_its_commit(edited):
    path = edited(("model.source", "hub"), ("model.id", "owner/name"), ("model.revision", "refs/pr/1"))
    assert load_params(path).model.revision == "refs/pr/1"


@pytest.mark.parametrize("name", ["../etc", "owner/../name", "a/b/c", "'https://x.y/z'", "''"])
def test_a_hub_id_that_is_no_repository_is_refused(edited, name):
    assert "model: source: hub needs id" in message(edited(("model.source", "hub"), ("model.id", name)))


@pytest.mark.parametrize("text", ["seed: [1", "a: b: c", "seed: 1\nseed: 2\n", "\tseed: 1", "seed: \x01"])
def test_invalid_yaml_says_where(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert "params.yaml is not valid YAML: " in message(path)
    assert "line" in message(path) or "position" in message(path)


def test_bytes_that_are_no_text_are_no_yaml(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"seed: \xff")
    assert "params.yaml is not valid YAML" in message(path)


@pytest.mark.parametrize("text", ["", "[]", "tiny"])
def test_a_file_without_keys_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert "params.yaml is " in message(path)


def test_a_missing_file_says_where_to_get_it(tmp_path):
    assert "params.yaml is missing. Restore it from Git: git checkout -- " in message(tmp_path / "params.yaml")


def sections(model: type[BaseModel]):
    """The schema and the sections in it, those inside lists and unions included."""
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind)


def test_no_key_has_a_default():
    assert {section.__name__ for section in sections(Params)} >= {"Params", "Model", "Columns", "Gate", "Machine"}
    for section in sections(Params):
        assert section.model_config["extra"] == "forbid"
        for name, field in section.model_fields.items():
            assert field.is_required(), f"{section.__name__}.{name}"


def test_every_key_has_a_description_in_one_line():
    for section in sections(Params):
        for name, field in section.model_fields.items():
            assert 3 < len(field.description or "") <= 100, f"{section.__name__}.{name}"
            assert not re.search(r"[.\n]$|\n", field.description), f"{section.__name__}.{name}"


def exactly(value) -> str:
    """Text that differs between 1, 1.0 and True."""
    return json.dumps(value, sort_keys=True)


def test_the_schema_changes_no_value_of_a_profile(tiny):
    """So DVC may compare the values of params.yaml, and a stage need not depend on the code of the schema."""
    profiles = read_profiles(ROOT / "profiles")
    for profile in profiles.values():
        values = read_yaml_text(apply(profile, profiles, tiny.read_text()).text)
        assert exactly(Params.model_validate(values).model_dump()) == exactly(values)


def values_of(schema: dict, definitions: dict) -> st.SearchStrategy:
    """Values that a JSON schema allows. The schema may refuse some of them for another reason."""
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return st.one_of(*(values_of(option, definitions) for option in schema["anyOf"]))
    if "$ref" in schema:
        fields = definitions[schema["$ref"].rpartition("/")[2]]["properties"]
        return st.fixed_dictionaries({name: values_of(field, definitions) for name, field in fields.items()})
    low = schema.get("minimum", 0)
    return {
        "array": lambda: st.lists(values_of(schema["items"], definitions), max_size=3),
        "boolean": st.booleans,
        "integer": lambda: st.integers(low, 10**6),
        "null": st.none,
        "number": lambda: st.floats(0, 1) | st.floats(0, 1e9),
        "string": lambda: st.from_regex(schema["pattern"]) if "pattern" in schema else st.text("aZ_. -/é1", max_size=8),
    }[schema["type"]]()


@pytest.mark.parametrize("section", [name for name in Params.model_fields if name != "seed"])
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_schema_changes_no_legal_value(tiny, section, data):
    model = Params.model_fields[section].annotation
    schema = model.model_json_schema()
    key = data.draw(st.sampled_from(sorted(schema["properties"])))
    given_value = data.draw(values_of(schema["properties"][key], schema.get("$defs", {})))
    values = read_yaml(tiny)[section] | {key: given_value}
    try:
        checked = model.model_validate(values)
    except ValidationError:
        assume(False)
    assert exactly(checked.model_dump()) == exactly(values)


def test_the_profile_sets_exactly_the_keys_of_the_schema(tiny):
    values = read_yaml(tiny)
    assert list(values) == list(Params.model_fields)
    for name, value in values.items():
        if isinstance(value, dict):
            assert set(value) == set(Params.model_fields[name].annotation.model_fields)


def test_a_slice_is_one_that_there_is_or_a_kept_field(edited):
    assert "evaluate.slices names level; there are source, length" in message(edited(("evaluate.slices", "[level]")))
    kept = edited(("evaluate.slices", "[level, length]"), ("clean.keep_fields", "[level]"))
    assert load_params(kept).evaluate.slices == ["level", "length"]


@pytest.mark.parametrize("fields", ["[tests]", "[source]", "[a.b]", "['']", "[level, level]", "level"])
def test_kept_fields_are_columns_beside_the_records_own(edited, fields):
    assert "clean.keep_fields" in message(edited(("clean.keep_fields", fields)))
