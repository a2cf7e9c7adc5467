# SPDX-License-Identifier: Apache-2.0
"""Soft two-hot cross-entropy over a large vocabulary, computed for a few hundred positions at a time.

A target is a pair of tokens (lower, upper) with weights (1 - r, r): an exact position between two coordinate bins, or an
ordinary token with r = 0. The loss of one position is logsumexp(logits) - (1 - r)·logit[lower] - r·logit[upper], so no
dense target over the vocabulary is built. Logits are computed for a chunk of positions at a time; the gradients of hidden states and
head are computed from them in the forward pass, and the logits are freed.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .coordinates_llava_st import CoordinateVocabulary, propagation_matrix


# Largest number of logits in memory: 2^25 float32 values, 128 MiB. Larger chunks were not faster on CPU, and a little on GPU.
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
                        # Neighbouring bins share the gradient of the weight; that of hidden states (above) is without propagation.
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
        # Scaled out of place: backward may be called again (retain_graph).
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
    """
    Computes the summed soft cross-entropy of two-hot targets (LLaVA-ST, section 3.2).

    Args:
        hidden_states (`torch.FloatTensor` of shape `(num_positions, hidden_size)`):
            The decoder's output at each supervised position.
        weight (`torch.FloatTensor` of shape `(vocab_size, hidden_size)`):
            Output embeddings.
        lower, upper (`torch.LongTensor` of shape `(num_positions,)`):
            Ids of the two target tokens; equal where the target is one token.
        upper_weight (`torch.FloatTensor` of shape `(num_positions,)`):
            Weight r of `upper`; that of `lower` is 1 - r.
        propagation (`torch.FloatTensor` of shape `(num_coordinates, num_coordinates)`, *optional*):
            Matrix M of Neighbouring Token Propagation: the gradient g of the coordinate tokens' rows of `weight` becomes (I + M)·g.
        first_coordinate (`int`, *optional*, defaults to 0):
            Row of `weight` of the first coordinate token.

    Returns:
        `tuple(torch.FloatTensor, torch.FloatTensor)`: the differentiable sum (float32 scalar) and, for logging only, the loss of each
        position, of shape `(num_positions,)`.
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
    """`coordinate_cross_entropy` for a wrapped head (an adapter, quantized or offloaded). Calls the head for one chunk of positions at a
    time, and again in the backward pass, so that at most `_MAX_CHUNK_LOGITS` logits are in memory."""
    mixed, weight = None, torch.as_tensor(head.weight)
    if propagation is not None and weight.requires_grad:
        rows = weight[first_coordinate : first_coordinate + len(propagation)]
        mixed = propagation.to(rows.dtype) @ rows  # (num_coordinates, hidden)

    def chunk_losses(states, targets, shares):
        logits = head(states).float()  # (chunk, vocab)
        if mixed is not None:  # adds zero, with the gradient of the neighbouring bins
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
    target_values: torch.FloatTensor | None,
    vocabulary: CoordinateVocabulary | None,
    propagate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """
    Computes `coordinate_cross_entropy` of the supervised positions of a batch.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
            The decoder's output.
        head (`nn.Module`):
            Output embeddings: a linear layer, or one wrapped by an adapter, quantization or offloading.
        vocab_size (`int`):
            Number of logits of the head.
        targets (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            For each position the id to predict at it, -100 where nothing is supervised.
        target_values (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Exact value (fraction in [0, 1]) of each target, NaN where it has none.
        vocabulary ([`CoordinateVocabulary`], *optional*):
            Ids and bins of the coordinate tokens, None in a model without them.
        propagate (`bool`):
            Whether Neighbouring Token Propagation is applied to the gradient of the coordinate tokens' rows of `head`.

    Returns:
        `tuple(torch.FloatTensor, torch.FloatTensor, torch.FloatTensor | None)`: `loss_sum`, `losses` and `bin_errors`. The first two are
        those of `coordinate_cross_entropy`, the last that of `_bin_errors`, None without coordinate tokens and with a wrapped head. One
        entry per supervised position, batch-major.
    """
    targets = targets.to(hidden_states.device)
    # Row and column of each supervised position, found once: each indexing by a mask would wait for the device.
    supervised = (targets != -100).nonzero(as_tuple=True)
    hidden_states, lower = hidden_states[supervised], targets[supervised]  # (supervised, hidden), (supervised,)
    upper, upper_weight = lower, torch.zeros_like(lower, dtype=torch.float32)
    matrix, first_coordinate = None, 0
    if vocabulary is not None:
        first_coordinate = vocabulary.start_token_id
        if target_values is not None:
            target_values = target_values.to(hidden_states.device)[supervised].float()
            lower, upper, upper_weight = vocabulary.between_tokens(lower, target_values)
        if propagate:
            matrix = propagation_matrix(vocabulary.sizes(), device=hidden_states.device)
    weight: torch.Tensor = head.weight  # read once: an adapter may compute it at each access
    if not _is_matrix(head, weight):
        loss_sum, losses = _wrapped_head_cross_entropy(
            hidden_states, head, vocab_size, lower, upper, upper_weight, matrix, first_coordinate
        )
        return loss_sum, losses, None
    loss_sum, losses = coordinate_cross_entropy(hidden_states, weight, lower, upper, upper_weight, matrix, first_coordinate)
    bin_errors = None if vocabulary is None else _bin_errors(hidden_states, weight, lower, upper_weight, vocabulary)
    return loss_sum, losses, bin_errors


def _is_matrix(head: nn.Module, weight) -> bool:
    """Whether the head is a product with its weight only. A subclass of Linear may have a quantized weight (packed integers) or an
    offloaded one (no data). A computed weight, as that of PEFT's trainable tokens, is the whole of its head."""
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
    """
    Computes the absolute difference between the most probable bin on the target's axis and the target.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(num_positions, hidden_size)`):
            The decoder's output at each supervised position.
        weight (`torch.FloatTensor` of shape `(vocab_size, hidden_size)`):
            Output embeddings.
        lower (`torch.LongTensor` of shape `(num_positions,)`):
            Targets, as in `coordinate_cross_entropy`.
        upper_weight (`torch.FloatTensor` of shape `(num_positions,)`):
            The same.
        vocabulary ([`CoordinateVocabulary`]):
            Ids and bins of the coordinate tokens.

    Returns:
        `torch.FloatTensor` of shape `(num_positions,)`, in bins; NaN where the target is not a coordinate token.
    """
    first = vocabulary.start_token_id
    axis_of_row = torch.cat([torch.full((size,), axis, device=lower.device) for axis, size in enumerate(vocabulary.sizes())])
    row = lower - first  # (positions,)
    is_coordinate = (row >= 0) & (row < len(vocabulary))
    axis = axis_of_row[row.clamp(0, len(vocabulary) - 1)]
    scores = F.linear(hidden_states, weight[first : first + len(vocabulary)].to(hidden_states.dtype))  # (positions, coordinates)
    scores = scores.float().masked_fill(axis_of_row != axis[:, None], float("-inf"))
    errors = (scores.argmax(-1) - row - upper_weight).abs()
    return errors.masked_fill(~is_coordinate, float("nan"))
