# SPDX-License-Identifier: Apache-2.0
"""Measures time and memory of video preprocessing.

    python examples/benchmarks/preprocessing.py

Needs `decord2`, `av` and Linux. It encodes videos at 25 frames per second and prints one line per resolution with the ratios

- `frames vs PIL`: time of PIL frame by frame (bicubic to 384x384, /255 and normalized in float64, stacked, cast to float32) divided by
  the time of the video processor, on 100 frames in memory. Higher is better.
- `file vs decode`: time from file to tensor divided by the time of decord alone (`get_batch` of the same frames). Lower is better, and 1
  means that resizing is hidden behind decoding.
- `peak vs output`: peak memory from file to tensor in its own process, minus the memory before, divided by the size of the output tensor.
  Lower is better.

Every time is the best of `--repeats` runs; the two sides of a ratio alternate.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import decord
import numpy as np
import torch
from PIL import Image

from llava_st_hf.model.video_processing_llava_st import LlavaSTVideoProcessor, sample_frame_indices


LADDER = [(320, 180), (640, 360), (1280, 720), (1920, 1080), (360, 640)]  # width x height


def write_video(path: Path, width: int, height: int, num_frames: int) -> None:
    """Encodes a drifting texture with some noise, which takes about as long to decode as a recorded scene."""
    generator = np.random.default_rng(0)
    texture = np.asarray(Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)).resize((width, height)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(num_frames):
            frame = np.roll(texture, (2 * index, 3 * index), axis=(0, 1))
            noise = generator.integers(0, 9, (height, width, 1), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.minimum(frame, 246) + noise, format="rgb24")))
        container.mux(stream.encode())


def pil_baseline(frames: np.ndarray) -> torch.Tensor:
    """Resizes and normalizes with PIL and numpy, frame by frame."""
    pixels = []
    for frame in frames:
        image = np.asarray(Image.fromarray(frame).resize((384, 384), Image.Resampling.BICUBIC))
        image = (image.astype(np.float64) / 255 - 0.5) / 0.5
        pixels.append(image.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(pixels)).float()  # (num_frames, 3, 384, 384)


def best_times(*functions, repeats: int) -> list[float]:
    """Returns the minimum time in seconds of each function. The calls alternate, so that other load affects all of them."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for position, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[position] = min(best[position], time.perf_counter() - start)
    return best


def measure(processor: LlavaSTVideoProcessor, path: Path, indices: list[int], repeats: int) -> str:
    """Returns the row of the table for one video."""
    frames = decord.VideoReader(str(path)).get_batch(indices).asnumpy()  # (100, height, width, 3)
    ours, pil = best_times(
        lambda: processor(frames, do_sample_frames=False, return_tensors="pt"), lambda: pil_baseline(frames), repeats=repeats
    )
    file, decode = best_times(
        lambda: processor(str(path), return_tensors="pt"),
        lambda: decord.VideoReader(str(path)).get_batch(indices).asnumpy(),
        repeats=repeats,
    )
    return (
        f"{path.stem:>10}   {ours:10.3f} s {pil:6.2f} s {pil / ours:12.1f}x {file:11.3f} s {decode:6.3f} s "
        f"{file / decode:13.2f}x {peak_over_output(path):14.2f}x"
    )


def peak_over_output(path: Path) -> float:
    """Runs this script on one file in a subprocess and returns the ratio that it prints."""
    command = [sys.executable, __file__, "--measure-peak", str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak(path: str) -> None:
    processor = LlavaSTVideoProcessor()
    # Loads libraries and starts thread pools before the measurement.
    processor(np.zeros((1, 400, 700, 3), dtype=np.uint8), num_frames=1, return_tensors="pt")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak to the current memory
    before = resident_bytes("VmRSS")
    pixels = processor(path, return_tensors="pt").pixel_values_videos
    print((resident_bytes("VmHWM") - before) / pixels.nbytes)


def resident_bytes(field: str) -> int:
    """Returns the resident memory of this process in bytes: `VmRSS` (current) or `VmHWM` (peak)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-frames", type=int, default=750, help="length of the encoded videos, at least 100; 750 is 30 s")
    parser.add_argument("--measure-peak", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_peak:
        measure_peak(args.measure_peak)
        return

    processor = LlavaSTVideoProcessor()
    indices = sample_frame_indices(0, args.num_frames - 1, 100)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; 100 of {args.num_frames} frames")
    print("resolution   frames→tensor    PIL  frames vs PIL   file→tensor  decode  file vs decode  peak vs output")
    with tempfile.TemporaryDirectory() as folder:
        for width, height in LADDER:
            path = Path(folder) / f"{width}x{height}.mp4"
            write_video(path, width, height, args.num_frames)
            print(measure(processor, path, indices, args.repeats), flush=True)


if __name__ == "__main__":
    main()
