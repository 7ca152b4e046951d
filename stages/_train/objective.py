"""What a training minimizes and how: the loss without full logits, NEFTune's noise, and LoRA+'s optimizer."""

from typing import TYPE_CHECKING

import torch
from peft.optimizers import create_loraplus_optimizer

from stages.core.attention import trained_states
from stages.core.machine import LOGIT_ROWS

if TYPE_CHECKING:
    from transformers import TrainingArguments

# Positions are padded to a multiple of this. The C library's heap grows by each new size that is asked of it.
POSITIONS_MULTIPLE = 32


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies of softmax(hidden @ weight.T) against the targets, with `weight` frozen.

    The logits of LOGIT_ROWS positions exist at one time. `weight` is not trained. So the gradient of `hidden` is known
    as soon as the logits are, and it is computed in the forward pass: no logits are kept or computed twice. The idea is
    that of Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv 2410.10989), in plain PyTorch. The softmax
    is taken in fp32.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """From hidden (positions, width), weight (vocabulary, width), targets (positions,) to a scalar in fp32."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        size = LOGIT_ROWS[hidden.device.type]
        for start in range(0, len(targets), size):
            target = targets[start : start + size, None]
            count = len(target)
            padding = (0, 0, 0, -count % POSITIONS_MULTIPLE)
            part, target = (
                torch.nn.functional.pad(tensor, padding) for tensor in (hidden[start : start + size], target)
            )
            logits = torch.nn.functional.linear(part, weight).float()
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            total += (log_sum - logits.gather(1, target))[:count].sum()
            if gradient is not None:
                probabilities = logits.sub_(log_sum).exp_()
                probabilities.scatter_add_(1, target, torch.full_like(log_sum, -1.0))
                gradient[start : start + size] = (probabilities.to(weight.dtype) @ weight)[:count]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, upstream: torch.Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None


def summed_loss(backbone: torch.nn.Module, inputs: dict[str, torch.Tensor], autocast: bool) -> tuple[torch.Tensor, int]:
    """The sum of the cross-entropies of the trained tokens, in nats, and their number.

    Args:
        backbone: the base with its adapter, without PEFT's wrapper.
        inputs: of stages.core.attention.collate().
        autocast: whether the backbone runs under bf16 autocast. accelerate's own is in the forward of the whole model,
            which is not called here.
    """
    with torch.autocast(inputs["input_ids"].device.type, dtype=torch.bfloat16, enabled=autocast):
        states = trained_states(backbone, inputs)
    targets, weight = inputs["targets"], backbone.lm_head.weight
    # PEFT's DoRA gives fp32 under CUDA's autocast.
    return LinearCrossEntropy.apply(states.to(weight.dtype), weight, targets), len(targets)


def token_lengths(position_ids: torch.Tensor) -> torch.Tensor:
    """For each token the length of its conversation, in the shape of position_ids, which begin at 0 in each."""
    starts = (position_ids.flatten() == 0).nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([position_ids.numel()]))
    return lengths.repeat_interleave(lengths).view_as(position_ids)


class Neftune:
    """NEFTune (Jain et al. 2023, arXiv 2310.05914): noise on the embeddings, uniform up to alpha / √(length · width).

    The length is that of the conversation. The Trainer's own hook takes the length of the whole row, so its noise gets
    smaller the more conversations are packed into a batch.

    Args:
        alpha: train.neftune_alpha.
        embeddings: the module that gets a forward hook.

    Attributes:
        lengths: token_lengths() of the next batch (rows, length). Set it before each forward pass of the training.
    """

    def __init__(self, alpha: float, embeddings: torch.nn.Module):
        self.alpha, self.lengths = alpha, None
        embeddings.register_forward_hook(self)

    def __call__(self, embeddings: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if not embeddings.training:
            return output
        largest = self.alpha / (self.lengths * output.shape[-1]).sqrt()[..., None]
        return output + (torch.empty_like(output).uniform_(-1, 1) * largest).to(output.dtype)


def loraplus_optimizer(
    model: torch.nn.Module, args: "TrainingArguments", optimizer: tuple[type, dict], ratio: float
) -> torch.optim.Optimizer:
    """LoRA+ (Hayou et al. 2024, arXiv 2402.12354), as PEFT makes it.

    Args:
        model: what is trained.
        args: the Trainer's arguments.
        optimizer: class and options, as Trainer.get_optimizer_cls_and_kwargs() returns them.
        ratio: matrix B's learning rate, divided by that of A.
    """
    optimizer_class, options = optimizer
    return create_loraplus_optimizer(
        model, optimizer_class, loraplus_lr_ratio=ratio, loraplus_weight_decay=args.weight_decay, **options
    )
