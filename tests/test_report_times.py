"""The page of times: what `python -m stages.report --show` writes next to the timing files."""

import json
import re
from pathlib import Path

import networkx
import pytest
from dvc.repo import Repo

from stages._report.pipeline_drawing import LINES, PLACES, drawing
from stages._report.times import PAGE, write_times_page
from stages.comparison.number_text import duration
from stages.core.paths import TIMING, timing_file, write_json
from stages.runtime.errors import UserError
from tests.support.project import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def timing(seconds, **others):
    return {"ended": "2026-11-05T12:34:56+00:00", "seconds": seconds, "peak_rss_bytes": 123_000_000} | others


def rows(page):
    """{stage: the cells of its line}"""
    lines = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    return {stage: re.findall(r"<td[^>]*>(.*?)</td>", cells) for stage, cells in lines}


def test_each_stage_that_ran_here_has_a_line_in_the_order_of_the_pipeline():
    write_json(timing_file("evaluate@tuned"), timing(3725, generated_tokens_per_second=345.6))
    write_json(timing_file("train"), timing(59.94, device="cpu", tokens_per_second=1234.6))
    assert write_times_page() == PAGE
    lines = rows(PAGE.read_text())
    assert list(lines) == ["train", "evaluate@tuned"]
    assert lines["train"] == ["2026-11-05 12:34:56", "59.9 s", "123 MB", "1,235", "cpu"]
    assert lines["evaluate@tuned"] == ["2026-11-05 12:34:56", "1 h 02 min", "123 MB", "345.6", "–"]


def test_memory_of_a_gpu_has_a_column_only_where_one_was_used():
    write_json(timing_file("train"), timing(1, device="cpu", peak_memory_bytes=5))
    write_times_page()
    assert "GPU memory" not in PAGE.read_text()
    write_json(timing_file("train"), timing(1, device="NVIDIA H100", peak_memory_bytes=12_300_000_000))
    write_times_page()
    assert "12.3 GB" in rows(PAGE.read_text())["train"]


def test_a_clone_in_which_no_stage_ran_says_so_on_the_page():
    assert write_times_page() is None
    assert "No stage ran in this folder, so there are no times." in PAGE.read_text()
    assert "<svg" not in PAGE.read_text()


def test_text_of_a_timing_file_cannot_become_markup():
    write_json(timing_file("train"), timing(1, device="<script>alert(1)</script>"))
    write_times_page()
    assert "<script>" not in PAGE.read_text()


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"seconds": "1", "peak_rss_bytes": 1})])
def test_a_damaged_timing_file_is_named(text):
    TIMING.mkdir(parents=True)
    timing_file("train").write_text(text)
    with pytest.raises(UserError, match=r"metrics/timing/train\.json"):
        write_times_page()


def test_the_drawing_has_every_stage_and_no_line_that_another_way_makes_needless(monkeypatch):
    monkeypatch.chdir(ROOT)  # DVC's names of stages are relative
    graph = networkx.DiGraph()
    stages = Repo(ROOT).index.stages
    made = {out.def_path: stage.addressing for stage in stages for out in stage.outs}
    for stage in stages:
        for dep in stage.deps:
            owner = next((made[path] for path in made if f"{dep.def_path}/".startswith(f"{path}/")), None)
            if owner not in (None, "hash_code"):  # which makes no data
                graph.add_edge(owner, stage.addressing)
    assert set(PLACES) == set(graph.nodes)
    assert set(LINES) == set(networkx.transitive_reduction(graph).edges)


def test_the_drawing_tells_each_stages_time_and_its_boxes_stay_apart_and_inside():
    drawn = drawing({"train": timing(12.5)})
    times = {box.name: box.time for box in drawn.boxes}
    assert times["train"] == duration(12.5)
    assert times["report"] == "–"
    for box in drawn.boxes:
        assert 0 <= box.left <= drawn.width - drawn.box
        assert 0 <= box.top <= drawn.height - drawn.high
        near = [other for other in drawn.boxes if abs(other.top - box.top) < drawn.high and other != box]
        assert all(abs(other.left - box.left) > drawn.box for other in near)


def test_the_page_needs_nothing_from_elsewhere():
    write_json(timing_file("clean"), timing(1))
    write_times_page()
    page = PAGE.read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=", page)
    assert Path("metrics/timing/times.html") == PAGE
