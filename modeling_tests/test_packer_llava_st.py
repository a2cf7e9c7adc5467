# SPDX-License-Identifier: Apache-2.0
"""The packer equals its definition: one `nn.MultiheadAttention` call per window, in Python loops."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llava_st_hf.model.packer_llava_st import LlavaSTSpatialTemporalPacker, LlavaSTWindowPacker
from modeling_tests.factories import tiny_config


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return module.eval()


def attend(packer: LlavaSTWindowPacker, query: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """x_q + W_o·MHA(LN(q(x_q)), LN(k(x)), LN(v(x))) of one query (hidden) over the features (cells, hidden) of its window."""
    width = packer.q_proj.in_features
    attention = nn.MultiheadAttention(width, width // packer.head_dim, batch_first=True).eval()
    projections = (packer.q_proj, packer.k_proj, packer.v_proj)
    attention.in_proj_weight.data = torch.cat([p.weight for p in projections])
    attention.in_proj_bias.data = torch.cat([p.bias for p in projections])
    attention.out_proj.load_state_dict(packer.out_proj.state_dict())

    def branch(mlp, norm, states):
        states = F.gelu(F.linear(states, mlp.linear_1.weight, mlp.linear_1.bias))
        return F.layer_norm(F.linear(states, mlp.linear_2.weight, mlp.linear_2.bias), (width,), norm.weight, norm.bias)[None]

    attended, _ = attention(
        branch(packer.query_mlp, packer.query_norm, query[None]),
        branch(packer.key_mlp, packer.key_norm, window),
        branch(packer.value_mlp, packer.value_norm, window),
    )
    return query + F.linear(attended[0, 0], packer.output_proj.weight)


def interpolated(states: torch.Tensor, window: tuple[int, int, int]) -> torch.Tensor:
    """Queries of all windows: linear over frames, bilinear over rows and columns, align_corners=False, no antialiasing."""
    videos, frames, rows, columns, hidden = states.shape
    t, h, w = window
    states = states.permute(0, 2, 3, 4, 1).reshape(-1, hidden, frames)
    states = F.interpolate(states, size=frames // t, mode="linear", align_corners=False)
    states = states.view(videos, rows, columns, hidden, -1).permute(0, 4, 3, 1, 2).flatten(0, 1)
    states = F.interpolate(states, size=(rows // h, columns // w), mode="bilinear", align_corners=False)
    return states.unflatten(0, (videos, frames // t)).permute(0, 1, 3, 4, 2)


def packed_slowly(packer: LlavaSTWindowPacker, states: torch.Tensor) -> torch.Tensor:
    t, h, w = packer.window
    queries = interpolated(states, packer.window)
    out = torch.empty_like(queries)
    for video, frame, row, column in itertools.product(*map(range, queries.shape[:-1])):
        cells = states[video, frame * t : (frame + 1) * t, row * h : (row + 1) * h, column * w : (column + 1) * w]
        out[video, frame, row, column] = attend(packer, queries[video, frame, row, column], cells.flatten(0, 2))
    return out


@pytest.mark.parametrize("window", [(1, 3, 3), (5, 1, 1), (2, 1, 1), (1, 2, 2), (1, 1, 1), (4, 1, 1)])
@torch.no_grad()
def test_window_packer_equals_one_attention_per_window(window):
    packer = randomised(LlavaSTWindowPacker(tiny_config(), window))
    states = torch.randn(2, 2 * window[0], 2 * window[1], 3 * window[2], 32)
    torch.testing.assert_close(packer(states), packed_slowly(packer, states), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_packer_streams_equal_the_window_packers_and_have_the_documented_shapes():
    packer = randomised(LlavaSTSpatialTemporalPacker(tiny_config(packer_temporal_stride=5)))
    states = torch.randn(1, 10, 9, 9, 32)
    fast, slow = packer(states)
    cells = packed_slowly(packer.spatial, states)
    torch.testing.assert_close(fast, packed_slowly(packer.fast, cells), atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(slow, packed_slowly(packer.slow, cells), atol=5e-5, rtol=1e-4)
    assert fast.shape == (1, 10, 1, 1, 32) and slow.shape == (1, 2, 3, 3, 32)


@pytest.mark.parametrize("num_frames", [1, 3, 7])
@torch.no_grad()
def test_packer_repeats_the_last_frame_to_fill_the_last_slow_window(num_frames):
    packer = randomised(LlavaSTSpatialTemporalPacker(tiny_config(packer_temporal_stride=5)))
    states = torch.randn(1, num_frames, 9, 9, 32)
    held = torch.cat((states, states[:, -1:].expand(-1, -num_frames % 5, -1, -1, -1)), dim=1)
    fast, slow = packer(states)
    assert fast.shape[1] == num_frames
    torch.testing.assert_close(slow, packer(held)[1])


@torch.no_grad()
def test_packer_use_fast_false_returns_no_fast_stream_and_an_equal_slow_stream():
    packer = randomised(LlavaSTSpatialTemporalPacker(tiny_config()))
    states = torch.randn(1, 4, 9, 9, 32)
    fast, slow = packer(states, use_fast=False)
    assert fast is None
    assert torch.equal(slow, packer(states)[1])


@torch.no_grad()
def test_packer_videos_of_a_batch_are_independent():
    packer = randomised(LlavaSTSpatialTemporalPacker(tiny_config()))
    states = torch.randn(2, 4, 9, 9, 32)
    together, alone = packer(states), packer(states[:1])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[:1], b)


def test_initialize_weights_uses_xavier_for_qkv_and_the_given_std_for_other_layers():
    packer = LlavaSTWindowPacker(tiny_config(packer_hidden_size=64), (1, 3, 3))
    torch.manual_seed(0)
    packer.initialize_weights(std=0.02)
    for linear in (packer.q_proj, packer.k_proj, packer.v_proj):
        bound = (6 / (64 + 3 * 64)) ** 0.5  # Xavier's bound of a (3·64, 64) matrix
        assert 0.98 * bound < linear.weight.abs().max() <= bound
    for linear in (packer.query_mlp.linear_1, packer.value_mlp.linear_2, packer.out_proj, packer.output_proj):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
