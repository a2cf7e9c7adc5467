# SPDX-License-Identifier: Apache-2.0
"""Functions that write small videos and damaged files for the tests."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image


def moving_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    """Smooth images that change from frame to frame, uint8 `(num_frames, height, width, 3)`."""
    time, row, column = np.ogrid[:num_frames, :height, :width]
    red = 127 + 120 * np.sin(0.05 * column + 0.4 * time + 0.0 * row)
    green = 127 + 120 * np.cos(0.07 * row - 0.3 * time + 0.0 * column)
    blue = 40 + (2 * time + row + column) % 160 + 0.0 * red
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, fps: int = 25, codec: str = "mpeg4", options: dict | None = None) -> Path:
    """Encodes uint8 `(num_frames, height, width, 3)` frames at `fps` frames per second. `libx264` needs even sizes."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_cut(path: Path, share: float = 0.7) -> Path:
    """Writes a Matroska file of two seconds at 10 frames per second, truncated to this share of its bytes."""
    data = write_video(path, moving_frames(20, 48, 64), fps=10).read_bytes()
    path.write_bytes(data[: round(len(data) * share)])
    return path


def write_with_broken_frame(path: Path, broken: int) -> Path:
    """Writes a MOV file of 60 PNG frames at 10 frames per second, of which frame `broken` cannot be decoded."""
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
        packets = []
        for frame in moving_frames(60, 48, 64):
            packets += stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        for number, packet in enumerate(packets + stream.encode()):
            if number == broken:
                zeros = av.Packet(bytes(packet.size))
                zeros.pts, zeros.dts, zeros.time_base, zeros.duration = packet.pts, packet.dts, packet.time_base, packet.duration
                zeros.stream, zeros.is_keyframe, packet = stream, True, zeros
            container.mux(packet)
    return path


def write_timed_video(path: Path, times: list[float], codec: str = "mpeg4") -> Path:
    """Encodes a 64x48 frame for each of `times`, in seconds, rounded to milliseconds: the frame rate may vary."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.bit_rate = 8_000_000
        for time, pixels in zip(times, moving_frames(len(times), 48, 64), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path, seconds: float = 0.5) -> Path:
    """Writes an MP4 file with a silent audio track and no video stream."""
    rate = 16000
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate)
        stream.layout = "mono"
        samples = np.zeros((1, int(rate * seconds)), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sideways(path: Path, source: Path) -> Path:
    """Copies an MP4 file with a display matrix that rotates it by 90° clockwise, as written by a phone held upright."""
    data = bytearray(source.read_bytes())
    matrix = data.find(b"tkhd") + 4 + 40  # after the fields of a version 0 track header
    quarter_turn = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]
    data[matrix : matrix + 36] = struct.pack(">9i", *quarter_turn)
    path.write_bytes(data)
    return path


def write_animation(path: Path, frames: np.ndarray, durations: list[float], **options) -> Path:
    """Writes an animated WebP, PNG, GIF or AVIF file of uint8 `(num_frames, height, width, 3)` frames; `durations` are milliseconds."""
    pictures = [PIL.Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, lossless=True, duration=list(durations), append_images=pictures[1:], **options)
    return path
