# SPDX-License-Identifier: Apache-2.0
"""Measures the time from video file to tensor, and the bytes read, for both video backends.

    python examples/benchmarks/video_files.py

Needs `decord2`, `av` and Linux. It encodes 25 s of 640x360 H.264 at 30 frames per second, once for each distance of keyframes, and copies
the packets into other containers and into a file of two hours. `LlavaSTVideoProcessor` reads 100 frames of each file. One line per file:

- `decord alone`: `VideoReader(path).get_batch(indices)` of the same frames, without resizing; `wrong`: number of its frames that differ
  from PyAV's, which the tests compare with numbers in the pixels.
- `pyav`, `decord`: from file to tensor with this `video_backend`, and the ratio to `decord alone`. `(pyav)`: the file was passed to PyAV,
  because decord would return wrong frames.
- `index`: the part of the time until the index of frames is complete, with PyAV.
- `read`: bytes read of the file relative to its size, with PyAV.
"""

import argparse
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import torch
from PIL import Image
from preprocessing import best_times

from llava_st_hf.model.video_decoding_llava_st import open_video_file
from llava_st_hf.model.video_index_llava_st import read_index
from llava_st_hf.model.video_processing_llava_st import LlavaSTVideoProcessor, sample_frame_indices


WIDTH, HEIGHT, RATE, NUM_FRAMES = 640, 360, 30, 750
TWO_HOURS = 2 * 3600


def encode(path: Path, options: dict[str, str], codec: str = "libx264") -> Path:
    """Encodes a drifting texture with some noise, which takes about as long to decode as a recorded scene."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    texture = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(NUM_FRAMES):
            frame = np.roll(texture, (2 * index, 3 * index), axis=(0, 1))
            noise = generator.integers(0, 9, (HEIGHT, WIDTH, 1), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.minimum(frame, 246) + noise, format="rgb24")))
        container.mux(stream.encode())
    return path


def copy(path: Path, source: Path, seconds: float = NUM_FRAMES / RATE) -> Path:
    """Copies the packets of a file to another container, repeated until it lasts `seconds`."""
    rounds = round(seconds * RATE / NUM_FRAMES)
    with av.open(str(path), "w") as output:
        for number in range(rounds):
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                if number == 0:
                    target = output.add_stream_from_template(stream)
                shift = round(number * Fraction(NUM_FRAMES, RATE) / stream.time_base)
                for packet in container.demux(stream):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                        output.mux(packet)
    return path


def bytes_read() -> int:
    """Returns the bytes that this process has read from files and pipes so far (Linux)."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


def measure(processor: LlavaSTVideoProcessor, path: Path, repeats: int) -> str:
    """Returns the row of the table for one file."""
    indices = sample_frame_indices(0, len(read_index(str(path)).times) - 1, 100)

    def alone() -> np.ndarray:
        reader = decord.VideoReader(str(path))
        return reader.get_batch([min(index, len(reader) - 1) for index in indices]).asnumpy()  # (100, height, width, 3)

    def ours(backend: str) -> Callable:
        return lambda: processor([str(path)], return_tensors="pt", return_metadata=True, video_backend=backend)

    try:
        exact = (frame for chunk in open_video_file(str(path)).chunks(indices) for frame in chunk.numpy())
        wrong = sum(not np.array_equal(ours_frame, frame) for ours_frame, frame in zip(exact, alone(), strict=True))
    except (decord.DECORDError, decord.DECORDLimitReachedError):
        wrong = 100
        alone_time, (pyav, second, index) = None, best_times(ours("pyav"), ours("decord"), lambda: read_index(str(path)), repeats=repeats)
    else:
        alone_time, pyav, second, index = best_times(alone, ours("pyav"), ours("decord"), lambda: read_index(str(path)), repeats=repeats)
    before = bytes_read()
    ours("pyav")()
    share = (bytes_read() - before) / path.stat().st_size
    used = ours("decord")()["video_metadata"][0].video_backend

    def ratio(seconds: float) -> str:
        return f"{seconds / alone_time:6.2f}x" if alone_time else "      –"

    decord_alone = f"{alone_time:9.3f} s {wrong:5}" if alone_time else "    refuses      "
    mark = "" if used == "decord" else " (pyav)"
    return (
        f"{path.stem:>24} {path.suffix[1:]:>4} {path.stat().st_size / 1e6:8.1f} MB {decord_alone} {pyav:8.3f} s {ratio(pyav)} "
        f"{second:8.3f} s {ratio(second)}{mark:7} {index:8.3f} s {share:8.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    processor = LlavaSTVideoProcessor()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, PyAV {av.__version__}, decord {decord.__version__}")
    columns = f"{'decord alone':>11} {'wrong':>5} {'pyav':>9} {'':>8} {'decord':>10} {'':>14} {'index':>10} {'read':>8}"
    print(f"{'file':>24} {'':>4} {'size':>11} {columns}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x264 = {"preset": "veryfast", "crf": "23"}
        plain = encode(folder / "keyframe every 250.mp4", {**x264, "g": "250"})
        files = [
            plain,
            encode(folder / "keyframe every 25.mp4", {**x264, "g": "25"}),
            encode(folder / "keyframe every 8 s.mp4", {**x264, "g": "240", "keyint_min": "240", "sc_threshold": "0"}),
            encode(folder / "open groups.mp4", {**x264, "g": "25", "x264-params": "open-gop=1"}),
            encode(folder / "HEVC, open groups.mkv", {"preset": "veryfast", "x265-params": "log-level=none"}, "libx265"),
            encode(folder / "VP9.webm", {"deadline": "realtime", "cpu-used": "8", "g": "60"}, "libvpx-vp9"),
            copy(folder / "H.264.mkv", plain),
            encode(folder / "H.264.avi", {**x264, "g": "25"}),
            encode(folder / "H.264.ts", {**x264, "g": "25"}),
            encode(folder / "MPEG-2.mpg", {"g": "15", "bf": "2", "b": "4M"}, "mpeg2video"),
            copy(folder / "2 hours.mp4", plain, TWO_HOURS),
            copy(folder / "2 hours.mkv", plain, TWO_HOURS),
        ]
        for path in files:
            print(measure(processor, path, args.repeats if path.stat().st_size < 1e8 else 2), flush=True)


if __name__ == "__main__":
    main()
