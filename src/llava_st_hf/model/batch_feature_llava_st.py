# SPDX-License-Identifier: Apache-2.0
"""What travels with model inputs, so that answers come back in seconds and pixels."""

import warnings

import torch
from transformers import BatchFeature

from .grounding_llava_st import MediaInfo


# Which conversation of its sequence a token belongs to is a number from 0 on, its segment; or one of these.
SHARED, PADDING = -1, -2


class LlavaSTBatchFeature(BatchFeature):
    """Model inputs, with what it takes to read the answer beside them.

    `media_info[i]` lists the images and videos of sample i in order as [`MediaInfo`]: size, frame rate and clip of the original files.
    It is not a key, so `model.generate(**inputs)` does not get it.
    """

    def __init__(self, data=None, *args, media_info: list[list[MediaInfo]] | None = None, **kwargs):
        super().__init__(data, *args, **kwargs)
        self.media_info = media_info if media_info is not None else []

    @property
    def media(self) -> list[list[MediaInfo]]:
        """Former name of `media_info`."""
        warnings.warn("inputs.media is now inputs.media_info; the old name will be removed in version 0.3.", FutureWarning, stacklevel=2)
        return self.media_info

    def to(self, *args, **kwargs):
        """As in transformers, but a cast leaves `coordinates` in float32: bf16 would move them by a fifth of a bin."""
        coordinates = self.data.get("coordinates")
        super().to(*args, **kwargs)
        if isinstance(coordinates, torch.Tensor):
            self.data["coordinates"] = coordinates.to(self.data["coordinates"].device)
        return self

    def __getstate__(self):
        return {**super().__getstate__(), "media_info": self.media_info}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.media_info = state["media_info"]


def join_samples(
    samples: list[dict[str, torch.Tensor]], pad_token_id: int, padding_side: str, pixel_dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """
    A batch of samples, with media in the order of the samples.

    Args:
        samples: `input_ids` and, as far as they have such, `labels`, `coordinates`, `position_ids`, `segments`, `pixel_values` and
            `pixel_values_videos`. Text is of shape (length,) or (1, length).
        pad_token_id: fills shorter `input_ids`.
        padding_side: "left" for generation, "right" for training.
        pixel_dtype: of the pixels; by default as they are.

    Returns:
        The same names and `attention_mask`; text of shape (batch_size, longest).

    Raises:
        ValueError: where videos have unlike numbers of frames.
    """
    length = max(sample["input_ids"].shape[-1] for sample in samples)
    batch = {"attention_mask": torch.zeros(len(samples), length, dtype=torch.long)}
    fills = {"input_ids": pad_token_id, "labels": -100, "coordinates": float("nan"), "position_ids": 0, "segments": PADDING}
    for name, fill in fills.items():
        dtype = torch.float32 if name == "coordinates" else torch.long
        if any(name in sample for sample in samples):
            batch[name] = torch.full((len(samples), length), fill, dtype=dtype)
    for number, sample in enumerate(samples):
        own = sample["input_ids"].shape[-1]
        place = slice(length - own, None) if padding_side == "left" else slice(own)
        batch["attention_mask"][number, place] = 1
        for name in fills:
            if name in sample:
                batch[name][number, place] = sample[name].flatten()
    for name in ("pixel_values", "pixel_values_videos"):
        pixels = [sample[name] for sample in samples if name in sample]
        if len({tensor.shape[1:] for tensor in pixels}) > 1:
            frames = sorted({tensor.shape[1] for tensor in pixels})
            raise ValueError(f"Videos of {' and '.join(map(str, frames))} frames cannot share a batch: set num_frames, or batches of one.")
        if pixels:
            batch[name] = _join(pixels, pixel_dtype or pixels[0].dtype)
    return batch


def _join(tensors: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Concatenates along the first dimension and casts, in one copy; a single tensor of the right type in none."""
    if len(tensors) == 1:
        return tensors[0].to(dtype)
    joined = torch.empty((sum(map(len, tensors)), *tensors[0].shape[1:]), dtype=dtype)
    for part, values in zip(joined.split([len(values) for values in tensors]), tensors, strict=True):
        part.copy_(values)
    return joined


class MediaText(str):
    """The tokens that stand for one image or video, and the [`MediaInfo`] that coordinates in seconds or pixels refer to."""

    media: MediaInfo

    def __new__(cls, text: str, media: MediaInfo):
        self = super().__new__(cls, text)
        self.media = media
        return self
