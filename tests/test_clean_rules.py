"""The rules for one row: what they find, what they leave, and that they can be turned off."""

import pyarrow.parquet
import pytest

from stages.clean import main
from stages.core.paths import CLEAN, RAW, write_json
from tests.support.cleaning import OFF, layout_of, pair, reasons, write_raw

LAYOUT = layout_of("prompt-completion")
CODE = "def double(number):\n    return 2 * number"


FENCED = "Here it is:\n\n```python\n{}\n```\n\nThat's all, isn't it?"


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (CODE, True),
        ("Just prose, and no code.", False),
        (FENCED.format(CODE), True),
        (FENCED.format("def double(number"), False),
        (FENCED.format(CODE) + FENCED.format("def f("), False),
        (FENCED.format(CODE) + "\n```bash\n$ python x.py | sort\n```", True),
        ("```bash\n$ ls | sort\n```", False),
        (f"```\n{CODE}\n```", True),
        (f"Prose first:\n~~~py\n{CODE}\n~~~", True),
        (f"Never closed:\n```Python\n{CODE}", True),
        (f"1. In a list:\n\n   ```python title='x.py'\n   {CODE.replace(chr(10), chr(10) + '   ')}\n   ```\n", True),
        ('TEXT = """\n```python\nnot (python\n```\n"""', True),
    ],
)
def test_only_fenced_python_must_parse(cleaned, answer, passes):
    assert reasons(cleaned(answer, check_code=True)) == ([] if passes else ["code_does_not_parse"])
    assert reasons(cleaned(answer)) == []


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("Just prose, and no code.", True),
        ("broken(", True),
        ("```bash\n$ ls | sort\n```", True),
        ("```\nls | sort\n```", True),
        (FENCED.format(CODE), True),
        (FENCED.format("def double(number"), False),
        (FENCED.format(CODE) + FENCED.format("def f("), False),
    ],
)
def test_auto_judges_only_blocks_that_are_fenced_as_python(cleaned, answer, passes):
    assert reasons(cleaned(answer, check_code="auto")) == ([] if passes else ["code_does_not_parse"])


@pytest.mark.parametrize(("all_python", "rejected"), [(True, 1), (False, 0)])
def test_auto_judges_the_whole_answer_where_the_data_are_the_embedded_functions(
    tmp_path, monkeypatch, params_of, *, all_python, rejected
):
    monkeypatch.chdir(tmp_path)
    write_json(RAW / "format.json", LAYOUT | {"python": all_python})
    rows = [pair(f"def f():\n    return {n}") for n in range(200)]
    write_raw([{"source": f"x:{number}", "row": row} for number, row in enumerate([*rows, pair("broken(")])], RAW)
    main(params_of(clean={**OFF, "check_code": "auto"}))
    assert pyarrow.parquet.read_table(CLEAN / "rejected.parquet")["reason"].to_pylist() == (
        ["code_does_not_parse"] * rejected
    )


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("As an AI language model, I cannot run code.", True),
        ("I'm sorry, but I can’t help with that.", True),
        ("I cannot assist with this request.", True),
        ("Unfortunately, as a large language model I have no files.", True),
        ("I can't open links, but if you paste the text here, I will sum it up.", False),
        ("I'm sorry, I can't come.", False),
        ("I am afraid of spiders, so this function removes them.", False),
        ("We cannot use a list here, as its items change. Use a tuple.", False),
        ("def refuse():\n    return 'Sorry, I cannot open the file'", False),
        ("class Train:\n    model = 'as an airline'", False),
    ],
)
def test_refusals_are_rejected_and_code_about_them_is_kept(cleaned, answer, refused):
    assert reasons(cleaned(answer, reject_refusals=True)) == ["refusal"] * refused
    assert reasons(cleaned(answer, reject_refusals=False)) == []
