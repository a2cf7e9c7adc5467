# SPDX-License-Identifier: Apache-2.0
"""Images and videos of questions that are in object storage."""

import os
from typing import Any

from ..model.downloads_llava_st import DownloadLimits
from ..model.media_files_llava_st import is_data_url, is_url
from ..model.questions_llava_st import MEDIA_KEYS
from .storage import is_url as has_scheme
from .storage import read_file


def medium(question: dict[str, Any]) -> tuple[str, str | bytes]:
    """Key of the image or video of a question, and its path, URL or bytes."""
    kind = next(key for key in MEDIA_KEYS if key in question)
    return kind, question[kind]


def is_on_disk(source: str) -> bool:
    """Whether a path or URL is one of this computer's disks."""
    return not is_url(source) and not is_data_url(source) and (not has_scheme(source) or source[:7].lower() == "file://")


def fetch(question: dict[str, Any]) -> dict[str, Any]:
    """
    Reads a medium that is neither on a disk nor behind `http(s)://`, such as `s3://bucket/a.mp4`, through fsspec.

    Returns:
        The question with the bytes in place of such a URL; otherwise unchanged.

    Raises:
        OSError, ValueError: naming the URL, if it cannot be read or is larger than the limits of downloads.
    """
    kind, source = medium(question)
    if not isinstance(source, str) or not _is_fetched(source):
        return question
    limits = DownloadLimits()
    return {**question, kind: read_file(source, limits.video_bytes if kind == "video" else limits.image_bytes)}


def message(error: Exception, question: dict[str, Any]) -> str:
    """The message of an error, with the URL of a medium that `fetch` has read, which is unknown to what reads its bytes."""
    source = medium(question)[1]
    if isinstance(source, str) and _is_fetched(source) and source not in str(error):
        return f"{source}: {error}"
    return str(error)


def _is_fetched(source: str) -> bool:
    return not is_on_disk(source) and not is_url(source) and not is_data_url(source)


def size(question: dict[str, Any]) -> int | None:
    """Bytes of the medium; None where they are not known without a download, and for a folder of frames."""
    _, source = medium(question)
    if isinstance(source, bytes):
        return len(source)
    path = source.removeprefix("file://")
    return os.path.getsize(path) if is_on_disk(source) and os.path.isfile(path) else None
