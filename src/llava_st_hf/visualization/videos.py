# SPDX-License-Identifier: Apache-2.0
"""Annotated videos: a copy of a video with boxes, captions and a time bar, and animated pictures of the part with events."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..model.downloads_llava_st import DownloadLimits
from ..model.results_llava_st import Grounding
from ..model.video_decoding_llava_st import VideoFileReader
from .frames import VideoFrames, open_frames
from .layout import resized
from .painter import FramePainter
from .tracks import Track
from .writer import VideoWriter, atomic_output, source_info


# Animated pictures: frames per second, pixels of the longer side, and frames at most.
ANIMATION_RATE, ANIMATION_SIDE, ANIMATION_FRAMES = 10.0, 480, 200
# Seconds before and after the events in an animated picture, as a fraction of their duration, and at least.
_MARGIN, _SHORTEST_MARGIN = 0.25, 0.7
NO_EVENTS = "The answer has no events: nothing is drawn."


def draw_video(
    medium,
    groundings: Sequence[Grounding],
    tracks: Sequence[Track],
    output: Path,
    scale: float = 1,
    fps: float | None = None,
    download_limits: DownloadLimits | None = None,
) -> list[str]:
    """
    Writes an annotated copy of a video, frame by frame: the memory that it needs does not depend on the length.

    Args:
        medium: a file (path, URL, bytes, open file), a folder of image files, an array or a list of frames.
        groundings: the answers that `tracks` are from.
        tracks: events to draw.
        output: path of the video; its suffix is one of `ENCODERS`.
        scale: size of the result as a multiple of the original.
        fps: frames per second, for frames whose rate is unknown.
        download_limits: limits of a download; None for the default limits.

    Returns:
        Notes: what of the original or of the answer is not in the video.

    Raises:
        OSError, ValueError: if the medium cannot be read, is not the one that the answers are about, or has no frame rate.
    """

    def write(frames: VideoFrames) -> list[str]:
        mean_rate = frames.known_rate("a video file")
        width, height = round(frames.width * scale), round(frames.height * scale)
        painter = FramePainter(tracks, width, height, scale, frames.bounds, frames.num_frames)
        source = None
        if isinstance(frames.reader, VideoFileReader):
            index = frames.reader.index
            source = source_info(index.path, index.stream, float(index.times[0]))
        with atomic_output(output) as path, VideoWriter(path, width, height, frames.rate, mean_rate, source) as writer:
            for number, pixels in enumerate(frames.pixels(range(frames.num_frames))):
                pixels = _scaled(pixels, scale)
                seconds = frames.exact_seconds(number)
                painter.paint(pixels, number, seconds)
                writer.write(pixels, seconds, frames.exact_seconds(number + 1) - seconds)
        return [*([] if tracks else [NO_EVENTS]), *writer.notes, *painter.notes]

    return open_frames(medium, groundings, write, fps, download_limits)


def _scaled(pixels: np.ndarray, scale: float) -> np.ndarray:
    return pixels if scale == 1 else np.array(resized(PIL.Image.fromarray(pixels), scale))


def draw_animation(
    medium,
    groundings: Sequence[Grounding],
    tracks: Sequence[Track],
    output: Path,
    scale: float | None = None,
    fps: float | None = None,
    download_limits: DownloadLimits | None = None,
) -> list[str]:
    """
    Writes an animated GIF or WebP of the part of a video with events, and of the moments before and after them.

    It has at most `ANIMATION_RATE` frames per second and `ANIMATION_FRAMES` frames, since all of them are in memory at once.

    Args:
        output: path, with the suffix .gif or .webp.
        scale: size as a multiple of the original; None for a longer side of at most `ANIMATION_SIDE` pixels, and at least half of that.
        medium, groundings, tracks, fps, download_limits: see `draw_video`.

    Returns:
        Notes: what of the answer is not in the picture.
    """

    def write(frames: VideoFrames) -> list[str]:
        mean_rate = frames.known_rate("an animated picture")
        first, last = _shown(frames, tracks)
        start, end = frames.exact_seconds(first), frames.exact_seconds(last + 1)
        step = max(1 / mean_rate, 1 / ANIMATION_RATE, (end - start) / ANIMATION_FRAMES)
        chosen = sorted({min(frames.frame_at(start + number * step), last) for number in range(int((end - start) / step) + 1)})
        factor = _animation_scale(frames.width, frames.height) if scale is None else scale
        width, height = (max(1, round(side * factor)) for side in (frames.width, frames.height))
        painter = FramePainter(tracks, width, height, factor, frames.bounds, frames.num_frames)
        images = []
        for number, pixels in zip(chosen, frames.pixels(chosen), strict=True):
            drawn = np.array(resized(PIL.Image.fromarray(pixels), factor))
            painter.paint(drawn, number, frames.exact_seconds(number))
            images.append(PIL.Image.fromarray(drawn))
        times = [*map(frames.exact_seconds, chosen), end]
        durations = [max(round(1000 * (after - before)), 20) for before, after in pairwise(times)]  # milliseconds
        with atomic_output(output) as path:
            is_gif = output.suffix.lower() == ".gif"
            if is_gif:  # each frame has a palette of its own; the default method takes a hundred times as long
                images = [image.quantize(255, method=PIL.Image.Quantize.FASTOCTREE) for image in images]
            options: dict[str, Any] = {} if is_gif else {"quality": 80, "method": 2}
            images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, **options)
        return [*([] if tracks else [NO_EVENTS]), *painter.notes]

    return open_frames(medium, groundings, write, fps, download_limits)


def _shown(frames: VideoFrames, tracks: Sequence[Track]) -> tuple[int, int]:
    """First and last frame of an animated picture: the events with a margin, or the clip if there are none."""
    ranges = [track.frames for track in tracks if len(track.frames)]
    if not ranges:
        return frames.media.first_frame, min(frames.media.last_frame, frames.num_frames - 1)
    first, last = min(frames_of[0] for frames_of in ranges), max(frames_of[-1] for frames_of in ranges)
    start, end = frames.exact_seconds(first), frames.exact_seconds(last + 1)
    margin = max(_MARGIN * (end - start), _SHORTEST_MARGIN)
    return frames.frame_at(start - margin), frames.frame_at(end + margin)


def _animation_scale(width: int, height: int) -> float:
    longer = max(width, height)
    return ANIMATION_SIDE / longer if longer > ANIMATION_SIDE else float(max(1, ANIMATION_SIDE // longer))
