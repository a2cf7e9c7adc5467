# SPDX-License-Identifier: Apache-2.0
"""Reading frames out of video files, with decord or with PyAV, in chunks bounded in bytes.

Both readers give the same frames, upright (the rotation that phones write into the file is applied), and both raise
`OSError` naming the file when it cannot give exactly the frames that were asked for.
"""

import os
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers.utils import is_decord_available, logging
from transformers.video_utils import VideoMetadata

from .grounding import Media
from .image_processing_llava_st import is_url, local_path, open_url


logger = logging.get_logger(__name__)

# Raw frames held at a time, in bytes; a single frame may exceed it. Small enough that the float output dominates memory
# (a 640x360 frame is 0.7 MB, its output 1.8 MB), large enough that a decoder call is not felt.
CHUNK_BYTES = 16 * 2**20

# How far frames may be from where a constant rate has them, as a fraction of a frame and in seconds (containers that count
# in milliseconds round to them), and still be of constant rate.
RATE_TOLERANCE, TIME_TOLERANCE = 0.1, 1.5e-3
# Decimals of frame times in seconds. decord gives them in single precision, so both readers round to what that can hold.
TIME_DECIMALS = 4

# What decord says at the first frame of some small videos, upright or marked as sideways, whose padded rows it counts as picture.
PADDED_ROWS = "The size must exactly match"


@dataclass
class LlavaSTVideoMetadata(VideoMetadata):
    """
    What transformers keeps of a video, and what it takes to turn frames into seconds and back.

    Args:
        frame_times: seconds from the first frame of the file to each of its `total_num_frames` frames; `None` at a constant
            rate, where frame `i` is shown at `i / fps`. Where it is given, `fps` is the mean rate.
        clip: first and last frame looked at, both included, whichever of them were sampled.
        given_frames: where frames sampled before were passed and are unevenly spaced, which frames of the file they are.
    """

    frame_times: list[float] | None = None
    clip: tuple[int, int] | None = None
    given_frames: list[int] | None = None

    def seconds(self, frame: int) -> float | None:
        """
        Seconds from the first frame of the file to frame `frame`; `None` where the frame rate is unknown.

        `frame` may be the number of frames: then it is when the last frame leaves the screen, after as long as the one before.
        """
        if self.frame_times is not None:
            if frame == len(self.frame_times):
                return 2 * self.frame_times[-1] - self.frame_times[-2]
            return self.frame_times[frame]
        return frame / self.fps if self.fps else None

    def media(self, first: int, last: int) -> Media:
        """What it takes to turn positions in the clip from frame `first` to `last`, both included, into seconds and pixels."""
        frames = self.given_frames  # where they are uneven, times are needed one by one
        times: tuple | None = None
        end_time: float | None = None
        if self.frame_times is not None or (frames is not None and self.fps):
            times = tuple(self.seconds(frame) for frame in frames or range(first, last + 1))
            end_time = self.seconds(last + 1)
        return Media(
            "video",
            width=int(self.width),
            height=int(self.height),
            fps=self.fps,
            first_frame=first,
            last_frame=last,
            frame_times=times,
            frames=None if frames is None else tuple(frames),
            end_time=end_time,
        )

    @property
    def timestamps(self) -> list[float]:
        """Times of the sampled frames, in seconds from the first frame of the file."""
        if self.frame_times is None or self.frames_indices is None:
            return super().timestamps
        return [self.frame_times[index] for index in self.frames_indices]


@contextmanager
def local_video(source: str | os.PathLike) -> Iterator[str]:
    """The path of a video file for the duration of the context; a URL is downloaded to a temporary file."""
    if not is_url(source):
        path = local_path(source)
        _check_not_cut_short(path)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "video")
        with open_url(source) as stream, open(path, "wb") as file:
            shutil.copyfileobj(stream, file)
        try:
            _check_not_cut_short(path)
            yield path
        except OSError as error:
            raise OSError(f"{source}: {error}") from error


def _check_not_cut_short(path: str) -> None:
    """
    Raises `OSError` if the file is an MP4/MOV whose last box ends beyond the file.

    Decoders take such a file for a shorter video and would sample it at wrong times.
    """
    length, position = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while position + 8 <= length:
            file.seek(position)
            header = file.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if position == 0 and kind != b"ftyp":
                return  # another container
            if size == 1:
                size = int.from_bytes(header[8:16], "big")
            if size < 8:
                return  # 0: the box reaches to the end of the file, whatever that is
            position += size
            if position > length:
                raise OSError(
                    f"{path} is cut short: its {kind.decode('latin-1')!r} part should reach byte {position}, "
                    f"and the file has {length} bytes"
                )


def _import_decord():
    try:
        import decord
    except ImportError as error:
        raise ImportError("reading video files with decord needs `pip install decord2`") from error
    return decord


def _import_av():
    try:
        import av
    except ImportError as error:
        raise ImportError("reading video files with PyAV needs `pip install av`") from error
    return av


class DecordReader:
    """
    Frames of a local video file through decord.

    `metadata` knows the number of frames, their rate and the duration from the start; height and width, in pixels,
    only once a frame has been decoded.
    """

    def __init__(self, path: str):
        decord = _import_decord()
        self.path = path
        try:
            # A threshold just above 0 makes decord report frames it could not decode, instead of repeating others.
            self.reader = decord.VideoReader(path, fault_tol=1e-9)
            num_frames, fps = len(self.reader), self.reader.get_avg_fps()
            # (num_frames, 2): when each frame appears and when it goes, in seconds
            times = self.reader.get_frame_timestamp(list(range(num_frames))) if num_frames else np.empty((0, 2))
        except (decord.DECORDError, RuntimeError) as error:
            raise OSError(f"{path} cannot be read as a video: {_first_line(error)}") from error
        self.metadata = _file_metadata(path, num_frames, fps, "decord", np.asarray(times)[:, 0])

    def chunks(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """Frames at strictly ascending indices, as uint8 `(chunk_frames, height, width, 3)` tensors in order."""
        decord = _import_decord()
        position, chunk_frames = 0, 1  # the first frame alone, to learn its size
        while position < len(indices):
            wanted = indices[position : position + chunk_frames]
            try:
                batch = self.reader.get_batch(wanted)
            except (decord.DECORDError, RuntimeError, IndexError) as error:
                if PADDED_ROWS in str(error):
                    logger.warning_once("decord cannot read frames of this size here: reading them with PyAV instead.")
                    yield from self._chunks_with_pyav(indices)
                    return
                raise OSError(f"{self.path}: decoding failed within frames {wanted[0]} to {wanted[-1]}: {_first_line(error)}") from error
            # A torch tensor comes when the user has set decord's bridge to torch.
            frames = batch if isinstance(batch, torch.Tensor) else torch.utils.dlpack.from_dlpack(batch.to_dlpack())
            self.metadata.height, self.metadata.width = frames.shape[1:3]
            yield frames  # (chunk_frames, height, width, 3)
            position += len(wanted)
            chunk_frames = max(1, CHUNK_BYTES // frames[0].numel())

    def _chunks_with_pyav(self, indices: list[int]) -> Iterator[torch.Tensor]:
        reader = PyAVReader(self.path)
        for frames in reader.chunks(indices):
            self.metadata.height, self.metadata.width = frames.shape[1:3]
            self.metadata.video_backend = "pyav"
            yield frames  # (chunk_frames, height, width, 3)


class PyAVReader:
    """Frames of a local video file through PyAV; the same interface and the same frames as `DecordReader`."""

    def __init__(self, path: str):
        av = _import_av()
        self.path = path
        try:
            with av.open(path) as container:
                if not container.streams.video:
                    raise OSError(f"{path} has no video stream")
                stream = container.streams.video[0]
                # Times and keyframes come from the packets, because a container's own frame count is often missing.
                packets = [
                    (packet.pts, packet.is_keyframe)
                    for packet in container.demux(stream)
                    if packet.pts is not None and not packet.is_discard
                ]
                fps, time_base = stream.average_rate, float(stream.time_base or 0)
        except av.error.FFmpegError as error:
            raise OSError(f"{path} cannot be read as a video: {error}") from error
        self.times = sorted(time for time, _ in packets)
        self.keyframes = sorted(time for time, is_keyframe in packets if is_keyframe)
        times = [(time - self.times[0]) * time_base for time in self.times]  # seconds
        self.metadata = _file_metadata(path, len(self.times), float(fps or 0), "pyav", times)

    def chunks(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """Frames at strictly ascending indices, as uint8 `(chunk_frames, height, width, 3)` tensors in order."""
        av = _import_av()
        chunk = []
        try:
            for image, rotation in self._frames([self.times[index] for index in indices]):
                # A quarter turn counter-clockwise per 90 degrees, as the display matrix in the file asks.
                image = np.rot90(image, rotation // 90)
                self.metadata.height, self.metadata.width = image.shape[:2]
                chunk.append(image)
                if (len(chunk) + 1) * image.nbytes > CHUNK_BYTES:
                    yield torch.from_numpy(np.stack(chunk))  # (chunk_frames, height, width, 3)
                    chunk = []
        except av.error.FFmpegError as error:
            raise OSError(f"{self.path}: decoding failed within frames {indices[0]} to {indices[-1]}: {error}") from error
        if chunk:
            yield torch.from_numpy(np.stack(chunk))  # (chunk_frames, height, width, 3)

    def _frames(self, wanted: list[int]) -> Iterator[tuple[np.ndarray, int]]:
        """
        RGB frames `(height, width, 3)` as stored, with the rotation in degrees to apply, at ascending presentation times.

        Seeks where a keyframe makes the way shorter.
        """
        av = _import_av()
        with av.open(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            # ffmpeg's filter and not `frame.to_ndarray`, whose colours differ from it (and decord) at odd sizes.
            graph = av.filter.Graph()
            graph.link_nodes(graph.add_buffer(template=stream), graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")).configure()
            decoded: Iterator = iter(())
            reached = None
            for time in wanted:
                keyframe = self.keyframes[max(0, bisect_right(self.keyframes, time) - 1)] if self.keyframes else time
                if reached is None or keyframe > reached:
                    container.seek(keyframe, stream=stream)
                    decoded = container.decode(stream)
                frame = next((shown for shown in decoded if shown.pts is not None and shown.pts >= time), None)
                if frame is None or frame.pts != time:
                    raise OSError(f"{self.path} has no decodable frame {bisect_right(self.times, time) - 1}")
                reached = time
                graph.push(frame)
                yield graph.pull().to_ndarray(), frame.rotation


def open_video_file(path: str, backend: str | None = None) -> DecordReader | PyAVReader:
    """
    A reader of a local video file.

    Args:
        path: the file.
        backend: `"decord"` or `"pyav"`. `None` takes decord, and PyAV with a warning where decord is not installed.

    Raises:
        OSError: naming the file, if it is no video, has no picture or is damaged.
        ImportError: if the backend is not installed.
    """
    if backend not in (None, "decord", "pyav"):
        raise ValueError(f"the video backend must be 'decord' or 'pyav', got {backend!r}")
    if backend is None and not is_decord_available():
        logger.warning_once("decord is not installed (pip install decord2): falling back to PyAV to read videos.")
        backend = "pyav"
    return PyAVReader(path) if backend == "pyav" else DecordReader(path)


def read_video_metadata(path: str | os.PathLike, backend: str | None = None) -> LlavaSTVideoMetadata:
    """
    What is known of a video without reading it all: `total_num_frames`, `fps`, `duration` in seconds, and `height` and
    `width` in pixels as seen (after rotation), for which the first frame is decoded. Where the frame rate varies,
    `frame_times` has the seconds of every frame and `fps` is the mean rate. `frames_indices` is `None`.

    Takes a path, a `file://` or an `http(s)://` URL. Raises as `open_video_file` does.
    """
    with local_video(path) as local:
        reader = open_video_file(local, backend)
        next(reader.chunks([0]))
        return reader.metadata


def _file_metadata(path: str, num_frames: int, fps: float, backend: str, times) -> LlavaSTVideoMetadata:
    """`times`: seconds at which each frame is shown."""
    if num_frames <= 0:
        raise OSError(f"{path} has no video frames")
    rate, frame_times = _rate_and_times(float(fps), np.asarray(times, dtype=np.float64))
    return LlavaSTVideoMetadata(
        total_num_frames=num_frames,
        fps=rate,
        duration=num_frames / rate if rate else None,
        video_backend=backend,
        frame_times=frame_times,
    )


def _rate_and_times(fps: float, times: np.ndarray) -> tuple[float | None, list[float] | None]:
    """
    Frames per second, and the seconds of every frame if no constant rate says them.

    Args:
        fps: what the file calls its rate; at most 0 if it does not.
        times: seconds at which each frame is shown, `(num_frames,)`, counted from anywhere.
    """
    stated = fps if fps > 0 else None
    times = times - times[:1]
    if len(times) < 2 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        return stated, None  # times that say nothing
    mean = float((len(times) - 1) / np.round(times[-1], TIME_DECIMALS)) if times[-1] > 10**-TIME_DECIMALS else None
    # The stated rate may be no more than the clock's, or counts a last frame of odd length: then the frames' own is tried.
    for rate in (stated, mean):
        if rate and np.abs(times - np.arange(len(times)) / rate).max() <= max(RATE_TOLERANCE / rate, TIME_TOLERANCE):
            return rate, None
    frame_times = np.round(times, TIME_DECIMALS).tolist()
    # How long the last frame stays is not told reliably: as long as the one before it.
    return len(times) / (2 * frame_times[-1] - frame_times[-2]), frame_times


def _first_line(error: Exception) -> str:
    # decord appends a stack trace to its messages
    return str(error).strip().split("\n")[0][:300]


__all__ = ["read_video_metadata"]
