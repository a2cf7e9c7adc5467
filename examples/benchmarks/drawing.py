# SPDX-License-Identifier: Apache-2.0
"""
Measures the frames per second at which annotated videos are written, against decoding and encoding alone, and the peak memory.

    python examples/benchmarks/drawing.py
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from llava_st_hf import Box, Event, Grounding
from llava_st_hf.model.media_info_llava_st import MediaInfo
from llava_st_hf.visualization import draw_video, make_tracks


RATE = 30  # frames per second


def write_clip(path: Path, num_frames: int, width: int, height: int) -> None:
    """Writes a textured video that moves, as H.264."""
    texture = np.random.default_rng(0).normal(size=(height // 8 + 2, width // 8 + 2, 3)).repeat(8, 0).repeat(8, 1)
    pixels = (128 + 40 * texture).clip(0, 255).astype(np.uint8)  # (height + 16, width + 16, 3)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            left = number % 16
            frame = np.ascontiguousarray(pixels[left : left + height, left : left + width])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())


def answer(num_frames: int, width: int, height: int, num_events: int) -> Grounding:
    """An answer whose events last for the whole video, with a box in every fourth frame that moves to the right."""
    events = []
    for number in range(num_events):
        top = height * (number + 1) / (num_events + 2)
        boxes = [
            Box(width * 0.1 + 2 * frame, top, width * 0.3 + 2 * frame, top + height * 0.3, time=frame / RATE, frame=frame)
            for frame in range(0, num_frames, 4)
        ]
        events.append(Event(f"object {number + 1}", 0.0, (num_frames - 1) / RATE, tuple(boxes), score=0.8))
    media = MediaInfo("video", width, height, RATE, 0, num_frames - 1, total_num_frames=num_frames)
    return Grounding(events=tuple(events), media=media)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--frames", type=int, default=90)
    parser.add_argument("--size", type=int, nargs=2, default=(1920, 1080), metavar=("WIDTH", "HEIGHT"))
    args = parser.parse_args()
    width, height = args.size
    with tempfile.TemporaryDirectory() as folder:
        for num_frames in (args.frames, 4 * args.frames):
            clip, output = Path(folder, f"clip{num_frames}.mp4"), Path(folder, "annotated.mp4")
            write_clip(clip, num_frames, width, height)
            for num_events in (0, 1, 10) if num_frames == args.frames else (1,):
                grounding = answer(num_frames, width, height, num_events)
                start = time.perf_counter()
                draw_video(str(clip), [grounding], make_tracks([grounding], None, None), output)
                seconds = time.perf_counter() - start
                what = f"{num_events} objects" if num_events else "decode and encode alone"
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"{width}x{height}, {num_frames} frames, {what}: {num_frames / seconds:.1f} frames/s, peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
