# SPDX-License-Identifier: Apache-2.0
"""Reader of videos given as frames in memory or as image files, with the interface of `VideoFileReader`."""

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import ChannelDimension
from transformers.video_utils import VideoInput, VideoMetadata, VideoMetadataType

from .checks_llava_st import check_rate, is_finite_number, is_integer
from .downloads_llava_st import DownloadLimits
from .image_processing_llava_st import channels_first, checked_pixels, float_scale, load_image, pil_to_array
from .media_files_llava_st import is_file_content, is_url, source_name
from .media_kind_llava_st import folder_path, is_still_image
from .video_decoding_llava_st import CHUNK_BYTES
from .video_metadata_llava_st import LlavaSTVideoMetadata


# Classes of torchcodec, which `datasets` returns for its Video columns.
_DECODER_ADVICE = ": give the path or the bytes of the file (a Video column of datasets has them with decode=False)"


class OpenedVideo:
    """
    A video that is open already, of which several clips are read. Not a dataclass: transformers converts those in messages.

    Args:
        reader: [`FramesReader`], or a reader of a file with the same interface.
    """

    def __init__(self, reader):
        self.reader = reader


class FramesReader:
    """
    Reader of frames in memory or in image files, with the interface of `VideoFileReader`.

    Args:
        frames: an array of 4 axes or a list of frames, as returned by `flatten_videos`.
        metadata: their frame rate or times, and their `frames_indices` in the video they were sampled from, if known.
        do_convert_rgb, input_data_format: see `checked_pixels` and `channels_first`.
        do_rescale, rescale_factor: see `float_scale`, which decides on all frames of the video at once.
        download_limits: limits of downloads of frames that are URLs.
    """

    def __init__(
        self,
        frames,
        metadata: VideoMetadata | dict | None,
        do_convert_rgb: bool | None,
        input_data_format,
        do_rescale: bool | None,
        rescale_factor: float,
        download_limits: DownloadLimits | None = None,
    ):
        self.download_limits = download_limits
        self.do_convert_rgb, self.input_data_format = do_convert_rgb, input_data_format
        is_array = isinstance(frames, (np.ndarray, torch.Tensor))
        self.frames = channels_first(frames, input_data_format) if is_array else frames
        arrays = (index for index, frame in enumerate(frames) if isinstance(frame, (np.ndarray, torch.Tensor)))
        self.scale = float_scale([self.frames] if is_array else map(self._frame, arrays), do_rescale, rescale_factor)
        size = self.frames.shape[-2:] if is_array else self._frame(0).shape[-2:]
        # A copy, because sampling modifies it. The number of frames is optional, because it can be counted.
        metadata = LlavaSTVideoMetadata(**{"total_num_frames": None, **(metadata or {}), "clip": None, "given_frames": None})
        self.positions = _positions(metadata, len(frames))
        # Whether the caller sampled the frames, so that they are not all frames of the file.
        self.is_sampled = self.positions != list(range(metadata.total_num_frames))
        if len({second - first for first, second in pairwise(self.positions)}) > 1:
            metadata.given_frames = self.positions
        metadata.height, metadata.width = size
        if metadata.frame_times is not None:
            metadata.start_time = metadata.frame_times[0]
            end = metadata.seconds(metadata.total_num_frames)
            if end is not None and end > metadata.start_time:
                metadata.duration = end - metadata.start_time
                metadata.fps = metadata.total_num_frames / metadata.duration
        if metadata.fps:
            metadata.fps = float(metadata.fps)
            if metadata.duration is None and metadata.frame_times is None:
                metadata.duration = metadata.total_num_frames / metadata.fps
        self.metadata = metadata

    def _frame(self, index: int) -> torch.Tensor:
        frame = self.frames[index]
        if isinstance(frame, (str, os.PathLike)) or is_file_content(frame):
            source, frame = frame, load_image(frame, self.download_limits)
            if is_url(source) and "loop" in frame.info:  # PIL sets `loop`, the number of repetitions, only for animations
                raise OSError(f"{source_name(source, 'image')} is an animated PNG, but its suffix is that of a still image: give its bytes")
        if isinstance(frame, PIL.Image.Image):
            return channels_first(pil_to_array(frame, self.do_convert_rgb)[None], ChannelDimension.LAST)
        return channels_first(frame[None], self.input_data_format)  # (1, channels, height, width)

    def chunks(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """Yields frames at ascending indices as `(chunk_frames, channels, height, width)` tensors in order."""
        if isinstance(self.frames, torch.Tensor):
            step = max(1, CHUNK_BYTES // self.frames[0].nbytes)
            for position in range(0, len(indices), step):
                chunk = indices[position : position + step]
                if chunk[-1] - chunk[0] == len(chunk) - 1:
                    frames = self.frames[chunk[0] : chunk[-1] + 1]  # consecutive: nothing is copied
                else:
                    # Indexed with the channels last, the layout in which the resize is fast and which most arrays have.
                    frames = self.frames.permute(0, 2, 3, 1)[chunk].permute(0, 3, 1, 2)
                yield checked_pixels(frames, self.do_convert_rgb, self.scale)
            return
        for index in indices:
            frame = checked_pixels(self._frame(index), self.do_convert_rgb, self.scale)
            if frame.shape[-2:] != (self.metadata.height, self.metadata.width):
                given = self.frames[index]
                name = f" ({given})" if isinstance(given, (str, os.PathLike)) else ""
                raise ValueError(
                    f"the frames of a video must have one size: frame 0 has {self.metadata.height}x{self.metadata.width} "
                    f"pixels (height x width), frame {index}{name:.500} {frame.shape[-2]}x{frame.shape[-1]}"
                )
            yield frame


def flatten_videos(videos: VideoInput) -> list:
    """
    Flattens any nesting of videos to a list of videos.

    A video is a file (path, URL, `data:` URL, bytes or an open binary file), an array of 4 axes, or a list of frames: PIL images,
    arrays of 2 or 3 axes, or still images as files. A folder is the list of the image files in it; see `folder_frames`. An array of 5
    axes is a batch. A single image is a video of one frame.

    Returns:
        A list whose entries are files, arrays of 4 axes, lists of frames (see `is_frames`), or each an [`OpenedVideo`].
    """
    if isinstance(videos, OpenedVideo):
        return [videos]
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return list(videos) if videos.ndim == 5 else [videos if videos.ndim == 4 else videos[None]]
    if isinstance(videos, PIL.Image.Image):
        return [[videos]]
    if isinstance(videos, (str, os.PathLike)) and (folder := folder_path(videos)) is not None:
        return [folder_frames(folder)]
    if isinstance(videos, (str, os.PathLike)) or is_file_content(videos):
        return [[videos]] if is_still_image(videos) else [videos]
    if not isinstance(videos, (list, tuple)):
        raise ValueError(
            "a video must be a path, a URL, bytes, an open file, an array, a tensor or a list of frames; "
            f"got {type(videos)}{_DECODER_ADVICE if type(videos).__module__.startswith('torchcodec') else ''}"
        )
    if len(videos) == 0:
        raise ValueError("got an empty list where a video was expected")
    if all(_is_frame(item) for item in videos):
        return [list(videos)]
    return [video for item in videos for video in flatten_videos(item)]


def is_frames(video) -> bool:
    """Returns whether an entry of `flatten_videos` is an array or list of frames, which have no times, instead of a file."""
    return isinstance(video, (list, np.ndarray, torch.Tensor))


def _is_frame(item) -> bool:
    if isinstance(item, (str, os.PathLike)) or is_file_content(item):
        return is_still_image(item)
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim in (2, 3)
    return isinstance(item, PIL.Image.Image)


def folder_frames(folder: str) -> list[str]:
    """
    Lists the paths of the image files in a folder, which are the frames of one video.

    They are sorted by name, with the numbers in names compared as numbers: `frame2.png` is before `frame10.png`. Files whose names
    begin with a dot and those that Windows adds to folders of images are ignored.

    Raises:
        OSError: naming the folder if it has no image files, and the file if anything else is in it: another folder, or a file that is not
            a still image.
    """
    names = [name for name in os.listdir(folder) if not name.startswith(".") and name.lower() not in ("thumbs.db", "desktop.ini")]
    if not names:
        raise OSError(f"{folder} is a folder without frames: a folder that is a video has one image file for each frame")
    names.sort(key=_natural_order)
    paths = [os.path.join(folder, name) for name in names]
    for path in paths:
        if not is_still_image(path):
            raise OSError(f"{path} is not a still image; a folder that is read as a video must contain one image file per frame")
    return paths


def _natural_order(name: str) -> tuple:
    """Sort key for file names that compares numbers in them as numbers."""
    stem = os.path.splitext(name)[0]
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", stem)], name


def flatten_metadata(video_metadata: VideoMetadataType | None, videos: list) -> list[VideoMetadata | dict | None]:
    """Flattens one metadata object or any nesting of them to a list with one entry or `None` per video."""
    if video_metadata is None:
        return [None] * len(videos)
    if isinstance(video_metadata, (dict, VideoMetadata)):
        video_metadata = [video_metadata]
    if not isinstance(video_metadata, (list, tuple)):
        raise ValueError(f"`video_metadata` must be a list, one per video, got {video_metadata!r}")
    flat: list[VideoMetadata | dict | None] = []
    for item in video_metadata:
        flat.extend(item if isinstance(item, (list, tuple)) else [item])
    if len(flat) != len(videos):
        raise ValueError(f"got {len(videos)} videos and {len(flat)} entries of `video_metadata`; pass one per video")
    return flat


def check_metadata(metadata: VideoMetadata | dict | None) -> None:
    """Raises `ValueError`, naming key and value, for keys that `LlavaSTVideoMetadata` does not have and for an invalid frame rate."""
    if metadata is None:
        return
    if not isinstance(metadata, (dict, VideoMetadata)):
        raise ValueError(f"`video_metadata` must be a dictionary or a VideoMetadata per video, got {metadata!r}")
    names = [field.name for field in fields(LlavaSTVideoMetadata)]
    for key in metadata:
        if key not in names:
            raise ValueError(f"`video_metadata` has the unknown key {key!r} ({metadata[key]!r}); it may have {', '.join(names)}")
    if metadata.get("fps") is not None:
        check_rate(metadata["fps"], "`video_metadata` fps")


def _positions(metadata: LlavaSTVideoMetadata, num_frames: int) -> list[int]:
    """Returns the indices in the file of `num_frames` frames in memory. Fills in `total_num_frames` and checks the metadata."""
    total, indices = metadata.total_num_frames, metadata.frames_indices
    if total is not None and (not is_integer(total) or total < 1):
        raise ValueError(f"`video_metadata` total_num_frames must be a whole number of at least 1, got {total!r}")
    if indices is None:
        if total not in (None, num_frames):
            raise ValueError(
                f"`video_metadata` describes {total} frames and the video has {num_frames}; if "
                "these are frames sampled from a longer video, give their `frames_indices`"
            )
        positions = list(range(num_frames))
    else:
        if isinstance(indices, (np.ndarray, torch.Tensor)):
            indices = indices.tolist()
        if not isinstance(indices, (list, tuple)) or not all(map(is_integer, indices)):
            raise ValueError(f"`video_metadata` frames_indices must be a list of whole numbers, got {indices!r}")
        positions = [int(index) for index in indices]
        if len(positions) != num_frames:
            raise ValueError(f"`video_metadata` has {len(positions)} frames_indices and the video has {num_frames} frames: give one each")
        # A frame may be repeated, as in clips with fewer frames than were sampled from them.
        if positions[0] < 0 or any(second < first for first, second in pairwise(positions)):
            raise ValueError(f"`video_metadata` frames_indices must ascend from 0 or above, got {positions}")
        if total is not None and total != num_frames and positions[-1] >= total:
            raise ValueError(f"`video_metadata` frames_indices go to {positions[-1]} and total_num_frames is {total}")
    # Some callers pass the number of sampled frames as the total: then the last index determines it.
    metadata.total_num_frames = max(int(total or 0), positions[-1] + 1)
    times = metadata.frame_times
    if times is not None:
        if isinstance(times, (np.ndarray, torch.Tensor)):
            times = times.tolist()
        numbers = isinstance(times, (list, tuple)) and all(map(is_finite_number, times))
        if (
            not numbers
            or len(times) != metadata.total_num_frames
            or times[0] < 0
            or any(second <= first for first, second in pairwise(times))
        ):
            found = f"{len(times)} numbers: " if numbers else ""
            raise ValueError(
                f"timestamps (`video_metadata` frame_times) must be {metadata.total_num_frames} ascending numbers of seconds from 0 on, "
                f"one for each frame; got {found}{times!r:.100}"
            )
        metadata.frame_times = [float(time) for time in times]
    return positions
