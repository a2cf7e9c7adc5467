# SPDX-License-Identifier: Apache-2.0
"""
Index of a video file: the frames that a player displays, their order and their times.

The index is built from the packets of the file: their sorted presentation times, without packets that an edit list hides or that
cannot be decoded. If the packets do not determine the frames (containers without presentation times, pictures of two packets, packets
without a picture), all frames are decoded once and counted. The readers of pixels use the index for everything else.
"""

import gc
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise

import numpy as np

from .video_containers_llava_st import DamagedVideoError, TruncatedVideoError, check_container
from .video_sample_tables_llava_st import read_sample_table


# Containers that are opened, by ffmpeg's names: those whose truncation can be detected. No playlists (they refer to other files),
# devices, scripts or raw streams (which have no times). GIF is included; animated WebP and PNG are read as images.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,ogg,gif,nut,ivf,mxf"
# Seconds. A GIF frame whose stated duration is below the first value is displayed for the second, as in web browsers.
GIF_SHORTEST, GIF_USUAL = 0.015, 0.1
# Containers that store decoding times, not presentation times. The presentation times that ffmpeg derives are wrong for codecs that
# reorder frames.
WITHOUT_PRESENTATION_TIMES = ("avi", "asf")
REORDERING_CODECS = ("h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video")
# Codecs whose decoders return a frame one packet late and therefore drop another frame than the hidden one.
LATE_CODECS = ("mpeg1video", "mpeg2video")
# Containers in which ffmpeg guesses most presentation times, and guesses others after a seek.
UNSEEKABLE = ("mpeg",)
# Codecs whose packets each contain one displayed frame, except those detected by `_is_hidden`.
ONE_FRAME_A_PACKET = {
    *("h264", "hevc", "vvc", "vp8", "vp9", "av1", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg", "prores", "dnxhd", "ffv1", "ffvhuff"),
    *("huffyuv", "utvideo", "rawvideo", "v210", "png", "gif", "qtrle", "jpeg2000", "flv1", "h261", "h263", "msmpeg4v1", "msmpeg4v2"),
    *("msmpeg4v3", "wmv1", "wmv2", "dvvideo", "cinepak"),
}
# Codecs with packets that are never displayed; their first bytes state it.
HIDING_CODECS = ("vp8", "vp9")
# Bytes of the longest packet of MPEG-4 that may contain no frame (VOP not coded). Frames without a change are as short.
EMPTY_MPEG4_PACKET = 8
# Seconds by which a video may be shorter than stated in its header: the last frame has an unknown duration, audio tracks have padding.
DURATION_TOLERANCE = 1.0
# Maximum number of pixels of a frame; a larger size means that the header is damaged (16K has 142 million).
MAX_PIXELS = 16384 * 8704


class InexactIndexError(OSError):
    """Error raised if the decoder returns other frames than the packets state, so that the frames must be counted by decoding."""


def import_av():
    """Imports PyAV. Raises `ImportError` with the installation command if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise ImportError("reading video files needs `pip install av` (PyAV)") from error
    _collect_before_forks()
    return av


@cache
def _collect_before_forks() -> None:
    """
    Runs the garbage collector before each fork, because PyAV's containers and filters are in reference cycles. A forked process (a data
    loader worker) that frees one would wait forever for decoder threads that exist only in its parent.
    """
    if os.name == "posix":
        os.register_at_fork(before=gc.collect)


@contextmanager
def named_errors(path: str, doing: str) -> Iterator[None]:
    """Converts exceptions of PyAV for a damaged file to an `OSError` that names the file."""
    av = import_av()
    try:
        yield
    except (DamagedVideoError, TruncatedVideoError):
        raise
    # Damaged headers surface as any of these in PyAV's own code; `FFmpegError` is derived from `Exception` alone.
    except (av.error.FFmpegError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, MemoryError) as error:
        message = str(error).strip().split("\n")[0][:300]
        raise OSError(f"{path} {doing}: {message or type(error).__name__}") from error


@contextmanager
def open_container(path: str):
    """Opens a local file with PyAV, only as a file (not as a URL) and only by the demuxers of `CONTAINERS`."""
    av = import_av()
    with named_errors(path, "cannot be read as a video"):
        try:
            container = av.open(
                "file:" + os.path.abspath(path),
                options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"},
                metadata_errors="replace",
            )
        except av.error.InvalidDataError as error:
            raise OSError(f"{path} cannot be read as a video: it is of no known format, or its header is damaged") from error
        except av.error.ArgumentError as error:  # raised by ffmpeg for formats that are not in the list
            raise OSError(
                f"{path} cannot be read as a video: its format is none of those that are read. Playlists are not followed, and streams "
                "without a container have no times: remux them (ffmpeg -i in.h264 -c copy out.mkv)"
            ) from error
    try:
        yield container
    finally:
        container.close()


def choose_stream(container, path: str):
    """Returns the video stream that ffmpeg would choose: the largest frame, the default stream before others, never a cover image."""
    Disposition = import_av().stream.Disposition

    def score(stream) -> int:
        context = stream.codec_context
        return (context.width * context.height if context else 0) + 5_000_000 * bool(stream.disposition & Disposition.default)

    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise OSError(f"{path} has no video stream{', only a cover image' if container.streams.video else ''}")
    return max(streams, key=score)


@dataclass(frozen=True)
class VideoIndex:
    """
    The frames of a video file that a player displays.

    Args:
        path: path of the file.
        container, codec: ffmpeg's names.
        stream: index of the video stream among all streams of the file.
        times: `(num_frames,)` float64, seconds from the start of the container at which each frame is displayed, ascending.
        frame_rate: stated frame rate, in frames per second; 0 if the file does not state one.
        presented: `(num_frames,)` int64, the presentation times of the frames in units of the stream's time base. `None` if the
            frames were counted by decoding: then they can be found only from the start of the file.
        keyframes: int64, ascending, the presentation times of packets at which decoding may start, hidden ones included; empty if
            seeking is not exact.
        hidden: the presentation times of frames that the decoder returns although an edit list hides them.
        is_plain: whether no packet is hidden, no picture precedes its keyframe, and there is one video stream.
        notes: see `LlavaSTVideoMetadata`.
    """

    path: str
    container: str
    codec: str
    stream: int
    times: np.ndarray
    frame_rate: float
    presented: np.ndarray | None
    keyframes: np.ndarray
    hidden: frozenset[int]
    is_plain: bool
    notes: tuple[str, ...] = ()


@dataclass
class _Packets:
    """Packets of the video stream in decoding order. Times are in units of the time base."""

    container: str
    codec: str
    stream: int
    time_base: float
    frame_rate: float
    start: float | None  # seconds on the container's clock
    can_reorder: bool
    has_one_stream: bool
    has_sound: bool
    promised: float | None  # duration in seconds stated in the header
    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    keyframe: list[bool] = field(default_factory=list)
    discard: list[bool] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)
    is_doubtful: bool = False  # whether a packet may hold no frame
    end: float = 0.0  # seconds on the container's clock at which the last packet of any stream ends


def read_index(path: str, allow_truncated: bool = False) -> VideoIndex:
    """
    Builds the index of a local video file.

    Args:
        path: path of the file.
        allow_truncated: read a truncated file up to its end; `notes` then states it.

    Raises:
        OSError: naming the file, if it is not a video, has no video stream, is truncated or damaged.
    """
    truncation = None
    try:
        check_container(path)
    except TruncatedVideoError as error:
        truncation = error
    if truncation is not None and not (allow_truncated and truncation.is_readable):
        raise truncation
    packets = _scan(path)
    # A stated duration counts from time 0, even if the first packet is later.
    if truncation is None and packets.promised is not None and packets.end < packets.promised - DURATION_TOLERANCE:
        truncation = TruncatedVideoError(path, f"it should last {packets.promised:.3f} s and ends after {packets.end:.3f} s")
        if not allow_truncated:
            raise truncation
    if truncation is not None:
        note = f"The video file is cut short ({truncation.reason}); times and frames refer to the part that is there."
        return replace(count_frames(path, packets, tolerant=True), notes=(note,))
    return _packet_index(path, packets) if _says_presentation(packets) else count_frames(path, packets)


def _scan(path: str) -> _Packets:
    """Reads the packets of the file without decoding; for MP4 files, only their sample tables."""
    with open_container(path) as container, named_errors(path, "cannot be read as a video"):
        stream = choose_stream(container, path)
        context = stream.codec_context
        if context is None:
            raise OSError(f"{path} has a video stream of a codec that PyAV does not decode")
        if context.width * context.height > MAX_PIXELS:
            raise DamagedVideoError(f"{path} has frames of {context.width}x{context.height} pixels, more than {MAX_PIXELS}")
        names = container.format.name
        duration_is_stated = names.startswith(("matroska", "flv")) and container.duration
        found = _Packets(
            container=names,
            codec=context.codec.canonical_name,  # differs from the decoder's name for AV1
            stream=stream.index,
            time_base=float(stream.time_base or 0),
            frame_rate=float(stream.average_rate or 0),
            start=None if container.start_time is None else container.start_time / 1e6,
            can_reorder=context.has_b_frames,
            has_one_stream=len(container.streams.video) == 1,
            has_sound=len(container.streams.audio) > 0,
            promised=container.duration / 1e6 if duration_is_stated else None,
        )
        table = read_sample_table(path, stream.id) if names.startswith("mov") and found.codec not in HIDING_CODECS else None
        if table is not None:
            found.pts, found.dts = table.pts.tolist(), table.dts.tolist()
            found.keyframe, found.discard = table.keyframe.tolist(), table.discard.tolist()
            found.hidden = [False] * len(found.pts)
            found.is_doubtful = found.codec == "mpeg4" and bool((table.size <= EMPTY_MPEG4_PACKET).any())
        # Audio packets are needed only if the header states a total duration.
        for packet in () if table is not None else container.demux() if duration_is_stated else container.demux(stream):
            if packet.size == 0:
                continue
            if duration_is_stated and packet.pts is not None and packet.time_base:
                found.end = max(found.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != found.stream:
                continue
            found.pts.append(packet.pts)
            found.dts.append(packet.dts)
            found.keyframe.append(packet.is_keyframe)
            found.discard.append(packet.is_discard)
            found.hidden.append(_is_hidden(found.codec, packet))
            found.is_doubtful = found.is_doubtful or (found.codec == "mpeg4" and packet.size <= EMPTY_MPEG4_PACKET)
    if not found.pts:
        raise OSError(f"{path} has no video frames")
    if found.time_base <= 0:
        raise DamagedVideoError(f"{path} is damaged: its video stream has no unit of time")
    return found


def _is_hidden(codec: str, packet) -> bool:
    """Returns whether a VP8 or VP9 packet contains only a reference picture that is never displayed."""
    if codec == "vp8":
        return not memoryview(packet)[0] >> 4 & 1
    if codec == "vp9":
        data = memoryview(packet)
        first, last = data[0], data[-1]
        is_superframe = last & 0xE0 == 0xC0
        shows_existing, shows = first >> 3 & 1, first >> 1 & 1
        return first & 0xF0 != 0xB0 and not is_superframe and not shows_existing and not shows  # 0xB0: profile 3, not parsed
    return False


def _says_presentation(packets: _Packets) -> bool:
    """Returns whether the packets alone determine the displayed frames and their times."""
    if packets.codec not in ONE_FRAME_A_PACKET or packets.is_doubtful:
        return False
    if packets.container in WITHOUT_PRESENTATION_TIMES and packets.codec in REORDERING_CODECS:
        return False
    shown = [time for time, discard, hidden in zip(packets.pts, packets.discard, packets.hidden, strict=True) if not (discard or hidden)]
    if None in shown or len(set(shown)) < len(shown):
        return False
    decoded = [time for time in packets.dts if time is not None]
    return all(later >= earlier for earlier, later in pairwise(decoded))  # times decrease if the clock restarts


def _packet_index(path: str, packets: _Packets) -> VideoIndex:
    """Builds the index from the presentation times of the packets."""
    first = packets.keyframe.index(True) if True in packets.keyframe else 0  # nothing before it can be decoded
    rows = list(zip(packets.pts, packets.keyframe, packets.discard, packets.hidden, strict=True))[first:]
    presented = sorted(time for time, _, discard, hidden in rows if time is not None and not (discard or hidden))
    if not presented:
        raise OSError(f"{path} has no video frames that are displayed")
    keyframes = sorted(time for time, keyframe, _, _ in rows if keyframe and time is not None)
    start = rows[0][0]
    if keyframes and start is not None and start > presented[0]:
        # Pictures displayed before the first keyframe need references that the file does not contain. Some decoders return them anyway.
        displayed = _displayed_before(path, packets.stream, start)
        presented = [time for time in presented if time >= start or time in displayed]
    leads = False
    highest: int | None = None
    for time, keyframe, _, _ in rows:
        if keyframe:
            highest = time
        leads = leads or (highest is not None and time is not None and time < highest)
    times = np.array(presented, dtype=np.int64)
    is_plain = packets.has_one_stream and not leads and not any(packets.discard) and not any(packets.hidden) and first == 0
    return _index(path, packets, times, times, [] if packets.container in UNSEEKABLE else keyframes, is_plain=is_plain)


def _index(
    path: str, packets: _Packets, times: np.ndarray, presented: np.ndarray | None, keyframes: list[int], is_plain=False
) -> VideoIndex:
    """Builds a `VideoIndex`; `times` are the times of the frames in units of the time base."""
    return VideoIndex(
        path=path,
        container=packets.container,
        codec=packets.codec,
        stream=packets.stream,
        times=_seconds(times, packets),
        frame_rate=packets.frame_rate,
        presented=presented,
        keyframes=np.array(keyframes, dtype=np.int64),
        hidden=_hidden_times(packets),
        is_plain=is_plain,
    )


def _hidden_times(packets: _Packets) -> frozenset[int]:
    """
    Presentation times of hidden frames that the decoders of `LATE_CODECS` return nevertheless. With several edits, displayed frames
    may have the same times, so the result is empty for other codecs.
    """
    if packets.codec not in LATE_CODECS:
        return frozenset()
    return frozenset(time for time, discard in zip(packets.pts, packets.discard, strict=True) if discard and time is not None)


def _seconds(times: np.ndarray, packets: _Packets) -> np.ndarray:
    """Converts units of the time base to seconds from the start of the container, which is not later than the first frame."""
    seconds = times * packets.time_base
    if packets.container == "gif":
        durations = np.diff(seconds)
        seconds = np.concatenate([seconds[:1], seconds[0] + np.cumsum(np.where(durations < GIF_SHORTEST, GIF_USUAL, durations))])
    start = seconds[0] if packets.start is None else min(packets.start, seconds[0])
    return seconds - start


def _displayed_before(path: str, stream_index: int, keyframe: int) -> set[int]:
    """Presentation times of the frames that the decoder returns before the frame of the first keyframe."""
    displayed: set[int] = set()
    for frame in decode_all(path, stream_index):
        if frame.pts is not None and frame.pts >= keyframe:
            break
        displayed.add(frame.pts)
    return displayed


def count_frames(path: str, packets: _Packets | None = None, tolerant: bool = False) -> VideoIndex:
    """
    Builds the index by decoding all frames.

    Args:
        path: path of the file.
        packets: result of an earlier `_scan`.
        tolerant: stop at the first damaged frame instead of raising an error.

    Raises:
        OSError: naming the file, if it cannot be decoded or its frames have no times.
    """
    packets = packets or _scan(path)
    hidden = _hidden_times(packets)
    found: list[int | None] = []
    try:
        for frame in decode_all(path, packets.stream):
            if frame.pts is None or frame.pts not in hidden:
                found.append(frame.pts)
    except OSError:
        if not tolerant:
            raise
    if not found:
        raise OSError(f"{path} has no frames that can be decoded")
    if packets.container in WITHOUT_PRESENTATION_TIMES and packets.codec in REORDERING_CODECS:
        times, can_seek = _times_of_slots(path, packets, found), False
    else:
        times, can_seek = _known_times(path, packets, found), packets.container not in UNSEEKABLE and None not in found and not tolerant
    if not can_seek:
        return _index(path, packets, times, None, [])
    keyframes = [time for time, keyframe in zip(packets.pts, packets.keyframe, strict=True) if keyframe and time is not None]
    return _index(path, packets, times, times, sorted(keyframes))


def _known_times(path: str, packets: _Packets, found: list[int | None]) -> np.ndarray:
    """
    Presentation times of the frames. Missing times (in program streams only the first frame of a packet has one) are filled in from the
    stated frame rate, if all existing times agree with it.
    """
    times = [time for time in found if time is not None]
    if len(times) < len(found):
        step = 1 / (packets.frame_rate * packets.time_base) if packets.frame_rate else 0.0
        known = [(number, time) for number, time in enumerate(found) if time is not None]
        origin = known[0][1] - known[0][0] * step if known else 0.0
        if not step or not known or any(abs(origin + number * step - time) > step / 2 for number, time in known):
            raise OSError(f"{path} has frames without times, and no constant frame rate. Remux or re-encode it")
        times = [round(origin + number * step) for number in range(len(found))]
    if any(later <= earlier for earlier, later in pairwise(times)):
        raise OSError(
            f"{path} has times that do not ascend from frame to frame: its clock restarts, or frames share a time. Remux or re-encode it"
        )
    return np.array(times, dtype=np.int64)


def _times_of_slots(path: str, packets: _Packets, found: list[int | None]) -> np.ndarray:
    """
    Presentation times of the frames, from the decoding times of the packets: a frame is displayed when the decoder can return it, which
    is `delay` packets after its position among the frames. `found` contains the times of the frames' packets, as returned by ffmpeg.
    """
    slots = [time for time in packets.dts if time is not None]
    number = {time: place for place, time in enumerate(packets.pts)}
    if len(slots) != len(packets.dts) or len(slots) < len(found) or any(time not in number for time in found):
        raise OSError(f"{path} has no display times of frames ({packets.codec} in {packets.container}). Remux or re-encode it")
    delay = max(int(packets.can_reorder), *(number[time] - place for place, time in enumerate(found)))
    gaps = np.diff(slots)
    gap = int(np.median(gaps)) if len(gaps) else 1
    slots += [slots[-1] + gap * more for more in range(1, delay + 1)]  # the decoder returns the last frames after the last packet
    times = np.array(slots[delay : delay + len(found)], dtype=np.int64)
    if (np.diff(times) <= 0).any():
        raise OSError(f"{path} has packets that are decoded at the same time ({packets.container}). Remux or re-encode it")
    # Muxers shift the packets so that the first one, which is decoded `delay` before its frame is displayed, is at 0; in ASF they
    # shift the audio too. A first packet separated from the others was not shifted: the video starts late.
    lead = int(times[0]) - slots[0]
    is_shifted = lead <= (delay + 1) * gap and not (packets.container == "asf" and packets.has_sound)
    return times - lead if is_shifted else times


def video_stream(container, index: int):
    """Returns a stream of a container, set up for decoding in several threads if that is possible."""
    stream = container.streams[index]
    # `_unmarked` makes packets whose memory belongs to Python: a decoder thread that frees one would wait for the interpreter while
    # the interpreter waits for the thread.
    stream.thread_type = "NONE" if stream.codec_context.name in LATE_CODECS else "AUTO"
    return stream


def decode_all(path: str, stream_index: int, is_wanted: Callable[[int | None], bool] | None = None) -> Generator:
    """
    Yields PyAV's frames from the start of the file, in display order.

    For `is_wanted` see `decode_packets`.
    """
    with open_container(path) as container, named_errors(path, "cannot be decoded"):
        stream = video_stream(container, stream_index)
        yield from decode_packets(container.demux(stream), path, is_wanted)


def decode_packets(packets: Iterable, path: str, is_wanted: Callable[[int | None], bool] | None = None) -> Iterator:
    """
    Yields the frames of the packets from the first keyframe on. Pictures displayed before it are included if the decoder has all of their
    references.

    Args:
        packets: PyAV's packets, in decoding order.
        path: path of the file, for errors.
        is_wanted: returns whether the frame at a presentation time is needed; others are decoded only if they are references. The frames
            returned are bitwise identical to those of a full decode. By default all are needed.

    Raises:
        OSError: naming the file, if a displayed frame is damaged.
    """
    av = import_av()
    first = None  # presentation time of the first packet that is decoded
    has_started = False
    for packet in packets:
        if not has_started:
            if not packet.is_keyframe and packet.size:
                continue
            has_started, first = True, packet.pts
        if is_wanted is not None:
            packet.stream.codec_context.skip_frame = "DEFAULT" if is_wanted(packet.pts) else "NONREF"
        try:
            frames = packet.stream.codec_context.decode(_unmarked(packet))
        except av.error.InvalidDataError:
            if packet.pts is None or first is None or packet.pts >= first:
                raise
            continue  # a picture before the keyframe, whose references are missing
        for frame in frames:
            is_leading = first is not None and frame.pts is not None and frame.pts < first
            if not frame.is_corrupt:
                yield frame
            elif not is_leading:
                raise OSError(f"{path} is damaged: the frame at {frame.time} s of its clock cannot be decoded")


def _unmarked(packet):
    """Returns the packet without the mark that its frame is hidden, if the decoder would drop another frame instead."""
    if not packet.is_discard or packet.stream.codec_context.name not in LATE_CODECS:
        return packet
    copy = import_av().Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    return copy
