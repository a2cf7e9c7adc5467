# SPDX-License-Identifier: Apache-2.0
"""Video processor of LLaVA-ST: converts a video, or a clip of it, to 100 normalized frames.

Frames are sampled uniformly over the clip, both ends included. A file is decoded in small chunks, each resized while the
next one is being decoded, so that peak memory is little more than the output.
"""

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    PILImageResampling,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor, validate_kwargs, validate_typed_dict
from transformers.video_utils import VideoInput, VideoMetadata

from .checks_llava_st import check_rate
from .downloads_llava_st import DownloadLimits, checked_limits
from .image_processing_llava_st import (
    INTERPOLATION_MODES,
    check_preprocess_options,
    normalize_pixels,
    pixel_affine,
    resize_pixels,
)
from .model_card_llava_st import LlavaSTPushToHubMixin
from .video_decoding_llava_st import Result, check_backend, read_video_file
from .video_frames_llava_st import FramesReader, OpenedVideo, check_metadata, flatten_metadata, flatten_videos, is_frames
from .video_metadata_llava_st import LlavaSTVideoMetadata
from .video_reading_llava_st import check_allow_truncated, read_video_metadata
from .video_sampling_llava_st import MAX_SAMPLED_FRAMES, SECONDS_SLACK, check_num_frames, resolve_clip, sample_frame_indices


class LlavaSTVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    clips (`list[dict | None]`, *optional*):
        One entry per video, its clip: `None` for the whole video, `{"frames": [first, last]}` with both
        frames included, or `{"start": s, "end": s}` in seconds, either of which may be absent.
    video_backend (`str`, *optional*):
        Video decoder: `"pyav"` (default), or `"decord"` for the files that docs/video_input.md lists; all others are read by
        PyAV. `video_metadata` states the decoder of each file.
    allow_truncated (`bool`, *optional*, defaults to `False`):
        Read truncated video files up to their end instead of raising an error. `notes` in `video_metadata` and in the result of the
        answer parser then state it.
    download_limits (`DownloadLimits`, *optional*):
        Limits of downloads of videos. They are not saved with the processor.
    """

    # Any type is allowed here, because the video processor's own checks have clearer messages than those of transformers.
    clips: Any
    sampling: Any
    num_frames: Any
    fps: Any
    video_metadata: Any
    video_backend: Any
    allow_truncated: Any
    download_limits: Any


class LlavaSTVideoProcessor(LlavaSTPushToHubMixin, BaseVideoProcessor):
    r"""
    Video processor of LLaVA-ST.

    Takes one video or any nesting of lists of videos, each one of: a path, a `file://`, `http(s)://` or `data:` URL, bytes or
    an open binary file; an array or tensor `(num_frames, height, width, channels)` or `(num_frames, channels, height,
    width)`; a list of frames (PIL images, arrays, or still images as files); a folder of image files, see `folder_frames`.
    GIF, WebP, PNG and AVIF files are videos if they are animated; a still image is a video of one frame. Integers are on
    the 0–255 scale, and so are floats unless none of a video exceeds 1: these are on the 0–1 scale; `do_rescale=True` or
    `False` states the scale (see `float_scale`).

    Returns `pixel_values_videos`, float32 `(num_videos, num_frames, 3, 384, 384)` by default, and with
    `return_metadata=True` `video_metadata`, a list of `LlavaSTVideoMetadata`: `total_num_frames`, `fps`, `duration` in
    seconds, `width` and `height` in pixels after rotation, `frames_indices` (the frames sampled, one per output frame, counted
    from the start of the video and not of the clip), `video_backend`, `clip` (its first and last
    frame) and, for files of varying frame rate, `frame_times` in seconds. For frames without `video_metadata`, `fps` and
    `duration` are unknown and stay `None`. The metadata in a file take precedence over `video_metadata`. Frames
    sampled from a longer video come with their `frames_indices`, which must ascend and need not be evenly spaced.

    `num_frames` frames are spread evenly over the clip, some repeated if it is shorter; `fps=` in a call takes that many
    frames per second instead; `do_sample_frames=False` keeps every frame of the clip. For `clips`, `video_backend`,
    `allow_truncated` and `download_limits` see `LlavaSTVideoProcessorKwargs`. `notes` in the metadata lists facts about a file that
    affect the answer, such as a missing end.

    Raises `OSError` naming a file that is missing, empty, not a video, or truncated unless `allow_truncated`, and `ValueError` for
    invalid clips, frame numbers, frame rates and metadata, pixels that are NaN or out of range, and videos of unequal
    frame counts in one tensor.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 384, "width": 384}
    num_frames = 100
    do_sample_frames = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    valid_kwargs = LlavaSTVideoProcessorKwargs
    model_input_names = ["pixel_values_videos"]

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings without `download_limits`, which are set by the application and not by a file."""
        return {name: value for name, value in super().to_dict().items() if name != "download_limits"}

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        clip: dict | None = None,
        **kwargs,
    ) -> np.ndarray:
        """
        Returns the indices of the sampled frames, `(num_frames,)` int64, from 0 to `metadata.total_num_frames - 1`.

        Args:
            metadata: metadata of the video.
            num_frames: number of frames; by default `self.num_frames`.
            fps: frames per second of video instead of a number of frames.
            clip: see `resolve_clip`.
        """
        if num_frames is not None:
            check_num_frames(num_frames)
        if fps is not None:
            check_rate(fps, "fps")
        if fps is not None and num_frames is not None:
            raise ValueError(f"pass `num_frames` or `fps`, not both; got {num_frames} and {fps}")
        first, last = resolve_clip(clip, metadata)
        if fps is not None:
            frame_times = getattr(metadata, "frame_times", None)
            if not metadata.fps and not frame_times:
                raise ValueError(f"sampling {fps} frames per second needs the frame rate of the video; pass `video_metadata`")
            if frame_times:
                seconds = metadata.seconds(min(last + 1, metadata.total_num_frames)) - metadata.seconds(first) + SECONDS_SLACK
            else:
                seconds = (min(last + 1, metadata.total_num_frames) - first) / metadata.fps
            num_frames = max(1, int(min(seconds * fps, MAX_SAMPLED_FRAMES + 1)))
            if num_frames > MAX_SAMPLED_FRAMES:
                raise ValueError(f"fps={fps} samples more than {MAX_SAMPLED_FRAMES} frames of a video of {seconds:.3f} s")
        if num_frames is None:
            num_frames = self.num_frames
            check_num_frames(num_frames)
        indices = sample_frame_indices(first, last, num_frames)
        return np.minimum(indices, metadata.total_num_frames - 1)

    def preprocess(self, videos: VideoInput, **kwargs: Unpack[LlavaSTVideoProcessorKwargs]) -> BatchFeature:
        """Equivalent to calling the processor; see the class."""
        validate_kwargs(captured_kwargs=kwargs.keys(), valid_processor_keys=[*self.valid_kwargs.__annotations__, "return_tensors"])
        if kwargs.get("num_frames") is not None:
            check_num_frames(kwargs["num_frames"])
        if kwargs.get("fps") is not None:
            check_rate(kwargs["fps"], "fps")
        for name, meaning in (("clips", "for all of it"), ("sampling", "to sample it as the call says")):
            if kwargs.get(name) is not None and not isinstance(kwargs[name], list):
                raise ValueError(f"`{name}` must be a list, one per video, None {meaning}; got {kwargs[name]!r}")
        if kwargs.get("do_rescale") is None:
            kwargs["do_rescale"] = None if self.do_rescale else False  # None: the scale of floats is inferred
        validate_typed_dict(self.valid_kwargs, kwargs)
        if kwargs.get("fps") is not None:
            kwargs.setdefault("num_frames", None)
        for name in self.valid_kwargs.__annotations__:
            kwargs.setdefault(name, getattr(self, name, None))
        check_backend(kwargs["video_backend"])
        check_allow_truncated(kwargs["allow_truncated"])
        checked_limits(kwargs["download_limits"])
        kwargs = self._standardize_kwargs(**kwargs)
        self._validate_preprocess_kwargs(**kwargs)
        check_preprocess_options(*(kwargs[name] for name in ("do_resize", "size", "resample", "do_center_crop", "do_pad", "data_format")))

        videos = flatten_videos(videos)
        all_metadata = flatten_metadata(kwargs["video_metadata"], videos)
        for metadata in all_metadata:
            check_metadata(metadata)
        clips, sampling = ([None] * len(videos) if kwargs[name] is None else kwargs[name] for name in ("clips", "sampling"))
        for name, entries in (("clips", clips), ("sampling", sampling)):
            if len(entries) != len(videos):
                raise ValueError(f"got {len(videos)} videos and {len(entries)} `{name}`; pass one per video, or None in the place of one")
        for entry in sampling:
            _check_sampling(entry)
        do_rescale = kwargs["do_rescale"]
        kwargs["do_rescale"] = do_rescale is not False  # floats on another scale are converted to that of 8-bit pixels before

        pixel_values, video_metadata = [], []
        for video, metadata, clip, rate in zip(videos, all_metadata, clips, sampling, strict=True):
            options = kwargs if rate is None else {**kwargs, "num_frames": None, "fps": None, **rate}
            read = partial(self._read, clip=clip, **options)
            if isinstance(video, OpenedVideo):
                pixels, of_video = read(video.reader)
            elif not is_frames(video):
                file_options = [kwargs["video_backend"], bool(kwargs["allow_truncated"]), kwargs["download_limits"]]
                pixels, of_video = read_video_file(video, read, *file_options)
            else:
                frame_options = [kwargs["do_convert_rgb"], kwargs["input_data_format"], do_rescale, kwargs["rescale_factor"]]
                pixels, of_video = read(FramesReader(video, metadata, *frame_options, kwargs["download_limits"]))
            pixel_values.append(pixels)
            video_metadata.append(of_video)

        if kwargs["return_tensors"] is not None:
            pixel_values = _as_batch(pixel_values)
        features = BatchFeature(data={"pixel_values_videos": pixel_values}, tensor_type=kwargs["return_tensors"])
        if kwargs["return_metadata"]:
            features["video_metadata"] = video_metadata
        return features

    def read_opened(
        self,
        video,
        read: Callable[..., Result],
        metadata: VideoMetadata | dict | None = None,
        video_backend: str | None = None,
        allow_truncated: bool | None = None,
        download_limits: DownloadLimits | None = None,
    ) -> Result:
        """
        Opens a video for several clips of it, and returns the result of `read` for its reader. `read` may be called twice, see
        `read_video_file`. An [`OpenedVideo`] with the reader can be processed like a file.

        Args:
            video: an entry of `flatten_videos`.
            read: function of the reader.
            metadata: `video_metadata` of frames.
            video_backend, allow_truncated, download_limits: as of a call.
        """
        given = {"video_backend": video_backend, "allow_truncated": allow_truncated, "download_limits": download_limits}
        options: dict[str, Any] = {name: getattr(self, name, None) if value is None else value for name, value in given.items()}
        check_backend(options["video_backend"])
        check_allow_truncated(options["allow_truncated"])
        checked_limits(options["download_limits"])
        check_metadata(metadata)
        if not is_frames(video):
            return read_video_file(video, read, options["video_backend"], bool(options["allow_truncated"]), options["download_limits"])
        do_rescale = None if self.do_rescale else False
        return read(FramesReader(video, metadata, self.do_convert_rgb, None, do_rescale, self.rescale_factor, options["download_limits"]))

    def clip_indices(self, metadata: VideoMetadata, frames: tuple[int, int], num_frames: int | None = None) -> list[int]:
        """Indices of the frames that a call with the clip `frames` (first and last, both included) samples, ascending."""
        if not self.do_sample_frames:
            return list(range(frames[0], frames[1] + 1))
        fps = None if num_frames is not None else getattr(self, "fps", None)
        number = num_frames if num_frames is not None or fps is not None else self.num_frames
        return self.sample_frames(metadata, number, fps, {"frames": list(frames)}).tolist()

    def _read(self, reader, clip: dict | None, **kwargs) -> tuple[torch.Tensor, LlavaSTVideoMetadata]:
        """Reads the sampled frames of one video, `(num_frames, channels, height, width)`, and its metadata with `frames_indices`."""
        metadata = reader.metadata
        if isinstance(reader, FramesReader) and reader.is_sampled:
            if clip is not None:
                raise ValueError("a clip cannot be taken from frames sampled before; pass the frames of the clip alone")
            # The rate of the given frames: their number over the time that they span.
            positions, rate = reader.positions, metadata.fps
            if rate and metadata.frame_times is None:
                rate *= len(positions) / (positions[-1] + 1 - positions[0])
            elif rate:
                rate = len(positions) / (metadata.seconds(positions[-1] + 1) - metadata.seconds(positions[0]))
            metadata = VideoMetadata(total_num_frames=len(positions), fps=rate)
        first, last = resolve_clip(clip, metadata)
        last = min(last, metadata.total_num_frames - 1)
        if kwargs["do_sample_frames"]:
            indices = self.sample_frames(metadata, kwargs["num_frames"], kwargs["fps"], clip).tolist()
        else:
            indices = list(range(first, last + 1))

        unique, rows = np.unique(indices, return_inverse=True)
        pixels = self._pixels(reader, unique.tolist(), rows, **kwargs)

        if isinstance(reader, FramesReader):
            indices = [reader.positions[index] for index in indices]
            first, last = reader.positions[first], reader.positions[last]
        reader.metadata.frames_indices, reader.metadata.clip = indices, (first, last)
        return pixels, reader.metadata

    def _pixels(self, reader, unique: list[int], rows: np.ndarray, **kwargs) -> torch.Tensor:
        """
        Reads, resizes and normalizes frames.

        This thread decodes a chunk while other threads process separate parts of the previous one: torch's resize uses a single
        thread, and the first write to newly allocated memory takes a large share of the time.

        Args:
            reader: reader of the video.
            unique: indices of the frames to read, ascending.
            rows: for each frame of the output, its position in `unique`; never descending.

        Returns:
            `(len(rows), channels, height, width)` float32.
        """
        affine = pixel_affine(
            kwargs["do_rescale"],
            kwargs["rescale_factor"],
            kwargs["do_normalize"],
            kwargs["image_mean"],
            kwargs["image_std"],
        )
        size = (kwargs["size"].height, kwargs["size"].width) if kwargs["do_resize"] else None
        mode = INTERPOLATION_MODES[kwargs["resample"]]
        white = 1 / kwargs["rescale_factor"] if kwargs["do_rescale"] else None

        def fill(frames: torch.Tensor, position: int) -> None:
            """Writes the frames of `unique` that start at `position` into their places in the output."""
            if size is not None:
                frames = resize_pixels(frames, size, mode, white)
            start, stop = np.searchsorted(rows, (position, position + len(frames)))
            if stop - start > len(frames):  # some frames are repeated
                frames = frames[rows[start:stop] - position]
            normalize_pixels(frames, affine, out=pixels[start:stop])

        workers = torch.get_num_threads()
        pixels = torch.empty(0)  # allocated when the size of the first frames is known
        pending: deque[Future] = deque()
        position = 0
        with ThreadPoolExecutor(max_workers=workers) as executor:
            for frames in reader.chunks(unique):
                if not isinstance(reader, FramesReader):
                    frames = frames.permute(0, 3, 1, 2)  # (chunk_frames, 3, height, width)
                if kwargs["device"] is not None:
                    frames = frames.to(kwargs["device"])
                if position == 0:
                    shape = (len(rows), frames.shape[1], *(size or frames.shape[2:]))
                    pixels = torch.empty(shape, dtype=torch.float32, device=frames.device)
                for part in frames.split(math.ceil(len(frames) / workers)):
                    pending.append(executor.submit(fill, part, position))
                    position += len(part)
                while len(pending) > 2 * workers:  # at most two chunks are in memory in addition to the one being decoded
                    pending.popleft().result()
            for task in pending:
                task.result()
        return pixels


def _check_sampling(entry) -> None:
    """Raises `ValueError` unless it is None, `{"num_frames": n}` or `{"fps": r}`."""
    if entry is None:
        return
    if not isinstance(entry, dict) or set(entry) not in ({"num_frames"}, {"fps"}):
        raise ValueError(f"an entry of `sampling` must be None, {{'num_frames': n}} or {{'fps': r}}; got {entry!r}")
    if "fps" in entry:
        check_rate(entry["fps"], "fps")
    else:
        check_num_frames(entry["num_frames"])


def _as_batch(pixel_values: list[torch.Tensor]) -> torch.Tensor:
    """Stacks videos to one `(num_videos, num_frames, channels, height, width)` tensor; a single video is not copied."""
    shapes = {tuple(pixels.shape) for pixels in pixel_values}
    if len(shapes) > 1:
        raise ValueError(
            "videos in one tensor must have as many frames and pixels as each other, got "
            f"{[tuple(pixels.shape) for pixels in pixel_values]}; sample frames with `do_sample_frames=True` and "
            "`num_frames`, resize, or pass `return_tensors=None` for a list"
        )
    return pixel_values[0][None] if len(pixel_values) == 1 else torch.stack(pixel_values)


__all__ = ["LlavaSTVideoMetadata", "LlavaSTVideoProcessor", "LlavaSTVideoProcessorKwargs", "read_video_metadata", "sample_frame_indices"]
