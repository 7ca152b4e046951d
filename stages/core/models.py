"""Loading models: the one place that knows about the device, the dtype and the attention kernel."""

import gc
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.params import Machine, Quantization
from stages.core.quantization import double_quantize, quantized_modules
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel


def pick_device(machine: Machine) -> "torch.device":
    import torch

    if machine.device == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device is cuda, but PyTorch sees no CUDA device. Set it to auto or cpu")
    if machine.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Of several processes each has its own, by the number that torchrun's agent gives it.
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None)


def pick_attention(machine: Machine, packed: bool) -> str:
    """The attention function, of transformers or of stages/core/attention.py. Only `packed` rows may take varlen."""
    if machine.attention in ("auto", "varlen"):
        return "varlen" if packed else "sdpa"
    return machine.attention


def make_deterministic(seed: int, wanted: bool, warn_only: bool) -> None:
    """Seeds every generator; `wanted` also takes CUDA kernels that repeat to the bit.

    Where there is no such kernel, an operation raises RuntimeError or, with `warn_only`, warns. No training may ask for
    `warn_only`: it makes PyTorch keep the attention's gradients that differ from run to run.
    """
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS refuses to repeat itself
    # A help for debugging: PyTorch would first fill every new tensor, 9 % of the GPU's time in a 7B's step on an H100.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(wanted and torch.cuda.is_available(), warn_only=warn_only)


def bitsandbytes_config(quantization: Quantization, machine: Machine) -> "BitsAndBytesConfig | None":
    import torch
    from transformers import BitsAndBytesConfig

    if quantization.bits == 16:
        return None
    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=False,  # load_model() does it, alike on every device
        bnb_4bit_compute_dtype=torch.bfloat16,
        # To be sharded over several processes, the same bytes are stored under the name of a float type.
        bnb_4bit_quant_storage=torch.bfloat16
        if machine.sharding == "fsdp" and "LOCAL_RANK" in os.environ
        else torch.uint8,
    )


def load_model(
    folder: Path, machine: Machine, quantization: Quantization | None = None, packed: bool = False
) -> "PreTrainedModel":
    """A causal language model in bf16, ready to evaluate; its linear layers quantized where `quantization` says so, and
    their constants by stages/core/quantization.py.

    A model for `packed` rows may have another attention (see pick_attention), which must be registered before.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        quantization_config=None if quantization is None else bitsandbytes_config(quantization, machine),
        attn_implementation=pick_attention(machine, packed),
        device_map={"": pick_device(machine)},
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    for _, module in quantized_modules(model):
        if quantization is not None and quantization.double_quant:
            double_quantize(module)
        # On CPUs with AVX512-BF16 bitsandbytes 0.50.2 repacks a layer's weights at its first forward in evaluation
        # mode, and every backward after that is wrong without a word. This keeps the weights as they are.
        module.support_avx512bf16_for_cpu = False
    if quantization is not None and quantization.double_quant and quantization.bits == 4:
        model.config.quantization_config.bnb_4bit_use_double_quant = True  # trackers record it
    return model.eval()


def free() -> None:
    """Gives back what the last model held, so that the next one has room."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def packed_batch(rows: list[dict], device: "torch.device | str" = "cpu") -> dict[str, "torch.Tensor"]:
    """input_ids, labels and position_ids of shape (rows, longest) from rows of data/tokenized.

    Positions start at 0 with each packed conversation, and there is no attention mask: from just that, transformers
    keeps the conversations of a row apart (an attention mask of ones would let them see each other).
    """
    import torch

    from stages.core.prompts import IGNORED

    longest = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), longest)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED, dtype=torch.long),
        "position_ids": torch.zeros(shape, dtype=torch.long),
    }
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        batch["input_ids"][index, :length] = torch.as_tensor(row["input_ids"])
        batch["labels"][index, :length] = torch.as_tensor(row["labels"])
        # The padding counts as one more conversation.
        positions = [torch.arange(n) for n in (*row["seq_lengths"], longest - length)]
        batch["position_ids"][index] = torch.cat(positions)
    return {name: tensor.to(device) for name, tensor in batch.items()}
