"""Reads the adapter that PEFT saved: LoRA, rsLoRA or DoRA on linear layers. Anything else is an error that names it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.paths import read_json
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TENSOR_NAME = re.compile(
    r"base_model\.model\.(?P<name>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)"
)
# The settings that scaling(), update() and WeightUpdate.apply() follow.
SUPPORTED = {"r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"}
# Settings about how an adapter was made or which modules got one. They do not change what a trained adapter does.
WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "lora_dropout", "target_modules"),
    *("ensure_weight_tying", "eva_config", "loftq_config", "megatron_core", "qalora_group_size", "runtime_config"),
}
# The values of other settings with which the layer is still W + scaling·BA. An empty value is fine too. PiSSA, OLoRA,
# CorDA, LoftQ and LoRA-GA are missing here: they start by changing the base's weights.
ALLOWED_VALUES = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}


@dataclass(frozen=True)
class WeightUpdate:
    """What the adapter does to one weight of shape (out, in). All tensors are in fp32."""

    a: "torch.Tensor"  # (r, in)
    b: "torch.Tensor"  # (out, r)
    scaling: float
    magnitude: "torch.Tensor | None"  # (out,), the lengths of the rows in DoRA

    def apply(self, rows: "torch.Tensor", first: int) -> "torch.Tensor":
        """Applies the update to some rows of the weight, in place.

        The result is W + scaling·BA (Hu et al. 2021, arXiv 2106.09685). DoRA (Liu et al. 2024, arXiv 2402.09353) then
        gives each row the learned length.

        Args:
            rows: Rows of the weight in fp32.
            first: The number of the first of them.
        """
        part = slice(first, first + len(rows))
        rows.addmm_(self.b[part], self.a, alpha=self.scaling)
        if self.magnitude is not None:
            rows *= (self.magnitude[part] / rows.norm(dim=1))[:, None]
        return rows


def read_adapter_config(folder: Path) -> dict:
    """The adapter's configuration.

    Raises:
        UserError: It has a setting that the merge does not support.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    for key, value in sorted(config.items()):
        known = key in SUPPORTED | WITHOUT_EFFECT or value in ALLOWED_VALUES.get(key, ())
        if not known and value not in (None, False, [], {}):
            raise UserError(
                f"{folder / ADAPTER_CONFIG} has {key}: {value!r}, which cannot be merged here. Only LoRA, rsLoRA and "
                "DoRA on linear layers can. Train again without it, or merge it with PEFT and set model.path to the "
                "result"
            )
    return config


def pattern_value(pattern: dict, name: str, default: float) -> float:
    """The value of the first key in PEFT's rank_pattern or alpha_pattern that fits the end of a module's name."""
    from peft.utils.other import get_pattern_key

    return pattern.get(get_pattern_key(pattern.keys(), name), default)


class Adapter:
    """The adapter in `folder`. Its weights are read only when they are asked for.

    Raises:
        UserError: The weights are missing, damaged or empty, or do not fit the configuration.
    """

    def __init__(self, folder: Path):
        from safetensors import SafetensorError, safe_open

        self.path, self.config = folder / ADAPTER_WEIGHTS, read_adapter_config(folder)
        self.keys: dict[str, dict[str, str]] = {}  # {module: {part: key in the file}}
        try:
            self.file = safe_open(self.path, framework="pt")
        except (SafetensorError, FileNotFoundError) as error:
            raise UserError(f"{self.path} is missing or damaged ({error}). `dvc repro train` makes it") from None
        wanted = {"lora_A.weight", "lora_B.weight", *(["lora_magnitude_vector"] if self.config.get("use_dora") else [])}
        for key in self.file.keys():  # noqa: SIM118
            match = TENSOR_NAME.fullmatch(key)
            if not match or match["part"] not in wanted:
                raise UserError(f"{self.path} has {key}, which a merge would leave out. Train again")
            self.keys.setdefault(match["name"], {})[match["part"]] = key
        for name, parts in self.keys.items():
            if missing := wanted - parts.keys():
                raise UserError(f"{self.path} has no {sorted(missing)[0]} for the module {name}. Train again")
        if not self.keys:
            raise UserError(f"{self.path} is empty. Train again")

    def __contains__(self, name: str) -> bool:
        return name in self.keys

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.keys))

    def __len__(self) -> int:
        return len(self.keys)

    def scaling(self, name: str, rank: int) -> float:
        alpha = pattern_value(self.config.get("alpha_pattern") or {}, name, self.config["lora_alpha"])
        return alpha / rank**0.5 if self.config.get("use_rslora") else alpha / rank

    def update(self, name: str, shape: list[int], device: "torch.device | str" = "cpu") -> WeightUpdate:
        """The update of one module.

        Args:
            name: The module.
            shape: The shape of its weight, (out, in).
            device: Where the update's tensors go.

        Raises:
            UserError: The adapter's shapes do not fit its configuration or the weight.
        """
        parts = {part: self.file.get_tensor(key).float().to(device) for part, key in self.keys[name].items()}
        rank = pattern_value(self.config.get("rank_pattern") or {}, name, self.config["r"])
        wanted = {"lora_A.weight": [rank, shape[1]], "lora_B.weight": [shape[0], rank]}
        for part, tensor in parts.items():
            if list(tensor.shape) != (expected := wanted.get(part, shape[:1])):
                raise UserError(
                    f"{self.path}: {part} of {name} has shape {list(tensor.shape)}, but {ADAPTER_CONFIG} and the base "
                    f"model make it {expected}. The adapter belongs to another base: train again"
                )
        return WeightUpdate(
            a=parts["lora_A.weight"],
            b=parts["lora_B.weight"],
            scaling=self.scaling(name, rank),
            magnitude=parts.get("lora_magnitude_vector"),
        )
