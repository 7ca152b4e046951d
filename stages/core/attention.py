"""Packed conversations without padding: all tokens of a batch in one row, and attention that knows where each one ends.

There is no mask, so attention costs what the conversations cost one by one. No token of padding goes through a layer.
"""

import inspect

import torch
from torch.nn.attention import varlen
from transformers import AttentionInterface

from stages.core.models import packed_batch
from stages.core.prompts import IGNORED

# With fewer heads of keys than of queries: torch 2.13 must be told, and torch 2.11 has no such argument.
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys, values of shape (1, heads, tokens, size)


def varlen_attention(  # noqa: PLR0913 as transformers calls it
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers, for the rows of flat_batch().

    Args:
        module: the attention module, which is not used.
        query: (1, heads, tokens, size).
        key: the same with fewer heads.
        value: the same shape as key.
        attention_mask: None. The bounds take its place.
        scaling: the factor of the products of queries and keys.
        cu_seq_lens_q: (conversations + 1,) int32, where each conversation begins, and where the last one ends.
        max_length_q: tokens of the longest conversation.
        sliding_window: tokens that each token sees, itself included; None for all before it.

    Returns:
        (1, tokens, heads, size), and None for the attention weights.
    """
    states, kind = (query, key, value), query.device.type
    # PEFT's DoRA gives fp32. Autocast knows PyTorch's own attention, but not this kernel.
    if torch.is_autocast_enabled(kind):
        states = tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in states)
    compute = attend_by_kernel if query.is_cuda else attend_one_by_one
    return compute(states, cu_seq_lens_q, max_length_q, scaling, sliding_window), None


def attend_by_kernel(
    states: Heads, bounds: torch.Tensor, longest: int, scaling: float, window: int | None
) -> torch.Tensor:
    """varlen_attention() by PyTorch's CUDA kernel."""
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in states)
    visible = (window - 1 if window else -1, 0)  # tokens before and after it that each one sees
    return varlen.varlen_attn(
        queries, keys, values, bounds, bounds, longest, longest, scale=scaling, window_size=visible, **GROUPED
    )[None]


def attend_one_by_one(
    states: Heads, bounds: torch.Tensor, longest: int, scaling: float, window: int | None
) -> torch.Tensor:
    """varlen_attention() on a CPU, which has no such kernel."""
    outputs = []
    for conversation in zip(*(tensor.split(bounds.diff().tolist(), dim=2) for tensor in states), strict=True):
        length, mask = conversation[0].shape[2], None
        if window and window < longest:
            mask = torch.ones(length, length, dtype=torch.bool, device=bounds.device).tril().triu(1 - window)
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                *conversation, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def register_varlen() -> None:
    """Makes attn_implementation "varlen" known. It has no mask function, so transformers makes no mask for it."""
    AttentionInterface.register("varlen", varlen_attention)


def flat_batch(rows: list[dict]) -> dict[str, torch.Tensor | int]:
    """Makes what packed_batch() does, as one row of all tokens, with the bounds for varlen_attention()."""
    lengths = [length for row in rows for length in row["seq_lengths"]]
    row = {name: [value for row in rows for value in row[name]] for name in ("input_ids", "labels")}
    bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return packed_batch([row | {"seq_lengths": lengths}]) | {
        "cu_seq_lens_q": bounds,
        "max_length_q": max(lengths),
    }


def find_targets(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the trained tokens in labels (rows, length).

    Returns:
        (trained,), where in the flattened hidden states each is predicted, and (trained,), the tokens themselves.
    """
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    places = (targets != IGNORED).nonzero()[:, 0]
    return places, targets[places]


def collate(rows: list[dict], attention: str) -> dict[str, torch.Tensor | int]:
    """Makes a batch with `places` and `targets`: find_targets() of it.

    They are found here, on the CPU. On the GPU that would wait for all work before it.
    """
    batch = flat_batch(rows) if attention == "varlen" else packed_batch(rows)
    places, targets = find_targets(batch["labels"])
    return batch | {"places": places, "targets": targets}


def trained_states(model: torch.nn.Module, inputs: dict[str, torch.Tensor | int]) -> torch.Tensor:
    """The last hidden states (trained, width) from which trained tokens are predicted. inputs: of collate()."""
    bounds = {name: inputs[name] for name in ("cu_seq_lens_q", "max_length_q") if name in inputs}
    # With a cache, transformers would let packed conversations see each other.
    states = model.model(
        input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False, **bounds
    ).last_hidden_state
    return states.flatten(0, 1)[inputs["places"]]
