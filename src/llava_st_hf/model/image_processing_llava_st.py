# SPDX-License-Identifier: Apache-2.0
"""Image processor of LLaVA-ST: converts images to normalized float32 tensors.

Every image is resized to a square with an antialiased bicubic filter (the aspect ratio is not kept), divided by 255
and normalized with mean = std = 0.5. The video processor uses the same functions on its frames.
"""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import TensorType

from .downloads_llava_st import DownloadLimits, checked_limits
from .image_files_llava_st import image_errors, load_image, open_image
from .media_files_llava_st import is_file_content
from .model_card_llava_st import LlavaSTPushToHubMixin


EXIF_ORIENTATION = 0x0112
# `FLOAT_SLACK` is the fraction by which rounding may move floats beyond 0, 1 or white. A maximum between 1 and `FLOAT_UNCLEAR` fits
# neither the 0–1 nor the 0–255 scale.
FLOAT_SLACK, FLOAT_UNCLEAR = 1e-3, 2.0
# Number of pixels below which frames are resized with PIL, which is fast enough for them: at scale factors near 1 or above, about one
# value in a million of torch's uint8 kernel differs from PIL's by two steps.
SMALL_FRAME = 640 * 360
INTERPOLATION_MODES = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}


def original_size(image: ImageInput | os.PathLike, download_limits: DownloadLimits | None = None) -> tuple[int, int]:
    """
    Returns the `(height, width)` in pixels of one image after its EXIF orientation.

    The model predicts boxes as fractions of the image; this size converts them to pixels. Only the header of a
    file is read. Accepts the same types as the image processor: path, URL, bytes, open file, PIL image, array or tensor. Raises the
    errors of `load_image`.
    """
    if isinstance(image, (str, os.PathLike)) or is_file_content(image):
        with open_image(image, download_limits) as opened:
            return original_size(opened)
    if isinstance(image, PIL.Image.Image):
        width, height = image.size
        with image_errors(f"a PIL image of {width}x{height} pixels", "has damaged EXIF data"):
            on_its_side = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        return (width, height) if on_its_side else (height, width)
    frames = channels_first(image[None], input_data_format=None)  # (1, channels, height, width)
    return frames.shape[-2], frames.shape[-1]


def pil_to_array(image: PIL.Image.Image, do_convert_rgb: bool | None = True) -> np.ndarray:
    """
    Converts a PIL image to a uint8 `(height, width, channels)` array, or `(height, width)` for unconverted greyscale.

    The alpha channel is dropped, not composited, so the colours of transparent pixels are kept, as in the original LLaVA-ST code.
    Sixteen-bit greyscale (modes `I;16…`, and `I`, which older versions of PIL use for it) is scaled by 1/257, because
    PIL's own conversion would clip everything above 255 to white. Raises `ValueError` for mode `F`, whose white is unknown.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError(
                f"a PIL image of mode {image.mode!r} must contain 16-bit values, 0 to 65535; got {values.min()} to {values.max()}"
            )
        image = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("a PIL image of mode 'F' has no known white; convert it to mode 'L' or 'RGB' first")
    return np.array(image.convert("RGB") if do_convert_rgb else image)


def channels_first(frames: np.ndarray | torch.Tensor, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    """
    Converts frames to a `(num_frames, channels, height, width)` tensor, which shares memory with the input if possible.

    Args:
        frames: `(num_frames, height, width)`, `(num_frames, height, width, channels)` or
            `(num_frames, channels, height, width)`, with 1, 3 or 4 channels.
        input_data_format: position of the channel axis; inferred from the shape if `None`.

    Raises:
        ValueError: naming the shape, if it is not one of these or has a dimension of 0.
    """
    shape = tuple(frames.shape)
    if isinstance(frames, np.ndarray):
        # torch supports neither negative strides (a flipped image, BGR converted to RGB) nor foreign byte orders.
        if any(stride < 0 for stride in frames.strides) or not frames.dtype.isnative:
            frames = np.ascontiguousarray(frames, dtype=frames.dtype.newbyteorder("="))
        if not frames.flags.writeable:
            frames = frames.copy()  # torch does not support read-only tensors
        try:
            frames = torch.from_numpy(frames)
        except TypeError as error:
            raise ValueError(f"pixels must be numbers, not {frames.dtype}") from error
    if frames.ndim == 3:
        frames = frames[:, None]  # (num_frames, 1, height, width)
        input_data_format = ChannelDimension.FIRST
    if frames.ndim != 4 or 0 in shape:
        raise ValueError(f"an image needs a height, a width and 1, 3 or 4 channels, none of them 0; got {shape[1:]}")
    if input_data_format is None:
        try:
            input_data_format = infer_channel_dimension_format(frames, num_channels=(1, 3, 4))
        except ValueError as error:
            raise ValueError(f"no axis of an image of shape {shape[1:]} has 1, 3 or 4 channels; give `input_data_format`") from error
    if ChannelDimension(input_data_format) == ChannelDimension.LAST:
        frames = frames.permute(0, 3, 1, 2)  # (num_frames, channels, height, width)
    if frames.shape[1] not in (1, 3, 4):
        raise ValueError(f"an image needs 1, 3 or 4 channels; got {frames.shape[1]} in an array of shape {shape[1:]}")
    return frames


def float_scale(tensors: Iterable[torch.Tensor], do_rescale: bool | None, rescale_factor: float) -> float:
    """
    Factor by which the floats of one image or video are multiplied, so that white becomes `1 / rescale_factor` (255 by default).

    Args:
        tensors: all pixels of the image or video, in any shapes, none of them empty; integers are ignored.
        do_rescale: value passed by the caller. `True`: floats are on the 0–255 scale. `False`: floats are left unchanged.
            `None`, the default: floats that do not exceed 1 are on the 0–1 scale, others on the 0–255 scale. A nearly black image
            whose floats on the 0–255 scale do not exceed 1 is treated as one on the 0–1 scale; it needs `do_rescale=True`.
        rescale_factor: factor by which pixels are multiplied afterwards, unless `do_rescale` is `False`.

    Returns:
        `1 / rescale_factor` for floats on the 0–1 scale if `do_rescale` is `None`, otherwise 1.

    Raises:
        ValueError: for NaN and infinity; and, unless `do_rescale` is `False`, for floats that are on neither scale: negative, above
            255, or, if `do_rescale` is `None`, slightly above 1.
    """
    if do_rescale is False:
        return 1.0
    extremes = [torch.stack(torch.aminmax(tensor)).double() for tensor in tensors if tensor.dtype.is_floating_point]
    if not extremes:
        return 1.0
    if not torch.isfinite(torch.stack(extremes)).all():
        raise ValueError("the pixels contain NaN or infinity")
    low, high = min(low.item() for low, _ in extremes), max(high.item() for _, high in extremes)
    white = 1 / rescale_factor
    advice = f"floats go from 0 to 1 or from 0 to {white:g}; undo a normalisation and clip what an interpolation overshot"
    if low < -FLOAT_SLACK or high > white * (1 + FLOAT_SLACK):
        raise ValueError(f"float pixels lie between {low:g} and {high:g}: {advice}")
    if do_rescale or high > FLOAT_UNCLEAR:
        return 1.0
    if high > 1 + FLOAT_SLACK:
        raise ValueError(f"float pixels go up to {high:g}, a little above 1: {advice}, or pass do_rescale=True for values up to {white:g}")
    return white


def checked_pixels(frames: torch.Tensor, do_convert_rgb: bool | None, scale: float) -> torch.Tensor:
    """
    Converts pixels `(num_frames, channels, height, width)` to uint8, or floats to float32 multiplied by `scale`.

    uint16 is scaled by 1/257. Greyscale is repeated and a fourth (alpha) channel dropped if `do_convert_rgb`.
    Raises `ValueError` for NaN, infinity, booleans, and integers outside 0–255.
    """
    if do_convert_rgb:
        frames = frames.expand(-1, 3, -1, -1) if frames.shape[1] == 1 else frames[:, :3]
    if frames.dtype == torch.uint8:
        return frames
    if frames.dtype.is_floating_point:
        if not torch.isfinite(frames).all():
            raise ValueError("the pixels contain NaN or infinity")
        return frames.float() if scale == 1 else frames.float() * scale
    if frames.dtype == torch.uint16:
        return (frames.float() / 257).round_().to(torch.uint8)
    if frames.dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        if frames.min() < 0 or frames.max() > 255:
            raise ValueError(f"integer pixels must lie in 0 to 255; got {frames.min()} to {frames.max()}")
        return frames.to(torch.uint8)
    raise ValueError(f"pixels must be uint8, uint16, another integer type within 0 to 255, or floats; got {frames.dtype}")


def pixel_affine(
    do_rescale: bool | None,
    rescale_factor: float,
    do_normalize: bool | None,
    image_mean: float | list[float] | tuple[float, ...],
    image_std: float | list[float] | tuple[float, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combines rescaling and normalization to one `pixels * scale + shift`; both are `(channels or 1, 1, 1)` float32 tensors."""
    factor = rescale_factor if do_rescale else 1.0
    mean = np.atleast_1d(np.asarray(image_mean, dtype=np.float64)) if do_normalize else np.zeros(1)
    std = np.atleast_1d(np.asarray(image_std, dtype=np.float64)) if do_normalize else np.ones(1)
    scale, shift = np.broadcast_arrays(factor / std, -mean / std)
    return (torch.tensor(scale, dtype=torch.float32)[:, None, None], torch.tensor(shift, dtype=torch.float32)[:, None, None])


def resize_pixels(frames: torch.Tensor, size: tuple[int, int], mode: str, white: float | None) -> torch.Tensor:
    """
    Resizes `(num_frames, channels, height, width)` to `size = (height, width)` with antialiasing.

    uint8 on the CPU stays uint8 and agrees with PIL to one step. Floats are clipped to 0..`white`,
    because bicubic filters overshoot at edges; `white=None` keeps the overshoot. On an accelerator, uint8 is
    returned as floats with integer values.
    """
    height, width = frames.shape[-2:]
    if (height, width) == size:
        return frames
    if frames.dtype != torch.uint8 or frames.device.type != "cpu":
        eight_bit = frames.dtype == torch.uint8
        frames = _interpolate(frames.float(), size, mode)
        if eight_bit:
            return frames.round_().clamp_(0, 255)
        return frames if white is None else frames.clamp_(0, white)
    # PIL rounds between its two passes, and so does torch's uint8 kernel, but PIL resizes the height first for images
    # that shrink far more in height than in width. (This rule was measured with PIL 13 for many shapes and sizes and agrees with
    # the recorded reference values. Older versions always resize the width first, so the order is explicit for PIL too.)
    rows_first = height > size[0] and height - size[0] > 2 * (width - size[1])
    small = frames.shape[1] == 3 and height * width < SMALL_FRAME
    for step in ((size[0], width) if rows_first else (height, size[1]), size):
        if frames.shape[-2:] != step:
            frames = _resize_with_pil(frames, step, mode) if small else _interpolate(frames, step, mode)
    return frames


def _interpolate(frames: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    # The uint8 kernel is several times faster if the channels of a pixel are contiguous in memory.
    frames = frames.contiguous(memory_format=torch.channels_last)
    return torch.nn.functional.interpolate(frames, size=size, mode=mode, antialias=True)


def _resize_with_pil(frames: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    resample = PILImageResampling.BICUBIC if mode == "bicubic" else PILImageResampling.BILINEAR
    frames = frames.permute(0, 2, 3, 1).contiguous().numpy()  # (num_frames, height, width, 3)
    resized = np.stack([np.asarray(PIL.Image.fromarray(frame).resize(size[::-1], resample)) for frame in frames])
    return torch.from_numpy(resized).permute(0, 3, 1, 2)  # (num_frames, 3, height, width)


def normalize_pixels(pixels: torch.Tensor, affine: tuple[torch.Tensor, torch.Tensor], out: torch.Tensor) -> None:
    """Writes `pixels * scale + shift` of images `(…, channels, height, width)` into the float32 tensor `out`."""
    scale, shift = affine
    if len(scale) not in (1, pixels.shape[-3]):
        raise ValueError(f"mean and std have {len(scale)} channels and the image has {pixels.shape[-3]}")
    if out.device.type == "cpu":
        # numpy, because several threads run this at once: each torch call would start its own group of threads.
        np.multiply(pixels.numpy(), scale.numpy(), out=out.numpy())
        out.numpy().__iadd__(shift.numpy())
    else:
        torch.addcmul(shift.to(out.device), pixels, scale.to(out.device), out=out)


def check_preprocess_options(
    do_resize: bool | None,
    size: SizeDict,
    resample: PILImageResampling | int,
    do_center_crop: bool | None,
    do_pad: bool | None,
    data_format: str | ChannelDimension | None,
) -> None:
    """Raises `ValueError` for options of transformers that LLaVA-ST does not support."""
    given = [f"{name}={value!r}" for name, value in (("do_center_crop", do_center_crop), ("do_pad", do_pad)) if value]
    if given:
        raise ValueError(
            f"`do_center_crop` and `do_pad` are not supported (images are resized to a square); got {', '.join(given)}. Remove the option."
        )
    if do_resize and not (size.height and size.width):
        raise ValueError(f"`size` must be {{'height': …, 'width': …}} in pixels, because the aspect ratio is not kept; got {size}")
    if do_resize and resample not in INTERPOLATION_MODES:
        raise ValueError(f"`resample` must be BICUBIC or BILINEAR, which can be antialiased; got {resample}")
    if data_format is not None and ChannelDimension(data_format) != ChannelDimension.FIRST:
        raise ValueError(f'`data_format` must be "channels_first", got {ChannelDimension(data_format).value!r}.')


class LlavaSTImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    download_limits (`DownloadLimits`, *optional*):
        Limits of downloads of images. They are not saved with the processor.
    """

    download_limits: Any


class LlavaSTImageProcessor(LlavaSTPushToHubMixin, TorchvisionBackend):
    r"""
    Image processor of LLaVA-ST.

    Takes one image or any nesting of lists of images, each a path, a `file://`, `http(s)://` or `data:` URL, bytes, an open
    binary file, a PIL image, or an array or tensor of shape `(height, width)`, `(height, width, channels)` or `(channels, height, width)`
    (a fourth leading axis is a batch). Integers are on the 0–255 scale, and so are floats unless none of an image exceeds 1:
    these are on the 0–1 scale; `do_rescale=True` or `False` states the scale (see `float_scale`). EXIF orientation is applied to
    files and PIL images. Transparency is dropped, not composited.

    Returns `pixel_values`, float32 `(num_images, 3, 384, 384)` by default.

    Raises `OSError` naming a file that is missing, empty or not an image, and `ValueError` for NaN, infinite or
    out-of-range pixels and for arrays without the shape of an image.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 384, "width": 384}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    valid_kwargs = LlavaSTImageProcessorKwargs

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings without `download_limits`, which are set by the application and not by a file."""
        return {name: value for name, value in super().to_dict().items() if name != "download_limits"}

    def preprocess(self, images: ImageInput, *args, **kwargs) -> BatchFeature:
        """Equivalent to calling the processor; see the class for inputs and outputs."""
        checked_limits(kwargs.get("download_limits"))
        images = self.fetch_images(images, kwargs.get("download_limits"))
        if kwargs.get("do_rescale") is None:
            kwargs["do_rescale"] = None if self.do_rescale else False  # None: the scale of floats is inferred
        return super().preprocess(images, *args, **kwargs)

    def fetch_images(self, image_url_or_urls, download_limits: DownloadLimits | None = None):
        """
        Reads paths, URLs, bytes and open files as upright PIL images and keeps their nesting; other values are returned unchanged.

        Args:
            image_url_or_urls: see the class.
            download_limits: limits of downloads; by default those of the processor.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image, download_limits) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike)) or is_file_content(image_url_or_urls):
            return load_image(image_url_or_urls, checked_limits(download_limits or self.download_limits))
        return image_url_or_urls

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list:
        """Flattens any nesting of images to a list; a batch axis of an array counts as nesting."""
        if isinstance(images, (list, tuple)):
            return [image for nested in images for image in self._prepare_images_structure(nested, expected_ndims)]
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == expected_ndims + 1:
            return list(images)
        return [self.fetch_images(images)]

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: torch.device | str | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float = 1 / 255,
        **kwargs,
    ) -> torch.Tensor:
        """Converts one image to a `(channels, height, width)` tensor: uint8, or float32 on the scale of `float_scale` for floats."""
        if isinstance(image, PIL.Image.Image):
            image = pil_to_array(load_image(image), do_convert_rgb)
            input_data_format = ChannelDimension.LAST
        if not isinstance(image, (np.ndarray, torch.Tensor)):
            raise ValueError(f"an image must be a path, a URL, bytes, an open file, a PIL image, an array or a tensor; got {type(image)}")
        frames = channels_first(image[None], input_data_format)  # (1, channels, height, width)
        scale = float_scale([frames], do_rescale, rescale_factor)
        return checked_pixels(frames.to(device) if device is not None else frames, do_convert_rgb, scale)[0]

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int,
        do_center_crop: bool | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float],
        image_std: float | list[float],
        do_pad: bool | None,
        data_format: str | ChannelDimension | None,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        """Resizes and normalizes prepared images; the resize keeps uint8, and one pass converts to floats."""
        check_preprocess_options(do_resize, size, resample, do_center_crop, do_pad, data_format)
        if do_rescale is None:  # not given, so all images are now on the scale from 0 to 1 / rescale_factor
            do_rescale = True
        affine = pixel_affine(do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        pixel_values = []
        for image in images:
            if do_resize:
                white = 1 / rescale_factor if do_rescale else None
                mode = INTERPOLATION_MODES[resample]
                image = resize_pixels(image[None], (size.height, size.width), mode, white)[0]
            pixels = torch.empty(image.shape, dtype=torch.float32, device=image.device)  # (channels, height, width)
            normalize_pixels(image, affine, out=pixels)
            pixel_values.append(pixels)
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


__all__ = ["LlavaSTImageProcessor", "LlavaSTImageProcessorKwargs", "load_image", "original_size"]
