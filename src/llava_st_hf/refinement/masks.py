# SPDX-License-Identifier: Apache-2.0
"""Masks as COCO run-length encoding, in the form of pycocotools."""

import numpy as np


_VALUE, _CONTINUES, _SIGN = 0x1F, 0x20, 0x10  # bits of a character: five of the number, whether more follow, the sign in the last one
_OFFSET = 48  # of the character of the value 0
_DIFFERENCES_FROM = 3  # from this run on, its difference from the run two before it is written


def encode_mask(mask: np.ndarray) -> str:
    """
    Encodes a mask as compressed COCO run-length encoding.

    Args:
        mask: (height, width), true inside the object.

    Returns:
        `counts` of COCO: lengths of runs of pixels outside and inside, in turn, column after column, starting with a run outside.

    Raises:
        ValueError: if the mask does not have two axes.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"A mask must be of shape (height, width), got {mask.shape}.")
    pixels = mask.astype(bool).ravel(order="F")  # (height * width,)
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    runs = np.diff(np.concatenate(([0], changes, [pixels.size]))).tolist()
    characters = []
    for place, run in enumerate(runs):
        number = run - runs[place - 2] if place >= _DIFFERENCES_FROM else run
        while True:
            part, number = number & _VALUE, number >> 5
            ends = number == (-1 if part & _SIGN else 0)
            characters.append(chr(_OFFSET + part + (0 if ends else _CONTINUES)))
            if ends:
                break
    return "".join(characters)


def decode_mask(counts: str, height: int, width: int) -> np.ndarray:
    """
    Decodes what `encode_mask` or pycocotools returns.

    Returns:
        (height, width) booleans.

    Raises:
        ValueError: if `counts` is not the encoding of a mask of this size in pixels.
    """
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        value = ord(character) - _OFFSET
        if not 0 <= value < 2 * _CONTINUES:
            raise ValueError(f"The mask {counts!r:.100} is not a COCO run-length encoding: it contains {character!r}.")
        number |= (value & _VALUE) << shift
        shift += 5
        if value & _CONTINUES:
            continue
        if value & _SIGN:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) >= _DIFFERENCES_FROM else number)
        number = shift = 0
    if shift or min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"The mask {counts!r:.100} is not the COCO run-length encoding of {height}x{width} pixels (height x width).")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape((height, width), order="F")


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """
    Returns `(x1, y1, x2, y2)` of the smallest box around a mask, in pixels from the left and top edge of the first pixel to the right and
    bottom edge of the last one; None for an empty mask.

    Args:
        mask: (height, width) booleans.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


__all__ = ["decode_mask", "encode_mask", "mask_box"]
