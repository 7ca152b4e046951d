"""Cross-entropy straight from the hidden states, without ever holding the logits of more than a few positions."""

import torch

from stages.shared.attention import trained_states

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
