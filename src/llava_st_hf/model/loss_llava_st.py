# SPDX-License-Identifier: Apache-2.0
"""Soft two-hot cross-entropy over a large vocabulary, in the memory of a few hundred logit rows.

A target is a pair of tokens (lower, upper) with weights (1 - r, r): an exact position between two coordinate bins, or an
ordinary token with r = 0. The loss of one position is logsumexp(logits) - (1 - r)·logit[lower] - r·logit[upper], so no
target over the vocabulary is ever built. Logits are made for a chunk of positions at a time; their gradient is folded
into those of the hidden states and of the head at once, and the chunk is dropped.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .coordinates_llava_st import CoordinateVocabulary, propagation_matrix


# Logits alive at one time: 2^25 fp32 values, 128 MiB. Larger chunks were not faster on CPU, and only a little on GPU.
_MAX_CHUNK_LOGITS = 2**25


class _CoordinateCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, weight, lower, upper, upper_weight, propagation, first_coordinate):
        num_positions, vocab_size = hidden_states.shape[0], weight.shape[0]
        device_type = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden_states.dtype
        chunk_size = max(1, _MAX_CHUNK_LOGITS // vocab_size)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        losses = torch.empty(num_positions, dtype=torch.float32, device=hidden_states.device)
        grad_hidden = torch.empty_like(hidden_states) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None

        with torch.autocast(device_type, enabled=False):
            head = weight.to(dtype)
            for start in range(0, num_positions, chunk_size):
                chunk = slice(start, start + chunk_size)
                states = hidden_states[chunk].to(dtype)  # (chunk, hidden)
                targets = torch.stack((lower[chunk], upper[chunk]), dim=-1)  # (chunk, 2)
                shares = torch.stack((1 - upper_weight[chunk], upper_weight[chunk]), dim=-1).float()  # (chunk, 2)
                logits = F.linear(states, head).float()  # (chunk, vocab)
                normaliser = logits.logsumexp(dim=-1)
                losses[chunk] = normaliser - (shares * logits.gather(-1, targets)).sum(-1)
                if not (needs_hidden or needs_weight):
                    continue
                # d loss / d logits = softmax - target, in the memory of the logits themselves
                grad_logits = logits.sub_(normaliser[:, None]).exp_().scatter_add_(-1, targets, -shares).to(dtype)
                del logits
                if needs_hidden:
                    grad_hidden[chunk] = (grad_logits @ head).to(grad_hidden.dtype)
                if needs_weight:
                    if propagation is not None:
                        # Rows share their gradient with their neighbours; hidden states see the plain one (above).
                        columns = grad_logits[:, first_coordinate : first_coordinate + propagation.shape[0]]
                        columns.add_(columns @ propagation.to(dtype))
                    if grad_weight.dtype == dtype:
                        grad_weight.addmm_(grad_logits.T, states)
                    else:
                        grad_weight += (grad_logits.T @ states).to(grad_weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_sum, _):
        grad_hidden, grad_weight = ctx.saved_tensors
        # Scaled out of place: the graph may be walked again (retain_graph).
        return (
            None if grad_hidden is None else grad_hidden * grad_sum,
            None if grad_weight is None else grad_weight * grad_sum,
            None,
            None,
            None,
            None,
            None,
        )


def coordinate_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    upper_weight: torch.Tensor,
    propagation: torch.Tensor | None = None,
    first_coordinate: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed soft cross-entropy of two-hot targets (LLaVA-ST, section 3.2).

    Args:
        hidden_states: (num_positions, hidden_size), the decoder's output at each supervised position.
        weight: (vocab_size, hidden_size), the output embeddings.
        lower, upper: (num_positions,) ids of the two target tokens; the same id where the target is one token.
        upper_weight: (num_positions,) share r of `upper`; `lower` has 1 - r.
        propagation: (num_coordinates, num_coordinates) matrix of Neighbouring Token Propagation; the gradient of the
            coordinate rows of `weight` becomes (I + M)·g. None leaves it as it is.
        first_coordinate: row of `weight` at which the coordinate tokens begin.

    Returns:
        `(loss_sum, losses)`: the differentiable sum (float32 scalar) and, for logging only, each position's loss.
    """
    return _CoordinateCrossEntropy.apply(hidden_states, weight, lower, upper, upper_weight, propagation, first_coordinate)


def _wrapped_head_cross_entropy(
    hidden_states: torch.Tensor,
    head: nn.Module,
    vocab_size: int,
    lower: torch.Tensor,
    upper: torch.Tensor,
    upper_weight: torch.Tensor,
    propagation: torch.Tensor | None,
    first_coordinate: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`coordinate_cross_entropy` through a head that is more than its weight (an adapter, quantised or offloaded): the head is
    called, chunk by chunk, and once more in backward in place of keeping its logits."""
    mixed, weight = None, torch.as_tensor(head.weight)
    if propagation is not None and weight.requires_grad:
        rows = weight[first_coordinate : first_coordinate + len(propagation)]
        mixed = propagation.to(rows.dtype) @ rows  # (num_coordinates, hidden)

    def chunk_losses(states, targets, shares):
        logits = head(states).float()  # (chunk, vocab)
        if mixed is not None:  # adds nothing but the neighbours' part of the rows' gradient
            extra = F.linear(states.detach(), mixed).float()
            coordinates = slice(first_coordinate, first_coordinate + len(mixed))
            logits[:, coordinates] = logits[:, coordinates] + (extra - extra.detach())
        return logits.logsumexp(dim=-1) - (shares * logits.gather(-1, targets)).sum(-1)

    targets = torch.stack((lower, upper), dim=-1)  # (positions, 2)
    shares = torch.stack((1 - upper_weight, upper_weight), dim=-1).float()  # (positions, 2)
    size = max(1, _MAX_CHUNK_LOGITS // vocab_size)
    chunks = zip(hidden_states.split(size), targets.split(size), shares.split(size), strict=True)
    losses = torch.cat([checkpoint(chunk_losses, *chunk, use_reentrant=False) for chunk in chunks])
    return losses.sum(), losses.detach()


def supervised_cross_entropy(
    hidden_states: torch.Tensor,
    head: nn.Module,
    vocab_size: int,
    targets: torch.LongTensor,
    positions: torch.FloatTensor | None,
    vocabulary: CoordinateVocabulary | None,
    propagate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`coordinate_cross_entropy` of the supervised positions of a batch.

    Args:
        hidden_states: (batch_size, sequence_length, hidden_size), the decoder's output.
        head: the output embeddings, a linear layer or what an adapter, a quantiser or offloading made of it.
        vocab_size: logits of the head.
        targets: (batch_size, sequence_length), for each position the id to predict *there*, -100 where none is.
        positions: same shape, the exact position (fraction in [0, 1]) of each target, NaN where it has none; or None.
        vocabulary: where the coordinate tokens stand, None in a model that has none.
        propagate: whether the coordinate rows of `head` take part in Neighbouring Token Propagation.

    Returns:
        `(loss_sum, losses, bin_errors)`: the first two as of `coordinate_cross_entropy`, the last of `_bin_errors`; None without
        coordinate tokens, and through a head that is more than its weight. One entry per supervised position, batch-major.
    """
    targets = targets.to(hidden_states.device)
    supervised = targets != -100
    hidden_states, lower = hidden_states[supervised], targets[supervised]  # (supervised, hidden), (supervised,)
    upper, upper_weight = lower, torch.zeros_like(lower, dtype=torch.float32)
    matrix, first_coordinate = None, 0
    if vocabulary is not None:
        first_coordinate = vocabulary.start_token_id
        if positions is not None:
            positions = positions.to(hidden_states.device)[supervised].float()
            lower, upper, upper_weight = vocabulary.between_tokens(lower, positions)
        if propagate:
            matrix = propagation_matrix(vocabulary.sizes(), device=hidden_states.device)
    weight: torch.Tensor = head.weight  # read once: an adapter may put it together at each reading
    if not _is_matrix(head, weight):
        loss_sum, losses = _wrapped_head_cross_entropy(
            hidden_states, head, vocab_size, lower, upper, upper_weight, matrix, first_coordinate
        )
        return loss_sum, losses, None
    loss_sum, losses = coordinate_cross_entropy(hidden_states, weight, lower, upper, upper_weight, matrix, first_coordinate)
    bin_errors = None if vocabulary is None else _bin_errors(hidden_states, weight, lower, upper_weight, vocabulary)
    return loss_sum, losses, bin_errors


def _is_matrix(head: nn.Module, weight) -> bool:
    """Whether the head is its weight and nothing more. A subclass of Linear may be more: a quantised weight holds packed integers,
    an offloaded one nothing. A weight that is computed, as from frozen and trained rows, is all of its head."""
    if not isinstance(weight, torch.Tensor) or weight.is_meta or not weight.is_floating_point():
        return False
    return isinstance(head, nn.Linear) or not weight.is_leaf


@torch.no_grad()
def _bin_errors(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    lower: torch.Tensor,
    upper_weight: torch.Tensor,
    vocabulary: CoordinateVocabulary,
) -> torch.Tensor:
    """How far the likeliest bin on a target's axis lies from the target.

    Args:
        hidden_states: (num_positions, hidden_size)
        weight: (vocab_size, hidden_size), the output embeddings.
        lower, upper_weight: (num_positions,), the targets as `coordinate_cross_entropy` takes them.

    Returns:
        (num_positions,) in bins, NaN where the target is no coordinate token.
    """
    first = vocabulary.start_token_id
    sizes = torch.tensor(vocabulary.sizes(), device=lower.device)
    axis_of_row = torch.repeat_interleave(torch.arange(len(sizes), device=lower.device), sizes, output_size=len(vocabulary))
    row = lower - first  # (positions,)
    is_coordinate = (row >= 0) & (row < len(vocabulary))
    axis = axis_of_row[row.clamp(0, len(vocabulary) - 1)]
    scores = F.linear(hidden_states, weight[first : first + len(vocabulary)].to(hidden_states.dtype))  # (positions, coordinates)
    scores = scores.float().masked_fill(axis_of_row != axis[:, None], float("-inf"))
    errors = (scores.argmax(-1) - row - upper_weight).abs()
    return errors.masked_fill(~is_coordinate, float("nan"))
