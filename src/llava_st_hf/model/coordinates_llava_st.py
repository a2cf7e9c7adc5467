# SPDX-License-Identifier: Apache-2.0
"""Coordinate vocabulary: quantization of positions to bins and tokens, and interpolation between neighbouring bins.

A *position* is a fraction in [0, 1] of the clip's length, the frame's height or the frame's width. Each axis is quantized into
bins: bin k of n represents the position k / (n - 1), so the first bin is the start and the last bin the end. The
bins of the three axes are tokens (`<TEMP-000>`, `<HEIGHT-000>`, `<WIDTH-000>` …), in this order, side by side in the
vocabulary. A position between two bins is linearly interpolated
between both, as input embedding and as training target (LLaVA-ST, section 3.2).
"""

import math
import re
from dataclasses import dataclass

import torch


DEFAULT_NUM_BINS = 100
MIN_BINS, MAX_BINS = 2, 1000  # an axis has two ends, and token names have three digits

AXES = ("temporal", "height", "width")
TOKEN_NAMES = {"temporal": "TEMP", "height": "HEIGHT", "width": "WIDTH"}

# The original code writes one of these tokens for each coordinate and passes the value separately.
PLACEHOLDER_TOKENS = tuple(f"<{TOKEN_NAMES[axis]}-{use}>" for axis in AXES for use in ("INPUT", "OUTPUT"))
WIDTH_INPUT_TOKEN = "<WIDTH-INPUT>"

COORDINATE_TOKEN = re.compile(r"<(?P<name>TEMP|HEIGHT|WIDTH)-(?P<bin>\d{3})>")
AXIS_OF_NAME = {name: axis for axis, name in TOKEN_NAMES.items()}

# Positions outside [0, 1] by up to this are rounding errors and are clipped.
OVERSHOOT = 1e-3


def coordinate_token(axis: str, index: int) -> str:
    """Returns the token of bin `index` on `axis` ("temporal", "height" or "width"): `coordinate_token("width", 7)` is `<WIDTH-007>`."""
    return f"<{TOKEN_NAMES[axis]}-{index:03d}>"


def coordinate_tokens(num_temporal_bins: int, num_spatial_bins: int) -> list[str]:
    """All coordinate tokens in vocabulary order: temporal, then height, then width."""
    sizes = {"temporal": num_temporal_bins, "height": num_spatial_bins, "width": num_spatial_bins}
    return [coordinate_token(axis, index) for axis in AXES for index in range(sizes[axis])]


def check_position(value: float, what: str, overshoot: float = OVERSHOOT) -> float:
    """Returns `value` as a float clipped to [0, 1].

    Raises:
        ValueError: naming `what` and the value, if it is not finite or is further than `overshoot` outside [0, 1].
    """
    value = float(value)
    if not math.isfinite(value) or not -overshoot <= value <= 1 + overshoot:
        raise ValueError(f"{what} is {value:g}, but a position is a finite fraction in [0, 1].")
    return min(max(value, 0.0), 1.0)


def position_to_bin(position: float, num_bins: int) -> int:
    """Quantizes a position in [0, 1] to the nearest bin; half-way positions are rounded to even, as in the original code."""
    return round(position * (num_bins - 1))


def bin_to_position(index: int, num_bins: int) -> float:
    """Returns the position (fraction in [0, 1]) of a bin."""
    return index / (num_bins - 1)


@dataclass(frozen=True)
class CoordinateVocabulary:
    """Ids of the coordinate tokens in the vocabulary, and interpolation of positions between two of them.

    Args:
        start_token_id: id of `<TEMP-000>`; all other coordinate tokens follow it.
        num_temporal_bins, num_spatial_bins: bins of the time axis, and of height and of width.
        placeholder_token_ids: ids of `PLACEHOLDER_TOKENS`, which replace coordinate tokens in ids of the original code.
    """

    start_token_id: int
    num_temporal_bins: int
    num_spatial_bins: int
    placeholder_token_ids: tuple[int, ...]

    def __len__(self) -> int:
        return self.num_temporal_bins + 2 * self.num_spatial_bins

    @property
    def end_token_id(self) -> int:
        """One past the last coordinate token."""
        return self.start_token_id + len(self)

    def num_bins(self, axis: str) -> int:
        return self.num_temporal_bins if axis == "temporal" else self.num_spatial_bins

    def sizes(self) -> list[int]:
        """Number of bins of each axis, in vocabulary order."""
        return [self.num_bins(axis) for axis in AXES]

    def token_ids(self, axis: str) -> range:
        start = self.start_token_id + sum(self.num_bins(a) for a in AXES[: AXES.index(axis)])
        return range(start, start + self.num_bins(axis))

    def between_tokens(self, token_ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the two tokens around each exact position, and the weight of the upper one.

        With y = (n - 1) x, f = ⌊y⌋, c = ⌈y⌉ and r = y - f, a position x on an axis with n bins is (1 - r) · bin f + r · bin c.

        Args:
            token_ids: ids of any shape. If a position is given, the id (a coordinate token or a placeholder) determines the axis.
            positions: same shape; fractions in [0, 1], NaN if a token is not a coordinate or is exactly its bin.

        Returns:
            `(lower_ids, upper_ids, weight)`, all of the shape given. Where there is no position, or the token belongs to
            no axis, both ids are the token itself and the weight is 0.
        """
        lower = upper = token_ids
        weight = torch.zeros_like(positions)
        given = ~torch.isnan(positions)
        for number, axis in enumerate(AXES):
            ids = self.token_ids(axis)
            on_axis = (token_ids >= ids.start) & (token_ids < ids.stop)
            for placeholder in self.placeholder_token_ids[2 * number : 2 * number + 2]:
                on_axis = on_axis | (token_ids == placeholder)
            on_axis = on_axis & given
            scaled = positions.nan_to_num().clamp(0, 1) * (len(ids) - 1)
            floor, ceil = scaled.floor(), scaled.ceil()
            lower = torch.where(on_axis, ids.start + floor.long(), lower)
            upper = torch.where(on_axis, ids.start + ceil.long(), upper)
            weight = torch.where(on_axis, scaled - floor, weight)
        return lower, upper, weight


def propagation_matrix(sizes: list[int], device=None, dtype=torch.float32) -> torch.Tensor:
    """Neighbouring Token Propagation (LLaVA-ST, section 3.2): M[i, j] = 2^-|i-j| within one axis, 0 across axes.

    Args:
        sizes: number of bins of each axis.

    Returns:
        (sum(sizes), sum(sizes)), symmetric, ones on the diagonal.
    """
    blocks = []
    for size in sizes:
        index = torch.arange(size, device=device, dtype=dtype)
        blocks.append(torch.exp2(-(index[:, None] - index[None, :]).abs()))
    return torch.block_diag(*blocks)
