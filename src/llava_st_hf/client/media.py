# SPDX-License-Identifier: Apache-2.0
"""Images and videos of requests: read for their size and times, and encoded so that the server's processor gets the same pixels."""

import base64
import io
import mimetypes
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import torch

from ..model.image_files_llava_st import load_image
from ..model.image_processing_llava_st import normalize_pixels, original_size, pixel_affine
from ..model.media_files_llava_st import is_data_url, is_file_content, is_url, local_video
from ..model.media_info_llava_st import MediaInfo
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.questions_llava_st import READING_KEYS
from ..model.video_frames_llava_st import flatten_videos, is_frames
from ..model.video_metadata_llava_st import LlavaSTVideoMetadata
from ..model.video_reading_llava_st import read_video_metadata


#: Size in bytes above which the sampled frames of a video file are sent instead of the file: they are seldom larger, lossless.
LARGEST_FILE = 16 * 2**20


class EncodedMedium:
    """
    An image or video of a request.

    Args:
        info: converts seconds and pixels of the original file.
        url: what the server reads: a `data:` URL, or a `file://` or `http(s)://` URL.
    """

    def __init__(self, info: MediaInfo, url: str):
        self.info, self.url = info, url


def encode_image(item: dict, processor: LlavaSTProcessor, media_urls: bool = False, download_limits=None) -> EncodedMedium:
    """
    Reads an image and encodes it as PNG in the size of the model, after EXIF orientation.

    Args:
        item: image item of a prepared conversation.
        processor: its image processor resizes the image.
        media_urls: send the address of a file instead of its content. The server then resizes it.
        download_limits: limits of a download.

    Raises:
        ValueError, OSError: naming the image, as the processor does; ValueError for pixels that are not on the 8-bit scale.
    """
    source = next(item[name] for name in ("image", "url", "path") if name in item)
    if media_urls and (url := _address(source)) is not None:
        height, width = original_size(source, download_limits)
        return EncodedMedium(MediaInfo("image", width=width, height=height), url)
    image = load_image(source, download_limits) if isinstance(source, (str, os.PathLike)) or is_file_content(source) else source
    height, width = original_size(image)
    pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]  # (1, channels, height, width)
    if len(pixels) != 1:
        raise ValueError(f"An image item has one image, got {len(pixels)}.")
    frame = _eight_bit(pixels, processor.image_processor, "image")[0]
    file = io.BytesIO()
    PIL.Image.fromarray(frame).save(file, "PNG")
    return EncodedMedium(MediaInfo("image", width=width, height=height), _data_url("image/png", file.getvalue()))


def encode_video(
    item: dict, options: dict, processor: LlavaSTProcessor, reading: dict, media_urls: bool = False, largest_file: int = LARGEST_FILE
) -> EncodedMedium:
    """
    Reads a video and encodes it so that the server, which samples the checkpoint's number of frames of a whole file, gets the frames that
    the processor samples here.

    A file of up to `largest_file` bytes of which all is asked about is sent as it is. Otherwise the sampled frames are, in the size of the
    model, as lossless H.264 in Matroska.

    Args:
        item: video item of a prepared conversation.
        options: its entries of `clips`, `sampling` and `video_metadata`, or None.
        processor: its video processor samples and resizes the frames.
        reading: arguments of the processor, of `READING_KEYS`.
        media_urls: send the address of a file of which all is asked about, whatever its size, instead of its content.
        largest_file: in bytes.

    Raises:
        ValueError, OSError: naming the video, as the processor does; ValueError if the server would sample other frames, and for pixels
        that are not on the 8-bit scale.
    """
    source = next(item[name] for name in ("video", "url", "path") if name in item)
    videos = flatten_videos(source)
    if len(videos) != 1:
        raise ValueError(f"A video item has one video; got {len(videos)} in {item!r:.200}.")
    limits = reading.get("download_limits")
    needs_sampling = any(options.get(name) is not None for name in ("clips", "sampling", "video_metadata")) or any(
        reading.get(name) is not None for name in READING_KEYS if name != "download_limits"
    )
    if is_frames(videos[0]) or needs_sampling:
        return _encode_frames(videos[0], options, processor, reading)
    if media_urls and (url := _address(videos[0])) is not None:
        return EncodedMedium(_whole(read_video_metadata(videos[0], download_limits=limits)), url)
    with local_video(videos[0], limits) as path:
        if os.path.getsize(path) > largest_file:
            return _encode_frames(path, options, processor, reading)
        info = _whole(read_video_metadata(path))
        if is_data_url(videos[0]):
            return EncodedMedium(info, videos[0])
        return EncodedMedium(info, _data_url(_video_type(videos[0]), Path(path).read_bytes()))


def _whole(metadata: LlavaSTVideoMetadata) -> MediaInfo:
    return metadata.media(0, metadata.total_num_frames - 1)


def _address(source) -> str | None:
    """URL of a file that the server may be able to read; None for a source without one."""
    if is_url(source):
        return source
    if isinstance(source, str) and source[:7].lower() == "file://":
        return source
    if isinstance(source, os.PathLike) or (isinstance(source, str) and not is_data_url(source)):
        return Path(os.path.abspath(os.fsdecode(source))).as_uri()
    return None


def _video_type(source) -> str:
    """Media type of a video by its suffix. Readers go by the content, so that it needs not be correct."""
    name = os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else ""
    found = mimetypes.guess_type(name)[0] or ""
    return found if found.startswith(("video/", "image/")) else "video/mp4"


def _data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _encode_frames(video, options: dict, processor: LlavaSTProcessor, reading: dict) -> EncodedMedium:
    """The frames that the processor samples, as a video of which the server samples each frame once."""
    video_processor = processor.video_processor
    one = {name: None if options.get(name) is None else [options[name]] for name in ("clips", "sampling", "video_metadata")}
    result = video_processor([video], **one, **reading, return_metadata=True, return_tensors=None)
    (pixels,), (metadata,) = result["pixel_values_videos"], result["video_metadata"]  # (num_frames, channels, height, width)
    info = metadata.media(*metadata.clip)
    count = len(pixels)
    sampled = video_processor.clip_indices(LlavaSTVideoMetadata(total_num_frames=count, fps=1.0), (0, count - 1))
    if sampled != list(range(count)):
        raise ValueError(
            f"{count} frames are sampled of the video, but the server samples {len(sampled)}: it has no argument for another number. Leave "
            "num_frames, nframes and the fps of a video file out, or use the pipeline."
        )
    frames = _eight_bit(pixels, video_processor, "video")
    return EncodedMedium(info, _data_url("video/x-matroska", lossless_video(frames)))


def _eight_bit(pixels: torch.Tensor, processor, kind: str) -> np.ndarray:
    """
    Undoes the normalization of pixels.

    Args:
        pixels: (num_frames, channels, height, width) normalized values.
        processor: image or video processor that normalized them.

    Returns:
        (num_frames, height, width, 3) uint8, whose normalized values are `pixels`, bit by bit.

    Raises:
        ValueError: if there are no such values, as for float pixels, which are resized without rounding.
    """
    settings = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    affine = pixel_affine(*(getattr(processor, name) for name in settings))
    scale, shift = affine
    frames = np.empty((len(pixels), *pixels.shape[2:], pixels.shape[1]), dtype=np.uint8)
    for number, frame in enumerate(pixels):  # one by one: floats have four times the size
        eight_bit = ((frame - shift) / scale).round_().clamp_(0, 255).to(torch.uint8)
        again = torch.empty_like(frame)
        normalize_pixels(eight_bit, affine, out=again)
        if frame.shape[0] != 3 or not torch.equal(again, frame):
            raise ValueError(
                f"The pixels of the {kind} cannot be sent without loss: give 8-bit RGB pixels (uint8, 0 to 255) instead of floats, and use "
                "a processor with do_convert_rgb."
            )
        frames[number] = eight_bit.permute(1, 2, 0).numpy()
    return frames


def lossless_video(frames: np.ndarray) -> bytes:
    """
    Encodes frames without loss.

    Args:
        frames: (num_frames, height, width, 3) uint8, RGB.

    Returns:
        A Matroska file with H.264 in RGB (High 4:4:4 Predictive profile, quantizer 0), one frame per second.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        # The quickest preset: others save a tenth of the size and take four times as long.
        stream = container.add_stream("libx264rgb", rate=Fraction(1), options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
