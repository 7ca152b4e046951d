"""Collects the figures of metrics.json, each under its stage's name."""


def figures_only(values: dict) -> dict:
    """The numbers among the values, nested as before, floats to six digits: what `dvc metrics diff` can compare."""
    kept = {}
    for name, value in values.items():
        if isinstance(value, dict):
            inner = figures_only(value)
            # An empty dict, such as one of no rejects, is a result. A dict of strings only is not.
            if inner or not value:
                kept[name] = inner
        elif isinstance(value, float):
            kept[name] = float(f"{value:.6g}")
        elif isinstance(value, int) and not isinstance(value, bool):
            kept[name] = value
    return kept


def without_details(evaluation: dict) -> dict:
    """The evaluation with only those slices that the user named. Sources and lengths have too many values."""
    kept = {name: values for name, values in evaluation["slices"].items() if name not in ("source", "length")}
    return evaluation | {"slices": kept}


def collect_metrics(inputs: dict) -> dict:
    """All of metrics.json, with which `dvc metrics` and `dvc exp show` compare two runs."""
    stages = {name: inputs[name] for name in ("clean", "tokenize", "train", "merge")}
    parity = inputs["merge"]["parity"]
    stages["merge"] = inputs["merge"] | {"parity": parity | {"judged": int(parity["judged"])}}
    left_out = ("sources", "characters", "sha256", "absorbed", "fixed_kinds")
    stages["clean"] = {name: value for name, value in inputs["clean"].items() if name not in left_out}
    evaluations = {name: without_details(inputs[name]) for name in ("base", "tuned")}
    evaluations["base_plain"] = evaluations["base"].pop("plain")
    evaluations |= {name: inputs[name] for name in ("change", "change_plain")}
    return figures_only({**stages, "evaluate": evaluations})
