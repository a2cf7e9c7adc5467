# SPDX-License-Identifier: Apache-2.0
"""Media as people give them (paths, URLs, bytes, open files) as local files."""

import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

import PIL.Image


# What opening a picture or a video raises where that is missing, damaged or none.
MEDIA_ERRORS = (ValueError, OSError, SyntaxError, PIL.Image.DecompressionBombError)
DOWNLOAD_TIMEOUT = 60  # seconds without an answer


def local_path(source: str | os.PathLike) -> str:
    """The path meant by a path or a `file://` URL. Raises `FileNotFoundError` or `IsADirectoryError` naming it."""
    path = os.fspath(source)
    if path.startswith("file://"):
        path = urllib.request.url2pathname(urlparse(path).path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a directory, not a file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such file: {path[:500]}")
    if os.path.getsize(path) == 0:
        raise OSError(f"{path} is empty")
    return path


def open_url(url: str | os.PathLike):
    """An open stream on an `http(s)://` URL. Raises `OSError` naming the URL."""
    try:
        # Several media hosts turn the default agent of urllib away.
        request = urllib.request.Request(str(url), headers={"User-Agent": "llava_st_hf"})
        return urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot download {url}: {error}") from error


def is_url(source) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


@contextmanager
def local_video(source: str | os.PathLike) -> Iterator[str]:
    """The path of a video file for the duration of the context; a URL is downloaded to a temporary file."""
    if not is_url(source):
        path = local_path(source)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "video")
        with open_url(source) as stream, open(path, "wb") as file:
            shutil.copyfileobj(stream, file)
        try:
            yield path
        except OSError as error:
            raise OSError(f"{source}: {error}") from error
