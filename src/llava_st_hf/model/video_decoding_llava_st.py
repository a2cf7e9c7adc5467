# SPDX-License-Identifier: Apache-2.0
"""
Pixels of video files: the frames that the index of a file names, in chunks bounded in bytes.

PyAV is the exact reader: it compares the presentation time of each frame that it decodes with the index. decord reads files of
which the index says that decord reads them right, where it is asked for; all others go to the exact reader.
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
# (a 640x360 frame is 0.7 MB, its output 1.8 MB), large enough that the call for each chunk takes no time.
CHUNK_BYTES = 16 * 2**20
# Frames between the decoder's place and the next keyframe from which on a seek is cheaper than decoding them.
SEEK_DISTANCE = 12
# Frames at the start of a file that are all decoded and compared with the index, before any seek. Behind them, frames that are neither
# wanted nor referred to are left out where the codec has such.
COMPARED_FRAMES = 32
# What decord reads right, by the tests: ffmpeg's names of containers and codecs.
DECORD_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
DECORD_CODECS = ("h264", "vp9", "vp8", "mpeg4", "mjpeg")


class VideoFileReader:
    """
    Frames of a local video file.

    Args:
        index: of the file.
        backend: "pyav" or "decord".

    Attributes:
        metadata: [`LlavaSTVideoMetadata`]. Height and width, in pixels, are known once a frame has been decoded.
    """

    def __init__(self, index: VideoIndex, backend: str):
        self.index = index
        self.backend = backend
        self.metadata = _metadata(index, backend)

    def chunks(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """
        Frames at strictly ascending indices, as uint8 `(chunk_frames, height, width, 3)` tensors in order.

        Raises:
            OSError: naming the file, if a frame cannot be decoded.
            InexactIndexError: if the decoder gives other frames than the index has; `recounted()` has the right index.
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
        """Returns a reader of the same file that has counted its frames by decoding, and finds them by their number from the start."""
        notes = self.index.notes
        index = count_frames(self.index.path, tolerant=bool(notes))
        logger.info(f"{self.index.path}: its packets do not state which frames are displayed; all were decoded to count them.")
        return VideoFileReader(replace(index, presented=None, keyframes=index.keyframes[:0], notes=notes), "pyav")

    # PyAV

    def _frames(self, indices: list[int]) -> Generator[np.ndarray, None, None]:
        """Upright RGB frames `(height, width, 3)` at ascending indices."""
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
        Seeks where a keyframe makes the way shorter. A seek that lands behind the frame, or on frames that the index does not have,
        goes further back, at last to the start of the file.
        """
        keyframes = self.index.keyframes
        search = _Search(self.index, presented, indices, pictures)
        with open_container(self.index.path) as container:
            stream = video_stream(container, self.index.stream)
            can_seek = True
            search.start(container, stream, 0)
            for index in indices:
                attempt = bisect_right(keyframes, presented[index]) - 1 if can_seek else 0  # the keyframe to start from
                target = bisect_left(presented, keyframes[attempt]) if attempt > 0 else 0  # the frame that it is
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
        """As `_frames`; from the first frame on that decord cannot give, by the exact reader."""
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
    A decoder's frames, compared with the index of the file.

    Args:
        index: of the file.
        presented: that of the index.
        indices: frames that are wanted, ascending.
        pictures: notes the orientation of every frame.

    Attributes:
        place: index of the last frame that the decoder gave; -1 after a start, when it is not known which frame comes first.
        is_from_start: whether decoding began at the start of the file.
    """

    def __init__(self, index: VideoIndex, presented: np.ndarray, indices: list[int], pictures: "_Pictures"):
        self.index, self.presented, self.pictures = index, presented, pictures
        self.wanted = set(presented[indices].tolist())
        self.num_compared = 0
        self.leaves_out = index.codec in REORDERING_CODECS  # whether frames that are not wanted may be left out
        self.place, self.is_from_start = -1, False
        self.frames: Iterator = iter(())

    def start(self, container, stream, keyframe: int) -> None:
        """Begins at a keyframe, by its place in the index; the first one, number 0, stands for the start of the file."""
        self.place, self.is_from_start = -1, keyframe <= 0
        if self.is_from_start:
            self.frames = decode_all(self.index.path, self.index.stream, self._is_wanted)
        else:
            container.seek(int(self.index.keyframes[keyframe]), stream=stream)
            self.frames = self._from_keyframe(container, stream)

    def check(self, index: int) -> None:
        """Decodes as far as the frame at `index`. Raises `InexactIndexError` if it is not there."""
        if self.advance(index) is None:
            raise self.inexact(index)

    def inexact(self, index: int) -> InexactIndexError:
        return InexactIndexError(f"{self.index.path}: frame {index} is not where its packets state")

    def _is_wanted(self, time: int | None) -> bool:
        return not self.leaves_out or self.num_compared < COMPARED_FRAMES or time is None or time in self.wanted

    def _from_keyframe(self, container, stream) -> Iterator:
        """Frames from the keyframe on where the container landed, without the pictures that precede it: they need others."""
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
        The frame at `index` among those that follow. `None` if it is not there, or if others are than the index has. What cannot be
        decoded is an error only where the decoder had all of the file from its start.
        """
        presented = self.presented
        try:
            for frame in self.frames:
                if frame.pts is None:
                    return None
                self.pictures.note_orientation(frame)
                if frame.pts in self.index.hidden:
                    continue
                is_next = self.place >= 0 or self.is_from_start  # frames follow each other, where none is left out
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
    PyAV's frames as upright RGB arrays.

    Orientation is that of the file's display matrix, or of the messages within H.264 and HEVC, which hold until the next one.
    """

    def __init__(self, path: str):
        self.path = path
        self.angle: int | None = None
        self.matrix: tuple[int, int, int, int] | None = None
        self.key, self.graph = None, None

    def note_orientation(self, frame) -> None:
        """
        To be called with the decoder's frames one by one, whichever are wanted.

        The matrix is read where the angle that it has differs from that of the frame before: a frame whose side data are read keeps
        its memory until the next collection of cyclic garbage.
        """
        angle = frame.rotation  # 0 also for a frame without a matrix
        if self.angle is None or (angle and angle != self.angle):
            self.matrix = _display_matrix(frame) or self.matrix
        self.angle = angle

    def upright_rgb(self, frame) -> np.ndarray:
        """
        `(height, width, 3)` uint8 of the frame noted last.

        ffmpeg's filter and not `frame.to_ndarray`, whose colours differ from it (and decord) at odd sizes.
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
    """(a, b, c, d): where the picture stores (x, y), (a x + c y, b x + d y) is displayed. `None` where the frame has none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(data)[:36], dtype=np.int32)[:5].tolist()
    return a, b, c, d


def orient(image: np.ndarray, matrix: tuple[int, int, int, int] | None, path: str) -> np.ndarray:
    """
    Rotates a frame `(height, width, 3)` as it is displayed.

    Args:
        image: as stored.
        matrix: see `_display_matrix`; of its scale no use is made.
        path: for errors.

    Raises:
        OSError: naming the file, if the matrix is none of the eight ways to turn and mirror by quarter turns.
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
        image, a, d = image.swapaxes(0, 1), c, b  # x is displayed where c y says, y where b x does
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _open_decord(index: VideoIndex):
    """decord's reader of a file, checked against its index."""
    import decord

    # A threshold just above 0 makes decord report frames that it could not decode, instead of repeating others.
    reader = decord.VideoReader(os.path.abspath(index.path), fault_tol=1e-9)
    if len(reader) != len(index.times):
        raise OSError(f"it counts {len(reader)} frames instead of {len(index.times)}")
    return reader


def _consecutive_frames(reader, index: VideoIndex, indices: list[int]) -> Iterator[np.ndarray]:
    """
    RGB frames `(height, width, 3)` at ascending indices, by decord's reader.

    decord gives up skipping frames when its decoder is slower than it had expected, and then gives the frame where it is. So nothing
    is skipped: all frames from the keyframe before a wanted one are read.
    """
    assert index.presented is not None  # see `_decord_is_right`
    keyframes = np.searchsorted(index.presented, index.keyframes)
    following, chunk_frames = 0, 1  # the first frame alone, to learn its size
    for wanted in indices:
        following = max(following, int(keyframes[np.searchsorted(keyframes, wanted, side="right") - 1]))
        while following <= wanted:
            batch = reader.get_batch(range(following, min(wanted + 1, following + chunk_frames)))
            # A torch tensor comes when the user has set decord's bridge to torch.
            frames = batch.numpy() if isinstance(batch, torch.Tensor) else batch.asnumpy()  # (chunk_frames, height, width, 3)
            following += len(frames)
            chunk_frames = max(1, CHUNK_BYTES // frames[0].nbytes)
        yield frames[-1]


def _decord_is_right(index: VideoIndex) -> bool:
    """
    Whether decord reads such files right: it seeks wrong in other containers and where pictures precede their keyframe, and it
    mirrors what is to be turned.
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
    Whether a decoder that starts at the second keyframe gives its frame: what H.264 calls a recovery point, where a picture is
    refreshed part by part, is marked as a keyframe too, and decord then gives later frames.
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
    """Returns the decoder; `None` means PyAV. Raises `ValueError` for an unknown one, `ImportError` for one that is not installed."""
    if backend is None:
        return "pyav"
    if backend not in BACKENDS:
        raise ValueError(f"video_backend must be one of {', '.join(map(repr, BACKENDS))}, or None for 'pyav'; got {backend!r}")
    if backend == "decord":
        try:
            import decord  # noqa: F401
        except ImportError as error:
            raise ImportError('video_backend="decord" needs `pip install decord2`') from error
    return backend


def open_video_file(path: str, backend: str | None = None, allow_truncated: bool = False) -> VideoFileReader | AnimationReader:
    """
    A reader of a local video file.

    Args:
        path: the file.
        backend: `"pyav"`, the default, or `"decord"`, which is slower here, because nothing is skipped. Files that decord would
            read wrong go to PyAV; `metadata.video_backend` says which one read the file.
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
    What `read` makes of a reader of a video file.

    Where the decoder gives other frames than the packets of the file state, all frames are counted and `read` is called once more, with
    a reader that has the right index: it takes numbers and times of frames from the reader that it was called with.

    Args:
        source: as of `local_video`.
        backend, allow_truncated: as of `open_video_file`, which lists the errors.
        download_limits: `None` for the default ones.
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
