"""The pages in docs/: what they name exists.

tests/test_pipeline.py runs their code, but for the server in serving.md, whose packages are not installed here.
"""

import re

import pytest
from ruamel.yaml import YAML

from stages._clean.rules import RULES
from stages._download_data.files import READERS
from stages._download_data.formats import NEEDED
from stages.shared.params import Clean, Params, read_yaml
from tests.conftest import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
OWN_DATA = (ROOT / "docs/own-data.md").read_text()


YAML_BLOCKS = [
    (page.name, block)
    for page in PAGES
    for block in re.findall(r"(?m)^```yaml\n(.*?)^```", page.read_text(), re.DOTALL)
]


@pytest.mark.parametrize(("page", "block"), YAML_BLOCKS)
def test_a_yaml_block_of_a_page_holds_legal_params(page, block, tiny):
    values = read_yaml(tiny)
    for section, changes in YAML(typ="safe").load(block).items():
        values[section] |= changes
    assert Params.model_validate(values) != Params.model_validate(read_yaml(tiny)), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_of_params_that_a_page_names_is_one(page, tiny):
    values = read_yaml(tiny)
    named = re.findall(rf"`({'|'.join(values)})\.(\w+)(?=[`:])", page.read_text())
    assert named
    assert not [f"{section}.{key}" for section, key in named if key not in values[section]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    text = page.read_text()
    headings = [
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall("(?m)^#+(.*)", text)
    ]
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.removeprefix("#") in headings if target[0] == "#" else (page.parent / target).exists(), target


def test_the_page_on_own_data_explains_every_key_of_clean_and_every_reason():
    table = OWN_DATA[OWN_DATA.index("## What each key") : OWN_DATA.index("**Secrets")]
    assert set(re.findall("`([a-z_]+)`", table)) >= Clean.model_fields.keys()
    reasons = {"malformed", "secret", "personal_data", "contaminated", "duplicate", "near_duplicate"}
    reasons.add("tests_do_not_parse")
    reasons |= {rule.__name__ for rule in RULES}
    assert reasons <= set(re.findall("`([a-z_]+)`", table))


def test_the_page_on_own_data_names_every_format_and_ending():
    assert all(f"| `{name}` |" in OWN_DATA for name in NEEDED)
    endings = {ending for name in READERS for ending in re.findall(r"\.\w+", name)}
    assert not [ending for ending in endings if f"`{ending}`" not in OWN_DATA]
