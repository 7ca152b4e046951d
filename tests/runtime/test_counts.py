"""A message counts one row and two rows."""

import ast
import re

import pytest

from stages.runtime.counts import plural
from tests.support.project import ROOT

# Counts that are never 1, or that a larger number limits.
NEVER_ONE = (
    "context",
    "FORMAT_TOKENS",
    "MAX_VALUES",
    "SAMPLE_SIZE",
    "FEWEST_CLUSTERS",
    "edge",
    "SLICE_LENGTHS",
    "[-1]",
)
NOUNS = "row|step|conversation|module|file|shard|answer|trial|gate|value|output|layer|device|combination"


@pytest.mark.parametrize(("count", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1130, "1,130 rows")])
def test_a_noun_has_the_number_of_its_count(count, text):
    assert plural(count, "row") == text


def test_no_message_puts_a_count_before_a_plural_by_itself():
    found = []
    for path in [*ROOT.glob("stages/**/*.py"), *ROOT.glob("tools/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                for value, text in zip(node.values, node.values[1:], strict=False):
                    after = text.value if isinstance(text, ast.Constant) else ""
                    if isinstance(value, ast.FormattedValue) and re.match(rf" ({NOUNS})s\b", after):
                        found.append(f"{path.relative_to(ROOT)}: {ast.unparse(value.value)}{after[:20]}")
    assert [line for line in found if not any(name in line for name in NEVER_ONE)] == []
