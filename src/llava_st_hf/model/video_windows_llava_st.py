# SPDX-License-Identifier: Apache-2.0
"""Windows of a video: their frames, and a reader with which the frames of all windows are decoded in one pass through the file."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from .media_info_llava_st import MediaInfo
from .video_decoding_llava_st import CHUNK_BYTES
from .video_sampling_llava_st import SECONDS_SLACK, resolve_clip


# Maximum number of windows of a video: a larger number is a mistake in the unit of `window`.
MAX_WINDOWS = 10_000


class OnePassReader:
    """
    Reader of several clips of a file in ascending order. A frame that the next clip needs, too, is decoded once.

    The frames of a clip are passed on in chunks. Decoded frames that later clips need, up to the last frame of the current one, are kept.

    Args:
        reader: of the file.
        requests: the frames of each clip that will be read, in the order of the clips. Their first frames ascend.
    """

    def __init__(self, reader, requests: Sequence[Sequence[int]]):
        self.metadata = reader.metadata
        self._requests = [sorted(set(request)) for request in requests]
        self._uses = Counter(frame for request in self._requests for frame in request)
        self._frames = _single_frames(reader, sorted(self._uses))
        self._kept: dict[int, torch.Tensor] = {}

    def chunks(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """
        Yields the frames of the next clip, as the reader of the file does.

        Raises:
            ValueError: if `indices` are not those of the next request.
        """
        if not self._requests or list(indices) != self._requests[0]:
            raise ValueError(f"The frames of the clips must be read in the order of the requests, got {list(indices)[:5]}, ….")
        self._requests.pop(0)
        chunk: list[torch.Tensor] = []
        for wanted in indices:
            while wanted not in self._kept:
                index, frame = next(self._frames)
                self._kept[index] = frame
            frame = self._kept[wanted]
            self._uses[wanted] -= 1
            if not self._uses[wanted]:
                del self._kept[wanted]
            chunk.append(frame)
            if (len(chunk) + 1) * frame.nbytes > CHUNK_BYTES:
                yield torch.stack(chunk)  # (chunk_frames, height, width, 3)
                chunk = []
        if chunk:
            yield torch.stack(chunk)  # (chunk_frames, height, width, 3)


def _single_frames(reader, indices: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields `(index, frame)` with frames of shape `(height, width, 3)`."""
    numbers = iter(indices)
    for chunk in reader.chunks(indices):
        for frame in chunk:
            yield next(numbers), frame.clone()  # a view would keep the memory of the whole chunk


def window_frames(metadata, first: int, last: int, window: float, overlap: float) -> list[tuple[int, int]]:
    """
    Divides a clip into windows of equal length.

    The number of windows is the smallest with which neighbours overlap by at least `overlap`. They are evenly spaced: the first begins
    with the clip and the last ends with it, and all have the full length. A clip that is not longer than a window is one window.

    Args:
        metadata: of the video ([`LlavaSTVideoMetadata`]), with a known frame rate or times of frames.
        first, last: frames of the clip, both included.
        window: length in seconds.
        overlap: of neighbouring windows, in seconds; at least 0 and less than `window`.

    Returns:
        First and last frame of each window, both included.

    Raises:
        ValueError: naming `window`, if there would be more than `MAX_WINDOWS`.
    """
    begin, end = metadata.seconds(first), metadata.seconds(last + 1)
    if end - begin <= window + SECONDS_SLACK:
        return [(first, last)]
    count = math.ceil((end - begin - overlap - SECONDS_SLACK) / (window - overlap))
    if count > MAX_WINDOWS:
        raise ValueError(
            f"window={window:g} with overlap={overlap:g} gives {count} windows for {end - begin:.3f} s; at most {MAX_WINDOWS}."
        )
    starts = [begin + number * (end - begin - window) / (count - 1) for number in range(count)]
    return [part_frames(metadata, start, start + window, first, last) for start in starts]


def part_frames(metadata, start: float, end: float, first: int, last: int) -> tuple[int, int]:
    """First and last frame that are displayed between two times in seconds, within the frames `first` to `last` of a clip."""
    finish = metadata.seconds(metadata.total_num_frames)
    frames = resolve_clip({"start": max(start, 0.0), "end": min(end, finish)}, metadata)
    return max(frames[0], first), min(frames[1], last)


def window_seconds(media: MediaInfo) -> tuple[float, float]:
    """Seconds at which the first and the last frame of a window are displayed: the range of the times of an answer about it."""
    start, end = media.time(0.0), media.time(1.0)
    assert start is not None and end is not None  # windows are those of a video with times
    return start, end


__all__ = ["MAX_WINDOWS", "OnePassReader", "part_frames", "window_frames", "window_seconds"]
