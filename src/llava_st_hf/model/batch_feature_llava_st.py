# SPDX-License-Identifier: Apache-2.0
"""`BatchFeature` subclass that stores the metadata of each sample's media, needed to convert answers to seconds and pixels."""

import torch
from transformers import BatchFeature

from .grounding_llava_st import MediaInfo
from .renamed_arguments_llava_st import warn_renamed


# Segment ids that are no conversation's number: tokens that several conversations share, and padding.
SHARED, PADDING = -1, -2


class LlavaSTBatchFeature(BatchFeature):
    """Model inputs with the metadata of their images and videos.

    Args:
        data (`dict`, *optional*):
            Model inputs.
        media_info (`list[list[MediaInfo]]`, *optional*):
            For each sample its images and videos in order: size, frame rate and clip of the original files. Stored as the attribute
            `media_info`, which `model.generate(**inputs)` does not get.
    """

    def __init__(self, data=None, *args, media_info: list[list[MediaInfo]] | None = None, **kwargs):
        super().__init__(data, *args, **kwargs)
        self.media_info = media_info if media_info is not None else []

    @property
    def media(self) -> list[list[MediaInfo]]:
        """Former name of `media_info`."""
        warn_renamed("inputs.media", "inputs.media_info", stacklevel=3)
        return self.media_info

    def to(self, *args, **kwargs):
        """Same as in transformers, but a cast keeps `coordinate_values` in float32: bfloat16 would round them by up to a fifth of a bin."""
        values = self.data.get("coordinate_values")
        super().to(*args, **kwargs)
        if isinstance(values, torch.Tensor):
            self.data["coordinate_values"] = values.to(self.data["coordinate_values"].device)
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
    Pads samples to a batch, with media in the order of the samples.

    Args:
        samples (`list[dict[str, torch.Tensor]]`):
            `input_ids` and, where a sample has them, `labels`, `coordinate_values`, `position_ids`, `segment_ids`, each of shape
            `(length,)` or `(1, length)`, and `pixel_values`, `pixel_values_videos`.
        pad_token_id (`int`):
            Fills shorter `input_ids`.
        padding_side (`str`):
            `"left"` for generation, `"right"` for training.
        pixel_dtype (`torch.dtype`, *optional*):
            Type of the pixels; by default they keep theirs.

    Returns:
        `dict[str, torch.Tensor]`: the same names and `attention_mask`; text of shape `(batch_size, longest)`.

    Raises:
        ValueError: If videos have different numbers of frames.
    """
    length = max(sample["input_ids"].shape[-1] for sample in samples)
    batch = {"attention_mask": torch.zeros(len(samples), length, dtype=torch.long)}
    fills = {"input_ids": pad_token_id, "labels": -100, "coordinate_values": float("nan"), "position_ids": 0, "segment_ids": PADDING}
    for name, fill in fills.items():
        dtype = torch.float32 if name == "coordinate_values" else torch.long
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
    """Concatenates along the first dimension and casts, in one copy; a single tensor of the type `dtype` is not copied."""
    if len(tensors) == 1:
        return tensors[0].to(dtype)
    joined = torch.empty((sum(map(len, tensors)), *tensors[0].shape[1:]), dtype=dtype)
    for part, values in zip(joined.split([len(values) for values in tensors]), tensors, strict=True):
        part.copy_(values)
    return joined


class MediaText(str):
    """Tokens of one image or video, with the [`MediaInfo`] that converts its coordinates from seconds and pixels.

    Args:
        text (`str`):
            The tokens.
        media ([`MediaInfo`]):
            Size, frame rate and clip of the original file.
    """

    media: MediaInfo

    def __new__(cls, text: str, media: MediaInfo):
        self = super().__new__(cls, text)
        self.media = media
        return self
