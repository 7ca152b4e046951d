"""Finds Mistral's tokenizer files in the mistral-common wheel."""

import importlib.resources
from importlib.resources.abc import Traversable

SENTENCEPIECE_FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
}


def wheel_file(version: str) -> Traversable:
    """Returns the SentencePiece model of the instruct format's version v1, v2 or v3."""
    return importlib.resources.files("mistral_common") / "data" / SENTENCEPIECE_FILES[version]
