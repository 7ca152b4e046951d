"""The optimizer: AdamW as the Trainer makes it, or with LoRA+ (Hayou et al. 2024, arXiv 2402.12354) as PEFT does."""

from typing import TYPE_CHECKING

import torch
from peft.optimizers import create_loraplus_optimizer

if TYPE_CHECKING:
    from transformers import TrainingArguments

OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit"}  # the latter bitsandbytes', unpaged


def loraplus_optimizer(
    model: torch.nn.Module, args: "TrainingArguments", kind: tuple[type, dict], ratio: float
) -> torch.optim.Optimizer:
    """kind: what Trainer.get_optimizer_cls_and_kwargs gives. ratio: B's learning rate by A's."""
    make, options = kind
    return create_loraplus_optimizer(
        model, make, loraplus_lr_ratio=ratio, loraplus_weight_decay=args.weight_decay, **options
    )


def refuse_rounding(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Adapters and AdamW's moments must be fp32, where small updates are not lost as in bf16. Moments in 8 bits (uint8)
    are codes that bitsandbytes gives a scale every 256 values."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rounded = [name for name, p in trained.items() if p.dtype != torch.float32]
    for p in trained.values():
        kept = {name: value.dtype for name, value in optimizer.state.get(p, {}).items() if torch.is_tensor(value)}
        rounded += [name for name, dtype in kept.items() if dtype not in (torch.float32, torch.uint8)]
    if rounded or not trained:
        raise RuntimeError(f"not trained in fp32: {', '.join(rounded[:3]) or 'there is nothing to train'}")
