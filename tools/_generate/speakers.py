"""The models that answer, by the names that --model takes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages._download_model.checks import read_json_object, weight_files
from stages.core.decoding import Decoding, Streamer, continuations
from stages.core.machine import resolve_machine
from stages.core.models import load_model
from stages.core.params import Params
from stages.core.paths import ADAPTER, BASE, MERGED, sha256
from stages.core.prompts import Encoder, check_tokenizer_of_base
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"
MADE_BY = {BASE: "download_model", MERGED: "merge", ADAPTER: "train"}
NAMED = {"base": BASE, "tuned": MERGED, "adapter": ADAPTER}


@dataclass(frozen=True)
class Prompts:
    """Turns messages into token ids. context: how many tokens the model reads, with its answer."""

    encoder: Encoder
    decoding: Decoding
    context: int

    def ids(self, messages: list[dict[str, str]]) -> list[int]:
        """The token ids of a conversation that ends with the user's message.

        Raises:
            UserError: They leave no room for the answer.
        """
        ids = self.encoder.prompt(messages)
        if len(ids) + self.decoding.max_new_tokens > self.context:
            raise UserError(
                f"the prompt has {len(ids)} tokens, and with --max-new-tokens {self.decoding.max_new_tokens} that is "
                f"more than the model's context of {self.context}. Shorten the prompt or lower --max-new-tokens"
            )
        return ids


@dataclass(frozen=True)
class Speaker:
    """A model that answers. `switched` turns its adapter off during an answer, where it must be off."""

    label: str
    model: "PreTrainedModel"
    prompts: Prompts
    switched: Callable[[], AbstractContextManager] = nullcontext

    def answer(self, prompts: list[list[int]], seed: int, streamer: Streamer | None = None) -> list[list[int]]:
        """Answers all prompts in one batch. The same batch with the same seed gets the same answers."""
        import torch

        torch.manual_seed(seed)
        with self.switched():
            return continuations(self.model, prompts, self.prompts.encoder.eos, self.prompts.decoding, streamer)


def folder_of(name: str) -> Path:
    """The folder that base, tuned, adapter or a path names.

    Raises:
        UserError: It holds no model and no adapter, or no weights.
    """
    folder = NAMED.get(name) or Path(name)
    stage = MADE_BY.get(folder)
    advice = f"`dvc repro {stage}` makes it, or `dvc pull {folder}` brings it" if stage else "Correct --model"
    if not any((folder / config).is_file() for config in (MODEL_CONFIG, ADAPTER_CONFIG)):
        raise UserError(f"{folder} holds no model ({MODEL_CONFIG} or {ADAPTER_CONFIG}). {advice}")
    if not is_adapter(folder):
        try:
            weight_files(folder)
        except UserError as error:
            raise UserError(f"{error}. {advice}") from None
    elif not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{folder} lacks {ADAPTER_WEIGHTS}. {advice}")
    return folder


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def weight_hashes(name: str) -> dict[str, str]:
    """{file: sha256} of all files that a model's answers depend on."""
    folder = folder_of(name)
    folders = [folder_of("base"), folder] if is_adapter(folder) else [folder]
    files = [path for parent in folders for path in sorted(parent.glob("*.safetensors"))]
    configs = [
        path for parent in folders for path in (parent / MODEL_CONFIG, parent / ADAPTER_CONFIG) if path.is_file()
    ]
    return {str(path): sha256(path) for path in configs + files}


def prompts_for(name: str, encoder: Encoder, decoding: Decoding) -> Prompts:
    """The prompts for the model `name`, before it is loaded.

    Raises:
        UserError: Its tokenizer is not the encoder's, or its configuration is not legal.
    """
    folder = folder_of(name)
    folder = folder_of("base") if is_adapter(folder) else folder
    check_tokenizer_of_base(encoder, folder)
    context = read_json_object(folder / MODEL_CONFIG).get("max_position_embeddings")
    if type(context) is not int:
        raise UserError(
            f"{folder / MODEL_CONFIG}: max_position_embeddings is {context!r}, not a whole number. Correct it"
        )
    return Prompts(encoder, decoding, context)


def load_speaker(name: str, params: Params, prompts: Prompts) -> Speaker:
    """Loads one model."""
    folder = folder_of(name)
    if is_adapter(folder):
        return load_pair(name, params, prompts)[1]
    return Speaker(name, load_model(folder, resolve_machine(params.machine)), prompts)


def load_pair(name: str, params: Params, prompts: Prompts) -> tuple[Speaker, Speaker]:
    """The base as the adapter was trained on it, without and with the adapter. Only one model is in memory."""
    from peft import PeftModel

    base = load_model(folder_of("base"), resolve_machine(params.machine), params.quantization)
    model = PeftModel.from_pretrained(base, folder_of(name)).eval()
    plain, label = model.get_base_model(), f"base in {params.quantization.bits} bits"
    return Speaker(label, plain, prompts, model.disable_adapter), Speaker(name, plain, prompts)
