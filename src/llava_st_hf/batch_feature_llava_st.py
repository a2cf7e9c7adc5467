# SPDX-License-Identifier: Apache-2.0
"""What travels with model inputs, so that answers come back in seconds and pixels."""

import torch
from transformers import BatchFeature

from .grounding import Media


class LlavaSTBatchFeature(BatchFeature):
    """Model inputs, with what it takes to read the answer beside them.

    `media[i]` lists sample i's media in order as [`Media`]: size, frame rate and clip of the original files. It is no key, so
    `model.generate(**inputs)` takes the inputs as they are.
    """

    def __init__(self, data=None, *args, media: list[list[Media]] | None = None, **kwargs):
        super().__init__(data, *args, **kwargs)
        self.media = media if media is not None else []

    def to(self, *args, **kwargs):
        """As in transformers, but a cast leaves `coordinates` in float32: bf16 would move them by a fifth of a bin."""
        coordinates = self.data.get("coordinates")
        super().to(*args, **kwargs)
        if isinstance(coordinates, torch.Tensor):
            self.data["coordinates"] = coordinates.to(self.data["coordinates"].device)
        return self

    def __getstate__(self):
        return {**super().__getstate__(), "media": self.media}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.media = state["media"]


class MediaText(str):
    """The tokens that stand for one image or video, and the [`Media`] that coordinates in seconds or pixels refer to."""

    media: Media

    def __new__(cls, text: str, media: Media):
        self = super().__new__(cls, text)
        self.media = media
        return self
