# SPDX-License-Identifier: Apache-2.0
"""Reading frames out of video files, with decord or with PyAV, in chunks bounded in bytes.

Both readers give the same frames, upright (the rotation that phones write into the file is applied), and both raise
`OSError` naming the file when it cannot give exactly the frames that were asked for.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
import torch
from transformers.utils import is_decord_available, logging

from .media_files_llava_st import local_video
from .video_containers_llava_st import check_not_cut_short
from .video_metadata_llava_st import LlavaSTVideoMetadata, file_metadata


logger = logging.get_logger(__name__)

# Raw frames held at a time, in bytes; a single frame may exceed it. Small enough that the float output dominates memory
# (a 640x360 frame is 0.7 MB, its output 1.8 MB), large enough that a decoder call is not felt.
CHUNK_BYTES = 16 * 2**20

# What decord says at the first frame of some small videos, upright or marked as sideways, whose padded rows it counts as picture.
PADDED_ROWS = "The size must exactly match"


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
        self.metadata = file_metadata(path, num_frames, fps, "decord", np.asarray(times)[:, 0])

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
        self.metadata = file_metadata(path, len(self.times), float(fps or 0), "pyav", times)

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
    check_not_cut_short(path)
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


def _first_line(error: Exception) -> str:
    # decord appends a stack trace to its messages
    return str(error).strip().split("\n")[0][:300]


__all__ = ["read_video_metadata"]
