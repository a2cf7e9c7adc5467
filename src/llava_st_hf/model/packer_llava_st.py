# SPDX-License-Identifier: Apache-2.0
"""Spatial-Temporal Packer: compression of video features to a fast and a slow stream (LLaVA-ST, section 3.3)."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_llava_st import LlavaSTConfig


class LlavaSTPackerMLP(nn.Module):
    def __init__(self, config: LlavaSTConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.text_config.hidden_size, config.packer_hidden_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(config.packer_hidden_size, config.packer_hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(hidden_states)))


def _window_centers(hidden_states: torch.Tensor, dim: int, stride: int) -> torch.Tensor:
    """Linear interpolation (align_corners=False) of dimension `dim` to 1/stride of its length: the middle entry of each window, or the
    mean of its two middle entries where `stride` is even. Reads only these entries."""
    index = [slice(None)] * hidden_states.ndim
    index[dim] = slice(stride // 2, None, stride)
    upper = hidden_states[tuple(index)]
    if stride % 2:
        return upper
    index[dim] = slice(stride // 2 - 1, None, stride)
    return torch.lerp(hidden_states[tuple(index)].float(), upper.float(), 0.5).to(hidden_states.dtype)


class LlavaSTWindowPacker(GradientCheckpointingLayer):
    """Attention pooling over non-overlapping windows of frames × rows × columns (LLaVA-ST, section 3.3). The query is the interpolated
    center of the window, keys and values are all its features; the query is added to the result.

    Args:
        config ([`LlavaSTConfig`]):
            Configuration of the model.
        window (`tuple[int, int, int]`):
            Frames, rows and columns of a window.
    """

    def __init__(self, config: LlavaSTConfig, window: tuple[int, int, int]):
        super().__init__()
        hidden_size = config.packer_hidden_size
        self.window = window
        self.head_dim = hidden_size // config.packer_num_attention_heads
        self.query_mlp = LlavaSTPackerMLP(config)
        self.key_mlp = LlavaSTPackerMLP(config)
        self.value_mlp = LlavaSTPackerMLP(config)
        self.query_norm = nn.LayerNorm(hidden_size)
        self.key_norm = nn.LayerNorm(hidden_size)
        self.value_norm = nn.LayerNorm(hidden_size)
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.output_proj = nn.Linear(hidden_size, config.text_config.hidden_size, bias=False)

    def initialize_weights(self, std: float):
        """Initializes the linear weights that no checkpoint has filled, as the original code does; biases and norms keep PyTorch's values.

        Args:
            std (`float`):
                Standard deviation of the truncated normal distribution.
        """
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            init.trunc_normal_(linear.weight, std=std)
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            init.xavier_uniform_(linear.weight, gain=0.5**0.5)  # as one (3·hidden, hidden) matrix

    def _windows(self, states: torch.Tensor) -> torch.Tensor:
        """(videos, frames, rows, columns, packer_hidden) → (windows, heads, features per window, head_dim)"""
        videos, frames, rows, columns, _ = states.shape
        t, h, w = self.window
        states = states.view(
            videos, frames // t, t, rows // h, h, columns // w, w, -1, self.head_dim
        )  # with tensor parallelism some of the heads
        states = states.permute(0, 1, 3, 5, 7, 2, 4, 6, 8)  # (videos, windows…, heads, t, h, w, head_dim)
        return states.reshape(-1, states.shape[4], t * h * w, self.head_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.FloatTensor` of shape `(num_videos, num_frames, num_rows, num_columns, hidden_size)`):
                Features; each length is a multiple of the window's.

        Returns:
            `torch.FloatTensor` of shape `(num_videos, num_frames / t, num_rows / h, num_columns / w, hidden_size)`, where `(t, h, w)` is
            the window.
        """
        queries = hidden_states
        for dim, stride in enumerate(self.window, start=1):
            if stride > 1:
                queries = _window_centers(queries, dim, stride)  # (videos, frames/t, rows/h, columns/w, hidden)
        shape = hidden_states.shape[1:4]
        # Three dimensions: bitsandbytes' layers of 8 bits take no more.
        centers, features = queries.flatten(1, 3), hidden_states.flatten(1, 3)  # (videos, windows per video or features, hidden)
        query = self.q_proj(self.query_norm(self.query_mlp(centers)))
        key = self._windows(self.k_proj(self.key_norm(self.key_mlp(features))).unflatten(1, shape))
        value = self._windows(self.v_proj(self.value_norm(self.value_mlp(features))).unflatten(1, shape))
        query = query.reshape(*key.shape[:2], 1, -1)  # (windows, heads, 1, head_dim)
        attended = F.scaled_dot_product_attention(query, key, value)  # (windows, heads, 1, head_dim)
        attended = attended.reshape(*centers.shape[:2], -1)  # (videos, windows per video, packer_hidden)
        return queries + self.output_proj(self.out_proj(attended)).view_as(queries)


# Styles of tensor parallelism by name of the layer in a packer. Processes share the heads; `output_proj` and norms are on all of them.
TENSOR_PARALLEL_PLAN = {
    **{f"{part}_mlp.linear_1": "colwise" for part in ("query", "key", "value")},
    **{f"{part}_mlp.linear_2": "rowwise" for part in ("query", "key", "value")},
    **{f"{part}_proj": "colwise" for part in ("q", "k", "v")},
    "out_proj": "rowwise",
}


class LlavaSTSpatialTemporalPacker(nn.Module):
    """Spatial-Temporal Packer (LLaVA-ST, section 3.3). The spatial packer pools the 27×27 patches of each frame to 9×9. Of these, the
    fast stream pools every frame to 3×3 and the slow stream pools five frames at a time to one.

    Args:
        config ([`LlavaSTConfig`]):
            Configuration of the model.
    """

    def __init__(self, config: LlavaSTConfig):
        super().__init__()
        spatial, temporal, fast = config.packer_spatial_stride, config.packer_temporal_stride, config.fast_spatial_stride
        self.spatial = LlavaSTWindowPacker(config, (1, spatial, spatial))
        self.slow = LlavaSTWindowPacker(config, (temporal, 1, 1))
        self.fast = LlavaSTWindowPacker(config, (1, fast, fast))

    def forward(self, hidden_states: torch.Tensor, use_fast: bool = True) -> tuple[torch.Tensor | None, torch.Tensor]:
        """
        Args:
            hidden_states (`torch.FloatTensor` of shape `(num_videos, num_frames, num_rows, num_columns, hidden_size)`):
                Patch features with positional embedding.
            use_fast (`bool`, *optional*, defaults to `True`):
                Whether to compute the fast stream.

        Returns:
            `tuple(torch.FloatTensor | None, torch.FloatTensor)`: the fast stream of shape `(num_videos, num_frames, num_rows / 9,
            num_columns / 9, hidden_size)`, or None, and the slow stream of shape `(num_videos, ⌈num_frames / 5⌉, num_rows / 3,
            num_columns / 3, hidden_size)`, with the default strides. Where the temporal stride does not divide the number of frames, the
            last frame is repeated.
        """
        spatial = self.spatial
        if spatial.gradient_checkpointing and spatial.training and spatial._gradient_checkpointing_func.keywords.get("use_reentrant"):
            # A reentrant checkpoint gives no gradient to weights whose input requires none, as features of frozen modules do.
            hidden_states = hidden_states.requires_grad_()
        pooled = spatial(hidden_states)  # (videos, frames, rows/3, columns/3, hidden)
        fast = self.fast(pooled) if use_fast else None
        missing = -pooled.shape[1] % self.slow.window[0]
        if missing:
            pooled = torch.cat((pooled, pooled[:, -1:].expand(-1, missing, -1, -1, -1)), dim=1)
        return fast, self.slow(pooled)
