"""Prepares reports/model-card.md: what a stranger needs to know of the merged model, and the YAML that hubs read."""

import io
from pathlib import PurePath

from ruamel.yaml import YAML

from stages._report.layout import ReportSection, Table
from stages._report.sections import comparison_section, headline, merge_section, versions_section
from stages.comparison.number_text import NOTHING
from stages.core.model_card import base_name, front_matter, precision


def without_machine_paths(params: dict) -> dict:
    """The params with only the last part of each path outside the repository."""
    return {
        name: section | {"path": PurePath(section["path"]).name}
        if isinstance(section, dict) and PurePath(section.get("path") or "").is_absolute()
        else section
        for name, section in params.items()
    }


def data_origin(data: dict) -> str:
    """Where the data came from. data: the section of the params."""
    return {
        "stdlib": "functions of Python's standard library",
        "file": data["path"],
        "url": f"{data['url']} (sha256 {data['sha256']})",
        "hub": f"{data['id']} at {data['revision']}",
    }[data["source"]]


def adapter_origin(params: dict) -> str:
    """How the adapter was made."""
    lora = params["lora"]
    kind = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}[lora["variant"]]
    # The part that PiSSA and OLoRA take out of the base is saved in the adapter too, with the same rank.
    saved = f", saved as rank {2 * lora['r']}" if lora["init"] in ("pissa", "olora") else ""
    base = precision(params["quantization"])
    return f"{kind} of rank {lora['r']} (alpha {lora['alpha']}), init {lora['init']}{saved}, on the base in {base}"


def provenance_section(inputs: dict, params: dict) -> ReportSection:
    manifest = inputs["manifest"]
    rows = [
        ["Base model", base_name(manifest)],
        ["Its commit", str(manifest.get("revision") or NOTHING)],
        ["Its licence", str(manifest.get("license") or NOTHING)],
        ["Data", data_origin(params["data"])],
        *([f"sha256 of data/clean/{split}.parquet", digest] for split, digest in inputs["clean"]["sha256"].items()),
        ["Adapter", adapter_origin(params)],
        ["Seed", str(params["seed"])],
    ]
    return ReportSection("Where it comes from", "", [Table("Inputs", ["", "Value"], rows)])


def card_values(inputs: dict) -> dict:
    """The values that model-card.md.j2 prints. inputs: those of the report, with the params by section."""
    results = comparison_section(inputs["base"], inputs["tuned"], inputs["change"], inputs["rows"])
    params, manifest = without_machine_paths(inputs["params"]), inputs["manifest"]
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(params, text)
    datasets = [params["data"]["id"]] if params["data"]["source"] == "hub" else None
    return {
        "front_matter": front_matter(manifest, params["quantization"], datasets),
        "name": base_name(manifest),
        "headline": headline(inputs["base"], inputs["tuned"]),
        "sections": [
            results._replace(tables=results.tables[:1]),  # the other tables show rows of the test split
            merge_section(inputs["merge"]),
            provenance_section(inputs, params),
            versions_section(inputs["train"]),
        ],
        "template": params["prompt"]["template"],
        "params": text.getvalue().rstrip(),
    }
