"""YAML is read as DVC reads it, and a small file cannot stand for millions of values."""

import json

import pytest
from dvc.utils.serialize import load_yaml
from ruamel.yaml.error import YAMLError

from stages.core.yaml_files import read_yaml, read_yaml_text
from tests.support.project import ROOT


def test_a_number_with_an_exponent_is_a_number():
    assert read_yaml_text("rate: 2e-4") == {"rate": 0.0002}


def test_aliases_that_stand_for_too_much_are_refused_and_others_are_not():
    assert read_yaml_text("a: &one {x: [1, 2]}\nb: *one\nc: {<<: *one, y: 2e-4}\n") == {
        **{"a": {"x": [1, 2]}, "b": {"x": [1, 2]}},
        "c": {"x": [1, 2], "y": 2e-4},
    }
    for start, many in (("[1]", "[{}]"), ("{x: 1}", "{{{}}}")):
        pairs = "{key}: *a{n}" if "x" in start else "*a{n}"
        lines = [many.format(", ".join(pairs.format(key=key, n=n) for key in "bcdefghijk")) for n in range(5)]
        text = f"a0: &a0 {start}\n" + "".join(f"a{n}: &a{n} {line}\n" for n, line in enumerate(lines, 1))
        assert len(text) < 600
        with pytest.raises(YAMLError, match="repeat more than 100,000 values"):
            read_yaml_text(text)
    with pytest.raises(YAMLError, match="repeat more than 100,000 values"):
        read_yaml_text("a: &a [*a]\n")


@pytest.mark.parametrize("path", ["params.yaml", "dvc.yaml", "profiles/mistral-7b.yaml", "profiles/tiny.yaml"])
def test_values_are_those_that_dvc_reads(path):
    """No stage depends on this reader: DVC compares the values of params.yaml as it reads them itself."""
    values, expected = read_yaml(ROOT / path), load_yaml(ROOT / path)
    assert json.dumps(values, sort_keys=True) == json.dumps(expected, sort_keys=True)  # tells 1, 1.0 and True apart
