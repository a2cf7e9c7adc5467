# SPDX-License-Identifier: Apache-2.0
"""Opening of image files: only formats of `IMAGE_FORMATS`, within PIL's limit of pixels, with errors that name the file."""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import PIL.Image
import PIL.ImageOps

from .downloads_llava_st import DownloadLimits, checked_limits
from .media_files_llava_st import MediaSource, is_data_url, is_url, local_path, source_name, write_content


# PIL detects the format from the content of a file, not from its name. Some of its readers start other programs (EPS) or are rarely used
# and tested, so they are excluded. HEIF is supported if the application has registered a reader for it.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")
# Exceptions raised by PIL and its readers for damaged files: their own classes, those of `struct` and `zlib`, and those that Python raises
# if numbers, offsets and tags of a header are used unchecked. `MemoryError` is caused by sizes in headers.
IMAGE_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning),
    *(struct.error, zlib.error, MemoryError),
    *(LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError),
)


@contextmanager
def image_errors(name: str, fault: str) -> Iterator[None]:
    """Converts exceptions of PIL within the context to an `OSError` with `name`, `fault` and the reason."""
    try:
        yield
    except PIL.UnidentifiedImageError as error:
        raise OSError(f"{name} {fault}: its content is none of {', '.join(IMAGE_FORMATS)}") from error
    except IMAGE_ERRORS as error:
        raise OSError(f"{name} {fault}: {str(error)[:500] or type(error).__name__}") from error


def open_image_file(file: str | BinaryIO, formats: Sequence[str] = IMAGE_FORMATS) -> PIL.Image.Image:
    """
    Opens a local image file and reads its header, not its pixels.

    Args:
        file: a path, or a file open for reading in binary mode.
        formats: accepted formats, a subset of `IMAGE_FORMATS`.

    Raises:
        IMAGE_ERRORS: see `image_errors`; also if it has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, for which PIL itself only warns up
            to twice that number.
    """
    PIL.Image.init()  # registers the readers
    image = PIL.Image.open(file, formats=[name for name in formats if name in PIL.Image.OPEN])
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise OSError(f"{image.width}x{image.height} pixels are more than the limit of {limit} (PIL.Image.MAX_IMAGE_PIXELS)")
    return image


def open_image(source: MediaSource, download_limits: DownloadLimits | None = None) -> PIL.Image.Image:
    """
    Opens an image from any source and reads its header, not its pixels.

    Args:
        source: a path, a `file://`, `http(s)://` or `data:` URL, bytes, or a file open for reading in binary mode.
        download_limits: limits of a download; `None` for the default limits.

    Raises:
        OSError, ValueError: naming the source, if it is missing, empty, cannot be downloaded, or is not an image of `IMAGE_FORMATS`.
    """
    file: str | BytesIO
    if isinstance(source, (str, os.PathLike)) and not is_url(source) and not is_data_url(source):
        file = local_path(source)
    else:
        file = BytesIO()
        limits = checked_limits(download_limits)
        write_content(source, file, "image", limits, limits.image_bytes)
        file.seek(0)
    with image_errors(source_name(source, "image"), "is not an image that can be read"):
        return open_image_file(file)


def load_image(image: MediaSource | PIL.Image.Image, download_limits: DownloadLimits | None = None) -> PIL.Image.Image:
    """
    Reads an image and turns it upright.

    Args:
        image: a PIL image, or a source accepted by `open_image`.
        download_limits: limits of a download; `None` for the default limits.

    Returns:
        The PIL image in its own mode, with the EXIF orientation applied.

    Raises:
        OSError, ValueError: naming the source, if it is missing, empty, damaged, not an image, or cannot be downloaded.
    """
    if isinstance(image, PIL.Image.Image):
        with image_errors(f"a PIL image of {image.width}x{image.height} pixels", "is damaged"):
            return PIL.ImageOps.exif_transpose(image)
    with open_image(image, download_limits) as opened, image_errors(source_name(image, "image"), "is a damaged image"):
        opened.load()
        return PIL.ImageOps.exif_transpose(opened)


def check_image_file(path: str) -> None:
    """Reads all of a local image file. Raises `OSError` naming it if it is damaged; `load_image` alone ignores checksums of PNG files."""
    with open_image(path) as image, image_errors(path, "is a damaged image"):
        image.verify()
    load_image(path)  # `verify` does not read the pixels of JPEG files, so it does not detect truncated ones


__all__ = ["load_image"]
