import base64
import copy
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from stages._report.data_section import OTHER_SOURCES
from stages._report.escaping import fenced, inline
from stages._report.layout import spread
from stages._report.predictions import answer_pairs
from stages._report.row_tables import interval_text, row_lines
from stages._report.svg_charts import histogram, line_chart, thinned, tick_label, ticks
from stages.comparison.number_text import duration, number, size
from stages.comparison.visible_text import visible
from stages.core.params import load_params
from stages.core.statistics import BODY, COLUMNS, COUNTS, GENERATED, length_name, paired_change
from stages.core.yaml_files import read_yaml
from stages.report import closing_table, main, print_results, report, result_params
from stages.runtime.errors import UserError

REPOSITORY = Path(__file__).parents[1]
HOSTILE = "<script>alert(1)</script> \x1b[31mred\x1b[0m ```\n</pre><img src=http://x/y.png> | \u202e \ud800"


def evaluation(perplexity, **more):
    values = {"loss": math.log(perplexity), "perplexity": perplexity}
    values |= {"loss_after_8": math.log(perplexity) + 0.1, "perplexity_after_8": perplexity * 1.1}
    values |= {"bits_per_byte": math.log(perplexity) / 3, "token_accuracy": 0.4, "exact_share": 0.05, "rouge_l": 0.2}
    values |= {"ended_share": 0.125, "parses_share": 0.3, "chrf": 21.75} | more
    for name in list(values):
        values |= {f"{name}_lo": values[name] * 0.9, f"{name}_hi": values[name] * 1.1}
    values |= {"rows": 190, "tokens": 21_345, "generated_rows": 40, "tested_rows": 0, "clusters": 31}
    band = {"rows": 60, "tokens": 9000, "loss": 1.5, "loss_lo": 1.4, "loss_hi": 1.6}
    return values | {"slices": {"source": {"python-3.11/1.py": band}, "length": {"to_128": band}}}


def asked_in_plain_text():
    """The base's figures under `plain`."""
    values = {"body_bits_per_byte": 1.21, "ended_share": 0.6, "parses_share": 0.5, "exact_share": 0.0, "chrf": 33.5}
    values |= {"rouge_l": 0.3}
    for name in list(values):
        values |= {f"{name}_lo": values[name] * 0.9, f"{name}_hi": values[name] * 1.1}
    return {"plain": values | {"rows": 190, "tokens": 0, "generated_rows": 40, "tested_rows": 0, "clusters": 31}}


def evaluated_row(number, loss):
    """Rows of 31 modules, the later ones longer."""
    tokens = 10 + 3 * number
    row = {"id": f"{number:04x}", "source": f"python-3.11/{number % 31}.py:{number}", "cluster": number % 31}
    row |= {"tokens": tokens, "loss_sum": tokens * loss, "later_tokens": tokens - 8, "bytes": 3 * tokens}
    row |= {"later_loss_sum": (tokens - 8) * loss, "correct_tokens": tokens // 2, "chrf": 20.0, "rouge_l": 0.2}
    row |= {"body_bytes": 2 * tokens, "body_loss_sum": tokens * loss * 0.8, "tested": 0, "passed": 0}
    row |= dict.fromkeys(("answers", "ended", "code", "parses", "exact"), int(number < 40))
    plain = {name: row[name] for name in COLUMNS} | dict.fromkeys(set(COUNTS) - set(BODY), 0)
    slices = {"source": f"python-3.11/{number % 31}.py", "length": length_name(tokens)}
    return row | {"plain": plain, "slices": slices}


def prediction(number, output):
    text = f"def f{number}(self, value):\n    if value is None:\n        return self.default\n    return int(value)"
    prompt = f"Write `f{number}` of the Python module `email.header`.\n\ndef f{number}(self, value):\n\nReturn it."
    row = {"id": f"{number:04x}", "source": f"python-3.11/email/header.py:{number}", "prompt": prompt}
    return row | {"reference": text, "output": output, "ended": number % 2 == 0, "parses": number % 3 == 0}


def split(rows):
    values = {"rows": rows, "packed_rows": rows // 4, "tokens": rows * 180, "trained_tokens": rows * 100}
    return values | {"truncated": 7, "dropped": 1, "fill": 0.93217}


def source(*counts):
    return dict(zip(("read", "train", "validation", "test", "rejected"), counts, strict=True))


JUDGED = {"rows": 90, "judged": True, "loss_gap_lo": -0.0012, "loss_gap_hi": 0.0034}


def example():
    """Plain dicts as main() reads them."""
    parity = {"loss_gap": 1.25e-05, "kl": 3.4e-06, "top1_agreement": 0.9987, "loss_trained": 1.51234}
    loss = [(step, 1.4 + 1.1 * math.exp(-step / 40) + 0.06 * math.sin(step * 2.1)) for step in range(1, 241)]
    rate = [(step, 2e-3 * min(step / 10, 0.5 + 0.5 * math.cos(math.pi * step / 240))) for step in range(1, 241)]
    return {
        "manifest": {"source": "path", "id": None, "path": "assets/tiny-mistral", "revision": None}
        | {"parameters": 1_234_567, "bytes": 2_469_999, "files": {"config.json": "ab" * 32}},
        "clean": {
            "fixed": 7,
            "fixed_kinds": {"mojibake": 7},
            "absorbed": {"more.csv:5": 25},
            "rows": {"read": 2400, "kept": 2287, "rejected": {"too_short": 88, "duplicate": 25}},
            "splits": {"train": 2005, "validation": 92, "test": 190},
            "characters": {
                "train": {"to_00250": 1400, "to_00500": 400, "to_01000": 200, "longer": 5},
                "validation": {"to_00250": 23, "to_00500": 46, "to_01000": 23, "longer": 0},
                "test": {"to_00250": 140, "to_00500": 40, "to_01000": 10, "longer": 0},
            },
            "sha256": {"train": "a" * 64, "validation": "b" * 64, "test": "c" * 64},
            "sources": {"answers.jsonl": source(1600, 1300, 50, 150, 100), "more.csv": source(800, 705, 42, 40, 13)},
        },
        "rejected": {
            "too_short": [
                {"source": f"answers.jsonl:{n}", "detail": "", "text": f"user: {n}?\nno"} for n in (3, 9, 27)
            ],
            "duplicate": [{"source": "more.csv:5", "detail": "0123abcd", "text": "user: again?\nagain"}],
            "fixed": [{"source": "more.csv:8", "detail": "1 mojibake", "text": "cafÃ© → café"}],
        },
        "tokenize": {"train": split(2005), "validation": split(92)},
        "train": {
            **{"loss_first": 2.51234567, "loss_last": 1.41234, "validation_loss_start": 2.4, "validation_loss": 1.5},
            **{"steps": 240, "tokens": 360_900, "trained_tokens": 200_500, "trainable_parameters": 98_304},
            **{"parameters": 1_234_567, "trainable_share": 0.073752, "base_bytes_16bit": 2_469_134},
            **{"base_bytes_loaded": 801_234, "adapter_bytes": 395_000},
            "versions": {"torch": "2.9.0+cpu", "transformers": "5.1.0", "trl": "1.16.0"},
        },
        "merge": {"parity": parity | {"loss_merged": 1.51235, "tokens": 2048} | JUDGED}
        | {"naive": {"loss_gap": -0.0321, "kl": 0.0453, "top1_agreement": 0.9095, "loss_merged": 1.48024}}
        | {"values": {"compared": 28, "different": 3, "largest_difference": 0.0123}}
        | {"bytes": 2_470_111, "tensors": 39, "merged_modules": 28, "base": "dequantized"},
        "params": result_params(load_params(REPOSITORY / "tests/params.yaml")),
        "base": evaluation(11.38, body_bits_per_byte=1.3) | asked_in_plain_text(),
        "tuned": evaluation(4.871, ended_share=0.95, parses_share=0.85, chrf=43.2, body_bits_per_byte=0.9),
        "curves": {
            "train": loss,
            "learning_rate": rate,
            "validation": [(step, 1.5 + 0.9 * math.exp(-step / 50)) for step in range(0, 241, 50)],
        },
        "predictions": {
            "base": [prediction(number, f"base answer {number}\n" * 9) for number in range(40)],
            "tuned": [prediction(number, f"    return tuned({number})") for number in range(40)],
        },
        "rows": {
            "base": [evaluated_row(number, 2.5) for number in range(190)],
            "tuned": [evaluated_row(number, 1.5 if number % 20 else 2.6) for number in range(190)],
        },
    }


def write_inputs(root, inputs):
    def put(path, text):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")

    for name in ("clean", "tokenize", "train", "merge"):
        put(f"metrics/{name}.json", json.dumps(inputs[name]))
    put("metrics/clean.rejected.json", json.dumps(inputs["rejected"]))
    for name in ("base", "tuned"):
        put(f"metrics/evaluate/{name}.json", json.dumps(inputs[name]))
        lines = "".join(json.dumps(row) + "\n" for row in inputs["predictions"][name])
        put(f"metrics/evaluate/{name}.predictions.jsonl", lines)
        put(f"metrics/evaluate/{name}.rows.jsonl", "".join(json.dumps(row) + "\n" for row in inputs["rows"][name]))
    put("metrics/download_model.json", json.dumps(inputs["manifest"]))
    curves = inputs["curves"]
    both = zip(curves["train"], curves["learning_rate"], strict=True)
    lines = "".join(f"{step},{loss:.6g},{rate:.6g},0.5\n" for (step, loss), (_, rate) in both)
    put("metrics/train_curve.csv", f"step,loss,learning_rate,grad_norm\n{lines}")
    lines = "".join(f"{step},{loss:.6g}\n" for step, loss in curves["validation"])
    put("metrics/validation_curve.csv", f"step,loss\n{lines}")


@pytest.fixture
def params():
    return load_params(REPOSITORY / "tests/params.yaml")


@pytest.fixture
def run(tmp_path, monkeypatch, params):
    """Runs main() on the inputs in an empty repository. Returns its folder and the outcome."""
    monkeypatch.chdir(tmp_path)

    def run(inputs):
        write_inputs(tmp_path, inputs)
        return tmp_path, main(params)

    return run


def leaves(values):
    for value in values.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


class Page(HTMLParser):
    """What a browser reads from the page: its tags, their attributes, its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def hostile_inputs():
    inputs = example()
    for name in ("base", "tuned"):
        for row in inputs["predictions"][name]:
            row |= {"source": HOSTILE, "prompt": HOSTILE, "reference": HOSTILE, "output": HOSTILE}
    reason = HOSTILE.replace("\ud800", "")
    inputs["clean"]["rows"]["rejected"], inputs["clean"]["fixed"] = {reason: 3}, 0
    inputs["rejected"] = {reason: [{"source": HOSTILE, "detail": HOSTILE, "text": HOSTILE}] * 3}
    inputs["clean"]["sources"] = {reason: source(2400, 2005, 92, 190, 113)}
    inputs["train"]["versions"] = {HOSTILE: HOSTILE}
    inputs["manifest"]["id"] = inputs["manifest"]["revision"] = inputs["merge"]["base"] = HOSTILE
    return inputs


def test_metrics_json_is_nested_and_holds_nothing_but_finite_numbers(run):
    folder, _ = run(example())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {"clean", "tokenize", "train", "merge", "evaluate"}
    assert all(type(value) in (int, float) and math.isfinite(value) for value in leaves(metrics))
    assert metrics["clean"]["rows"]["rejected"] == {"too_short": 88, "duplicate": 25}
    assert metrics["evaluate"]["tuned"]["perplexity"] == 4.871
    assert "versions" not in metrics["train"]
    assert "base" not in metrics["merge"]


def test_floats_of_metrics_json_have_six_significant_digits_and_counts_have_all():
    metrics = report(example(), 1)["metrics"]
    assert metrics["train"]["loss_first"] == 2.51235
    assert metrics["merge"]["parity"]["kl"] == 3.4e-06
    assert metrics["train"]["base_bytes_16bit"] == 2_469_134


def test_no_rejected_row_is_reported_as_an_empty_group():
    inputs = example()
    inputs["clean"]["rows"]["rejected"] = inputs["rejected"] = {}
    inputs["clean"]["fixed"] = 0
    assert report(inputs, 1)["metrics"]["clean"]["rows"]["rejected"] == {}


def test_what_was_not_measured_is_left_out_of_metrics_json_and_shown_as_a_dash():
    inputs = example()
    inputs["base"]["perplexity_after_8"] = inputs["tuned"]["perplexity_after_8"] = None
    result = report(inputs, 1)
    assert "perplexity_after_8" not in result["metrics"]["evaluate"]["base"]
    assert "| Perplexity after 8 tokens | – | – | – |" in result["markdown"]


def test_two_runs_write_the_same_bytes(run):
    names = ("metrics.json", "reports/report.md", "reports/report.html", "reports/model-card.md")
    folder, _ = run(example())
    first = [(folder / name).read_bytes() for name in names]
    run(example())
    assert [(folder / name).read_bytes() for name in names] == first


def test_no_untrusted_text_becomes_a_tag_of_the_page():
    clean = Page(report(example(), 3)["html"])
    page = Page(report(hostile_inputs(), 3)["html"])
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.text.count("<script>alert(1)</script>") == 3 * 5 + 6 + 2 + 3 * 3 + 40 * 4
    assert set(page.tags) == set(clean.tags)


@pytest.mark.parametrize("kind", ["html", "markdown"])
def test_control_characters_are_spelled_out_and_the_page_can_be_written(kind):
    text = report(hostile_inputs(), 3)[kind]
    text.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert r"\x1b[31mred" in text
    assert r"\u202e" in text


def test_no_untrusted_text_becomes_markup_of_the_markdown_page():
    markdown = report(hostile_inputs(), 3)["markdown"]
    outside = re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", markdown)
    assert not re.search(r"(?<!\\)[<>`]", outside)
    assert markdown.count("````text") == 3 * 4 + 3
    for table in re.findall(r"(?m)(?:^\|.*\n)+", outside):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_page_loads_nothing_from_anywhere():
    page = Page(report(hostile_inputs(), 3)["html"])
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not {"src", "href", "action", "data", "srcset"} & {name for name, _ in page.attributes}
    html = report(example(), 3)["html"]
    assert not re.search(r"https?:|url\(|@import|<script [^>]|<link|<img|fetch\(|import\(", html)
    assert "default-src 'none'" in html


def test_the_policy_of_the_page_allows_its_one_script_alone():
    html = report(hostile_inputs(), 3)["html"]
    (text,) = re.findall("(?s)<script>(.*?)</script>", html)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in html


@pytest.mark.parametrize("kind", ["html", "markdown"])
def test_both_pages_carry_the_numbers(kind):
    text = report(example(), 2)[kind]
    text = re.sub(r"<[^>]+>", " ", text) if kind == "html" else text.replace("\\", "")
    for wanted in (
        *("11.38", "4.871", "−57.2%, better", "12.5%", "95.0%", "+82.5 points, better", "+21.45, better"),
        *("2,400", "too_short", "88", "25", "2,287", "2,005", "93.2%", "assets/tiny-mistral", "1,234,567"),
        *("2.512 → 1.412", "2.400 → 1.500", "1.250e-05", "99.87%", "dequantized", "28 of 39 tensors"),
        *("3.1× smaller", "7.38%", "6.3× smaller"),
        *("−0.0012 to +0.0034", "-0.03210", "0.04530", "90.95%", "25 of 28", "1.23%"),
        *("torch", "2.9.0+cpu"),
    ):
        assert wanted in text, wanted


def test_of_clean_metrics_json_has_what_tells_two_runs_apart():
    clean = report(example(), 0)["metrics"]["clean"]
    assert set(clean) == {"fixed", "rows", "splits"}


@pytest.mark.parametrize("kind", ["html", "markdown"])
def test_both_pages_show_lengths_sources_and_samples_of_what_was_rejected(kind):
    text = report(example(), 0)[kind]
    text = re.sub(r"(<[^>]+>\s*)+", " | ", text) if kind == "html" else text.replace("\\", "")
    for wanted in (
        *("| up to 250 | 1,400 | 23 | 140 |", "| 501 to 1,000 | 200 | 23 | 10 |", "| more than 1,000 | 5 | 0 | 0 |"),
        *("| answers.jsonl | 1,600 | 1,300 | 50 | 150 | 100 |", "| more.csv | 800 | 705 | 42 | 40 | 13 |"),
        *("answers.jsonl:27", "user: 27?\nno", "more.csv:5", "0123abcd", "user: again?\nagain"),
    ):
        assert wanted in text, wanted
    assert text.index("duplicate") < text.index("more.csv:5") < text.index("answers.jsonl:3")


def test_the_samples_of_each_reason_are_folded_away_behind_how_many_rows_it_rejected():
    html = report(example(), 0)["html"]
    assert re.findall("<details>\n<summary>(.*?)</summary>", html) == [
        "duplicate: 1 of 25",
        "fixed: 1 of 7",
        "too_short: 3 of 88",
    ]


def test_the_twenty_largest_sources_are_listed_and_the_others_summed():
    inputs = example()
    inputs["clean"]["sources"] = {f"{n:02}.jsonl": source(100 + n, 90 + n, 3, 4, 3) for n in range(22)}
    inputs["clean"]["sources"][OTHER_SOURCES] = source(1000, 900, 50, 50, 0)
    rows = re.findall(r"(?m)^\| (\d\d\.jsonl|\\?\(others\\?\)) \| (.*) \|$", report(inputs, 0)["markdown"])
    assert [name for name, _ in rows] == [f"{n:02}.jsonl" for n in range(21, 1, -1)] + [OTHER_SOURCES]
    assert rows[0][1] == "121 | 111 | 3 | 4 | 3"
    assert rows[-1][1] == "1,201 | 1,081 | 56 | 58 | 6"


def test_buckets_stand_in_the_order_of_their_lengths():
    inputs = example()
    for counts in inputs["clean"]["characters"].values():
        counts |= {"to_16000": 7, "to_128000": 8}
    found = re.findall(r"(?m)^\| ((?:up|[\d,]+) to [\d,]+|more than [\d,]+) \|", report(inputs, 0)["markdown"])
    assert found == [
        *("up to 250", "251 to 500", "501 to 1,000", "1,001 to 16,000", "16,001 to 128,000", "more than 128,000")
    ]


def test_a_bar_is_as_tall_as_its_share_of_its_split():
    chart = histogram("key", "Title", "characters", [0, 10, 20], {"train": [100, 300, 0], "test": [1, 0, 1]})
    train, test = (each.bars for each in chart.bars)
    # the axis ends at 80 %
    height = chart.bottom - chart.top
    assert [bar.height for bar in train] == pytest.approx([height * 0.25 / 0.8, height * 0.75 / 0.8, 0], abs=0.1)
    assert [bar.height for bar in test] == pytest.approx([height * 0.5 / 0.8, 0, height * 0.5 / 0.8], abs=0.1)
    assert all(bar.top + bar.height == pytest.approx(chart.bottom) for bar in (*train, *test))
    assert [tick.label for tick in chart.y_ticks] == ["0%", "20%", "40%", "60%", "80%"]
    assert train[1].text == "train, 11 to 20 characters: 300 (75.0%)"
    assert test[2].text == "test, more than 20 characters: 1 (50.0%)"


def test_bars_stay_inside_the_frame_and_apart():
    edges = [0, 250, 500, 1000, 2000, 4000, 8000, 16000]
    counts = {"train": [1_000_000, 1, 0, 9, 9, 9, 9, 9], "validation": [0] * 7 + [1], "test": [3] * 8}
    chart = histogram("key", "Title", "characters", edges, counts)
    bars = sorted(bar for each in chart.bars for bar in each.bars)
    assert all(one.left + one.width <= other.left + 0.11 for one, other in zip(bars, bars[1:], strict=False))
    assert bars[0].left >= chart.left
    assert bars[-1].left + bars[-1].width <= chart.right
    assert all(chart.top <= bar.top <= chart.bottom for bar in bars)
    assert chart.bars[0].bars[1].height == 1  # one row of a million
    assert chart.bars[0].bars[2].height == 0


def test_a_histogram_of_nothing_says_so():
    chart = histogram("key", "Title", "characters", [0, 10], {"train": [0, 0]})
    assert (chart.bars, chart.description) == ([], "Nothing was counted.")


def test_a_worse_figure_is_called_worse_and_an_equal_one_unchanged():
    inputs = example()
    inputs["tuned"] |= {"perplexity": 12.0, "chrf": 21.75, "ended_share": 0.1}
    markdown = report(inputs, 0)["markdown"]
    assert "| 11.38 | 12.00 | +5.4%, worse |" in markdown
    assert "| 12.5% | 10.0% | −2.5 points, worse |" in markdown
    assert "| 21.75 | 21.75 | none |" in markdown


def test_a_folder_elsewhere_on_the_machine_is_told_by_its_name_alone():
    inputs = example()
    inputs["manifest"]["path"] = "/home/someone/models/mistral"
    result = report(inputs, 1)
    assert "/home/someone" not in result["html"] + result["markdown"]
    assert "| Model | mistral |" in result["markdown"]


@pytest.mark.parametrize(("asked", "shown"), [(0, 0), (1, 1), (7, 7), (40, 40), (99, 40)])
def test_as_many_samples_are_shown_as_asked_for_and_there_are(asked, shown):
    result = report(example(), asked)
    assert result["html"].count("<article>") == shown
    assert len(re.findall(r"(?m)^### Sample", result["markdown"])) == shown


def test_samples_are_spread_evenly_and_keep_their_order():
    assert spread(list(range(40)), 4) == [5, 15, 25, 35]
    assert spread(list(range(3)), 3) == [0, 1, 2]
    assert spread([], 5) == []


def test_a_sample_shows_reference_base_and_tuned_of_one_prompt():
    markdown = report(example(), 1)["markdown"]
    sample = markdown[markdown.index("### Sample 1: python-3.11/email/header.py:20") :]
    assert sample.index("def f20") < sample.index("base answer 20") < sample.index("return tuned(20)")


def test_predictions_of_other_rows_are_refused():
    inputs = example()
    inputs["predictions"]["tuned"][3]["id"] = "other"
    with pytest.raises(UserError, match="prediction 4 has the id '0003' in base, 'other' in tuned"):
        report(inputs, 1)


def test_predictions_of_fewer_rows_are_refused():
    inputs = example()
    inputs["predictions"]["tuned"].pop()
    with pytest.raises(UserError, match="base are 40, those of tuned 39"):
        report(inputs, 1)


def test_evaluations_of_different_rows_are_refused():
    inputs = example()
    inputs["tuned"]["tokens"] += 1
    with pytest.raises(UserError, match="tokens: 21345, that of tuned 21346"):
        report(inputs, 1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("clean", lambda values: values["rows"].pop("read"), r"metrics/clean\.json lacks rows\.read"),
        ("clean", lambda values: values.pop("sources"), r"metrics/clean\.json lacks sources"),
        ("clean", lambda values: values["sources"]["more.csv"].pop("test"), r"has sources of 'more\.csv' that are not"),
        ("clean", lambda values: values["sources"]["more.csv"].update(test=-1), r"has sources of 'more\.csv'"),
        ("clean", lambda values: values["characters"].pop("test"), r"not buckets up to longer of train, validation"),
        ("clean", lambda values: values["characters"]["test"].pop("to_00250"), r"has characters of 'test' that are"),
        (
            "clean",
            lambda values: values["characters"]["train"].update(long=1),
            r"characters\.train with the bucket 'long'",
        ),
        ("clean", lambda values: values["rows"]["rejected"].update(duplicate="x"), r"rows rejected as 'duplicate'"),
        ("rejected", lambda values: values.pop("duplicate"), r"clean\.rejected\.json does not have the reasons of"),
        ("rejected", lambda values: values["too_short"][1].pop("text"), r"sample 2 of 'too_short' lacks one of source"),
        ("rejected", lambda values: values.update(too_short="x"), r"sample 1 of 'too_short' lacks"),
        ("clean", lambda values: values.update(rows=3), r"metrics/clean\.json lacks rows\.read"),
        ("train", lambda values: values.update(loss_last="1.5"), r"train\.json has loss_last: '1.5'"),
        ("train", lambda values: values.update(loss_last=math.nan), r"train\.json has loss_last: nan"),
        ("merge", lambda values: values["parity"].pop("kl"), r"merge\.json lacks parity\.kl"),
        ("merge", lambda values: values["naive"].pop("kl"), r"merge\.json lacks naive\.kl"),
        ("clean", lambda values: values.pop("sha256"), r"clean\.json lacks sha256"),
        ("tuned", lambda values: values.pop("chrf"), r"metrics/evaluate/tuned\.json lacks chrf"),
        ("manifest", lambda values: values.pop("parameters"), r"metrics/download_model\.json lacks parameters"),
    ],
)
def test_a_file_without_what_the_report_needs_is_named(run, name, change, message):
    inputs = copy.deepcopy(example())
    change(inputs[name])
    with pytest.raises(UserError, match=message):
        run(inputs)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("metrics/clean.json", "{", "is not valid JSON"),
        ("metrics/train_curve.csv", "step,loss\n1,2\n", "not a curve with the columns step and learning_rate"),
        ("metrics/validation_curve.csv", "step,loss\n1,high\n", "not a curve"),
        ("metrics/evaluate/base.predictions.jsonl", "[]\n", r"predictions\.jsonl:1 lacks id"),
        ("metrics/evaluate/base.predictions.jsonl", '{"id": "a"}\n', r"predictions\.jsonl:1 lacks source"),
        ("metrics/clean.rejected.json", None, "is missing"),
        ("metrics/clean.rejected.json", "[]", "does not have the reasons"),
    ],
)
def test_a_broken_or_missing_file_is_named(run, params, path, text, message):
    folder, _ = run(example())
    (folder / path).unlink()
    if text is not None:
        (folder / path).write_text(text)
    with pytest.raises(UserError, match=message):
        main(params)


def hub_inputs():
    inputs = example()
    inputs["manifest"] |= {"source": "hub", "id": "owner/base", "path": None, "revision": "d" * 40}
    inputs["manifest"]["license"] = "apache-2.0"
    inputs["params"]["data"] |= {"source": "hub", "id": "owner/rows", "revision": "e" * 40}
    return inputs


def test_the_model_card_is_one_that_the_hub_library_reads(run):
    folder, _ = run(example())
    plain = ModelCard.load(folder / "reports/model-card.md")
    assert (plain.data.library_name, plain.data.pipeline_tag) == ("transformers", "text-generation")
    assert plain.data.base_model is plain.data.datasets is plain.data.license is None  # none of them is on the hub
    card = ModelCard(report(hub_inputs(), 0)["card"])
    assert card.data.base_model == "owner/base"
    assert card.data.base_model_relation == "merge"
    assert card.data.datasets == ["owner/rows"]
    assert card.data.license == "apache-2.0"


def test_the_model_card_carries_results_provenance_and_params():
    text = report(hub_inputs(), 0)["card"].replace("\\", "")
    for wanted in (
        *("| Perplexity | 11.38 | 4.871 | −57.2%, better |", "| Loss gap | 1.250e-05 | -0.03210 |"),
        *(
            "| Its commit | " + "d" * 40,
            "owner/rows at " + "e" * 40,
            "| sha256 of data/clean/train.parquet | " + "a" * 64,
        ),
        *(
            "LoRA of rank 16 (alpha 32), init default, on the base in 4 bits (nf4)",
            "| Its licence | apache-2.0 |",
            "| transformers | 5.1.0 |",
        ),
    ):
        assert wanted in text, wanted
    params = YAML(typ="safe").load(re.search("(?ms)^```text\n(seed.*?)^```$", text)[1])
    tiny = read_yaml(REPOSITORY / "tests/params.yaml")
    assert params["train"] == tiny["train"]
    assert params.keys() == tiny.keys() - {"machine", "report"}


@pytest.mark.parametrize(("bits", "said"), [(4, "4 bits (fp4)"), (8, "8 bits (LLM.int8)"), (16, "16 bits")])
def test_the_model_card_says_in_what_the_base_was_held(bits, said):
    inputs = example()
    inputs["params"]["quantization"] |= {"bits": bits, "quant_type": "fp4"}
    text = report(inputs, 0)["card"].replace("\\", "")
    assert f"| Adapter | LoRA of rank 16 (alpha 32), init default, on the base in {said} |" in text
    assert ModelCard(text).data.tags == ["mistral", "qlora" if bits == 4 else "lora"]


def test_the_model_card_says_what_kind_of_adapter_it_was_and_as_what_rank_it_is_saved():
    inputs = example()
    inputs["params"]["lora"] |= {"variant": "rslora", "init": "olora"}
    inputs["params"]["quantization"] |= {"bits": 16}
    text = report(inputs, 0)["card"].replace("\\", "")
    assert "rsLoRA of rank 16 (alpha 32), init olora, saved as rank 32, on the base in 16 bits" in text


def test_the_model_card_tells_no_path_of_this_machine():
    inputs = example()
    inputs["manifest"]["path"] = "/home/someone/models/mistral"
    inputs["params"]["model"]["path"] = "/home/someone/models/mistral"
    inputs["params"]["data"] |= {"source": "file", "path": "/home/someone/rows.jsonl"}
    card = report(inputs, 1)["card"]
    assert "/home" not in card
    assert "rows.jsonl" in card


def test_no_untrusted_text_becomes_markup_or_metadata_of_the_model_card():
    inputs = hostile_inputs()
    inputs["params"]["prompt"]["system"] = HOSTILE
    inputs["manifest"] |= {"license": "mit\n---\n<script>", "id": "owner/base\ntags: [x]"}
    text = report(inputs, 1)["card"]
    card = ModelCard(text)
    assert card.data.base_model == "owner/base\ntags: [x]"
    assert card.data.tags == ["mistral", "qlora"]
    assert not re.search(r"(?<!\\)[<>`]", re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", card.text))


def test_show_prints_a_short_table_and_says_where_the_report_is(run, capsys):
    folder, _ = run(example())
    print_results()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["base", "tuned"]
    assert lines[1].split() == ["Perplexity", "11.38", "4.871"]
    assert lines[-2].endswith("reports/report.html")
    assert lines[-1] == "  times and memory: none, since no stage ran in this folder"
    assert (folder / "reports/report.html").is_file()
    assert len({len(line) for line in closing_table(example()["base"], example()["tuned"]).splitlines()}) == 1


def test_show_before_any_run_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"metrics\.json is missing\. `dvc repro report` makes"):
        print_results()


def test_importing_the_stage_loads_no_torch():
    code = "import stages.report, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize("points", [[], [(5, 1.25)], [(1, 2.0), (2, 2.0)], [(0, 0.0)], [(1, -3.0), (900, 1e9)]])
def test_a_chart_of_few_or_equal_points_stays_inside_its_frame(points):
    chart = line_chart("loss", "Loss", {"train": points}, ["first"])
    assert bool(chart.lines) == bool(points)
    assert bool(points) or chart.description == "No point was recorded."
    places = [place for line in chart.lines for place in line.dots]
    assert all(chart.left <= x <= chart.right and chart.top <= y <= chart.bottom for x, y in places)
    assert len(places) == len(points)
    assert "nan" not in repr(chart)


def test_each_curve_is_read_from_its_own_column(run):
    folder, _ = run(example())
    html = (folder / "reports/report.html").read_text()
    assert "train: 2.525 at step 1, 1.461 at step 240, lowest 1.358. validation: 2.4 at step 0, 1.516 at" in html
    assert "learning rate: 0.0002 at step 1, 0 at step 240, lowest 0." in html


def test_a_rate_is_drawn_from_zero_and_a_loss_is_not():
    points = [(1, 5.1), (2, 5.2)]
    assert line_chart("loss", "Loss", {"train": points}, ["first"]).y_ticks[0].label != "0"
    assert line_chart("rate", "Rate", {"rate": points}, ["first"], zero=True).y_ticks[0].label == "0"


def test_an_answer_keeps_the_empty_line_that_it_begins_with():
    inputs = example()
    inputs["predictions"]["tuned"][20]["output"] = "\nfirst"
    result = report(inputs, 1)
    assert re.search("<pre[^>]*>\n\nfirst</pre>", result["html"])  # a browser drops the newline right after <pre>
    assert "```text\n\nfirst\n```" in result["markdown"]


def test_a_report_without_any_curve_says_so():
    inputs = example()
    inputs["curves"] = {"train": [], "learning_rate": [], "validation": []}
    html = report(inputs, 0)["html"]
    assert html.count(">No point was recorded.</text>") == 2
    assert "polyline points" not in html


def test_ticks_are_round_and_enclose_the_values():
    assert ticks(0.0, 0.002, 5) == pytest.approx([0, 0.0005, 0.001, 0.0015, 0.002])
    assert ticks(1, 240, 6, whole=True) == [0, 50, 100, 150, 200, 250]
    assert ticks(3, 4, 6, whole=True) == [3, 4]
    for low, high in ((0.013, 7.77), (-2.5, 2.5), (1e-7, 3e-7), (2.0, 2.0)):
        found = ticks(low, high, 5)
        assert found[0] <= low
        assert found[-1] >= high
        assert 2 <= len(found) <= 7


def test_tick_labels_tell_neighbours_apart():
    assert [tick_label(value, 0.0005) for value in (0, 0.0005, 0.001, 0.0015)] == ["0", "5e-4", "1e-3", "1.5e-3"]
    assert [tick_label(value, 0.2) for value in (1.2, 1.4)] == ["1.2", "1.4"]
    assert [tick_label(value, 20_000) for value in (80_000, 100_000)] == ["80,000", "100k"]


def test_a_long_curve_is_thinned_to_means():
    points = [(step, step % 2) for step in range(10_000)]
    kept = thinned(points)
    assert len(kept) <= 300
    assert line_chart("loss", "Loss", {"train": points}, ["first"]).lines[0].path.count(",") == len(kept)
    assert all(y == pytest.approx(0.5, abs=0.02) for _, y in kept)


def test_figures_read_as_people_write_them():
    assert [number(value) for value in (None, 1_234_567, 4.871, 12.0, 0.0)] == [
        "–",
        "1,234,567",
        "4.871",
        "12.00",
        "0.000",
    ]
    assert [size(value) for value in (0, 999, 1500, 123_456, 14_500_000_000)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "123 kB",
        "14.5 GB",
    ]
    assert [duration(value) for value in (0.04, 59.94, 60, 3725)] == ["0.0 s", "59.9 s", "1 min 00 s", "1 h 02 min"]


def test_text_keeps_its_letters_and_loses_its_tricks():
    assert visible("naïve\t日本\r\nok 👩‍💻") == "naïve\t日本\nok 👩‍💻"
    assert visible("\x1b]0;title\x07\r") == r"\x1b]0;title\x07\r"
    assert inline("a|b\n`c` <d>") == r"a\|b \`c\` \<d\>"
    assert fenced("````") == "`````text\n````\n`````"


def test_a_line_of_the_table_of_rows_has_both_models_and_their_difference():
    inputs = example()
    inputs["rows"]["tuned"][1]["chrf"] = 23.5
    table = row_lines(inputs["rows"], answer_pairs(inputs["predictions"]["base"], inputs["predictions"]["tuned"]))
    assert len(table) == 190
    assert [text for _, text in table[1].cells] == ["2.500", "20.00", "1.500", "23.50", "−1.000", "+3.500"]
    assert (table[1].worse, table[20].worse) == (False, True)
    assert table[1].answers[1]["output"] == "    return tuned(1)"
    assert table[50].answers is None
    assert [text for _, text in table[50].cells][1::2] == ["–", "–", "–"]


def without_answers():
    """The inputs of a test split of texts, to which no answer is generated."""
    inputs = example()
    for name in ("base", "tuned"):
        for values in [inputs[name], *([inputs[name]["plain"]] if name == "base" else [])]:
            for measure in ("ended_share", "parses_share", "exact_share", "chrf", "rouge_l", "body_bits_per_byte"):
                for end in ("", "_lo", "_hi"):
                    values.pop(measure + end, None)
            values["generated_rows"] = 0
        inputs["predictions"][name] = []
        for row in inputs["rows"][name]:
            for counts in (row, row["plain"]):
                counts.update(dict.fromkeys((*GENERATED, *BODY), 0))
    return inputs


def test_of_texts_the_report_shows_no_figures_on_answers_and_says_so(run):
    folder, outcome = run(without_answers())
    pages = [(folder / "reports" / name).read_text() for name in ("report.md", "report.html", "model-card.md")]
    for page in pages:
        assert not [word for word in ("chrF", "ROUGE", "equal to the reference", "end by themselves") if word in page]
    assert "no figures on answers" in pages[0]
    assert "No test row ends with an answer to generate" in pages[1]
    assert "Perplexity" in pages[0]
    metrics = json.loads((folder / "metrics.json").read_text())["evaluate"]
    assert metrics["tuned"]["generated_rows"] == 0
    assert "perplexity" in metrics["tuned"]
    assert "chrf" not in metrics["tuned"]


def test_an_evaluation_with_answers_needs_the_figures_on_them(run):
    inputs = example()
    del inputs["tuned"]["chrf"]
    with pytest.raises(UserError, match="tuned.json lacks chrf"):
        run(inputs)


def test_the_report_says_of_calls_of_tools_how_many_are_right(run):
    inputs = example()
    shares = {"call_json_share": 0.9, "call_name_share": 0.8, "call_arguments_share": 0.65}
    inputs["base"] |= dict.fromkeys(shares, 0.125)
    inputs["tuned"] |= shares
    for row in inputs["rows"]["base"] + inputs["rows"]["tuned"]:
        row |= {"calls": 1, "call_json": 1, "call_name": 1, "call_arguments": int(row["loss_sum"] < 2 * row["tokens"])}
    for predictions in inputs["predictions"].values():
        predictions[:] = [each | {"call": "wrong_arguments", "parses": None} for each in predictions]
    folder, outcome = run(inputs)
    page = (folder / "reports" / "report.md").read_text()
    assert re.search(r"\| Calls with the right tool and arguments \| 12.5% \| 65.0% \| \+52.5", page)
    assert re.search(r"\| Calls of tools that are valid .*\n\| Calls with the right tool \|", page)
    assert "other arguments" in page
    assert "call_arguments_share" in json.loads((folder / "metrics.json").read_text())["evaluate"]["change"]


def test_the_table_of_rows_has_a_thousand_at_most():
    rows = [evaluated_row(number, 2.5) for number in range(2500)]
    assert len(row_lines({"base": rows, "tuned": rows}, [])) == 1000


# What a person does with the page, and what it shows then.
DRIVER = """
const seen = {};
const find = (selector) => [...document.querySelectorAll(selector)];
const visible = (selector) => find(selector).filter((each) => each.getClientRects().length).length;
const form = document.querySelector("#filter").elements;
const change = (values) => {
  for (const [name, value] of Object.entries(values)) form[name][name === "only" ? "checked" : "value"] = value;
  document.querySelector("#filter").dispatchEvent(new Event("input"));
};
const state = () => [document.querySelector("#count").textContent, visible("#rows tr.row"),
  ...["base", "tuned", "change"].map((kind) => visible(`#rows thead [data-of=${kind}]`))];
seen.start = form.kind.value;
change({kind: "all"}); seen.all = state();
change({kind: "base"}); seen.base = state();
change({kind: "tuned"}); seen.tuned = state();
change({kind: "change", only: true}); seen.worse = state();
change({kind: "change", only: false, words: "TUNED(7) return"}); seen.words = state();
seen.folded = visible("#rows tr.texts");
find("#rows tr.row button").find((each) => each.getClientRects().length).click();
seen.opened = visible("#rows tr.texts");
change({words: "no such words"}); seen.nothing = [...state().slice(0, 2), visible("#rows tr.texts")];
change({words: ""}); seen.again = visible("#rows tr.texts");
seen.curves = find("polyline").map((each) => each.getBoundingClientRect().width > 100 && each.getTotalLength() > 100);
seen.fits = document.documentElement.scrollWidth <= innerWidth;
document.title = JSON.stringify(seen);
"""


def browse(page, folder, width):
    """(the page's title after its scripts ran, what the browser's console said)"""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (apt-get install chromium); no package of PyPI carries a browser")
    (folder / "page.html").write_text(page)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr"]
    command += ["--dump-dom", (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return unescape(re.search("<title>(.*?)</title>", done.stdout)[1]), console


def with_script(page, script, place):
    """The page with one more script, which its policy allows. Everything else stays the same."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ")
    return page.replace(
        place, f"{place}<script>{script}</script>" if place == "<head>" else f"<script>{script}</script>{place}"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("width", "start"), [(1280, "all"), (500, "change")])
def test_in_a_browser_the_filter_works_curves_are_drawn_and_the_console_stays_empty(run, tmp_path, width, start):
    folder, _ = run(example())
    page = (folder / "reports/report.html").read_text()
    title, console = browse(with_script(page, DRIVER, "</body>"), tmp_path, width)
    assert console == []
    seen = json.loads(title)
    assert seen == {
        "start": start,
        **{"all": ["190 of 190 rows", 190, 2, 2, 2], "base": ["190 of 190 rows", 190, 2, 0, 0]},
        **{"tuned": ["190 of 190 rows", 190, 0, 2, 0], "worse": ["10 of 190 rows", 10, 0, 0, 2]},
        "words": ["1 of 190 rows", 1, 0, 0, 2],
        **{"folded": 0, "opened": 1, "nothing": ["0 of 190 rows", 0, 0], "again": 1},
        **{"curves": [True] * 3, "fits": True},
    }


@pytest.mark.slow
def test_a_browser_runs_no_script_of_the_data_and_lays_it_out_in_a_phone(run, tmp_path):
    folder, _ = run(hostile_inputs())
    # Without the page's policy a script in the data would run. Only the escaping prevents it then.
    page = re.sub("<meta http-equiv[^>]+>", "", (folder / "reports/report.html").read_text())
    page = with_script(page, "window.alert = () => document.title = 'escaped'", "<head>")
    page = with_script(page, "document.title += ' ' + (document.documentElement.scrollWidth <= innerWidth)", "</body>")
    title, console = browse(page, tmp_path, 500)
    assert title == "Fine-tuning report true"
    assert console == []


def tables_of(inputs) -> dict:
    from stages._report.sections import comparison_section

    rows = inputs["rows"]
    section = comparison_section(inputs["base"], inputs["tuned"], paired_change(rows["base"], rows["tuned"]), rows)
    return {table.caption: table for table in section.tables}


def test_the_base_asked_in_plain_text_is_compared_with_both_others():
    inputs = example()
    table = next(table for caption, table in tables_of(inputs).items() if "in plain text" in caption)
    lines = {line[0]: line[1:] for line in table.rows}
    assert lines["chrF against the reference"][:3] == ["33.50", "21.75", "43.20"]
    assert "Perplexity" not in lines  # it is over other tokens
    figures = report(inputs, 3)["metrics"]["evaluate"]
    assert figures["base_plain"]["chrf"] == 33.5
    assert "plain" not in figures["base"]
    assert {"chrf", "chrf_lo", "chrf_hi"} <= figures["change_plain"].keys()


def of_prose():
    """The inputs where no test row's answer is code."""
    inputs = example()
    for evaluated in (inputs["base"], inputs["tuned"], inputs["base"]["plain"]):
        for ending in ("", "_lo", "_hi"):
            del evaluated[f"parses_share{ending}"]
    return inputs


def test_figures_about_python_are_shown_only_where_answers_are_code():
    python = ("Python", "signature", "docstring")
    assert all(word in report(example(), 0)["markdown"].partition("## What was trained")[0] for word in python)
    prose = report(of_prose(), 0)
    compared = prose["markdown"].partition("## What was trained")[0]
    assert not any(word in compared + prose["card"].partition("## Merge")[0] for word in python)
    (plain,) = (table for caption, table in tables_of(of_prose()).items() if "in plain text" in caption)
    assert plain.rows[0][:4] == ["Bits a byte of the last answer’s text", "1.210", "1.300", "0.9000"]


@pytest.mark.parametrize(("rows", "few"), [(4, True), (9, True), (10, False)])
def test_a_report_of_fewer_rows_than_an_interval_needs_says_so(rows, few):
    inputs = example()
    for name in ("base", "tuned"):
        inputs[name] |= {"rows": rows, "clusters": rows}
    made = report(inputs, 0)
    for page in (made["markdown"], made["html"], made["card"]):
        assert (f"The split has only {rows} rows, too few to judge a model by." in page) == few
        assert ("There are no intervals of tuned − base" in page) == few
        assert ("drawing 10 clusters of rows anew" in page) != few


@pytest.mark.parametrize(("rows", "few"), [(10, True), (19, True), (20, False)])
def test_a_report_of_few_rows_says_what_clean_warned_of(rows, few):
    inputs = example()
    for name in ("base", "tuned"):
        inputs[name] |= {"rows": rows, "clusters": rows}
    inputs["clean"]["splits"]["validation"] = rows
    made = report(inputs, 0)
    for page in (made["markdown"], made["html"], made["card"]):
        assert (f"The split has only {rows} rows, so these figures say little." in page) == few
    for page in (made["markdown"], made["html"]):
        assert (f"The validation split has only {rows} rows, so its loss says little." in page) == few


def test_a_report_of_too_few_rows_for_an_interval_says_nothing_of_their_document():
    inputs = example()
    for name, rows in inputs["rows"].items():
        inputs["rows"][name] = [row | {"source": "faq.csv:1"} for row in rows[:9]]
    assert "come from one document" not in report(inputs, 0)["html"]


@pytest.mark.parametrize("documents", [1, 2])
def test_a_report_of_one_document_says_that_its_intervals_may_be_too_narrow(documents):
    inputs = example()
    for rows in inputs["rows"].values():
        for place, row in enumerate(rows):
            row["source"] = f"faq-{place % documents}.csv:{place}"
    made = report(inputs, 0)
    said = "All test rows come from one document, faq-0.csv, and each counts as independent."
    for page in (made["html"], *(re.sub(r"\\(.)", r"\1", made[name]) for name in ("markdown", "card"))):
        assert (said in page) == (documents == 1)


def test_the_ends_of_a_large_interval_are_written_in_full():
    values = {"perplexity_lo": -29_431.7, "perplexity_hi": -9.4213}
    assert interval_text(values, "perplexity") == "−29,400 to −9.42"


def test_a_table_without_rows_is_its_caption_alone():
    inputs = example()
    for before, after in zip(inputs["rows"]["base"], inputs["rows"]["tuned"], strict=True):
        after["loss_sum"] = before["loss_sum"] / 2
    made = report(inputs, 0)
    caption = "Rows that became worse: 0 of 190, by loss"
    assert not made["markdown"].partition(f"**{caption}**")[2].lstrip().startswith("|")
    assert f"<p>{caption}.</p>" in made["html"]
    assert f"<caption>{caption}" not in made["html"]


def test_slices_have_an_interval_or_a_dash_and_of_them_metrics_json_has_the_fields_that_were_named():
    inputs = example()
    tables = tables_of(inputs)
    lengths = {line[0]: line[1:] for line in tables["Loss by length of the answer"].rows}
    assert list(lengths) == [f"up to {edge} tokens" for edge in (32, 64, 128, 256, 512)] + ["more than 512 tokens"]
    assert lengths["up to 32 tokens"][-1] == "–"  # from eight rows only
    assert re.fullmatch(r"−[\d.]+ to −[\d.]+", lengths["up to 512 tokens"][-1])
    assert len(tables["Loss by source, the 10 of 31 with the most tokens"].rows) == 10
    inputs["tuned"]["slices"]["difficulty"] = {"hard": {"rows": 3, "loss": 2.5}}
    assert report(inputs, 3)["metrics"]["evaluate"]["tuned"]["slices"] == {
        "difficulty": {"hard": {"rows": 3, "loss": 2.5}}
    }


def test_of_few_rows_it_says_no_interval():
    inputs = example()
    inputs["rows"] = {name: rows[:9] for name, rows in inputs["rows"].items()}
    for name in ("base", "tuned"):
        inputs[name] = {key: value for key, value in inputs[name].items() if not key.endswith(("_lo", "_hi"))}
    tables = tables_of(inputs)
    assert {line[-1] for line in tables["On the test split"].rows} == {"–"}
    figures = report(inputs, 3)["metrics"]["evaluate"]
    assert figures["change"]["loss"] < 0
    assert "loss_lo" not in figures["change"]


def test_answers_that_lost_their_tests_are_listed_by_row():
    inputs = example()
    for name, passed in (("base", (0, 1, 2)), ("tuned", (2, 3))):
        for place in range(12):
            inputs["rows"][name][place] |= {"tested": 1, "passed": int(place in passed)}
        inputs[name] |= {"pass_at_1": len(passed) / 12, "pass_at_1_lo": 0.0, "pass_at_1_hi": 0.5, "tested_rows": 12}
    tables = tables_of(inputs)
    lost = next(table for caption, table in tables.items() if caption.startswith("Answers that passed"))
    assert lost.caption.endswith("2 of 12 (1 the other way round)")
    assert [line[0] for line in lost.rows] == ["python-3.11/0.py:0", "python-3.11/1.py:1"]
    assert tables["On the test split"].rows[-1][:3] == ["Answers that pass their tests", "25.0%", "16.7%"]
    assert tables["Answers that pass their tests by length of the answer"].rows[0][:4] == [
        "up to 32 tokens",
        *("8", "8", "37.5%"),
    ]


def test_copies_of_rows_in_their_clusters_make_no_interval_of_a_difference_narrower():
    """All rows of a document are drawn together, so copies of them are no further evidence."""
    single, doubled = example(), example()
    doubled["rows"] = {name: rows * 2 for name, rows in single["rows"].items()}
    expected, figures = (report(inputs, 3)["metrics"]["evaluate"] for inputs in (single, doubled))
    for name, measure in (("change", "loss"), ("change_plain", "body_bits_per_byte")):
        assert expected[name][f"{measure}_lo"] < expected[name][f"{measure}_hi"]
        assert figures[name] == expected[name]
    before, after = (
        {(caption, line[0]): line[-1] for caption, table in tables_of(inputs).items() for line in table.rows}
        for inputs in (single, doubled)
    )
    for caption in {caption for caption, _ in before if "test split" in caption or "length" in caption}:
        intervals = {key: text for key, text in before.items() if key[0] == caption and key[1] != "up to 32 tokens"}
        assert any(" to " in text for text in intervals.values())
        assert {key: after[key] for key in intervals} == intervals
