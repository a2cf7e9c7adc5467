# SPDX-License-Identifier: Apache-2.0
"""The Spatial-Temporal Packer: two-stream compression of video features (LLaVA-ST, section 3.3)."""

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


def _window_centers(hidden_states: torch.Tensor, dim: int, scale: int) -> torch.Tensor:
    """Linear interpolation (align_corners=False) to 1/scale of the length: the middle of each window, or of an even
    window the mean of its two middle entries. Reads only these entries."""
    index = [slice(None)] * hidden_states.ndim
    index[dim] = slice(scale // 2, None, scale)
    upper = hidden_states[tuple(index)]
    if scale % 2:
        return upper
    index[dim] = slice(scale // 2 - 1, None, scale)
    return torch.lerp(hidden_states[tuple(index)].float(), upper.float(), 0.5).to(hidden_states.dtype)


class LlavaSTWindowPacker(GradientCheckpointingLayer):
    """One packer of the Spatial-Temporal Packer: every window of cells becomes one, by attention from the window's centre
    over the window and a residual (LLaVA-ST, section 3.3)."""

    def __init__(self, config: LlavaSTConfig, window: tuple[int, int, int]):
        super().__init__()
        hidden_size = config.packer_hidden_size
        self.window = window  # frames, rows, columns
        self.num_heads = config.packer_num_attention_heads
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
        """Fresh weights as in the released program. Leaves loaded ones, and biases and norms, alone."""
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            init.trunc_normal_(linear.weight, std=std)
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            init.xavier_uniform_(linear.weight, gain=0.5**0.5)  # that of the three as one (3·hidden, hidden) matrix

    def _windows(self, states: torch.Tensor) -> torch.Tensor:
        """(videos, frames, rows, columns, packer_hidden) → (windows, heads, cells per window, head_dim)"""
        videos, frames, rows, columns, _ = states.shape
        t, h, w = self.window
        states = states.view(videos, frames // t, t, rows // h, h, columns // w, w, self.num_heads, -1)
        states = states.permute(0, 1, 3, 5, 7, 2, 4, 6, 8)  # cells of one window side by side
        return states.reshape(-1, self.num_heads, t * h * w, states.shape[-1])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        Args:
            hidden_states: (videos, frames, rows, columns, hidden_size); each length a multiple of the window's.

        Returns:
            (videos, frames / t, rows / h, columns / w, hidden_size)
        """
        queries = hidden_states
        for dim, scale in enumerate(self.window, start=1):
            if scale > 1:
                queries = _window_centers(queries, dim, scale)  # (videos, frames/t, rows/h, columns/w, hidden)
        query = self.q_proj(self.query_norm(self.query_mlp(queries)))
        key = self._windows(self.k_proj(self.key_norm(self.key_mlp(hidden_states))))
        value = self._windows(self.v_proj(self.value_norm(self.value_mlp(hidden_states))))
        query = query.reshape(key.shape[0], self.num_heads, 1, -1)  # (windows, heads, 1, head_dim)
        attended = F.scaled_dot_product_attention(query, key, value)  # (windows, heads, 1, head_dim)
        attended = attended.reshape(*queries.shape[:-1], -1)  # (videos, frames/t, rows/h, columns/w, packer_hidden)
        return queries + self.output_proj(self.out_proj(attended))


class LlavaSTSpatialTemporalPacker(nn.Module):
    """Spatial-Temporal Packer: 27×27 patches of each frame become 9×9 cells; of these the fast stream keeps every frame at
    3×3 and the slow stream every cell at a fifth of the frames (LLaVA-ST, section 3.3)."""

    def __init__(self, config: LlavaSTConfig):
        super().__init__()
        spatial, temporal, fast = config.packer_spatial_stride, config.packer_temporal_stride, config.fast_spatial_stride
        self.spatial = LlavaSTWindowPacker(config, (1, spatial, spatial))
        self.slow = LlavaSTWindowPacker(config, (temporal, 1, 1))
        self.fast = LlavaSTWindowPacker(config, (1, fast, fast))

    def forward(self, hidden_states: torch.Tensor, use_fast: bool = True) -> tuple[torch.Tensor | None, torch.Tensor]:
        """
        Args:
            hidden_states: (videos, frames, rows, columns, hidden_size), patch features with position.
            use_fast: whether to compute the fast stream.

        Returns:
            `(fast, slow)`: (videos, frames, rows/9, columns/9, hidden_size) or None, and
            (videos, ⌈frames/5⌉, rows/3, columns/3, hidden_size), with the released scales. Where the temporal scale does
            not divide the number of frames, the last frame is held to fill the last window.
        """
        spatial = self.spatial
        if spatial.gradient_checkpointing and spatial.training and spatial._gradient_checkpointing_func.keywords.get("use_reentrant"):
            # This kind of checkpoint gives no gradient to weights whose input needs none, as features of frozen parts do.
            hidden_states = hidden_states.requires_grad_()
        cells = spatial(hidden_states)
        fast = self.fast(cells) if use_fast else None
        missing = -cells.shape[1] % self.slow.window[0]
        if missing:
            cells = torch.cat((cells, cells[:, -1:].expand(-1, missing, -1, -1, -1)), dim=1)
        return fast, self.slow(cells)
