# SPDX-License-Identifier: Apache-2.0
"""
Decoding of video files: the frames listed in the index of a file, in chunks of bounded size in bytes.

The PyAV reader is exact: it compares the presentation time of each decoded frame with the index. decord is used only if it is
requested and only for files that it decodes correctly according to the index; PyAV decodes all others.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from transformers.utils import logging

from .downloads_llava_st import DownloadLimits
from .media_files_llava_st import MediaSource, local_video
from .video_animation_llava_st import AnimationReader, is_animation_format
from .video_index_llava_st import (
    MAX_PIXELS,
    REORDERING_CODECS,
    DamagedVideoError,
    InexactIndexError,
    VideoIndex,
    count_frames,
    decode_all,
    decode_packets,
    import_av,
    named_errors,
    open_container,
    read_index,
    video_stream,
)
from .video_metadata_llava_st import LlavaSTVideoMetadata, file_metadata


logger = logging.get_logger(__name__)

Result = TypeVar("Result")
BACKENDS = ("pyav", "decord")
# Raw frames held at a time, in bytes; a single frame may exceed it. Small enough that the float output dominates memory
# (a 640x360 frame is 0.7 MB, its output 1.8 MB), large enough that the overhead per chunk is negligible.
CHUNK_BYTES = 16 * 2**20
# Minimum distance in frames, from the decoder's position to the next keyframe, at which a seek is cheaper than decoding.
SEEK_DISTANCE = 12
# Frames at the start of a file that are all decoded and compared with the index, before any seek. After them, frames that are neither
# requested nor used as references are skipped if the codec has such frames.
COMPARED_FRAMES = 32
# Containers and codecs that decord decodes correctly according to the tests, by ffmpeg's names.
DECORD_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
DECORD_CODECS = ("h264", "vp9", "vp8", "mpeg4", "mjpeg")


class VideoFileReader:
    """
    Frames of a local video file.

    Args:
        index: of the file.
        backend: "pyav" or "decord".

    Attributes:
        metadata: [`LlavaSTVideoMetadata`]. Height and width, in pixels, are set when the first frame is decoded.
    """

    def __init__(self, index: VideoIndex, backend: str):
        self.index = index
        self.backend = backend
        self.metadata = _metadata(index, backend)

    def chunks(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """
        Yields frames at strictly ascending indices, as uint8 `(chunk_frames, height, width, 3)` tensors in order.

        Raises:
            OSError: naming the file, if a frame cannot be decoded.
            InexactIndexError: if the decoder returns other frames than the index lists; the reader of `recounted()` has the correct index.
        """
        frames = self._decord_frames(indices) if self.backend == "decord" else self._frames(indices)
        chunk: list[np.ndarray] = []
        with closing(frames), named_errors(self.index.path, f"cannot be decoded within frames {indices[0]} to {indices[-1]}"):
            for image in frames:
                height, width = image.shape[:2]
                if (self.metadata.height or height, self.metadata.width or width) != (height, width):
                    raise DamagedVideoError(
                        f"{self.index.path} changes its size from {self.metadata.width}x{self.metadata.height} to {width}x{height} "
                        "pixels: boxes would mean different places"
                    )
                self.metadata.height, self.metadata.width = height, width
                chunk.append(image)
                if (len(chunk) + 1) * image.nbytes > CHUNK_BYTES:
                    yield torch.from_numpy(np.stack(chunk))  # (chunk_frames, height, width, 3)
                    chunk = []
        if chunk:
            yield torch.from_numpy(np.stack(chunk))  # (chunk_frames, height, width, 3)

    def recounted(self) -> "VideoFileReader":
        """Returns a reader of the same file whose index is built by decoding all frames; it finds a frame by counting from the start."""
        notes = self.index.notes
        index = count_frames(self.index.path, tolerant=bool(notes))
        logger.info(f"{self.index.path}: its packets do not state which frames are displayed; all were decoded to count them.")
        return VideoFileReader(replace(index, presented=None, keyframes=index.keyframes[:0], notes=notes), "pyav")

    # PyAV

    def _frames(self, indices: list[int]) -> Generator[np.ndarray, None, None]:
        """Yields upright RGB frames `(height, width, 3)` at ascending indices."""
        pictures = _Pictures(self.index.path)
        presented = self.index.presented
        found = self._found_by_count(indices, pictures) if presented is None else self._found_by_time(presented, indices, pictures)
        for frame in found:
            yield pictures.upright_rgb(frame)

    def _found_by_count(self, indices: list[int], pictures: "_Pictures") -> Iterator:
        wanted = iter(indices)
        index = next(wanted)
        frames = decode_all(self.index.path, self.index.stream)
        shown = (frame for frame in frames if frame.pts is None or frame.pts not in self.index.hidden)
        for number, frame in enumerate(shown):
            pictures.note_orientation(frame)
            if number == index:
                yield frame
                following = next(wanted, None)
                if following is None:
                    return
                index = following
        raise OSError(f"{self.index.path} has no decodable frame {index}")

    def _found_by_time(self, presented: np.ndarray, indices: list[int], pictures: "_Pictures") -> Iterator:
        """
        Yields frames found by their presentation time, with a seek if a keyframe is closer than the decoder's position. A seek that lands
        after the frame, or on frames that are not in the index, is repeated from earlier keyframes and finally from the start of the file.
        """
        keyframes = self.index.keyframes
        search = _Search(self.index, presented, indices, pictures)
        with open_container(self.index.path) as container:
            stream = video_stream(container, self.index.stream)
            can_seek = True
            search.start(container, stream, 0)
            for index in indices:
                attempt = bisect_right(keyframes, presented[index]) - 1 if can_seek else 0  # the keyframe to start from
                target = bisect_left(presented, keyframes[attempt]) if attempt > 0 else 0  # the frame of this keyframe
                missing = COMPARED_FRAMES - search.num_compared
                if target > search.place + SEEK_DISTANCE and missing > 0:
                    search.check(min(search.place + missing, target - 1))
                if target > search.place + SEEK_DISTANCE:
                    search.start(container, stream, attempt)
                frame, back = search.advance(index), 1
                while frame is None:
                    if search.is_from_start:
                        raise search.inexact(index)
                    attempt, back = max(0, attempt - back), 2 * back  # keyframes, twice as many each time
                    can_seek = attempt > 0
                    search.start(container, stream, attempt)
                    frame = search.advance(index)
                yield frame

    # decord

    def _decord_frames(self, indices: list[int]) -> Generator[np.ndarray, None, None]:
        """Yields the same as `_frames`, decoded by decord; after an error of decord, PyAV decodes the remaining frames."""
        position = 0
        try:
            for image in _consecutive_frames(_open_decord(self.index), self.index, indices):
                yield image
                position += 1
            return
        except Exception as error:  # decord's errors are of many classes, some derived from `Exception` alone
            logger.info(f"decord cannot read {self.index.path} ({_first_line(error)}): it is read with PyAV.")
            self.metadata.video_backend = "pyav"
        yield from self._frames(indices[position:])


class _Search:
    """
    Search for frames in the output of a decoder, which is compared with the index of the file.

    Args:
        index: index of the file.
        presented: `presented` of the index.
        indices: requested frames, ascending.
        pictures: records the orientation of every frame.

    Attributes:
        place: index of the last frame that the decoder returned; -1 after a start, when the first frame is not yet known.
        is_from_start: whether decoding began at the start of the file.
    """

    def __init__(self, index: VideoIndex, presented: np.ndarray, indices: list[int], pictures: "_Pictures"):
        self.index, self.presented, self.pictures = index, presented, pictures
        self.wanted = set(presented[indices].tolist())
        self.num_compared = 0
        self.leaves_out = index.codec in REORDERING_CODECS  # whether frames that are not requested may be skipped
        self.place, self.is_from_start = -1, False
        self.frames: Iterator = iter(())

    def start(self, container, stream, keyframe: int) -> None:
        """Starts decoding at a keyframe, given by its position in `index.keyframes`; 0 is the start of the file."""
        self.place, self.is_from_start = -1, keyframe <= 0
        if self.is_from_start:
            self.frames = decode_all(self.index.path, self.index.stream, self._is_wanted)
        else:
            container.seek(int(self.index.keyframes[keyframe]), stream=stream)
            self.frames = self._from_keyframe(container, stream)

    def check(self, index: int) -> None:
        """Decodes up to the frame at `index`. Raises `InexactIndexError` if the decoder does not return it."""
        if self.advance(index) is None:
            raise self.inexact(index)

    def inexact(self, index: int) -> InexactIndexError:
        return InexactIndexError(f"{self.index.path}: frame {index} is not where its packets state")

    def _is_wanted(self, time: int | None) -> bool:
        return not self.leaves_out or self.num_compared < COMPARED_FRAMES or time is None or time in self.wanted

    def _from_keyframe(self, container, stream) -> Iterator:
        """Yields frames from the keyframe that the seek reached, without pictures displayed before it, whose references are missing."""
        landed = None

        def packets():
            nonlocal landed
            for packet in container.demux(stream):
                if landed is None and packet.is_keyframe:
                    landed = packet.pts
                yield packet

        for frame in decode_packets(packets(), self.index.path, self._is_wanted):
            if landed is None or frame.pts is None:
                return  # nothing can be compared with the index
            if frame.pts >= landed:
                yield frame

    def advance(self, index: int):
        """
        Returns the frame at `index` from the frames that follow. Returns `None` if the decoder does not return it, or returns frames that
        are not in the index. A decoding error is raised only if decoding began at the start of the file.
        """
        presented = self.presented
        try:
            for frame in self.frames:
                if frame.pts is None:
                    return None
                self.pictures.note_orientation(frame)
                if frame.pts in self.index.hidden:
                    continue
                is_next = self.place >= 0 or self.is_from_start  # frames are consecutive if none is skipped
                is_compared = is_next and (self.num_compared < COMPARED_FRAMES or not self.leaves_out)
                at = self.place + 1 if is_compared else bisect_left(presented, frame.pts, self.place + 1)
                if at >= len(presented) or presented[at] != frame.pts or at > index:
                    return None
                self.place = at
                self.num_compared += 1
                if at == index:
                    return frame
        except (import_av().error.FFmpegError, OSError):
            if self.is_from_start:
                raise
        return None


class _Pictures:
    """
    Conversion of PyAV's frames to upright RGB arrays.

    The orientation is that of the display matrix of the file or of a display orientation message in an H.264 or HEVC stream, which
    applies until the next message.
    """

    def __init__(self, path: str):
        self.path = path
        self.angle: int | None = None
        self.matrix: tuple[int, int, int, int] | None = None
        self.key, self.graph = None, None

    def note_orientation(self, frame) -> None:
        """
        Records the orientation of a frame; must be called for every frame of the decoder, requested or not.

        The matrix is read only if its angle differs from that of the previous frame: a frame whose side data are read keeps
        its memory until the next cyclic garbage collection.
        """
        angle = frame.rotation  # 0 also for a frame without a matrix
        if self.angle is None or (angle and angle != self.angle):
            self.matrix = _display_matrix(frame) or self.matrix
        self.angle = angle

    def upright_rgb(self, frame) -> np.ndarray:
        """
        Returns the frame passed last to `note_orientation` as a uint8 `(height, width, 3)` array.

        The conversion is ffmpeg's filter: the colours of `frame.to_ndarray` differ from it (and from decord) at odd sizes.
        """
        av = import_av()
        if frame.width * frame.height > MAX_PIXELS:
            raise DamagedVideoError(f"{self.path} has frames of {frame.width}x{frame.height} pixels, more than {MAX_PIXELS}")
        key = (frame.width, frame.height, frame.format.name)
        if key != self.key:
            graph = av.filter.Graph()
            source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
            graph.link_nodes(source, graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")).configure()
            self.key, self.graph = key, graph
        self.graph.push(frame)
        return orient(self.graph.pull().to_ndarray(), self.matrix, self.path)


def _display_matrix(frame) -> tuple[int, int, int, int] | None:
    """Returns the matrix (a, b, c, d) by which pixel (x, y) is displayed at (a x + c y, b x + d y); `None` if the frame has none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(data)[:36], dtype=np.int32)[:5].tolist()
    return a, b, c, d


def orient(image: np.ndarray, matrix: tuple[int, int, int, int] | None, path: str) -> np.ndarray:
    """
    Rotates and mirrors a frame `(height, width, 3)` as it is to be displayed.

    Args:
        image: the frame as stored.
        matrix: see `_display_matrix`; its scale is ignored.
        path: path of the file, for errors.

    Raises:
        OSError: naming the file, if the matrix is not one of the eight combinations of quarter turns and mirroring.
    """
    if matrix is None:
        return image
    a, b, c, d = matrix
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    upright = crossed * 100 < straight and a and d
    sideways = straight * 100 < crossed and b and c
    if not upright and not sideways:
        raise OSError(f"{path} is to be displayed at an angle (display matrix {a}, {b}, {c}, {d}): only quarter turns and mirrors are read")
    if sideways:
        image, a, d = image.swapaxes(0, 1), c, b  # displayed x depends on stored y, displayed y on stored x
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def import_decord():
    """Imports decord. Raises `ImportError` with the installation command if it is not installed."""
    try:  # code saved with a checkpoint needs no package that is imported in a `try` block, until it is used
        import decord
    except ImportError as error:
        raise ImportError('video_backend="decord" needs `pip install decord2`') from error
    return decord


def _open_decord(index: VideoIndex):
    """Opens a file with decord and checks the number of frames against the index."""
    decord = import_decord()
    # A threshold just above 0 makes decord raise an error for frames that it cannot decode, instead of repeating others.
    reader = decord.VideoReader(os.path.abspath(index.path), fault_tol=1e-9)
    if len(reader) != len(index.times):
        raise OSError(f"it counts {len(reader)} frames instead of {len(index.times)}")
    return reader


def _consecutive_frames(reader, index: VideoIndex, indices: list[int]) -> Iterator[np.ndarray]:
    """
    Yields RGB frames `(height, width, 3)` at ascending indices, decoded by decord.

    decord stops skipping frames if its decoder is slower than it expected, and then returns a wrong frame. So nothing
    is skipped: all frames from the keyframe before a requested one are read.
    """
    assert index.presented is not None  # see `_decord_is_right`
    keyframes = np.searchsorted(index.presented, index.keyframes)
    following, chunk_frames = 0, 1  # the first frame alone, because its size is not yet known
    for wanted in indices:
        following = max(following, int(keyframes[np.searchsorted(keyframes, wanted, side="right") - 1]))
        while following <= wanted:
            batch = reader.get_batch(range(following, min(wanted + 1, following + chunk_frames)))
            # decord returns a torch tensor if the user has set its bridge to torch.
            frames = batch.numpy() if isinstance(batch, torch.Tensor) else batch.asnumpy()  # (chunk_frames, height, width, 3)
            following += len(frames)
            chunk_frames = max(1, CHUNK_BYTES // frames[0].nbytes)
        yield frames[-1]


def _decord_is_right(index: VideoIndex) -> bool:
    """
    Returns whether decord decodes the file correctly. It seeks to wrong frames in other containers and if pictures are displayed before
    their keyframe, and it mirrors videos that are to be rotated.
    """
    if index.presented is None or not index.is_plain or index.notes:
        return False
    if index.container not in DECORD_CONTAINERS or index.codec not in DECORD_CODECS:
        return False
    with closing(decode_all(index.path, index.stream)) as frames:
        first = next(frames, None)
    return first is not None and first.pts == index.presented[0] and _display_matrix(first) is None and _keyframes_are_whole(index)


def _keyframes_are_whole(index: VideoIndex) -> bool:
    """
    Returns whether a decoder that starts at the second keyframe returns its frame. An H.264 recovery point, at which the image is
    refreshed gradually, is marked as a keyframe too; decord then returns later frames.
    """
    if len(index.keyframes) < 2:
        return True
    keyframe = int(index.keyframes[1])
    try:
        with open_container(index.path) as container, named_errors(index.path, "cannot be decoded"):
            stream = video_stream(container, index.stream)
            container.seek(keyframe, stream=stream)
            first = next(decode_packets(container.demux(stream), index.path), None)
    except OSError:
        return False
    return first is not None and first.pts == keyframe


def _metadata(index: VideoIndex, backend: str) -> LlavaSTVideoMetadata:
    return file_metadata(len(index.times), index.frame_rate, backend, index.times, list(index.notes))


def check_backend(backend: str | None) -> str:
    """Returns the decoder's name; `None` means PyAV. Raises `ValueError` if it is unknown, `ImportError` if it is not installed."""
    if backend is None:
        return "pyav"
    if backend not in BACKENDS:
        raise ValueError(f"video_backend must be one of {', '.join(map(repr, BACKENDS))}, or None for 'pyav'; got {backend!r}")
    if backend == "decord":
        import_decord()
    return backend


def open_video_file(path: str, backend: str | None = None, allow_truncated: bool = False) -> VideoFileReader | AnimationReader:
    """
    Opens a local video file.

    Args:
        path: path of the file.
        backend: `"pyav"`, the default, or `"decord"`, which is slower here, because nothing is skipped. Files that decord would
            decode incorrectly are decoded by PyAV; `metadata.video_backend` is the decoder used.
        allow_truncated: read a truncated file up to its end; `metadata.notes` then states it.

    Raises:
        OSError: naming the file, if it is not a video, has no video stream, is truncated or damaged.
        ValueError: for an unknown backend.
        ImportError: if the backend is not installed.
    """
    backend = check_backend(backend)
    if is_animation_format(path):
        return AnimationReader(path)
    import_av()
    index = read_index(path, allow_truncated)
    if backend == "decord" and not _decord_is_right(index):
        logger.info(f"decord would not read {path} exactly ({index.codec} in {index.container}): it is read with PyAV.")
        backend = "pyav"
    return VideoFileReader(index, backend)


def read_video_file(
    source: MediaSource,
    read: Callable[[VideoFileReader | AnimationReader], Result],
    backend: str | None = None,
    allow_truncated: bool = False,
    download_limits: DownloadLimits | None = None,
) -> Result:
    """
    Opens a video file and returns the result of `read` for its reader.

    If the decoder returns other frames than the packets of the file state, all frames are counted by decoding and `read` is called again
    with a reader that has the correct index. So `read` must take frame numbers and times from the reader passed to it.

    Args:
        source: see `local_video`.
        backend, allow_truncated: see `open_video_file`, which lists the errors.
        download_limits: limits of a download; `None` for the default limits.
    """
    with local_video(source, download_limits) as path:
        reader = open_video_file(path, backend, allow_truncated)
        try:
            return read(reader)
        except InexactIndexError:
            assert isinstance(reader, VideoFileReader)  # animations have no index
            return read(reader.recounted())


def _first_line(error: Exception) -> str:
    # decord appends a stack trace to its messages
    return str(error).strip().split("\n")[0][:300]
