# SPDX-License-Identifier: Apache-2.0
"""Attention over several conversations about one medium, without the pairs of tokens that do not see each other.

A mask tells SDPA which tokens see which, but on a processor all pairs are computed, seen or not: of 22 short questions behind the 270
tokens of a video, three in four are not. Here each run of tokens (the medium, or one conversation's remainder) attends to itself, each
remainder also to its medium, and the two sums are joined.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..model.batch_feature_llava_st import PADDING, SHARED
from .prefix_packing import block_mask


# As `attn_implementation`: that of SDPA, and of `Runs` where they stand in place of a mask.
RUN_ATTENTION = "llava_st_runs"


@dataclass(frozen=True)
class Runs:
    """
    Where the runs of a batch are: what all layers know of a batch.

    Args:
        order: (tokens,) numbers of tokens, counted through the batch, by runs of like length; shorter runs of a group are filled up
            with tokens behind them, which the causal mask hides from theirs.
        groups: `(runs, longest)` of each group, in that order.
        places: (batch_size · sequence_length,) where in `order` each token is; 0 for padding.
        rows: for each row how many tokens its medium has, and how many all together.
    """

    order: torch.Tensor
    groups: list[tuple[int, int]]
    places: torch.Tensor
    rows: list[tuple[int, int]]

    @classmethod
    def of(cls, segments: torch.Tensor) -> "Runs":
        """
        Args:
            segments: (batch_size, sequence_length) number of the conversation, `SHARED` or `PADDING`, as of the collator.
        """
        flat = segments.flatten()
        first = torch.ones_like(flat, dtype=torch.bool)  # of a run
        first[1:] = flat[1:] != flat[:-1]
        first[:: segments.shape[1]] = True
        starts = first.nonzero().flatten()
        lengths = torch.diff(starts, append=torch.tensor([len(flat)]))
        told = flat[starts] != PADDING
        starts, lengths = starts[told], lengths[told]
        # The longest run of a group is less than twice the shortest, so less than half of it is filled up.
        sizes = lengths.float().log2().floor()
        order, groups, places, before = [], [], torch.zeros_like(flat), 0
        for size in sizes.unique():
            some, longest = lengths[sizes == size], int(lengths[sizes == size].max())
            tokens = starts[sizes == size][:, None] + torch.arange(longest)  # (runs, longest)
            inside = torch.arange(longest) < some[:, None]
            places[tokens[inside]] = before + inside.flatten().nonzero().flatten()
            order.append(tokens.clamp(max=len(flat) - 1).flatten())
            groups.append((len(some), longest))
            before += tokens.numel()
        shared, whole = (segments == SHARED).sum(1).tolist(), (segments != PADDING).sum(1).tolist()
        return cls(torch.cat(order), groups, places, list(zip(shared, whole, strict=True)))


def mask_of_segments(segments: torch.Tensor, config, dtype: torch.dtype) -> torch.Tensor | dict[str, Runs]:
    """
    What a decoder takes as `attention_mask` where rows have several conversations.

    Args:
        segments: (batch_size, sequence_length), as the collator gives them.
        config: of the decoder.
        dtype: that it computes in.
    """
    if config._attn_implementation == RUN_ATTENTION:
        return dict.fromkeys(config.layer_types, Runs.of(segments))
    visible = block_mask(segments)
    if config._attn_implementation == "eager":  # adds its mask to the scores, where it would take True for 1
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
    return visible


def _sums(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, hidden: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """
    Attention before it is divided by the sum of its weights.

    Args:
        query: (…, queries, head_dim), scaled; key, value: (…, keys, head_dim).
        dropout: share of the weights that values are not summed with.
        hidden: (queries, keys), True where a key is not seen.

    Returns:
        `(values, weights, largest)`: (…, queries, head_dim) sums of values, and (…, queries, 1) sums of weights, both over
        exp(largest), the largest score.
    """
    scores = query @ key.mT  # (…, queries, keys)
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    largest = scores.detach().amax(-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    return F.dropout(weights, dropout) @ value, weights.sum(-1, keepdim=True), largest


def attend_in_runs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, runs: Runs, scaling: float, dropout: float = 0.0
) -> torch.Tensor:
    """
    Args:
        query, key, value: (batch_size, heads, sequence_length, head_dim).
        runs: of this batch.
        scaling: that scores are multiplied by.
        dropout: share of the weights that is dropped.

    Returns:
        (batch_size, sequence_length, heads, head_dim), as attention with `block_mask` gives it; 0 at padding.
    """
    batch, length = query.shape[0], query.shape[2]
    query = query * scaling
    ordered = [states.transpose(1, 2).flatten(0, 1).index_select(0, runs.order) for states in (query, key, value)]  # (tokens, heads, dim)
    counts = [count * longest for count, longest in runs.groups]
    found = []
    for (count, longest), *states in zip(runs.groups, *(states.split(counts) for states in ordered), strict=True):
        own = [part.unflatten(0, (count, longest)).transpose(1, 2) for part in states]  # (runs, heads, longest, head_dim)
        future = torch.ones(longest, longest, dtype=torch.bool).triu_(1)
        found.append([part.transpose(1, 2).flatten(0, 1) for part in _sums(*own, dropout, future)])
    # Back in their places: (batch_size, heads, sequence_length, head_dim) and twice (…, 1).
    values, weights, largest = (
        torch.cat(parts).index_select(0, runs.places).unflatten(0, (batch, length)).transpose(1, 2) for parts in zip(*found, strict=True)
    )
    rows = []
    for (shared, whole), *states in zip(runs.rows, *map(torch.unbind, (query, key, value, values, weights, largest)), strict=True):
        parts = [state.split((shared, whole - shared, length - whole), dim=1) for state in states]  # medium, remainders, padding
        (_, asked, _), (seen, _, _), (told, _, _), (of_medium, behind, rest), (sum_of_medium, total, _), (_, top, _) = parts
        if shared and whole > shared:
            far, far_total, far_top = _sums(asked, seen, told, dropout)
            highest = torch.maximum(top, far_top)
            near_share, far_share = (top - highest).exp(), (far_top - highest).exp()
            behind = behind * near_share + far * far_share
            total = total * near_share + far_total * far_share
        rows.append(torch.cat((of_medium / sum_of_medium, behind / total, torch.zeros_like(rest)), dim=1))
    return torch.stack(rows).transpose(1, 2)


def run_attention_forward(module, query, key, value, attention_mask, scaling: float | None = None, dropout: float = 0.0, **kwargs):
    """What a decoder layer calls; `attention_mask` may be [`Runs`]."""
    if not isinstance(attention_mask, Runs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    groups = query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = attend_in_runs(query, repeat_kv(key, groups), repeat_kv(value, groups), attention_mask, scaling, dropout)
    return attended.contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(RUN_ATTENTION, run_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(RUN_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
