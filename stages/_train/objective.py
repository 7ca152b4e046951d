"""Cross-entropy straight from the hidden states, without ever holding the logits of more than a few positions."""

from typing import TYPE_CHECKING

import torch
from peft.optimizers import create_loraplus_optimizer

from stages.core.attention import trained_states

if TYPE_CHECKING:
    from transformers import TrainingArguments


CHUNK = {"cuda": 1024, "cpu": 128}  # positions whose logits exist at one time; on a CPU as few as its caches hold
ROUND = (
    32  # positions are made up to a multiple of this: the C library's heap grows by each new size that is asked of it
)


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of softmax(hidden @ weight.T) against the targets, `weight` frozen.

    Since nothing is learned in `weight`, the gradient with respect to `hidden` is known as soon as the logits are, and
    is computed in the forward pass: no logits are kept or computed twice. The idea is that of Liger Kernel's fused
    linear cross-entropy (Hsu et al. 2024, arXiv 2410.10989), in plain PyTorch. The softmax is taken in fp32.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """hidden (positions, width), weight (vocabulary, width), targets (positions,) → a scalar in fp32."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        size = CHUNK[hidden.device.type]
        for start in range(0, len(targets), size):
            target = targets[start : start + size, None]
            count = len(target)
            more = (0, 0, 0, -count % ROUND)
            part, target = (torch.nn.functional.pad(each, more) for each in (hidden[start : start + size], target))
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
    """The sum of the cross-entropies of the trained tokens, in nats, and their number. inputs: of collate()."""
    # accelerate's autocast is in the forward of the whole model, which is not called here.
    with torch.autocast(inputs["input_ids"].device.type, dtype=torch.bfloat16, enabled=autocast):
        states = trained_states(backbone, inputs)
    targets, weight = inputs["targets"], backbone.lm_head.weight
    # PEFT's DoRA gives fp32 under CUDA's autocast.
    return LinearCrossEntropy.apply(states.to(weight.dtype), weight, targets), len(targets)


# NEFTune (Jain et al. 2023, arXiv 2310.05914): noise on the embeddings, uniform up to alpha / √(length · width).
#
# The length is that of the conversation. The Trainer's own hook takes that of the whole row, so that the noise would be
# the smaller the more conversations are packed into a batch.
#


def token_lengths(position_ids: torch.Tensor) -> torch.Tensor:
    """Of each token the length of its conversation. position_ids: from 0 in each conversation; the shape stays."""
    starts = (position_ids.flatten() == 0).nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([position_ids.numel()]))
    return lengths.repeat_interleave(lengths).view_as(position_ids)


class Neftune:
    """A forward hook of the embeddings. `lengths` are those of the tokens that come next, of shape (rows, length)."""

    def __init__(self, alpha: float, embeddings: torch.nn.Module):
        self.alpha, self.lengths = alpha, None
        embeddings.register_forward_hook(self)

    def __call__(self, embeddings: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if not embeddings.training:
            return output
        most = self.alpha / (self.lengths * output.shape[-1]).sqrt()[..., None]
        return output + (torch.empty_like(output).uniform_(-1, 1) * most).to(output.dtype)


# The optimizer: AdamW as the Trainer makes it, or with LoRA+ (Hayou et al. 2024, arXiv 2402.12354) as PEFT does.


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
