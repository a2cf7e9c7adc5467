# SPDX-License-Identifier: Apache-2.0
"""Encoding of annotated frames as a video file with the times, sound, pixel shape and colour tags of the original."""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..model.video_index_llava_st import import_av, open_container, video_stream


# Suffix → encoder and its options. Quality is nearly that of the original; a second loss is not visible.
ENCODERS = {
    **dict.fromkeys((".mp4", ".mov", ".mkv"), ("libx264", {"crf": "18", "preset": "veryfast"})),
    ".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}),
}
_NEEDS_EVEN_SIZE = ("libx264",)  # with 4:2:0 sampling
# Ticks per second of times that are not multiples of a frame; all common rates divide it.
_CLOCK = 90000
# ffmpeg's numbers of colour matrices and ranges.
_BT709, _UNSPECIFIED, _BT601, _LIMITED = 1, 2, 6, 1
_SWSCALE_MATRICES = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "bt2020", 10: "bt2020"}


@dataclass(frozen=True)
class SourceInfo:
    """
    What an annotated video keeps from the video file that it is made of.

    Args:
        path: of the file.
        start: seconds on the clock of the file at which the container starts.
        pixel_aspect: width of a pixel of an upright frame divided by its height.
        colours: ffmpeg's numbers of the colour matrix, primaries and transfer characteristics.
        notes: what is not kept.
    """

    path: str
    start: float
    pixel_aspect: Fraction
    colours: tuple[int, int, int]
    notes: tuple[str, ...]


def source_info(path: str, stream_index: int, first_seconds: float) -> SourceInfo:
    """
    Reads what an annotated video keeps from a local video file.

    Args:
        stream_index: of the video stream.
        first_seconds: at which the first frame is displayed, from the start of the container.
    """
    with open_container(path) as container:
        stream = video_stream(container, stream_index)
        start = (container.start_time or 0) / 1e6
        aspect, context = stream.sample_aspect_ratio or Fraction(1), stream.codec_context
        notes, colours = [], (_UNSPECIFIED,) * 3
        for frame in container.decode(stream):
            colours = (int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc))
            if frame.rotation % 180 and aspect:
                aspect = 1 / aspect
            if frame.pts is not None and frame.time is not None:
                start = min(start, frame.time)  # as the reader of the package defines it
            break
        components = context.format.components if context.format is not None else ()
        if any(component.is_alpha for component in components):
            notes.append("The annotated video is opaque: the transparency of the original is not kept.")
        if components and max(component.bits for component in components) > 8:
            notes.append("The annotated video has 8 bits per colour channel, the original has more.")
        return SourceInfo(path, start, aspect if aspect > 0 else Fraction(1), colours, tuple(notes))


@contextmanager
def atomic_output(output: Path) -> Iterator[Path]:
    """
    Context manager that returns a temporary path in the folder of `output`, with its suffix, and renames the file there at the end. After
    an exception it is deleted, and an existing `output` is unchanged.
    """
    temporary = output.with_name(f".{output.stem}.{os.getpid()}{output.suffix}")
    try:
        yield temporary
        os.replace(temporary, output)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class VideoWriter:
    """
    Writer of a video file, one frame at a time.

    Args:
        path: of the file; the suffix decides on container and encoder, see `ENCODERS`.
        width, height: of the frames in pixels.
        rate: frames per second if it is constant, else None.
        mean_rate: frames per second on average.
        source: the file that the frames are from, whose sound is copied; None if there is none.

    Attributes:
        notes: what is not kept.
    """

    def __init__(self, path: Path, width: int, height: int, rate: float | None, mean_rate: float, source: SourceInfo | None):
        av = import_av()
        self.notes: list[str] = list(source.notes if source else ())
        self._stack = ExitStack()
        encoder, options = ENCODERS[path.suffix.lower()]
        self._odd = (width % 2, height % 2) if encoder in _NEEDS_EVEN_SIZE else (0, 0)
        if any(self._odd):
            self.notes.append(
                f"H.264 needs even sizes: the {width}x{height} pixels of the original are kept, and the last row or column is repeated."
            )
        exact = Fraction(rate or mean_rate).limit_denominator(1001)
        self._ticks = exact.numerator * math.ceil(10000 / exact.numerator) if rate else _CLOCK  # per second
        self._durations: dict[int, int] = {}  # of frames in the encoder, in ticks, by their time
        self._last = -1
        self._has_sound = False
        self._height = height
        self._matrix = source.colours[0] if source else _BT709 if height >= 720 else _BT601
        try:
            self._output = self._stack.enter_context(av.open(str(path), "w"))
            self._stream = self._output.add_stream(encoder, rate=exact, options=options)
            self._stream.width, self._stream.height = width + self._odd[0], height + self._odd[1]
            self._stream.pix_fmt = "yuv420p"
            context = self._stream.codec_context
            self._stream.time_base = context.time_base = Fraction(1, self._ticks)
            context.colorspace, context.color_range = self._matrix, _LIMITED
            if source:
                context.color_primaries, context.color_trc = source.colours[1:]
                if source.pixel_aspect != 1:
                    context.sample_aspect_ratio = source.pixel_aspect
            self._sound = self._copied_sound(source, path.suffix.lower()) if source else iter(())
            self._next_sound = next(self._sound, None)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._stack:
            if kind is None:
                self._mux(self._stream.encode())
                self._write_sound(math.inf)

    def write(self, pixels: np.ndarray, seconds: float, duration: float) -> None:
        """
        Encodes a frame.

        Args:
            pixels: (height, width, 3) uint8, RGB.
            seconds: at which it is displayed, from the start of the file.
            duration: seconds for which it is displayed.
        """
        if self._last < 0 and not self._has_sound and seconds > 1e-3:
            self.notes.append(f"The annotated video begins with its first frame, which the original displays at {seconds:g} s.")
        if any(self._odd):
            pixels = np.pad(pixels, ((0, self._odd[1]), (0, self._odd[0]), (0, 0)), mode="edge")
        frame = import_av().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        # The conversion is the inverse of that of the reader, so that the colours are those of the original; without a tag both use BT.601.
        frame = frame.reformat(format="yuv420p", dst_colorspace=_SWSCALE_MATRICES.get(self._matrix, "ITU601"))
        frame.colorspace, frame.color_range = self._matrix, _LIMITED
        frame.pts = self._last = max(round(seconds * self._ticks), self._last + 1)
        frame.time_base = Fraction(1, self._ticks)
        self._durations[frame.pts] = max(round(duration * self._ticks), 1)
        self._write_sound(seconds)
        self._mux(self._stream.encode(frame))

    def _mux(self, packets) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._output.mux(packet)

    def _write_sound(self, until: float) -> None:
        """Copies the packets of sound up to a time in seconds, so that sound and frames alternate in the file."""
        while self._next_sound is not None and self._next_sound[0] <= until:
            self._output.mux(self._next_sound[1])
            self._next_sound = next(self._sound, None)

    def _copied_sound(self, source: SourceInfo, suffix: str) -> Iterator:
        """Adds the audio streams of the source that the container may have. Returns an iterator of `(seconds, packet)`."""
        container = self._stack.enter_context(open_container(source.path))
        copies = {}
        for stream in container.streams.audio:
            name = stream.codec_context.codec.canonical_name
            if name in self._output.supported_codecs:
                copies[stream.index] = self._output.add_stream_from_template(stream)
            else:
                kept = " or ".join(other for other in (".mp4", ".mkv") if other != suffix)
                self.notes.append(f"The sound is left out: a {suffix} file cannot have {name} audio. A {kept} file may have it.")
        self._has_sound = bool(copies)
        return self._sound_packets(container, copies, source, suffix) if copies else iter(())

    def _sound_packets(self, container, copies: dict, source: SourceInfo, suffix: str) -> Iterator:
        try:
            for packet in container.demux([container.streams[index] for index in copies]):
                if packet.dts is None or packet.pts is None:
                    continue
                shift = round(source.start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                # MP4 and MOV hide what an encoder adds before the sound; in other containers it would delay the picture.
                if packet.pts + (packet.duration or 0) <= 0 and suffix not in (".mp4", ".mov"):
                    continue
                packet.stream = copies[packet.stream.index]
                yield float(packet.dts * packet.time_base), packet
        except import_av().error.FFmpegError as error:
            self.notes.append(f"The sound is incomplete: it cannot be read to its end ({str(error)[:200]}).")
