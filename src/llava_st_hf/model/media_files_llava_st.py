# SPDX-License-Identifier: Apache-2.0
"""Conversion of media sources (paths, URLs, bytes, open files) to local files or bytes."""

import base64
import io
import os
import re
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeAlias, TypeGuard
from urllib.parse import unquote_to_bytes, urlsplit

from .downloads_llava_st import DownloadLimits, checked_limits, download, url_name


# Exceptions raised for an image or video that is missing, damaged or of another format.
MEDIA_ERRORS = (ValueError, OSError)

MediaSource: TypeAlias = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO
_BYTES = (bytes, bytearray, memoryview)
# Types of the files returned by `open`, `io.BytesIO`, `tempfile` and most libraries.
_OPEN_FILES = (io.IOBase, tempfile._TemporaryFileWrapper)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BLOCK = 2**20  # bytes copied at a time


def is_file_content(source) -> TypeGuard[bytes | bytearray | memoryview | BinaryIO]:
    """Returns whether `source` is the content of one media file: bytes or an open file, not a path, a URL or pixels."""
    return isinstance(source, (*_BYTES, *_OPEN_FILES))


def is_url(source) -> TypeGuard[str]:
    """Returns whether `source` is an `http(s)://` URL."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def is_data_url(source) -> TypeGuard[str]:
    """Returns whether `source` is a `data:` URL."""
    return isinstance(source, str) and source[:5].lower() == "data:"


def source_name(source: MediaSource, kind: str) -> str:
    """
    Name of an image or video for messages, with at most 500 characters and without parts of a URL that may be secret.

    Args:
        source: see `local_video`.
        kind: `"video"` or `"image"`.
    """
    if isinstance(source, _BYTES):
        return f"{kind} of {memoryview(source).nbytes} bytes ({type(source).__name__} object)"
    if isinstance(source, io.BytesIO):
        return f"{kind} of {source.getbuffer().nbytes if not source.closed else 0} bytes (BytesIO object)"
    if is_url(source):
        return url_name(source)
    if is_data_url(source):
        return f"{kind} of {len(source)} characters ({source[:40]}…)"
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)[:500]
    name = getattr(source, "name", None)  # many open files have none, and some a number
    return f"{name[:500]} (open file)" if isinstance(name, str) else f"{kind} in an open {type(source).__name__}"


def local_path(source: str | os.PathLike) -> str:
    """
    Converts a path or a `file://` URL to an existing local path.

    Raises:
        FileNotFoundError, IsADirectoryError: naming a path that is empty, missing or a folder.
        OSError: naming a file that is empty, or a pipe or device.
        ValueError: naming a `file://` URL of another host, or a URL of another scheme.
    """
    path = os.fsdecode(source)
    if not path:
        raise FileNotFoundError("the path of a media file is empty")
    scheme = _SCHEME.match(path)
    if path[:7].lower() == "file://":
        parts = urlsplit(path)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"{path[:500]} names a file of the host {parts.netloc}; only file:///… of this computer is read")
        path = urllib.request.url2pathname(parts.path)
    elif scheme is not None:
        raise ValueError(f"{url_name(path)}: the URL scheme {scheme[1]!r} is not read; only http, https, data and file are")
    elif ":" in path and not os.path.isabs(path):
        path = os.path.join(os.curdir, path)  # ffmpeg reads "concat:a" as a protocol and "./concat:a" as a file
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a directory, not a file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such file: {path[:500]}")
    if not os.path.isfile(path):
        raise OSError(f"{path} is a pipe or a device, not a file")
    if os.path.getsize(path) == 0:
        raise OSError(f"{path} is empty")
    return path


@contextmanager
def local_video(source: MediaSource, download_limits: DownloadLimits | None = None) -> Iterator[str]:
    """
    Context manager that provides a video as a local file and returns its path.

    Args:
        source: a path, a `file://`, `http(s)://` or `data:` URL, bytes, or a file open for reading in binary mode. An open file is read
            from its start if it is seekable, otherwise from its current position; its position is restored. A source that is not a file
            on disk is written to a temporary file, which is deleted at the end of the context.
        download_limits: limits of a download; `None` for the default limits.

    Raises:
        OSError, ValueError: naming the source. An `OSError` from within the context names the source instead of the temporary file.
    """
    if isinstance(source, (str, os.PathLike)) and not is_url(source) and not is_data_url(source):
        yield local_path(source)
        return
    name = source_name(source, "video")
    on_disk = _path_of_open_file(source)
    if on_disk is not None:
        yield local_path(on_disk)
        return
    limits = checked_limits(download_limits)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "video")
        with open(path, "wb") as file:
            write_content(source, file, "video", limits, limits.video_bytes)
        try:
            yield path
        except OSError as error:
            raise OSError(_naming(name, error, path)) from error


def _naming(name: str, error: OSError, path: str) -> str:
    """Replaces the path of the temporary file by the name of the source in the message of an error."""
    message = str(error).replace(path, name)
    return message if name in message else f"{name}: {message}"


def _path_of_open_file(source: MediaSource) -> str | None:
    """Path of a file opened by `open(path, "rb")`, if the same file still exists there, to avoid a copy."""
    # Other classes are excluded: an open gzip file has the name and the descriptor of the compressed file.
    if type(source) is not io.BufferedReader or not isinstance(source.raw, io.FileIO) or source.closed:
        return None
    path = source.raw.name
    if not isinstance(path, str) or not os.path.isfile(path):
        return None
    return path if os.path.samestat(os.fstat(source.fileno()), os.stat(path)) else None


def write_content(source: MediaSource, file: BinaryIO, kind: str, limits: DownloadLimits, max_bytes: int) -> None:
    """
    Writes the content of a URL, a `data:` URL, bytes or an open file into another file.

    Args:
        source: see `local_video`.
        file: file open for writing.
        kind: `"video"` or `"image"`, for messages.
        limits: limits of a download.
        max_bytes: maximum size of a download.

    Raises:
        OSError, ValueError: naming the source, if it is empty, cannot be downloaded, or does not contain bytes.
    """
    if is_url(source):
        download(source, file, limits, max_bytes)
    elif is_data_url(source):
        file.write(_decode_data_url(source, source_name(source, kind)))
    elif isinstance(source, _BYTES):
        file.write(source)
    elif isinstance(source, _OPEN_FILES):
        _copy_open_file(source, file, source_name(source, kind))
    else:
        raise ValueError(f"{kind} files are given as a path, a URL, bytes or an open file; got {type(source)}")
    if file.tell() == 0:
        raise OSError(f"{source_name(source, kind)} is empty")


def _decode_data_url(url: str, name: str) -> bytes:
    """Decodes a `data:` URL in base64 or percent encoding."""
    header, comma, data = url.partition(",")
    if not comma:
        raise ValueError(f"{name} has no comma between its type and its data")
    content = unquote_to_bytes(data)
    if not header.lower().rstrip().endswith(";base64"):
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)  # line breaks are common
    except ValueError as error:
        raise ValueError(f"{name} is not valid base64, or is truncated: {error}") from error


def _copy_open_file(source, file: BinaryIO, name: str) -> None:
    """Copies an open binary file from its start, or from its position if it is not seekable; its position is restored."""
    try:
        position = source.tell() if source.seekable() else None
        if position is not None:
            source.seek(0)
        try:
            while (block := source.read(_BLOCK)) != b"":
                if not isinstance(block, _BYTES):  # text, or None if a non-blocking file has no data yet
                    raise ValueError(f"it gives {type(block).__name__} and not bytes; open it with mode 'rb', and blocking")
                file.write(block)
        finally:
            if position is not None:
                source.seek(position)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} cannot be read: it is open in text mode; open it with mode 'rb'") from error
    except io.UnsupportedOperation as error:  # both an OSError and a ValueError
        raise ValueError(f"{name} cannot be read: {error}") from error
    except OSError as error:
        raise OSError(f"{name} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
