"""Packed conversations without padding: all tokens of a batch in one row, and attention that is told where they end.

No mask exists, so attention costs what the conversations cost one by one, and no token of padding goes through a layer.
"""

import inspect

import torch
from torch.nn.attention import varlen
from transformers import AttentionInterface

from stages.core.models import packed_batch
from stages.core.prompts import IGNORED

# Fewer heads of keys than of queries: torch 2.11 takes them without being asked, 2.13 only when asked.
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys and values, as `attend` is given them


def attend(  # noqa: PLR0913 as transformers calls it
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
    """An attention function of transformers: query (1, heads, tokens, size), key and value with fewer heads → (1,
    tokens, heads, size). cu_seq_lens_q (conversations + 1,) int32 says where in `tokens` each begins and the last ends.
    """
    states, kind = (query, key, value), query.device.type
    if torch.is_autocast_enabled(kind):  # which knows PyTorch's own attention, not this kernel; PEFT's DoRA gives fp32
        states = tuple(each.to(torch.get_autocast_dtype(kind)) for each in states)
    compute = by_kernel if query.is_cuda else one_by_one
    return compute(states, cu_seq_lens_q, max_length_q, scaling, sliding_window), None


def by_kernel(states: Heads, bounds: torch.Tensor, longest: int, scaling: float, window: int | None) -> torch.Tensor:
    queries, keys, values = (each[0].transpose(0, 1) for each in states)
    seen = (window - 1 if window else -1, 0)  # tokens before and after that each one sees
    return varlen.varlen_attn(
        queries, keys, values, bounds, bounds, longest, longest, scale=scaling, window_size=seen, **GROUPED
    )[None]


def one_by_one(states: Heads, bounds: torch.Tensor, longest: int, scaling: float, window: int | None) -> torch.Tensor:
    """The same on the CPU, which has no such kernel."""
    parts = []
    for part in zip(*(each.split(bounds.diff().tolist(), dim=2) for each in states), strict=True):
        length, mask = part[0].shape[2], None
        if window and window < longest:
            mask = torch.ones(length, length, dtype=torch.bool, device=bounds.device).tril().triu(1 - window)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                *part, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


def register() -> None:
    """Makes attn_implementation "varlen" known; without a mask function of its own it gets no mask."""
    AttentionInterface.register("varlen", attend)


def flat_batch(rows: list[dict]) -> dict[str, torch.Tensor | int]:
    """What packed_batch makes of the rows, in one row of all their tokens, with the bounds for `attend`."""
    lengths = [length for row in rows for length in row["seq_lengths"]]
    row = {name: [value for row in rows for value in row[name]] for name in ("input_ids", "labels")}
    bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return packed_batch([row | {"seq_lengths": lengths}]) | {
        "cu_seq_lens_q": bounds,
        "max_length_q": max(lengths),
    }


def trained_places(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """From labels (rows, length): where in the flattened hidden states a trained token is predicted, and the token."""
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    places = (targets != IGNORED).nonzero()[:, 0]
    return places, targets[places]


def collate(rows: list[dict], attention: str) -> dict[str, torch.Tensor | int]:
    """A batch, with its trained places found on the CPU: on the GPU that would wait for all work before it."""
    batch = flat_batch(rows) if attention == "varlen" else packed_batch(rows)
    places, targets = trained_places(batch["labels"])
    return batch | {"places": places, "targets": targets}


def trained_states(model: torch.nn.Module, inputs: dict[str, torch.Tensor | int]) -> torch.Tensor:
    """The last hidden states (positions, width) from which trained tokens are predicted. inputs: of collate()."""
    bounds = {name: inputs[name] for name in ("cu_seq_lens_q", "max_length_q") if name in inputs}
    # With a cache, transformers would let packed conversations see each other.
    states = model.model(
        input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False, **bounds
    ).last_hidden_state
    return states.flatten(0, 1)[inputs["places"]]
