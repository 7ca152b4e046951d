"""Loading models, seeding generators, and making batches of packed rows."""

import gc
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.machine import ResolvedMachine
from stages.core.params import Quantization
from stages.core.prompts import IGNORED
from stages.core.quantization import double_quantize, quantized_modules

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel


def make_deterministic(seed: int, wanted: bool, warn_only: bool) -> None:
    """Seeds every generator. With `wanted`, CUDA also takes kernels that repeat to the bit.

    Where there is no such kernel, an operation raises RuntimeError, or warns with `warn_only`. A training must not ask
    for `warn_only`: PyTorch then keeps gradients of the attention that differ from run to run.
    """
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS refuses to repeat itself
    # PyTorch would fill every new tensor, to help debugging. In a 7B's step that is 9 % of the time of an H100.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(wanted and torch.cuda.is_available(), warn_only=warn_only)


def bitsandbytes_config(quantization: Quantization, machine: ResolvedMachine) -> "BitsAndBytesConfig | None":
    """None for 16 bits."""
    import torch
    from transformers import BitsAndBytesConfig

    if quantization.bits == 16:
        return None
    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=False,  # load_model() does it, to the same bits on every device
        bnb_4bit_compute_dtype=machine.dtype,
        # FSDP shards float types only, so the same bytes are stored under the name of one.
        bnb_4bit_quant_storage=machine.dtype if machine.is_sharded_process else torch.uint8,
    )


def load_model(
    folder: Path, machine: ResolvedMachine, quantization: Quantization | None = None, packed: bool = False
) -> "PreTrainedModel":
    """Loads a causal language model in machine.dtype, ready to evaluate.

    Args:
        folder: a model in the layout of transformers, with safetensors weights.
        machine: where the model goes.
        quantization: how its linear layers are quantized; None for 16 bits.
        packed: whether it will be given packed rows, which have an attention of their own. Call
            stages.core.attention.register_varlen() before.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=machine.dtype,
        quantization_config=None if quantization is None else bitsandbytes_config(quantization, machine),
        attn_implementation=machine.packed_attention if packed else machine.attention,
        device_map={"": machine.device},
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    for _, module in quantized_modules(model):
        if quantization is not None and quantization.double_quant:
            double_quantize(module)
        # On CPUs with AVX512-BF16 bitsandbytes 0.50.2 repacks a layer's weights at its first forward pass in
        # evaluation mode. Every backward pass after that is wrong, without a message. This keeps the weights.
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
    """Makes input_ids, labels and position_ids of shape (rows, longest) from rows of data/tokenized.

    Positions start at 0 with each packed conversation, and there is no attention mask. From that transformers knows
    where a conversation ends. An attention mask of ones would let the conversations of a row see each other.
    """
    import torch

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
