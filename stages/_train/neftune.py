"""NEFTune (Jain et al. 2023, arXiv 2310.05914): noise on the embeddings, uniform up to alpha / √(length · width).

The length is that of the conversation. The Trainer's own hook takes that of the whole row, so that the noise would be
the smaller the more conversations are packed into a batch.
"""

import torch


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
