# SPDX-License-Identifier: Apache-2.0
"""Processor for several prompts about one image or video that has been processed already."""

import os
import pickle
import zlib
from typing import Any
from uuid import uuid4

import numpy as np
import PIL.Image
import torch

from .batch_feature_llava_st import LlavaSTBatchFeature, MediaText
from .media_files_llava_st import MEDIA_ERRORS, is_data_url, is_url, local_path
from .media_info_llava_st import MediaInfo
from .media_kind_llava_st import folder_path
from .processing_llava_st import LlavaSTProcessor
from .video_frames_llava_st import folder_frames


_SOURCES = ("image", "video", "url", "path")
_MEDIA_TYPES = ("image", "video", "image_url", "video_url")


class CachedMediaProcessor(LlavaSTProcessor):
    """Processor for conversations about one image or video that has been processed already. It reuses the tokens, opens no file and
    returns no pixel values."""

    medium: MediaText

    @classmethod
    def from_processor(cls, processor: LlavaSTProcessor, media: MediaInfo, tokens: str) -> "CachedMediaProcessor":
        """
        Makes such a processor from the one that processed the image or video.

        Args:
            processor ([`LlavaSTProcessor`]):
                Its tokenizer, chat template and coordinate tokens are used, not copied.
            media ([`MediaInfo`]):
                Metadata that `processor` returned for the image or video.
            tokens (`str`):
                Tokens to write for it: all that `processor` writes, or a single one as a placeholder.
        """
        cached = cls.__new__(cls)
        cached.__dict__.update(processor.__dict__)
        cached.medium = MediaText(tokens, media)
        return cached

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        return images, [text] if isinstance(text, str) else text, videos, audio

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Does nothing: `get_text_with_replacements` refuses a text with more media than there are."""

    def _process_images(self, images, **kwargs):
        return {}, self._once_each(images)

    def _process_videos(self, videos, **kwargs):
        return {}, self._once_each(videos)

    def _once_each(self, media: list) -> list[MediaText]:
        """Returns the tokens once per conversation; media of several conversations are a list of lists."""
        return [self.medium] * (len(media) if isinstance(media[0], list) else 1)


class ReadMedium:
    """
    An image or video as model inputs, with the processor of prompts about it.

    Args:
        processor ([`LlavaSTProcessor`]):
            The one that processed it.
        inputs ([`LlavaSTBatchFeature`]):
            Its output, as tensors, for one prompt with this image or video and no other.
    """

    def __init__(self, processor: LlavaSTProcessor, inputs: LlavaSTBatchFeature):
        self.id = uuid4().hex  # of this decoding: a file that is read again may have changed
        self.pixels = {name: inputs[name] for name in ("pixel_values", "pixel_values_videos") if name in inputs}
        ((self.media,),) = inputs.media_info
        tokens = processor.replace_image_token({}, 0) if self.media.kind == "image" else processor.replace_video_token(self.pixels, 0)
        self.processor = CachedMediaProcessor.from_processor(processor, self.media, tokens)


class LastMedium:
    """
    The image or video of the last prompt, which the next one reuses if it is about the same.

    Args:
        always (`bool`):
            Whether all prompts are about the same, whatever their messages contain.
    """

    def __init__(self, always: bool = False):
        self.always = always
        self._key: Any = None
        self._sources: list = []  # an object in memory keeps its address as long as it is referenced
        self._read: ReadMedium | None = None

    def find(self, key) -> ReadMedium | None:
        """Returns the medium if it is the one of `key`, as returned by `key`."""
        return self._read if self._read is not None and (self.always or (key is not None and key == self._key)) else None

    def key(self, messages: list, options: dict):
        """
        Identifies the only image or video of a chat and the way in which it is read.

        Args:
            messages: of the chat.
            options: arguments of the processor.

        Returns:
            A value to compare: paths with size and time of the last change of the files, URLs, bytes, and the addresses of arrays and
            images with a checksum of their pixels. None where there is no such value, as for open files and chats of several media, and
            where none is needed.
        """
        item = None if self.always else _only_medium(messages)
        if item is None:
            return None
        rest = {name: value for name, value in item.items() if name not in _SOURCES}
        try:
            contents = {name: _content(value) for name, value in item.items() if name in _SOURCES}
            return None if None in contents.values() else (contents, pickle.dumps((rest, options)))
        except (*MEDIA_ERRORS, pickle.PicklingError, TypeError, AttributeError):
            return None  # what is wrong with it is the error of the processor, which reads it next

    def keep(self, key, messages: list, processor: LlavaSTProcessor, inputs: LlavaSTBatchFeature) -> ReadMedium | None:
        """Keeps the medium of a prompt, if it has exactly one, and returns it."""
        self._key, self._read = key, None
        if len(inputs.media_info[0]) == 1 and (self.always or key is not None):
            self._read, self._sources = ReadMedium(processor, inputs), [] if self.always else messages
        return self._read


def _only_medium(messages: list) -> dict | None:
    """The item of the only image or video of a chat; None if there are several, or messages that are no dictionaries."""
    found = []
    for message in messages:
        if not isinstance(message, dict):
            return None
        content = message.get("content")
        for item in content if isinstance(content, (list, tuple)) else ():
            if not isinstance(item, dict):
                return None
            if item.get("type") in _MEDIA_TYPES:
                found.append(item)
    return found[0] if len(found) == 1 else None


def _content(source):
    """Value that is the same for the same content of an image or video; None if it cannot be found without reading a file."""
    if isinstance(source, (list, tuple)):
        parts = [_content(part) for part in source]
        return None if None in parts else parts
    if isinstance(source, np.ndarray):
        return id(source), source.shape, zlib.crc32(np.ascontiguousarray(source))
    if isinstance(source, torch.Tensor):
        return id(source), source.shape, zlib.crc32(source.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    if isinstance(source, PIL.Image.Image):
        return id(source), source.size, zlib.crc32(source.tobytes())
    if isinstance(source, bytes) or is_url(source) or is_data_url(source):
        return source
    if not isinstance(source, (str, os.PathLike)):
        return None
    folder = folder_path(source)
    files = [local_path(source)] if folder is None else folder_frames(folder)
    return [(path, (found := os.stat(path)).st_size, found.st_mtime_ns, found.st_ino) for path in files]
