# SPDX-License-Identifier: Apache-2.0
"""Videos given as frames in memory or as image files, behind the interface of the readers of video files."""

import math
import mimetypes
import os
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from numbers import Integral, Real

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import ChannelDimension
from transformers.video_utils import VideoInput, VideoMetadata, VideoMetadataType

from .image_processing_llava_st import channels_first, checked_pixels, load_image, pil_to_array
from .video_decoding_llava_st import CHUNK_BYTES
from .video_metadata_llava_st import LlavaSTVideoMetadata
from .video_sampling_llava_st import check_rate


class FramesReader:
    """Frames already in memory, or in image files, behind the interface of the readers of video files."""

    def __init__(self, frames, metadata: VideoMetadata | dict | None, do_convert_rgb: bool | None, input_data_format):
        self.do_convert_rgb, self.input_data_format = do_convert_rgb, input_data_format
        is_array = isinstance(frames, (np.ndarray, torch.Tensor))
        self.frames = channels_first(frames, input_data_format) if is_array else frames
        size = self.frames.shape[-2:] if is_array else self._frame(0).shape[-2:]
        # A copy of the caller's, since sampling writes into it. The number of frames can be counted, so it may be left out.
        metadata = LlavaSTVideoMetadata(**{"total_num_frames": None, **(metadata or {}), "clip": None, "given_frames": None})
        self.positions = _positions(metadata, len(frames))
        # Whether somebody sampled the frames before: then they are not those of the file, one for one.
        self.is_sampled = self.positions != list(range(metadata.total_num_frames))
        if len({second - first for first, second in pairwise(self.positions)}) > 1:
            metadata.given_frames = self.positions
        metadata.height, metadata.width = size
        if metadata.frame_times is not None:
            metadata.duration = metadata.seconds(metadata.total_num_frames)
            metadata.fps = metadata.total_num_frames / metadata.duration
        if metadata.fps:
            metadata.fps = float(metadata.fps)
            if metadata.duration is None and metadata.frame_times is None:
                metadata.duration = metadata.total_num_frames / metadata.fps
        self.metadata = metadata

    def _frame(self, index: int) -> torch.Tensor:
        frame = self.frames[index]
        if isinstance(frame, (str, os.PathLike)):
            frame = load_image(frame)
        if isinstance(frame, PIL.Image.Image):
            return channels_first(pil_to_array(frame, self.do_convert_rgb)[None], ChannelDimension.LAST)
        return channels_first(frame[None], self.input_data_format)  # (1, channels, height, width)

    def chunks(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """Frames at ascending indices as `(chunk_frames, channels, height, width)` tensors in order."""
        if isinstance(self.frames, torch.Tensor):
            step = max(1, CHUNK_BYTES // self.frames[0].nbytes)
            for position in range(0, len(indices), step):
                chunk = indices[position : position + step]
                if chunk[-1] - chunk[0] == len(chunk) - 1:
                    frames = self.frames[chunk[0] : chunk[-1] + 1]  # consecutive: nothing is copied
                else:
                    # Indexed with the channels last, the layout that the resize is fast in and most arrays come in.
                    frames = self.frames.permute(0, 2, 3, 1)[chunk].permute(0, 3, 1, 2)
                yield checked_pixels(frames, self.do_convert_rgb)
            return
        for index in indices:
            frame = checked_pixels(self._frame(index), self.do_convert_rgb)
            if frame.shape[-2:] != (self.metadata.height, self.metadata.width):
                raise ValueError(
                    f"the frames of a video must have one size: frame 0 has {self.metadata.height}x{self.metadata.width} "
                    f"pixels (height x width), frame {index} {frame.shape[-2]}x{frame.shape[-1]}"
                )
            yield frame


def flatten_videos(videos: VideoInput) -> list:
    """
    Any nesting of videos as a flat list of videos.

    A video is a path or URL, an array of 4 axes, or a list of frames: PIL images, arrays of 2 or 3 axes, or paths of
    still images. An array of 5 axes is a batch. A single image is a video of one frame.
    """
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return list(videos) if videos.ndim == 5 else [videos if videos.ndim == 4 else videos[None]]
    if isinstance(videos, PIL.Image.Image):
        return [[videos]]
    if isinstance(videos, (str, os.PathLike)):
        return [[videos]] if _is_frame(videos) else [videos]
    if not isinstance(videos, (list, tuple)):
        raise ValueError(f"a video must be a path, a URL, an array, a tensor or a list of frames; got {type(videos)}")
    if len(videos) == 0:
        raise ValueError("got an empty list where a video was expected")
    if all(_is_frame(item) for item in videos):
        return [list(videos)]
    return [video for item in videos for video in flatten_videos(item)]


def _is_frame(item) -> bool:
    if isinstance(item, (str, os.PathLike)):
        kind = mimetypes.guess_type(os.fspath(item))[0] or ""
        # GIF and WebP may be animated, so they count as videos.
        return kind.startswith("image/") and kind not in ("image/gif", "image/webp")
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim in (2, 3)
    return isinstance(item, PIL.Image.Image)


def flatten_metadata(video_metadata: VideoMetadataType | None, videos: list) -> list[VideoMetadata | dict | None]:
    """One entry or `None` per video, from one object or any nesting of them."""
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
    """Raises `ValueError`, naming key and value, for keys that `VideoMetadata` has not and for an impossible frame rate."""
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
    """Which frames of the file `num_frames` frames in memory are. Fills in `total_num_frames`, and checks what there is."""
    total, indices = metadata.total_num_frames, metadata.frames_indices
    if total is not None and (not isinstance(total, Integral) or isinstance(total, bool) or total < 1):
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
        if not isinstance(indices, (list, tuple)) or not all(
            isinstance(index, Integral) and not isinstance(index, bool) for index in indices
        ):
            raise ValueError(f"`video_metadata` frames_indices must be a list of whole numbers, got {indices!r}")
        positions = [int(index) for index in indices]
        if len(positions) != num_frames:
            raise ValueError(f"`video_metadata` has {len(positions)} frames_indices and the video has {num_frames} frames: give one each")
        # A frame may come twice, as in clips shorter than what was sampled from them.
        if positions[0] < 0 or any(second < first for first, second in pairwise(positions)):
            raise ValueError(f"`video_metadata` frames_indices must ascend from 0 or above, got {positions}")
        if total is not None and total != num_frames and positions[-1] >= total:
            raise ValueError(f"`video_metadata` frames_indices go to {positions[-1]} and total_num_frames is {total}")
    # Many count the frames they pass and not those of the file: the indices know of more.
    metadata.total_num_frames = max(int(total or 0), positions[-1] + 1)
    times = metadata.frame_times
    if times is not None:
        ascend = len(times) > 1 and all(isinstance(time, Real) and math.isfinite(time) for time in times) and times[0] == 0
        if not ascend or len(times) != metadata.total_num_frames or (np.diff(times) <= 0).any():
            raise ValueError(
                f"`video_metadata` frame_times must ascend from 0 seconds, one for each of {metadata.total_num_frames} frames "
                f"(None at a constant rate); got {times!r:.200}"
            )
    return positions
