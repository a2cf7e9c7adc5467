# SPDX-License-Identifier: Apache-2.0
"""Decision whether an input is an image or a video."""

import io
import mimetypes
import os
import urllib.request
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
import PIL.Image
import torch

from .downloads_llava_st import DownloadLimits
from .media_files_llava_st import MEDIA_ERRORS, is_data_url, is_file_content, is_url, local_path, write_content
from .video_animation_llava_st import count_pictures


# Media types of images that may be animated.
_MAYBE_ANIMATED = {"image/gif", "image/png", "image/webp", "image/apng", "image/avif"}
# Those of them that are still images on most web pages.
_USUALLY_STILL = {"image/png", "image/webp", "image/avif"}


def media_kind(media) -> Literal["image", "video"]:
    """
    Decides whether an input is an image or a video when the user does not state it.

    Args:
        media: a PIL image (image); an array or tensor of up to 3 axes (image) or more (video); a list of frames (video); a folder
            (video); bytes, a `data:` URL, an open file or a path (see `is_still_image`); or an `http(s)://` URL, classified by its
            suffix without a download: images except GIF and APNG are images, everything else is a video.

    Raises:
        ValueError: for an object of any other type.
    """
    if isinstance(media, PIL.Image.Image):
        return "image"
    if isinstance(media, (np.ndarray, torch.Tensor)):
        return "image" if media.ndim <= 3 else "video"
    if isinstance(media, (list, tuple)):
        return "video"  # frames
    if is_url(media):
        return "image" if _image_type(urlsplit(media).path) not in ("", *_MAYBE_ANIMATED - _USUALLY_STILL) else "video"
    if isinstance(media, (str, os.PathLike)) or is_file_content(media):
        return "image" if is_still_image(media) else "video"
    raise ValueError(
        "Media must be a path, a URL, bytes, an open file, a PIL image, an array or a tensor; frames in a list are given as "
        f'{{"video": frames}}. Got {type(media).__name__}.'
    )


def is_still_image(source) -> bool:
    """
    Whether a file that is given as a video, or as a frame of one, is a single still image.

    Args:
        source: bytes, a `data:` URL or an open file, classified by content; a path, classified by its suffix, and opened if it is a
            GIF, PNG, WebP or AVIF file to find out whether it is animated; or an `http(s)://` URL, classified by its suffix alone,
            where GIF, WebP and AVIF count as videos. A folder is not an image.
    """
    if is_url(source):
        return _image_type(urlsplit(source).path) not in ("", *_MAYBE_ANIMATED - {"image/png"})
    if is_data_url(source) or is_file_content(source):
        return _content_is_still(source)
    kind = _image_type(os.fsdecode(source))
    if not kind or folder_path(source) is not None:
        return False
    if kind not in _MAYBE_ANIMATED:
        return True
    try:
        return count_pictures(local_path(source)) < 2
    except MEDIA_ERRORS:  # the image reader raises the error with its reason
        return True


def _content_is_still(source) -> bool:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return count_pictures(io.BytesIO(source)) == 1
    if is_data_url(source):
        content = io.BytesIO()
        if source[5:11].lower() != "video/":
            write_content(source, content, "video", DownloadLimits(), 0)
            content.seek(0)
        return count_pictures(content) == 1
    if isinstance(source, io.TextIOBase) or not source.seekable():
        return False  # a stream that is read here cannot be read again; the video reader raises an error for text files
    position = source.tell()
    try:
        source.seek(0)
        return count_pictures(source) == 1
    finally:
        source.seek(position)


def _image_type(path: str) -> str:
    """The media type that the suffix of a path stands for, such as `image/png`; empty if it is not that of an image."""
    kind = "image/apng" if path.lower().endswith(".apng") else mimetypes.guess_type(path, strict=False)[0] or ""
    return kind if kind.startswith("image/") else ""


def folder_path(source: str | os.PathLike) -> str | None:
    """The local path of a folder, given as a path or a `file://` URL; None if `source` is not an existing folder."""
    if is_url(source) or is_data_url(source):
        return None
    path = os.fsdecode(source)
    if path[:7].lower() == "file://":
        path = urllib.request.url2pathname(urlsplit(path).path)
    return path if os.path.isdir(path) else None
