"""What a folder must hold to be taken as the base model. Each refusal says what, where, and what to do."""

import re
from pathlib import Path

from stages.core.paths import read_json
from stages.runtime.errors import UserError

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER_EXTRAS = (
    "tokenizer.model",
    "tokenizer.model.v3",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# The parts of a Mistral layer. transformers would fill a missing one with random numbers without a word.
LAYER = (
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
PICKLED = (
    "Pickled weights (.bin) are refused, because reading them runs code. To convert a model that you trust: python -c "
    "\"from transformers import AutoModelForCausalLM as M; M.from_pretrained('OLD').save_pretrained('NEW')\""
)


def json_file(path: Path) -> dict:
    """The object in a JSON file of the model, which may not bring code of its own."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. A model folder as transformers saves it has one") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). Copy or download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, not an object. Copy or download it again")
    if "auto_map" in value:
        raise UserError(f"{path} has auto_map: the model brings code of its own, which is never run. Use one without")
    return value


def read_config(folder: Path) -> dict:
    """config.json, once it is known to describe a Mistral."""
    config = json_file(folder / CONFIG)
    for key, wanted in (("model_type", "mistral"), ("architectures", ["MistralForCausalLM"])):
        if config.get(key) != wanted:
            raise UserError(
                f"{folder / CONFIG}: {key} is {config.get(key)!r}, but this pipeline trains {wanted!r} only. "
                "Choose a Mistral 7B, or another model with that configuration"
            )
    if "quantization_config" in config:
        raise UserError(
            f"{folder / CONFIG}: quantization_config says that the weights are quantized already. Choose the model "
            "in 16 bits that they were made from; training quantizes it as `quantization` says"
        )
    for key in ("vocab_size", "num_hidden_layers"):
        if type(config.get(key)) is not int:
            raise UserError(f"{folder / CONFIG}: {key} is {config.get(key)!r}, not a whole number. Correct it")
    return config


def weight_files(folder: Path) -> list[str]:
    """The safetensors files, as transformers chooses them, and the index where there is one."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file():
        advice = PICKLED if any(folder.glob("*.bin")) else "Choose a model that is published as safetensors"
        raise UserError(f"{folder} holds no safetensors weights: neither {WEIGHTS} nor {INDEX}. {advice}")
    weight_map = json_file(folder / INDEX).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or not all(re.fullmatch(r"\w[\w.-]*\.safetensors", name) for name in names):
        raise UserError(f"{folder / INDEX}: weight_map must name .safetensors files of its folder. Copy it again")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names. Copy or download the model again")
    return [INDEX, *names]


def tensor_shapes(folder: Path, names: list[str]) -> dict[str, list[int]]:
    """{tensor: shape} from the headers of the safetensors files."""
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
    layers = [f"model.layers.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in LAYER]
    head = [] if config.get("tie_word_embeddings") else ["lm_head"]
    wanted = [f"{name}.weight" for name in ("model.embed_tokens", "model.norm", *head, *layers)]
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise UserError(
            f"the weights in {folder} lack {len(missing)} of the {len(wanted)} tensors of the model that {CONFIG} "
            f"describes, such as {missing[0]}. Use the whole model: an adapter alone must be merged first"
        )
    rows = shapes["model.embed_tokens.weight"][0]
    if rows != config["vocab_size"]:
        raise UserError(
            f"{folder / CONFIG}: vocab_size is {config['vocab_size']}, but the weights embed {rows} tokens. "
            "Use the config.json that belongs to the weights"
        )


def tokenizer_files(folder: Path) -> list[str]:
    """The names of the tokenizer files beside the weights."""
    missing = [name for name in TOKENIZER if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"model.tokenizer: own needs {' and '.join(missing)} in {folder}. Put them there, or for a model with "
            "Mistral-7B v0.3's vocabulary set model.tokenizer: mistral-common-v3"
        )
    return [*TOKENIZER, *(name for name in TOKENIZER_EXTRAS if (folder / name).is_file())]


def check_vocabulary(tokenizer: Path, config: dict, kind: str) -> None:
    """Every token needs its embedding; mistral-common's vocabulary fits its own models only."""
    from tokenizers import Tokenizer

    try:
        tokens = max(Tokenizer.from_file(str(tokenizer)).get_vocab().values()) + 1
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(f"{tokenizer} is not a tokenizer ({error}). Copy or download it again") from None
    rows = config["vocab_size"]
    if tokens > rows or (kind != "own" and tokens != rows):
        other = "mistral-common-v3" if kind == "own" else "own"
        raise UserError(
            f"model.tokenizer: {kind} has {tokens} tokens, but the model's vocab_size is {rows}: they do not belong "
            f"together. Set it to {other}, or use the model that this tokenizer was made for"
        )
