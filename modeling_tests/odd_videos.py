# SPDX-License-Identifier: Apache-2.0
"""Numbered videos in addition to the matrix: orientations, several streams, unusual clocks and groups of pictures, damaged files."""

import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np

from modeling_tests.numbered_videos import (
    CODECS,
    CONTAINERS,
    FRAME_RATE,
    NUM_FRAMES,
    SOUND_RATE,
    Codec,
    NumberedVideo,
    encode,
    encode_sound,
    numbered_frame,
    open_stream,
    shift,
    trim,
    write_numbered,
    write_packets,
)


H264, HEVC = CODECS["H.264"], CODECS["HEVC"]
# The eight orientations of an image: a, b, c, d of the display matrix, which moves pixel (x, y) to (ax + cy, bx + dy).
MATRICES = {
    "upright": (1, 0, 0, 1),
    "turned right": (0, 1, -1, 0),
    "upside down": (-1, 0, 0, -1),
    "turned left": (0, -1, 1, 0),
    "mirrored left to right": (-1, 0, 0, 1),
    "mirrored top to bottom": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}
# Orientations in an H.264 or HEVC message: flips left to right, flips top to bottom, then quarter turns to the left.
MESSAGES = {
    "turned right": (0, 0, 3),
    "upside down": (0, 0, 2),
    "turned left": (0, 0, 1),
    "mirrored left to right": (1, 0, 0),
    "mirrored top to bottom": (0, 1, 0),
    "transposed": (1, 0, 1),
}
CUTS = {"a third": 1 / 3, "two thirds": 2 / 3, "95 %": 0.95}


def stored_picture(shown: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Returns the image `(height, width, 3)` to store so that a display matrix displays it as `shown`."""
    a, b, c, d = matrix
    # Horizontal flip: the sign of the coefficient of stored x; vertical flip: that of stored y.
    flipped = shown[:: -1 if b + d < 0 else 1, :: -1 if a + c < 0 else 1]
    return flipped if a else flipped.transpose(1, 0, 2)


def write_one(
    path: Path,
    codec: Codec = H264,
    options: dict[str, str] | None = None,
    format: str | None = None,
    file_options: dict[str, str] | None = None,
    numbers=range(NUM_FRAMES),
    ticks=None,
    rate: int = FRAME_RATE,
    pictures=None,
    change=lambda packets: packets,
    sound: tuple[str, float] | None = None,
    pixel_aspect: int = 1,
) -> NumberedVideo:
    """
    Writes a file with one video stream.

    Args:
        path: path of the file.
        options: options of the encoder; by default closed groups with reordered frames.
        numbers: numbers drawn in the frames.
        ticks: presentation time of each frame, in 1/rate s.
        pictures: stored image of each frame; by default that of `numbered_frame`.
        change: function that converts the encoded packets to those to write.
        sound: an audio encoder and the seconds of audio, from second 0.
        pixel_aspect: width of a pixel divided by its height.
    """
    numbers = list(numbers)
    ticks = list(range(len(numbers))) if ticks is None else ticks
    width, height = codec.size
    with av.open(str(path), "w", format=format, options=file_options or {}) as output:
        stream = open_stream(output, codec, codec.b_frames or codec.closed if options is None else options, rate)
        if pixel_aspect != 1:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        tone = output.add_stream(sound[0], rate=SOUND_RATE, layout="mono") if sound else None
        packets = change(encode(stream, pictures or [numbered_frame(number, width, height) for number in numbers], ticks))
        write_packets(output, packets + (encode_sound(tone, sound[1], primed=sound[0] == "aac") if sound else []))
    return NumberedVideo(path, numbers, [(tick - ticks[0]) / rate for tick in ticks], width, height)


def write_oriented(path: Path, name: str) -> NumberedVideo:
    """Writes an MP4 or MOV file whose track header has the display matrix `name`."""
    matrix = MATRICES[name]
    pictures = [stored_picture(numbered_frame(number), matrix) for number in range(NUM_FRAMES)]
    height, width = pictures[0].shape[:2]
    video = write_one(path, replace(H264, size=(width, height)), pictures=pictures)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 40  # after the fields of a version 0 track header
    a, b, c, d = (value * 0x10000 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return replace(video, width=128, height=64)


def orientation_message(codec: Codec, name: str) -> bytes:
    """Display orientation message of H.264 (Rec. ITU-T H.264, D.1.26) or HEVC, with a start code."""
    horizontal, vertical, quarters = MESSAGES[name]
    # Not cancelled, flips, turn to the left in 1/65536 of a circle; persistence; a stop bit fills the last byte.
    bits = f"0{horizontal}{vertical}{quarters * 0x4000:016b}"
    bits += "0100" + "1" if codec is H264 else "1" + "1"  # H.264: repetition period 1 as ue(v), no extension
    bits += "0" * (-len(bits) % 8)
    payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return b"\0\0\0\1" + (b"\x06" if codec is H264 else b"\x4e\x01") + bytes([47, len(payload)]) + payload + b"\x80"


def write_with_message(path: Path, codec: Codec, name: str) -> NumberedVideo:
    """Writes a video with a display orientation message before each keyframe."""
    matrix = MATRICES[name]
    pictures = [stored_picture(numbered_frame(number), matrix) for number in range(NUM_FRAMES)]
    height, width = pictures[0].shape[:2]

    def with_message(packets):
        marked = []
        for packet in packets:
            data = bytes(packet)
            copy = av.Packet(orientation_message(codec, name) + data if packet.is_keyframe else data)
            copy.pts, copy.dts, copy.time_base, copy.duration = packet.pts, packet.dts, packet.time_base, packet.duration
            copy.stream, copy.is_keyframe = packet.stream, packet.is_keyframe
            marked.append(copy)
        return marked

    video = write_one(path, replace(codec, size=(width, height)), codec.b_frames, pictures=pictures, change=with_message)
    return replace(video, width=128, height=64)


def write_two_streams(path: Path, cover: bool) -> NumberedVideo:
    """
    Writes a small stream of other numbers before the expected one, which is larger, has more bits and is marked as the default.

    Args:
        cover: whether the small stream is one attached picture.
    """
    with av.open(str(path), "w") as output:
        small = open_stream(output, replace(CODECS["Motion JPEG"] if cover else H264, size=(64, 32)), {})
        large = open_stream(output, H264, H264.b_frames)
        small.disposition = av.stream.Disposition.attached_pic.value if cover else 0
        large.disposition = av.stream.Disposition.default.value
        others = range(1000, 1000 + (1 if cover else NUM_FRAMES))
        packets = encode(small, [numbered_frame(number, 64, 32) for number in others], range(len(others)))
        packets += encode(large, [numbered_frame(number) for number in range(NUM_FRAMES)], range(NUM_FRAMES))
        write_packets(output, packets)
    return NumberedVideo(path, list(range(NUM_FRAMES)), [number / FRAME_RATE for number in range(NUM_FRAMES)])


def write_jittered(path: Path) -> NumberedVideo:
    """Writes a video whose times differ by up to 8 ms from those of a constant rate."""
    noise = np.random.default_rng(0).integers(-8, 9, NUM_FRAMES)
    ticks = [round(number * 1000 / FRAME_RATE) + 8 + int(noise[number]) for number in range(NUM_FRAMES)]
    return write_one(path, ticks=[tick - ticks[0] for tick in ticks], rate=1000)


def write_with_gap(path: Path, **kwargs) -> NumberedVideo:
    """Writes a video with a gap of 2 seconds without new frames in the middle."""
    half = NUM_FRAMES // 2
    return write_one(path, ticks=[number + (2 * FRAME_RATE if number >= half else 0) for number in range(NUM_FRAMES)], **kwargs)


def write_negative(path: Path, **kwargs) -> NumberedVideo:
    """Writes a video whose first frame is displayed at -0.5 s, where the container starts."""
    return write_one(path, change=lambda packets: shift(packets, -15), file_options={"avoid_negative_ts": "disabled"}, **kwargs)


def write_hidden_frames(path: Path) -> NumberedVideo:
    """Writes VP8 in which every seventh packet is a hidden reference frame: decoded, never displayed (its `show_frame` bit is 0)."""
    stored, ticks, hidden = [], [], set()
    for number in range(NUM_FRAMES):
        if number % 7 == 6:
            hidden.add(number * 10 - 5)
            stored.append(2000 + number)
            ticks.append(number * 10 - 5)
        stored.append(number)
        ticks.append(number * 10)

    def hide(packets):
        changed = []
        for packet in packets:
            data = bytearray(bytes(packet))
            if packet.pts in hidden:
                data[0] &= ~0x10
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, packet.stream
            copy.is_keyframe = packet.is_keyframe
            changed.append(copy)
        return changed

    options = {**CODECS["VP8"].closed, "g": "20"}
    write_one(path, CODECS["VP8"], options, numbers=stored, ticks=ticks, rate=300, change=hide)
    return NumberedVideo(path, list(range(NUM_FRAMES)), [number / FRAME_RATE for number in range(NUM_FRAMES)])


def write_from_middle(path: Path, codec: Codec, options: dict[str, str]) -> NumberedVideo:
    """
    Writes a broadcast recorded from the middle of a group of pictures on: the first packets cannot be decoded.

    The first displayed frame is that of the first keyframe. Second 0 is the start of the container: the time of the first packet,
    displayed or not. Leading pictures of an open group refer to frames before the recording and are excluded.
    """
    kept: list[tuple[int, bool]] = []

    def late(packets):
        for first in range(20, len(packets)):
            if packets[first].pts == min(packet.pts for packet in packets[first:]):
                break
        kept.extend((packet.pts, packet.is_keyframe) for packet in packets[first:])
        return packets[first:]

    video = _from_keyframe(write_one(path, codec, options, change=late), kept)
    # ffmpeg displays some of HEVC's leading pictures here, decoded with generated references.
    return replace(video, right="read or refused") if options is HEVC.open_gop else video


def write_trimmed_open(path: Path, codec: Codec) -> NumberedVideo:
    """Writes the result of `ffmpeg -ss T -c copy` for open groups: leading pictures of the first keyframe refer to removed frames."""
    kept: list[tuple[int, bool]] = []

    def cut(packets):
        packets = shift(trim(packets, 37), 37)
        kept.extend((packet.pts, packet.is_keyframe) for packet in packets)
        return packets

    return _from_keyframe(write_one(path, codec, codec.open_gop, change=cut), kept)


def _from_keyframe(video: NumberedVideo, packets: list[tuple[int, bool]]) -> NumberedVideo:
    """
    Ground truth of a stream whose first packets cannot be decoded.

    Args:
        video: ground truth of the complete stream.
        packets: frame number and whether it is a keyframe, for each packet in decoding order.
    """
    start = packets[0][0]
    first = min(number for number, is_keyframe in packets if is_keyframe)
    numbers = list(range(first, len(video.numbers)))
    return replace(video, numbers=numbers, times=[(number - start) / FRAME_RATE for number in numbers])


def write_restarting(path: Path) -> NumberedVideo:
    """Writes two concatenated MPEG-TS files, whose clock restarts in the middle; must be read correctly or rejected."""
    write_one(path)
    first = path.read_bytes()
    write_one(path, numbers=range(500, 500 + NUM_FRAMES))
    path.write_bytes(first + path.read_bytes())
    numbers = [*range(NUM_FRAMES), *range(500, 500 + NUM_FRAMES)]
    return NumberedVideo(path, numbers, [index / FRAME_RATE for index in range(2 * NUM_FRAMES)], right="read or refused")


def write_cut(path: Path, container: str, part: float) -> NumberedVideo:
    """
    Writes the first fraction `part` of the bytes of a valid file.

    Transport streams do not state a length: truncation is detectable only within a packet of 188 or 192 bytes.
    """
    codec = {"WebM": "VP9", "Ogg": "VP8", "GIF": "GIF", "APNG": "APNG", "ASF": "WMV 2", "MPEG-PS": "MPEG-2", "FLV": "H.264"}
    whole = write_numbered(path.parent, container, codec.get(container, "H.264"), "no B-frames").path
    data = whole.read_bytes()
    size = int(len(data) * part)
    path.write_bytes(data[: size + (size % 188 == 0 or size % 192 == 0)])
    return NumberedVideo(path, [], [], right="refused")


def _interlaced(codec: Codec, flags: str) -> Codec:
    return replace(codec, options={**codec.options, "flags": flags})


MPEG4, MPEG2, VP9, FFV1, GIF = (CODECS[name] for name in ("MPEG-4", "MPEG-2", "VP9", "FFV1", "GIF"))
SHORT, LONG = {**H264.b_frames, "g": "3", "bf": "2"}, {**H264.b_frames, "g": "240"}
REFRESH = {"bf": "0", "x264-params": "intra-refresh=1:threads=1", "g": "30"}
FIELDS = {**H264.b_frames, "x264-params": "b-adapt=0:threads=1:tff=1"}
SAMPLES_60 = {"ticks": [2 * number for number in range(NUM_FRAMES)], "rate": 60}

# By name: suffix, and function that writes the file at a path.
ODD_VIDEOS: dict[str, tuple[str, partial]] = {
    **{f"display matrix in MP4, {name}": (".mp4", partial(write_oriented, name=name)) for name in MATRICES},
    **{f"display matrix in MOV, {name}": (".mov", partial(write_oriented, name=name)) for name in ("turned left", "transposed")},
    **{f"orientation message, H.264 in TS, {name}": (".ts", partial(write_with_message, codec=H264, name=name)) for name in MESSAGES},
    **{f"orientation message, HEVC in MKV, {name}": (".mkv", partial(write_with_message, codec=HEVC, name=name)) for name in MESSAGES},
    "orientation message, H.264 in MP4, turned right": (".mp4", partial(write_with_message, codec=H264, name="turned right")),
    "orientation message, HEVC in MP4, mirrored": (".mp4", partial(write_with_message, codec=HEVC, name="mirrored left to right")),
    "two video streams, MP4": (".mp4", partial(write_two_streams, cover=False)),
    "two video streams, MKV": (".mkv", partial(write_two_streams, cover=False)),
    "two video streams, TS": (".ts", partial(write_two_streams, cover=False)),
    "attached picture, MP4": (".mp4", partial(write_two_streams, cover=True)),
    "times jitter, MP4": (".mp4", partial(write_jittered)),
    "times jitter, MKV": (".mkv", partial(write_jittered)),
    "gap of 2 s, MP4": (".mp4", partial(write_with_gap)),
    "gap of 2 s, MKV": (".mkv", partial(write_with_gap)),
    "gap of 2 s, TS": (".ts", partial(write_with_gap)),
    "gap of 2 s, AVI": (".avi", partial(write_with_gap, options=H264.closed)),
    "negative first times, TS": (".ts", partial(write_negative)),
    "AVI of 60 samples a second, every other one empty, H.264": (".avi", partial(write_one, **SAMPLES_60)),
    "AVI of 60 samples a second, every other one empty, MPEG-4": (".avi", partial(write_one, codec=MPEG4, **SAMPLES_60)),
    "groups of 3 with B-frames, MP4": (".mp4", partial(write_one, options=SHORT)),
    "groups of 3 with B-frames, TS": (".ts", partial(write_one, options=SHORT)),
    "groups of 8 s, MP4": (".mp4", partial(write_one, options=LONG, numbers=range(300))),
    "groups of 8 s, TS": (".ts", partial(write_one, options=LONG, numbers=range(300))),
    **{f"1 frame, {suffix[1:].upper()}": (suffix, partial(write_one, numbers=[7])) for suffix in (".mp4", ".mkv", ".ts", ".avi", ".flv")},
    "1 frame, WEBM": (".webm", partial(write_one, codec=VP9, numbers=[7])),
    "1 frame, GIF": (".gif", partial(write_one, codec=GIF, numbers=[7])),
    "2 frames, MP4": (".mp4", partial(write_one, numbers=[7, 8])),
    "interlaced H.264, MP4": (".mp4", partial(write_one, codec=_interlaced(H264, "+ildct+ilme"), options=FIELDS)),
    "interlaced H.264, TS": (".ts", partial(write_one, codec=_interlaced(H264, "+ildct+ilme"), options=FIELDS)),
    "interlaced MPEG-2, TS": (".ts", partial(write_one, codec=_interlaced(MPEG2, "+ildct+ilme"), options={"bf": "2"})),
    "odd size, VP9 in WebM": (".webm", partial(write_one, codec=replace(VP9, size=(127, 65)))),
    "odd size, MPEG-4 in AVI": (".avi", partial(write_one, codec=replace(MPEG4, size=(127, 65)))),
    "odd size, H.264 4:4:4 in MP4": (".mp4", partial(write_one, codec=replace(H264, size=(127, 65), pix_fmt="yuv444p"))),
    "odd size, FFV1 in MKV": (".mkv", partial(write_one, codec=replace(FFV1, size=(97, 65)))),
    "rows that decoders pad, H.264 96x64 in MP4": (".mp4", partial(write_one, codec=replace(H264, size=(96, 64)))),
    "pixels twice as wide as high, MP4": (".mp4", partial(write_one, pixel_aspect=2)),
    "pixels twice as wide as high, MKV": (".mkv", partial(write_one, pixel_aspect=2)),
    "VP8 with hidden frames, WebM": (".webm", partial(write_hidden_frames)),
    "VP8 with hidden frames, MKV": (".mkv", partial(write_hidden_frames)),
    "starts within a group, H.264 in TS": (".ts", partial(write_from_middle, codec=H264, options=H264.closed)),
    "starts within a group, H.264 with B-frames in TS": (".ts", partial(write_from_middle, codec=H264, options=H264.b_frames)),
    "starts within an open group, HEVC in TS": (".ts", partial(write_from_middle, codec=HEVC, options=HEVC.open_gop)),
    "starts within a group, MPEG-2 in TS": (".ts", partial(write_from_middle, codec=MPEG2, options=MPEG2.closed)),
    "trimmed open groups, HEVC in MKV": (".mkv", partial(write_trimmed_open, codec=HEVC)),
    "trimmed open groups, HEVC in TS": (".ts", partial(write_trimmed_open, codec=HEVC)),
    "trimmed open groups, H.264 in MKV": (".mkv", partial(write_trimmed_open, codec=H264)),
    "intra refresh, H.264 in MP4": (".mp4", partial(write_one, options=REFRESH)),
    "intra refresh, H.264 in MKV": (".mkv", partial(write_one, options=REFRESH)),
    "intra refresh, H.264 in TS": (".ts", partial(write_one, options=REFRESH)),
    "sound outlasts the picture, MP4": (".mp4", partial(write_one, sound=("aac", 5.0))),
    "sound outlasts the picture, MKV": (".mkv", partial(write_one, sound=("flac", 5.0))),
    "sound outlasts the picture, WebM": (".webm", partial(write_one, codec=VP9, sound=("libopus", 5.0))),
    "sound outlasts the picture, AVI": (".avi", partial(write_one, sound=("libmp3lame", 5.0))),
    "sound outlasts the picture, FLV": (".flv", partial(write_one, sound=("libmp3lame", 5.0))),
    "sound outlasts the picture, TS": (".ts", partial(write_one, sound=("mp2", 5.0))),
    "clock restarts, TS": (".ts", partial(write_restarting)),
    **{
        f"cut to {part} of its bytes, {name}": (container.suffix, partial(write_cut, container=name, part=CUTS[part]))
        for name, container in CONTAINERS.items()
        for part in CUTS
    },
}


def write_odd(folder: Path, name: str) -> NumberedVideo:
    """Writes one of `ODD_VIDEOS` into `folder`."""
    suffix, write = ODD_VIDEOS[name]
    return write(folder / ("odd-" + name.replace(" ", "_").replace(",", "").replace("/", "") + suffix))
