# SPDX-License-Identifier: Apache-2.0
"""Opening image files: only the formats that are meant, within PIL's limit of pixels, with errors that name the file."""

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


# PIL goes by the content of a file and not by its name. It has readers that start other programs (EPS), or that are hardly ever used and
# hardly ever tested. HEIF counts where the program has registered a reader for it.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")
# What PIL and its readers raise on damaged files: their own classes, those of `struct` and `zlib`, and what Python raises where numbers,
# offsets and tags of a header are used unchecked. `MemoryError` comes of sizes in headers.
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
    A local image file with its header read and its pixels not.

    Args:
        file: a path, or a file open for reading in binary mode.
        formats: those of `IMAGE_FORMATS` that it may have.

    Raises:
        IMAGE_ERRORS: see `image_errors`; also where it has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, of which PIL itself only warns up
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
    The image behind any source, with its header read and its pixels not.

    Args:
        source: a path, a `file://`, `http(s)://` or `data:` URL, bytes, or a file open for reading in binary mode.
        download_limits: `None` for the default ones.

    Raises:
        OSError, ValueError: naming the source, if it is missing, empty, not to be downloaded, or no image of `IMAGE_FORMATS`.
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
        image: a PIL image, or a source as `open_image` takes it.
        download_limits: `None` for the default ones.

    Returns:
        The PIL image in its own mode, with the EXIF orientation applied.

    Raises:
        OSError, ValueError: naming the source, if it is missing, empty, not to be downloaded, damaged or no image.
    """
    if isinstance(image, PIL.Image.Image):
        with image_errors(f"a PIL image of {image.width}x{image.height} pixels", "is damaged"):
            return PIL.ImageOps.exif_transpose(image)
    with open_image(image, download_limits) as opened, image_errors(source_name(image, "image"), "is a damaged image"):
        opened.load()
        return PIL.ImageOps.exif_transpose(opened)


def check_image_file(path: str) -> None:
    """Reads all of a local image file. Raises `OSError` naming it, where it is damaged; `load_image` alone passes over checksums of PNG."""
    with open_image(path) as image, image_errors(path, "is a damaged image"):
        image.verify()
    load_image(path)  # `verify` reads no pixels of JPEG files, and misses one that breaks off


__all__ = ["load_image"]
