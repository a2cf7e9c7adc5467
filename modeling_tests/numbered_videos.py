# SPDX-License-Identifier: Apache-2.0
"""
Videos in which every frame contains its number as pixels, encoded with PyAV in many codecs, containers and kinds.

The ground truth of a file is computed from the parameters of its encoding, never by reading it. A frame number has 12 bits, the most
significant on the left: 12 blocks over the full width, white for 1, in rows `height / 4` to `height / 2`; the corners are red, green,
blue and yellow. Both refer to the image as displayed.
"""

import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


FRAME_RATE = 30
NUM_FRAMES = 90  # 3 seconds
GOP_FRAMES = 15
LATE_FRAMES = 30  # the video of a late start begins 1 second after its audio
TRIM_FRAME = 37  # the frame at second 0 of a trimmed video; it is not a keyframe of any codec here
VARIABLE_FRAMES = (1, 2, 1, 4, 1, 1, 3)  # durations of the frames of a variable rate, in 1/30 s, repeated
SOUND_RATE = 48000
SAMPLES = {"flt": (1.0, np.float32), "s16": (2**15 - 1, np.int16), "s32": (2**31 - 1, np.int32)}  # by sample format: full scale and type
BITS = 12
CORNERS = ("red", "green", "blue", "yellow")  # top left, top right, bottom left, bottom right
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "yellow": (230, 230, 20)}
KINDS = ("no B-frames", "B-frames", "open GOP", "trimmed", "late start", "variable rate")

os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 prints its settings otherwise


class NotEncodable(Exception):
    """Error raised if a combination is not supported by PyAV's encoders and muxers; the message states the reason."""


@dataclass(frozen=True)
class NumberedVideo:
    """
    A video file and its ground truth.

    Args:
        path: path of the file.
        numbers: the number drawn in each displayed frame, in display order.
        times: seconds from the start of the container at which each frame is displayed.
        width, height: size of the displayed image, in pixels.
        corners: colours top left, top right, bottom left, bottom right, as displayed.
        right: the correct outcome: `"read"`, `"refused"`, or `"read or refused"`.
    """

    path: Path
    numbers: list[int]
    times: list[float]
    width: int = 128
    height: int = 64
    corners: tuple[str, ...] = CORNERS
    right: str = "read"


@dataclass(frozen=True)
class Codec:
    """
    An encoder and its options for each structure of the groups of pictures.

    Args:
        encoder: FFmpeg's name of the encoder.
        options: options for all structures.
        closed: options for closed groups without reordered frames.
        b_frames: options for closed groups with reordered frames (hidden reference frames in VP8, VP9 and AV1);
            `None` if the codec has none.
        open_gop: options for open groups; `None` if the codec has none.
        pix_fmt: pixel format of the encoder.
        size: width and height in pixels.
        intra: whether every frame is a keyframe.
    """

    encoder: str
    options: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    b_frames: dict[str, str] | None = None
    open_gop: dict[str, str] | None = None
    pix_fmt: str = "yuv420p"
    size: tuple[int, int] = (128, 64)
    intra: bool = False


X265 = f"log-level=none:pools=1:frame-threads=1:keyint={GOP_FRAMES}:min-keyint={GOP_FRAMES}:scenecut=0:b-adapt=0"
GOP = {"g": str(GOP_FRAMES)}
MPEG = {**GOP, "b": "2000000", "sc_threshold": "1000000000", "qmax": "6"}
CODECS = {
    "H.264": Codec(
        "libx264",
        {**GOP, "preset": "veryfast", "crf": "26", "sc_threshold": "0", "x264-params": "b-adapt=0:threads=1"},
        {"bf": "0"},
        {"bf": "3"},
        {"bf": "3", "x264-params": "b-adapt=0:threads=1:open-gop=1"},
    ),
    "HEVC": Codec(
        "libx265",
        {"preset": "ultrafast", "crf": "28"},
        {"x265-params": f"{X265}:bframes=0:open-gop=0"},
        {"x265-params": f"{X265}:bframes=3:open-gop=0"},
        {"x265-params": f"{X265}:bframes=3:open-gop=1"},
    ),
    "MPEG-4": Codec("mpeg4", MPEG, {"bf": "0"}, {"bf": "2", "flags": "+cgop"}, {"bf": "2"}),
    "MPEG-2": Codec("mpeg2video", MPEG, {"bf": "0"}, {"bf": "2", "flags": "+cgop"}, {"bf": "2"}),
    "MPEG-1": Codec("mpeg1video", MPEG, {"bf": "0"}, {"bf": "2", "flags": "+cgop"}, {"bf": "2"}),
    "VP8": Codec(
        "libvpx",
        {**GOP, "b": "500000", "deadline": "realtime", "cpu-used": "8", "threads": "1"},
        {"lag-in-frames": "0", "auto-alt-ref": "0"},
        {"lag-in-frames": "16", "auto-alt-ref": "1", "deadline": "good", "cpu-used": "5"},
    ),
    "VP9": Codec(
        "libvpx-vp9",
        {**GOP, "b": "500000", "deadline": "realtime", "cpu-used": "8", "threads": "1"},
        {"lag-in-frames": "0", "auto-alt-ref": "0"},
        {"lag-in-frames": "16", "auto-alt-ref": "1", "deadline": "good", "cpu-used": "5"},
    ),
    "AV1": Codec(
        "libsvtav1",
        {**GOP, "preset": "8", "crf": "10"},
        {"svtav1-params": "pred-struct=1:lp=1"},
        {"svtav1-params": "pred-struct=2:irefresh-type=2:lp=1"},
        {"svtav1-params": "pred-struct=2:irefresh-type=1:lp=1"},
    ),
    "Motion JPEG": Codec("mjpeg", {"b": "4000000"}, pix_fmt="yuvj420p", intra=True),
    "ProRes": Codec("prores_ks", pix_fmt="yuv422p10le", intra=True),
    "FFV1": Codec("ffv1", {"g": "1"}, intra=True),
    "HuffYUV": Codec("huffyuv", pix_fmt="yuv422p", intra=True),
    "Ut Video": Codec("utvideo", intra=True),
    "raw": Codec("rawvideo", pix_fmt="uyvy422", intra=True),
    "Sorenson H.263": Codec("flv", MPEG),
    "H.263": Codec("h263", {**MPEG, "qmin": "5", "qmax": "8"}, size=(176, 144)),
    "WMV 2": Codec("wmv2", MPEG),
    "MS MPEG-4": Codec("msmpeg4", MPEG),
    "QuickTime RLE": Codec("qtrle", GOP, pix_fmt="rgb24"),
    "GIF": Codec("gif", pix_fmt="rgb8"),
    "APNG": Codec("apng", pix_fmt="rgb24"),
    "PNG": Codec("png", pix_fmt="rgb24", intra=True),
}


@dataclass(frozen=True)
class Container:
    """
    A file format.

    Args:
        format: FFmpeg's name of its muxer.
        suffix: suffix of the file name.
        sound: the audio encoder; `None` if it has no audio.
        options: options of the muxer.
        hides: whether an edit list hides the frames before second 0; other containers display all frames.
        stretches_first: whether the first frame of a video that begins after its audio is displayed from the start.
        codecs: supported codecs; `None` for all that the muxer accepts. The muxers of transport and program streams accept any codec
            and mark it as private data, which no demuxer reads.
        lost: kinds for which the muxer does not store the times of the frames.
    """

    format: str
    suffix: str
    sound: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    hides: bool = False
    stretches_first: bool = False
    codecs: tuple[str, ...] | None = None
    lost: tuple[str, ...] = ()


MPEG_CODECS = ("H.264", "HEVC", "MPEG-4", "MPEG-2", "MPEG-1")
CONTAINERS = {
    "MP4": Container("mp4", ".mp4", "aac", hides=True),
    "MP4, index first": Container("mp4", ".mp4", "aac", {"movflags": "faststart"}, hides=True),
    "MP4, fragmented": Container("mp4", ".mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}, stretches_first=True),
    "MOV": Container("mov", ".mov", "aac", hides=True),
    "3GP": Container("3gp", ".3gp", "aac", hides=True),
    "Matroska": Container("matroska", ".mkv", "flac"),
    "WebM": Container("webm", ".webm", "libopus"),
    "AVI": Container("avi", ".avi", "libmp3lame", lost=("late start",)),
    "MPEG-TS": Container("mpegts", ".ts", "mp2", codecs=MPEG_CODECS),
    "M2TS": Container("mpegts", ".m2ts", "mp2", {"mpegts_m2ts_mode": "1"}, codecs=MPEG_CODECS),
    "FLV": Container("flv", ".flv", "libmp3lame"),
    "MPEG-PS": Container("mpeg", ".mpg", "mp2", codecs=MPEG_CODECS, lost=("variable rate",)),
    "Ogg": Container("ogg", ".ogv", "flac", lost=("variable rate", "trimmed")),
    "ASF": Container("asf", ".wmv", "wmav2"),
    "NUT": Container("nut", ".nut", "mp2"),
    "GIF": Container("gif", ".gif"),
    "APNG": Container("apng", ".png", options={"plays": "0"}),
}


def numbered_frame(number: int, width: int = 128, height: int = 64) -> np.ndarray:
    """Image of frame `number`, uint8 `(height, width, 3)`."""
    pixels = np.full((height, width, 3), 110, dtype=np.uint8)
    bits = np.array([(number >> (BITS - 1 - bit)) & 1 for bit in range(BITS)])
    pixels[height // 4 : height // 2] = np.where(bits[np.arange(width) * BITS // width], 235, 16)[None, :, None]
    side, mark = height // 8, (number * 5) % (width - width // 8)
    pixels[height * 5 // 8 : height * 3 // 4, mark : mark + width // 8] = 200  # moves, so that no two frames are equal
    rows, columns = (slice(0, side), slice(height - side, height)), (slice(0, side), slice(width - side, width))
    for corner, name in enumerate(CORNERS):
        pixels[rows[corner // 2], columns[corner % 2]] = COLOURS[name]
    return pixels


def read_number(pixels: np.ndarray) -> int:
    """Reads the number drawn in a frame, `(height, width, 3)` from 0 to 255."""
    height, width = pixels.shape[:2]
    rows = slice(height * 5 // 16, height * 7 // 16)
    bits = [pixels[rows, width * (4 * bit + 1) // 48 : width * (4 * bit + 3) // 48].mean() > 125 for bit in range(BITS)]
    return int("".join("01"[int(bit)] for bit in bits), 2)


def read_corners(pixels: np.ndarray) -> tuple[str, ...]:
    """Reads the corner colours of a frame, `(height, width, 3)` from 0 to 255: top left, top right, bottom left, bottom right."""
    height, width = pixels.shape[:2]
    side = min(height, width) // 8
    rows, columns = (slice(0, side), slice(height - side, height)), (slice(0, side), slice(width - side, width))
    found = []
    for corner in range(4):
        mean = pixels[rows[corner // 2], columns[corner % 2]].mean(axis=(0, 1))
        found.append(min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum()))
    return tuple(found)


def open_stream(output, codec: Codec, options: dict[str, str], rate: int = FRAME_RATE):
    """Adds a video stream with times in 1/rate s to a file being written."""
    try:
        stream = output.add_stream(codec.encoder, rate=rate, options={**codec.options, **options})
    except (ValueError, av.FFmpegError) as error:
        raise NotEncodable("the muxer does not take the codec") from error
    stream.width, stream.height = codec.size
    stream.pix_fmt = codec.pix_fmt
    stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
    return stream


def encode(stream, pictures, ticks) -> list[av.Packet]:
    """
    Encodes a video stream to packets, in decoding order.

    Args:
        stream: result of `open_stream`.
        pictures: uint8 `(height, width, 3)`, one for each frame.
        ticks: presentation time of each frame, in units of the stream's time base.
    """
    packets = []
    for pixels, tick in zip(pictures, ticks, strict=True):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format=stream.pix_fmt)
        frame.pts, frame.time_base = tick, stream.codec_context.time_base
        packets += stream.encode(frame)
    return packets + stream.encode()


def shift(packets: list[av.Packet], ticks: int) -> list[av.Packet]:
    """Shifts the presentation and decoding times of packets by `ticks` units of their time base."""
    for packet in packets:
        packet.pts += ticks
        packet.dts += ticks
    return packets


def trim(packets: list[av.Packet], tick: int) -> list[av.Packet]:
    """
    Trims packets like `ffmpeg -ss T -c copy`: keeps those from the last keyframe at or before `tick` on, with `tick` at second 0.

    Times are in units of each packet's time base; frame `n` of the source is displayed at tick `n`.
    """
    first = max(index for index, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= tick)
    return shift(packets[first:], -tick)


def encode_sound(stream, seconds: float, primed: bool) -> list[av.Packet]:
    """
    Encodes a quiet tone to packets.

    Args:
        primed: whether the encoder's first samples, which are silence before the tone, have times below 0 and are hidden by an edit
            list; otherwise the first packet is at second 0.
    """
    stream.codec_context.open(strict=False)
    size = stream.codec_context.frame_size or 1024
    layout, format = stream.codec_context.layout.name, stream.codec_context.format
    packets = []
    for start in range(0, round(seconds * SOUND_RATE), size):
        tone = 0.1 * np.sin(2 * np.pi * 440 / SOUND_RATE * np.arange(start, start + size))
        scale, dtype = SAMPLES[format.packed.name]
        samples = (tone * scale).astype(dtype)
        frame = av.AudioFrame.from_ndarray(samples[None], format=format.name, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
        packets += stream.encode(frame)
    packets += stream.encode()
    return packets if primed else shift(packets, -packets[0].pts)


def write_packets(output, packets: list[av.Packet]) -> None:
    """Writes packets of all streams in the order of their decoding times, as muxers require."""
    for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
        output.mux(packet)


def write_numbered(folder: Path, container: str, codec: str, kind: str) -> NumberedVideo:
    """
    Writes one file of the matrix into `folder`.

    Args:
        container: a key of `CONTAINERS`.
        codec: a key of `CODECS`.
        kind: one of `KINDS`. Trimmed and late videos have closed groups with reordered frames where the codec has them.

    Raises:
        NotEncodable: if the codec has no such kind, or the encoder or the muxer does not support it.
    """
    recipe, file = CODECS[codec], CONTAINERS[container]
    options = group_options(recipe, kind)
    if kind == "late start" and file.sound is None:
        raise NotEncodable("the format has no sound")
    if file.codecs is not None and codec not in file.codecs:
        raise NotEncodable("the format has no place for the codec")
    if kind in file.lost:
        raise NotEncodable("the muxer does not store the times of the frames")
    if codec in ("GIF", "APNG") and (container != codec or kind == "trimmed"):
        raise NotEncodable("an animated picture has a format of its own and a keyframe only at its start")
    path = folder / f"{container}-{codec}-{kind}{file.suffix}".replace(" ", "_").replace(",", "")
    ticks = list(range(NUM_FRAMES))
    if kind == "variable rate":
        ticks = np.cumsum([0, *VARIABLE_FRAMES * NUM_FRAMES])[:NUM_FRAMES].tolist()
    late = LATE_FRAMES if kind == "late start" else 0
    width, height = recipe.size
    try:
        with av.open(str(path), "w", format=file.format, options=file.options) as output:
            stream = open_stream(output, recipe, options)
            sound = output.add_stream(file.sound, rate=SOUND_RATE, layout="mono", bit_rate=128000) if late else None
            packets = encode(stream, [numbered_frame(number, width, height) for number in range(NUM_FRAMES)], ticks)
            if kind == "trimmed":
                packets = trim(packets, TRIM_FRAME)
            begin, delay = packets[0].pts, packets[0].pts - packets[0].dts  # of the first keyframe
            if sound is not None:
                packets = shift(packets, late) + encode_sound(sound, (late + NUM_FRAMES) / FRAME_RATE, file.hides)
            write_packets(output, packets)
    except (ValueError, av.FFmpegError) as error:
        raise NotEncodable(f"the muxer or an encoder refuses it: {getattr(error, 'strerror', error)}") from error
    numbers, seconds = list(range(NUM_FRAMES)), [(late + tick) / FRAME_RATE for tick in ticks]
    if kind == "trimmed":
        first = TRIM_FRAME if file.hides else TRIM_FRAME + begin
        numbers = list(range(first, NUM_FRAMES))
        seconds = [(number - first) / FRAME_RATE for number in numbers]
    if late and file.stretches_first:
        seconds[0] = delay / FRAME_RATE
    # For MPEG-1, FFmpeg applies the marks of an edit list to the wrong packets: it displays hidden frames and hides others.
    mixed = kind == "trimmed" and codec == "MPEG-1" and file.hides
    return NumberedVideo(path, numbers, seconds, width, height, right="read or refused" if mixed else "read")


def group_options(codec: Codec, kind: str) -> dict[str, str]:
    """Encoder options for a kind of `KINDS`."""
    if kind == "no B-frames":
        return codec.closed
    if kind == "open GOP":
        if codec.open_gop is None:
            raise NotEncodable("the codec has no open groups of pictures")
        return codec.open_gop
    if codec.b_frames is None:
        if kind == "B-frames":
            raise NotEncodable("the codec has no B-frames")
        return codec.closed
    return codec.closed if kind == "variable rate" else codec.b_frames
