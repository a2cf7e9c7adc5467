# SPDX-License-Identifier: Apache-2.0
"""`BatchFeature` subclass that stores the metadata of each sample's media, needed to convert answers to seconds and pixels."""

import torch
from transformers import BatchFeature

from .media_info_llava_st import MediaInfo
from .renamed_arguments_llava_st import warn_renamed
from .trl_inputs_llava_st import mask_media_labels


# Segment ids that are no conversation's number: tokens that several conversations share, and padding.
SHARED, PADDING = -1, -2


class LlavaSTBatchFeature(BatchFeature):
    """Model inputs with the metadata of their images and videos.

    Labels of image and video tokens become -100 when labels are set, so that a trainer that counts labels does not count them. Where
    collators replace the ids of prompts by those of prompts and answers, as TRL's do, `coordinate_values` are moved to the new places.

    Args:
        data (`dict`, *optional*):
            Model inputs.
        media_info (`list[list[MediaInfo]]`, *optional*):
            For each sample its images and videos in order: size, frame rate and clip of the original files. Stored as the attribute
            `media_info`, which `model.generate(**inputs)` does not get.
        media_token_ids, coordinate_token_ids (`list[int]`):
            Ids of the tokens that features replace, and of those that may have an exact value.
    """

    def __init__(
        self,
        data=None,
        *args,
        media_info: list[list[MediaInfo]] | None = None,
        media_token_ids: list[int] | tuple[int, ...] = (),
        coordinate_token_ids: list[int] | tuple[int, ...] = (),
        **kwargs,
    ):
        self.media_token_ids, self.coordinate_token_ids = list(media_token_ids), list(coordinate_token_ids)
        super().__init__(data, *args, **kwargs)
        self.media_info = media_info if media_info is not None else []

    def __setitem__(self, name, value):
        if name == "labels" and self.media_token_ids and isinstance(value, torch.Tensor):
            value = mask_media_labels(value, self.media_token_ids)
        if name == "input_ids" and all(isinstance(self.data.get(key), torch.Tensor) for key in ("input_ids", "coordinate_values")):
            self._move_coordinate_values(value)
        super().__setitem__(name, value)

    def _move_coordinate_values(self, input_ids: torch.Tensor) -> None:
        """
        Gives the first coordinate tokens of each new row the exact values of those of the old row, in order.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Padded rows that begin with the old ones without their padding, or with a part of them if they are truncated.

        Raises:
            ValueError: If the numbers of rows differ, or a coordinate token differs from the old one.
        """
        old_ids, values = self.data["input_ids"], self.data["coordinate_values"]
        if len(input_ids) != len(old_ids):
            raise ValueError(f"input_ids has {len(input_ids)} rows, but the coordinate_values beside it have {len(old_ids)}.")
        coordinates = torch.tensor(self.coordinate_token_ids, device=input_ids.device)
        moved = torch.full(input_ids.shape, float("nan"), device=input_ids.device)
        for row, (old, new) in enumerate(zip(old_ids, input_ids, strict=True)):
            sources, places = torch.isin(old, coordinates).nonzero().flatten(), torch.isin(new, coordinates).nonzero().flatten()
            count = min(len(sources), len(places))
            sources, places = sources[:count], places[:count]
            if not torch.equal(old[sources], new[places]):
                raise ValueError(
                    "The new input_ids do not begin with the text of the old ones, so the exact values of its coordinates have no place in "
                    "them. Make input_ids and coordinate_values together, or delete coordinate_values from the batch."
                )
            moved[row, places] = values[row, sources]
        self.data["coordinate_values"] = moved

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
        tokens = {"media_token_ids": self.media_token_ids, "coordinate_token_ids": self.coordinate_token_ids}
        return {**super().__getstate__(), "media_info": self.media_info, **tokens}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.media_info = state["media_info"]
        self.media_token_ids, self.coordinate_token_ids = state["media_token_ids"], state["coordinate_token_ids"]


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
    joined = torch.empty((sum(map(len, tensors)), *tensors[0].shape[1:]), dtype=dtype, device=tensors[0].device)
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
