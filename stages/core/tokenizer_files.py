"""Mistral's tokenizer files, which the mistral-common wheel brings along, by the version of the instruct format."""

import importlib.resources
from importlib.resources.abc import Traversable

FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
}


def wheel_file(version: str) -> Traversable:
    """The SentencePiece model of v1, v2 or v3."""
    return importlib.resources.files("mistral_common") / "data" / FILES[version]
