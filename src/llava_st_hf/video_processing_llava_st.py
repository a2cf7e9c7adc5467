# SPDX-License-Identifier: Apache-2.0
"""Videos for LLaVA-ST: any kind of video, or a clip of it, to 100 normalised frames.

Frames are sampled uniformly over the clip, both ends included. A file is decoded in small chunks, each resized while the
next one is being decoded, so that little more than the output is ever in memory.
"""

import math
import mimetypes
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from numbers import Integral, Real

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    PILImageResampling,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor, validate_kwargs, validate_typed_dict
from transformers.video_utils import VideoInput, VideoMetadata, VideoMetadataType

from .image_processing_llava_st import (
    INTERPOLATION_MODES,
    channels_first,
    check_preprocess_options,
    checked_pixels,
    load_image,
    normalize_pixels,
    pil_to_array,
    pixel_affine,
    resize_pixels,
)
from .video_decoding_llava_st import CHUNK_BYTES, local_video, open_video_file, read_video_metadata


# Seconds given by people and by annotations carry rounding of this order; a frame is four orders longer.
SECONDS_SLACK = 1e-6


class LlavaSTVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    clips (`list[dict | None]`, *optional*):
        One entry per video, the part of it to look at: `None` for all of it, `{"frames": [first, last]}` with both
        frames included, or `{"start": s, "end": s}` in seconds, either of which may be absent.
    video_backend (`str`, *optional*):
        What reads video files: `"decord"` or `"pyav"`. By default decord, or PyAV where decord is not installed.
    """

    clips: list | None
    video_backend: str | None


def sample_frame_indices(first: int, last: int, num_frames: int) -> list[int]:
    """`num_frames` indices spread evenly from `first` to `last`, both included, rounded half to even; `first` if one.

    A clip with fewer frames than `num_frames` has some of them repeated.
    """
    if num_frames == 1:
        return [first]
    return [first + round(i / (num_frames - 1) * (last - first)) for i in range(num_frames)]


def resolve_clip(clip: dict | None, metadata: VideoMetadata) -> tuple[int, int]:
    """
    The first and the last frame, both included, that a clip means in a video.

    Args:
        clip: `None`, `{"frames": [first, last]}`, or `{"start": s, "end": s}` in seconds, either optional. Annotations
            sometimes give the number of frames as the last one, so a clip may end one frame late, and is then clamped.
        metadata: of the video; `total_num_frames` is needed, and `fps` for a clip in seconds.

    Raises:
        ValueError: naming the clip and what the video has, if the clip is empty, reversed, negative, not finite or
            beyond the end of the video.
    """
    total, fps = metadata.total_num_frames, metadata.fps
    if clip is None:
        return 0, total - 1
    if not isinstance(clip, dict) or not clip or not (set(clip) == {"frames"} or set(clip) <= {"start", "end"}):
        raise ValueError(f"a clip must be None, {{'frames': [first, last]}} or {{'start': seconds, 'end': seconds}}; got {clip!r}")
    if "frames" in clip:
        return _resolve_frames(clip["frames"], total)
    if not fps:
        raise ValueError(f"clip {clip} is in seconds and the frame rate of the video is unknown; pass `video_metadata`")
    return _resolve_seconds(clip, total, fps)


def _resolve_frames(frames: tuple[int, int], total: int) -> tuple[int, int]:
    if not isinstance(frames, (list, tuple, np.ndarray)) or len(frames) != 2:
        raise ValueError(f"clip frames must be [first, last]; got {frames!r}")
    if not all(isinstance(frame, Integral) and not isinstance(frame, bool) for frame in frames):
        raise ValueError(f"clip frames must be whole numbers; got {frames!r}")
    first, last = int(frames[0]), int(frames[1])
    if first < 0 or last < first:
        raise ValueError(f"clip frames [{first}, {last}] are negative or reversed")
    if first >= total or last > total:
        raise ValueError(f"clip frames [{first}, {last}] lie beyond the video, which has {total} frames, 0 to {total - 1}")
    return first, last


def _resolve_seconds(clip: dict[str, float], total: int, fps: float) -> tuple[int, int]:
    duration = total / fps
    start, end = clip.get("start", 0.0), clip.get("end", duration)
    for value in (start, end):
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"clip times must be finite numbers of seconds; got {clip}")
    # A container's own duration may exceed the frames' by less than a frame.
    if start >= duration or end > duration + 1 / fps:
        raise ValueError(f"clip {clip} lies beyond the end: the video lasts {duration:.3f} s")
    if start < 0 or end <= start:
        raise ValueError(f"clip {clip} is negative, empty or reversed; the video lasts {duration:.3f} s")
    # Frame i is on screen from i / fps until (i + 1) / fps: take every frame seen within the clip.
    first = min(math.floor((start + SECONDS_SLACK) * fps), total - 1)
    last = min(math.ceil((end - SECONDS_SLACK) * fps) - 1, total - 1)
    return first, max(first, last)


class FramesReader:
    """Frames already in memory, or in image files, behind the interface of the readers of video files."""

    def __init__(self, frames, metadata: VideoMetadata | dict | None, do_convert_rgb: bool | None, input_data_format):
        self.do_convert_rgb, self.input_data_format = do_convert_rgb, input_data_format
        is_array = isinstance(frames, (np.ndarray, torch.Tensor))
        self.frames = channels_first(frames, input_data_format) if is_array else frames
        size = self.frames.shape[-2:] if is_array else self._frame(0).shape[-2:]
        # A copy of the caller's, since sampling writes into it. The number of frames can be counted, so it may be left out.
        metadata = VideoMetadata(**{"total_num_frames": len(frames), **(metadata or {})})
        self.positions = list(range(len(frames)))
        if metadata.total_num_frames != len(frames):
            # Frames that somebody sampled before: their metadata tells which frames of the video they are.
            if metadata.frames_indices is None or len(metadata.frames_indices) != len(frames):
                raise ValueError(
                    f"`video_metadata` describes {metadata.total_num_frames} frames and the video has {len(frames)}; if "
                    "these are frames sampled from a longer video, give their `frames_indices`"
                )
            self.positions = [int(index) for index in metadata.frames_indices]
        metadata.height, metadata.width = size
        if metadata.duration is None and metadata.fps:
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
    flat: list[VideoMetadata | dict | None] = []
    for item in video_metadata:
        flat.extend(item if isinstance(item, (list, tuple)) else [item])
    if len(flat) != len(videos):
        raise ValueError(f"got {len(videos)} videos and {len(flat)} entries of `video_metadata`; pass one per video")
    return flat


class LlavaSTVideoProcessor(BaseVideoProcessor):
    r"""
    Video processor of LLaVA-ST.

    Takes one video or any nesting of lists of videos, each one of: a path, a `file://` or `http(s)://` URL; an array or
    tensor `(num_frames, height, width, channels)` or `(num_frames, channels, height, width)`; a list of frames (PIL
    images, arrays, or paths of images other than GIF and WebP). Integers and floats are on the 0–255 scale; pass
    `do_rescale=False` for floats already in 0–1.

    Returns `pixel_values_videos`, float32 `(num_videos, num_frames, 3, 384, 384)` by default, and with
    `return_metadata=True` `video_metadata`, a list of `VideoMetadata`: `total_num_frames`, `fps`, `duration` in seconds,
    `width` and `height` in pixels as seen, `frames_indices` (the frames sampled, one per output frame, counted from the
    start of the video and not of the clip) and `video_backend`. For frames without `video_metadata`, `fps` and
    `duration` are unknown and stay `None`. What a file says of itself takes precedence over `video_metadata`.

    `num_frames` frames are spread evenly over the clip, some repeated if it is shorter; `fps=` in a call takes that many
    frames per second instead; `do_sample_frames=False` keeps every frame of the clip.

    Raises `OSError` naming the file for one that is missing, empty, cut short or no video, and `ValueError` for
    impossible clips, pixels that are NaN or out of range, and videos of unequal frame counts in one tensor.
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

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        clip: dict | None = None,
        **kwargs,
    ) -> np.ndarray:
        """
        Indices of the frames to look at, `(num_frames,)` int64, from 0 to `metadata.total_num_frames - 1`.

        Args:
            metadata: of the video.
            num_frames: how many frames; by default `self.num_frames`.
            fps: frames per second of video instead of a number of frames.
            clip: see `resolve_clip`.
        """
        if fps is not None and num_frames is not None:
            raise ValueError(f"pass `num_frames` or `fps`, not both; got {num_frames} and {fps}")
        first, last = resolve_clip(clip, metadata)
        if fps is not None:
            if not metadata.fps:
                raise ValueError(f"sampling {fps} frames per second needs the frame rate of the video; pass `video_metadata`")
            num_frames = max(1, int((min(last + 1, metadata.total_num_frames) - first) / metadata.fps * fps))
        indices = sample_frame_indices(first, last, num_frames or self.num_frames)
        return np.minimum(indices, metadata.total_num_frames - 1)

    def preprocess(self, videos: VideoInput, **kwargs: Unpack[LlavaSTVideoProcessorKwargs]) -> BatchFeature:
        """See the class for what goes in and what comes out."""
        validate_kwargs(captured_kwargs=kwargs.keys(), valid_processor_keys=[*self.valid_kwargs.__annotations__, "return_tensors"])
        validate_typed_dict(self.valid_kwargs, kwargs)
        if kwargs.get("fps") is not None:
            kwargs.setdefault("num_frames", None)
        for name in self.valid_kwargs.__annotations__:
            kwargs.setdefault(name, getattr(self, name, None))
        kwargs = self._standardize_kwargs(**kwargs)
        self._validate_preprocess_kwargs(**kwargs)
        check_preprocess_options(*(kwargs[name] for name in ("do_resize", "size", "resample", "do_center_crop", "do_pad", "data_format")))

        videos = flatten_videos(videos)
        all_metadata = flatten_metadata(kwargs["video_metadata"], videos)
        clips = kwargs["clips"] if kwargs["clips"] is not None else [None] * len(videos)
        if len(clips) != len(videos):
            raise ValueError(f"got {len(videos)} videos and {len(clips)} `clips`; pass one per video, None for all of it")

        pixel_values, video_metadata = [], []
        for video, metadata, clip in zip(videos, all_metadata, clips, strict=True):
            if isinstance(video, (str, os.PathLike)):
                with local_video(video) as path:
                    reader = open_video_file(path, kwargs["video_backend"])
                    pixel_values.append(self._read(reader, clip, **kwargs))
            else:
                reader = FramesReader(video, metadata, kwargs["do_convert_rgb"], kwargs["input_data_format"])
                pixel_values.append(self._read(reader, clip, **kwargs))
            video_metadata.append(reader.metadata)

        if kwargs["return_tensors"] is not None:
            pixel_values = _as_batch(pixel_values)
        features = BatchFeature(data={"pixel_values_videos": pixel_values}, tensor_type=kwargs["return_tensors"])
        if kwargs["return_metadata"]:
            features["video_metadata"] = video_metadata
        return features

    def _read(self, reader, clip: dict | None, **kwargs) -> torch.Tensor:
        """The sampled frames of one video, `(num_frames, channels, height, width)`; notes them in its metadata."""
        metadata = reader.metadata
        if isinstance(reader, FramesReader) and reader.positions != list(range(metadata.total_num_frames)):
            if clip is not None:
                raise ValueError("a clip cannot be taken from frames sampled before; pass the frames of the clip alone")
            metadata = VideoMetadata(total_num_frames=len(reader.positions), fps=metadata.fps)
        if kwargs["do_sample_frames"]:
            indices = self.sample_frames(metadata, kwargs["num_frames"], kwargs["fps"], clip).tolist()
        else:
            first, last = resolve_clip(clip, metadata)
            indices = list(range(first, min(last, metadata.total_num_frames - 1) + 1))

        unique, rows = np.unique(indices, return_inverse=True)
        pixels = self._pixels(reader, unique.tolist(), rows, **kwargs)

        if isinstance(reader, FramesReader):
            indices = [reader.positions[index] for index in indices]
        reader.metadata.frames_indices = indices
        return pixels

    def _pixels(self, reader, unique: list[int], rows: np.ndarray, **kwargs) -> torch.Tensor:
        """
        Reads, resizes and normalises frames.

        This thread decodes a chunk while others work on the one before it, each on a part of its own: torch's resize is
        one thread's work, and the first write to fresh memory is a good part of the whole time.

        Args:
            reader: of the frames.
            unique: indices of the frames to read, ascending.
            rows: for each frame of the output, which of `unique` it is; never descending.

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
            """Writes the frames from number `position` of `unique` on to where they belong in the output."""
            if size is not None:
                frames = resize_pixels(frames, size, mode, white)
            start, stop = np.searchsorted(rows, (position, position + len(frames)))
            if stop - start > len(frames):  # some frames are asked for more than once
                frames = frames[rows[start:stop] - position]
            normalize_pixels(frames, affine, out=pixels[start:stop])

        workers = torch.get_num_threads()
        pixels = torch.empty(0)  # sized when the first frames are seen
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
                while len(pending) > 2 * workers:  # no more than two chunks are in memory beside the one being decoded
                    pending.popleft().result()
            for task in pending:
                task.result()
        return pixels


def _as_batch(pixel_values: list[torch.Tensor]) -> torch.Tensor:
    """One `(num_videos, num_frames, channels, height, width)` tensor; a single video is not copied."""
    shapes = {tuple(pixels.shape) for pixels in pixel_values}
    if len(shapes) > 1:
        raise ValueError(
            "videos in one tensor must have as many frames and pixels as each other, got "
            f"{[tuple(pixels.shape) for pixels in pixel_values]}; sample frames with `do_sample_frames=True` and "
            "`num_frames`, resize, or pass `return_tensors=None` for a list"
        )
    return pixel_values[0][None] if len(pixel_values) == 1 else torch.stack(pixel_values)


__all__ = ["LlavaSTVideoProcessor", "LlavaSTVideoProcessorKwargs", "read_video_metadata", "sample_frame_indices"]
