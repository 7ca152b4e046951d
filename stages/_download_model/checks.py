"""Checks that a folder holds a base model that the pipeline can train. Each error says what is wrong and what to do."""

import re
from pathlib import Path

from stages.core.paths import read_json
from stages.runtime.errors import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER_EXTRAS = (
    "tokenizer.model",
    "tokenizer.model.v3",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# The parts of a Mistral layer. transformers fills a missing one with random numbers and gives no warning.
LAYER_PARTS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
PICKLED_ADVICE = (
    "Pickled weights (.bin) are refused, because reading them runs code. To convert a model that you trust: python -c "
    "\"from transformers import AutoModelForCausalLM as M; M.from_pretrained('OLD').save_pretrained('NEW')\""
)


def read_json_object(path: Path) -> dict:
    """Returns the object in one of the model's JSON files.

    Raises:
        UserError: the file is missing, is not JSON, holds no object, or names code that the model brings.
    """
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. A model folder as transformers saves it has one") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). Copy or download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, not an object. Copy or download it again")
    if "auto_map" in value:
        raise UserError(f"{path} has auto_map: the model brings its own code, which is never run. Use a model without")
    return value


def read_model_config(folder: Path) -> dict:
    """Returns config.json.

    Raises:
        UserError: it describes another architecture than Mistral's, or quantized weights, or lacks a size.
    """
    config = read_json_object(folder / CONFIG_FILE)
    for key, wanted in (("model_type", "mistral"), ("architectures", ["MistralForCausalLM"])):
        if config.get(key) != wanted:
            raise UserError(
                f"{folder / CONFIG_FILE}: {key} is {config.get(key)!r}, but this pipeline trains {wanted!r} only. "
                "Choose a Mistral 7B, or another model with that configuration"
            )
    if "quantization_config" in config:
        raise UserError(
            f"{folder / CONFIG_FILE}: quantization_config says that the weights are quantized already. Choose the "
            "16-bit model that they were made from; training quantizes it as `quantization` says"
        )
    for key in ("vocab_size", "num_hidden_layers"):
        if type(config.get(key)) is not int:
            raise UserError(f"{folder / CONFIG_FILE}: {key} is {config.get(key)!r}, not a whole number. Correct it")
    return config


def weight_files(folder: Path) -> list[str]:
    """Returns the names of the index, if there is one, and of the safetensors files that transformers would load.

    Raises:
        UserError: there are no safetensors weights, or a file that the index names is missing.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        advice = PICKLED_ADVICE if any(folder.glob("*.bin")) else "Choose a model that is published as safetensors"
        raise UserError(f"{folder} holds no safetensors weights: neither {WEIGHTS_FILE} nor {INDEX_FILE}. {advice}")
    weight_map = read_json_object(folder / INDEX_FILE).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or not all(re.fullmatch(r"\w[\w.-]*\.safetensors", name) for name in names):
        raise UserError(f"{folder / INDEX_FILE}: weight_map must name .safetensors files of its folder. Copy it again")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}, which {INDEX_FILE} names. Copy or download the model again"
        )
    return [INDEX_FILE, *names]


def tensor_shapes(folder: Path, names: list[str]) -> dict[str, list[int]]:
    """Returns {tensor: shape} from the headers of the safetensors files."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="numpy") as file:
                shapes |= {tensor: file.get_slice(tensor).get_shape() for tensor in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{folder / name} is damaged or cut short ({error}). Copy or download it again") from None
    return shapes


def check_weights(folder: Path, config: dict, shapes: dict[str, list[int]]) -> None:
    """Checks that every tensor of the configured model is there and that the embedding fits the vocabulary.

    Raises:
        UserError: a tensor is missing, or the embedding has another number of rows.
    """
    layers = [f"model.layers.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in LAYER_PARTS]
    head = [] if config.get("tie_word_embeddings") else ["lm_head"]
    wanted = [f"{name}.weight" for name in ("model.embed_tokens", "model.norm", *head, *layers)]
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise UserError(
            f"the weights in {folder} lack {len(missing)} of the {len(wanted)} tensors of the model that {CONFIG_FILE} "
            f"describes, such as {missing[0]}. Use a complete model; an adapter must be merged into its base first"
        )
    rows = shapes["model.embed_tokens.weight"][0]
    if rows != config["vocab_size"]:
        raise UserError(
            f"{folder / CONFIG_FILE}: vocab_size is {config['vocab_size']}, but the weights embed {rows} tokens. "
            "Use the config.json that belongs to the weights"
        )


def tokenizer_files(folder: Path) -> list[str]:
    """Returns the names of the tokenizer files next to the weights.

    Raises:
        UserError: one that every tokenizer needs is missing.
    """
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"model.tokenizer: own needs {' and '.join(missing)} in {folder}. Put them there, or for a model with "
            "Mistral-7B v0.3's vocabulary set model.tokenizer: mistral-common-v3"
        )
    return [*TOKENIZER_FILES, *(name for name in TOKENIZER_EXTRAS if (folder / name).is_file())]


def check_vocabulary(tokenizer: Path, config: dict, kind: str) -> None:
    """Checks that every token has an embedding, and that mistral-common's vocabulary is exactly the model's.

    Args:
        kind: model.tokenizer.

    Raises:
        UserError: the tokenizer cannot be read, or does not fit.
    """
    from tokenizers import Tokenizer

    try:
        tokens = max(Tokenizer.from_file(str(tokenizer)).get_vocab().values()) + 1
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{tokenizer} is not a tokenizer ({error}). Copy or download it again") from None
    rows = config["vocab_size"]
    if tokens > rows or (kind != "own" and tokens != rows):
        alternative = "mistral-common-v3" if kind == "own" else "own"
        raise UserError(
            f"model.tokenizer: {kind} has {tokens} tokens, but the model's vocab_size is {rows}: they do not belong "
            f"together. Set it to {alternative}, or use the model that this tokenizer was made for"
        )
