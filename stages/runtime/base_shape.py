"""Which base params.yaml names, and its sizes: from models/base, or from a table before it is downloaded."""

from dataclasses import dataclass, fields
from pathlib import Path

from stages.core.params import Model
from stages.core.paths import BASE, read_json
from stages.runtime.activations import Shape, shape_of
from stages.runtime.errors import UserError

MAKE_AGAIN = f"Run `rm -rf {BASE}` and `dvc repro download_model`"


def family_shape(layers: int, hidden: int, intermediate: int, vocabulary: int) -> Shape:
    """A model of Mistral's family. They all have 32 heads of queries and 8 of keys, each 128 wide."""
    return Shape(layers, hidden, intermediate, 32 * 128, 8 * 128, 32, vocabulary, tied=False)


SEVEN, SEVEN_V3 = family_shape(32, 4096, 14336, 32000), family_shape(32, 4096, 14336, 32768)
NEMO, SMALL = family_shape(40, 5120, 14336, 131072), family_shape(40, 5120, 32768, 131072)
# {id on the hub: shape, from its public config.json}
FAMILY = {
    "mistralai/Mistral-7B-v0.1": SEVEN,
    "mistralai/Mistral-7B-Instruct-v0.1": SEVEN,
    "mistralai/Mistral-7B-Instruct-v0.2": SEVEN,
    "mistral-community/Mistral-7B-v0.2": SEVEN,  # Mistral published this one as an archive only
    "mistralai/Mistral-7B-v0.3": SEVEN_V3,
    "mistralai/Mistral-7B-Instruct-v0.3": SEVEN_V3,
    "mistralai/Mistral-Nemo-Base-2407": NEMO,
    "mistralai/Mistral-Nemo-Instruct-2407": NEMO,
    "mistralai/Ministral-8B-Instruct-2410": family_shape(36, 4096, 12288, 131072),
    "mistralai/Mistral-Small-24B-Base-2501": SMALL,
    "mistralai/Mistral-Small-24B-Instruct-2501": SMALL,
}


@dataclass(frozen=True)
class NamedBase:
    """The base that params.yaml names. origin: a line that says which it is and where its sizes come from."""

    shape: Shape
    origin: str


def is_named(manifest: dict, model: Model) -> bool:
    """Whether the manifest of models/base is of the model that params.yaml names."""
    keys = ("source", "id", "revision") if model.source == "hub" else ("source", "path")
    return all(manifest[key] == getattr(model, key) for key in keys)


def name_of(model: Model) -> str:
    return f"{model.id} at {model.revision}" if model.source == "hub" else model.path


def named_base(model: Model) -> NamedBase:
    """The base that params.yaml names, whether or not it is in models/base yet.

    Raises:
        UserError: its sizes are not known before its download, or a file of models/base is damaged.
    """
    present = present_base() if BASE.exists() else None
    if present and is_named(present, model):
        return base_here(model)
    if model.source == "path":
        config = Path(model.path, "config.json")
        advice = f"Set model.path to the folder of a Mistral, or copy {config} again"
        return described(model, read_shape(config, advice), config)
    where = f"{BASE} is {name_in(present)}" if present else "It is not downloaded"
    if model.id not in FAMILY:
        raise UserError(
            f"{name_of(model)} is what params.yaml names. {where}, and its sizes are not in the table, which has "
            "Mistral 7B, Nemo 12B, Ministral 8B and Small 24B. Run `dvc repro download_model`, then ask again"
        )
    shape = FAMILY[model.id]
    return NamedBase(
        shape,
        f"{model.id}, {shape.parameters:,} parameters. {where}, so its sizes come from a table; after the download "
        "they come from its config.json",
    )


def present_base() -> dict:
    """The manifest of models/base.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        manifest = read_json(BASE / "manifest.json")
        return {name: manifest[name] for name in ("source", "id", "revision", "path")}
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{BASE / 'manifest.json'} is missing or damaged. {MAKE_AGAIN}") from None


def name_in(manifest: dict) -> str:
    return manifest["path"] or f"{manifest['id']} at {manifest['revision']}"


def base_here(model: Model) -> NamedBase:
    """The base in models/base, which is the one that params.yaml names.

    Raises:
        UserError: a file of it is damaged.
    """
    config = BASE / "config.json"
    found = described(model, read_shape(config, MAKE_AGAIN), config)
    if model.source == "hub" and model.id in FAMILY and (difference := describe_difference(model.id, found.shape)):
        return NamedBase(found.shape, f"{found.origin}\n{difference}")
    return found


def described(model: Model, shape: Shape, config: Path) -> NamedBase:
    return NamedBase(
        shape,
        f"{model.id if model.source == 'hub' else model.path}, {shape.parameters:,} parameters, counted from {config}",
    )


def read_shape(config: Path, advice: str) -> Shape:
    """The shape in a config.json.

    Raises:
        UserError: it cannot be read, or has no Mistral's sizes.
    """
    try:
        return shape_of(read_json(config))
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{config} is missing, or has not the sizes of a Mistral. {advice}") from None


def describe_difference(name: str, shape: Shape) -> str:
    """Names what the table has otherwise than config.json. Empty where they agree."""
    table = FAMILY[name]
    different = [
        f"{field.name} {getattr(shape, field.name)} instead of {getattr(table, field.name)}"
        for field in fields(Shape)
        if getattr(shape, field.name) != getattr(table, field.name)
    ]
    if not different:
        return ""
    return (
        f"Its config.json differs from the table in stages/runtime/base_shape.py: {', '.join(different)}. config.json "
        "counts; correct the table"
    )
