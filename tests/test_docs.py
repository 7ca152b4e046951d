"""README.md and the pages in docs/: what they name exists, and figures are those of the committed run.

tests/test_pipeline.py runs their code, and tests/test_serving.py the server in serving.md.
"""

import ast
import json
import re
import shlex
import shutil
from typing import get_args

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from stages._clean.formats import ROLES
from stages._clean.rules import RULES
from stages._clean.turn_order import FLAWS
from stages._download_data.columns import CONTEXT, FORMATS, HISTORY, MEANINGFUL, SYSTEM
from stages._download_data.files import READERS
from stages.core.params import Clean, Lora, Params, Quantization, Train, load_params
from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError
from tests.support.project import ROOT, committed
from tools import generate, push_to_hub

PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHER_PAGES = [
    ROOT / name
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "models/README.md", "data/source/README.md")
]
OWN_DATA = (ROOT / "docs/own-data.md").read_text()
TRAINING = (ROOT / "docs/training.md").read_text()


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


def headings(page):
    """The anchors of a page's headings."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    return [re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall("(?m)^#+(.*)", text)]


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_the_index_and_the_readme_lead_to_every_page():
    index = (ROOT / "docs/README.md").read_text()
    assert not [page.name for page in PAGES if page.name != "README.md" and f"]({page.name})" not in index]
    readme = (ROOT / "README.md").read_text()
    assert all(f"](docs/{name}.md)" in readme for name in ("README", "glossary", "own-data", "gpu-box", "serving"))


def test_the_glossary_explains_ten_terms():
    rows = re.findall(r"(?m)^\| \*\*(.+)\*\* \| (.+) \| (.+) \|$", (ROOT / "docs/glossary.md").read_text())
    assert len(rows) == len(dict.fromkeys(term for term, _, _ in rows)) == 10


def shown(text):
    """The numbers in a cell, as floats."""
    return [float(number.replace("−", "-")) for number in re.findall(r"[+−]?\d+(?:\.\d+)?", text)]


def test_the_figures_of_the_readme_are_those_of_the_committed_run():
    """If a new run changes them: put the figures of metrics.json into README.md, and run picture.sh and session.py.

    Both are in .github/scripts.
    """
    readme, evaluate = (ROOT / "README.md").read_text(), json.loads(committed("metrics.json"))["evaluate"]
    measures = {
        "perplexity of the answers": ("perplexity", 1, 2),
        "answers that end, in %": ("ended_share", 100, 1),
        "chrF against the reference": ("chrf", 1, 1),
    }
    for label, (name, scale, places) in measures.items():
        (row,) = re.findall(rf"(?m)^\| {re.escape(label)} \| (.+) \|$", readme)
        figures = [evaluate["base"][name], evaluate["tuned"][name]]
        change = [evaluate["change"][f"{name}_{end}"] for end in ("lo", "hi")]
        interval_places = 2 if name == "perplexity" else 1
        expected = [round(scale * value, places) for value in figures]
        assert shown(row) == expected + [round(scale * value, interval_places) for value in change], label
    assert f"| {evaluate['tuned']['rows']} test rows |" in readme


NAMED_TESTS = {page.name: re.findall(r"`(test_\w+)::(\w+)`", page.read_text()) for page in PAGES}


@pytest.mark.parametrize("page", [page for page, named in NAMED_TESTS.items() if named])
def test_every_test_that_a_page_names_exists(page):
    for module, function in NAMED_TESTS[page]:
        (path,) = (ROOT / "tests").rglob(f"{module}.py")
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert function in names, f"{module}::{function}"


def test_every_fault_of_the_page_on_reliability_names_its_tests():
    rows = re.findall(r"(?m)^\| (.+) \|$", (ROOT / "docs/reliability.md").read_text())
    faults = [row for row in rows if not row.startswith("fault |")]
    assert len(faults) > 20
    assert not [row for row in faults if not re.search(r"\| (`test_\w+::test_\w+`(, |$))+$", row)]


def test_the_page_on_own_data_explains_every_key_of_clean_and_every_reason():
    table = OWN_DATA[OWN_DATA.index("## What each key") : OWN_DATA.index("**Secrets")]
    assert set(re.findall("`([a-z_]+)`", table)) >= Clean.model_fields.keys()
    reasons = {
        "malformed",
        "turn_order",
        "no_answer",
        "tool_call",
        "secret",
        "personal_data",
        "contaminated",
        "duplicate",
        "near_duplicate",
    }
    reasons.add("tests_do_not_parse")
    reasons |= {rule.__name__ for rule in RULES}
    assert reasons <= set(re.findall("`([a-z_]+)`", table))


def test_the_page_on_own_data_names_every_format_and_ending():
    assert all(f"| `{name}` |" in OWN_DATA for name in FORMATS)
    names = {name for parts in FORMATS.values() for names in parts.values() for name in names} | MEANINGFUL.keys()
    assert not [name for name in (*names, *ROLES, *SYSTEM, *CONTEXT, *HISTORY) if f"`{name}`" not in OWN_DATA]
    endings = {ending for name in READERS for ending in re.findall(r"\.\w+", name)}
    assert not [ending for ending in endings if f"`{ending}`" not in OWN_DATA]


def test_the_page_on_own_data_explains_every_flaw_in_the_order_of_turns():
    assert not [flaw for flaw in FLAWS if f"| `{flaw}` |" not in OWN_DATA]


def test_the_page_on_training_explains_every_key_and_every_choice_of_its_sections():
    for section, fields in {"lora": Lora, "quantization": Quantization, "train": Train}.items():
        assert set(re.findall(rf"`{section}\.(\w+)[`:]", TRAINING)) >= fields.model_fields.keys()
        for name, field in fields.model_fields.items():
            choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
            unnamed = [each for each in choices if not re.search(rf"`(?:{section}\.{name}: )?{each}`", TRAINING)]
            assert not unnamed, f"{section}.{name}"
    assert len(EXPERIMENTS) > 10 < len(list(refused()))  # of nothing the two tests below would be content


def changed(tiny, folder, *settings):
    """load_params() of the tiny profile with settings such as `lora.r=4`, which DVC itself puts there."""
    file = folder / "params.yaml"
    shutil.copy(tiny, file)
    apply_overrides(file, list(settings))
    return load_params(file)


EXPERIMENTS = re.findall(r"(?m)^dvc exp run (.+)$", TRAINING)


@pytest.mark.parametrize("options", EXPERIMENTS)
def test_an_experiment_of_the_page_on_training_has_legal_values(options, tiny, tmp_path):
    words = shlex.split(options)
    assert set(words[::2]) == {"-S"}
    assert changed(tiny, tmp_path, *words[1::2]) != load_params(tiny)


def refused():
    """(one setting, another) of the table of what does not go together."""
    for row in re.findall(r"(?m)^\| `(\w+\.\w+: \w+)` \| (`.+) \|$", TRAINING):
        yield from ((row[0], other) for other in re.findall("`([^`]+)`", row[1]))


@pytest.mark.parametrize(("one", "other"), list(refused()))
def test_what_the_page_on_training_says_not_to_combine_is_refused_with_both_keys(one, other, tiny, tmp_path):
    settings = [setting.replace(": ", "=") for setting in (one, other)]
    if {"lora.init=pissa", "lora.init=olora"} & {*settings}:
        settings.insert(0, "quantization.bits=16")  # which they need anyway
    with pytest.raises(UserError) as error:
        changed(tiny, tmp_path, *settings)
    for key in (one, other):
        assert key.partition(": ")[0].rpartition(".")[2] in str(error.value)


TOOLS = {
    "generate": lambda options: generate.read_options(load_params(ROOT / "tests/params.yaml"), options),
    "push_to_hub": push_to_hub.read_options,
}
COMMANDS = [
    (tool, shlex.split(rest, comments=True))
    for page in PAGES
    for block in re.findall(r"(?m)^```bash\n(.*?)^```", page.read_text(), re.DOTALL)
    for tool, rest in re.findall(rf"(?m)^python -m tools\.({'|'.join(TOOLS)})\b(.*)$", block)
]


@pytest.mark.parametrize(("tool", "options"), COMMANDS)
def test_a_tool_takes_the_options_that_a_page_gives_it(tool, options):
    parsed = vars(TOOLS[tool](options))
    given = [word for word in options if not word.startswith("--")]
    assert set(given) <= {str(value) for value in parsed.values()}


def test_both_tools_are_shown_on_a_page():
    assert {tool for tool, _ in COMMANDS} == TOOLS.keys()
