# SPDX-License-Identifier: Apache-2.0
"""Grounds a video and prints the answer.

    make demo                                            # a video made here, a tiny random model
    make demo MODEL=path/or/hub-id VIDEO=clip.mp4 TEXT="person takes a laptop from the shelf"

or, without make:

    python examples/demo.py --model path/or/hub-id --video clip.mp4 --text "person takes a laptop from the shelf"
"""

import argparse
import json
import tempfile
from pathlib import Path

import av
import numpy as np
from tiny_model import save_tiny_model
from transformers import pipeline
from transformers.utils import logging

import llava_st_hf  # noqa: F401  (registers pipeline("video-grounding"))


# ============================================================ Video


def write_sample_video(path: Path) -> None:
    """Four seconds of a red square that enters at second 1, crosses a grey scene, and is gone at second 3."""
    fps, height, width, size = 25, 240, 320, 48
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        rows, columns = np.mgrid[:height, :width]
        scene = np.stack([90 + 40 * np.sin(rows / 17) + 30 * np.cos(columns / 23)] * 3, axis=-1).astype(np.uint8)
        for number in range(4 * fps):
            frame = scene.copy()
            if fps <= number < 3 * fps:
                left = int((width - size) * (number - fps) / (2 * fps))
                frame[100 : 100 + size, left : left + size] = (200, 30, 30)
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


# ============================================================ Grounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or hub id; by default a tiny random model")
    parser.add_argument("--video", help="path or URL; by default a video made here")
    parser.add_argument("--text", default="a red square crosses the scene", help="what to find")
    args = parser.parse_args()
    logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as folder:
        model, video, length = args.model, args.video, {}
        if not video:
            video = str(Path(folder, "red-square.mp4"))
            write_sample_video(Path(video))
        if not model:
            print("No MODEL given: this is a tiny model of random weights, so its answer is noise. It shows that everything runs.")
            model = str(Path(folder, "tiny-random"))
            save_tiny_model(model)
            length = {"max_new_tokens": 32}
        grounder = pipeline("video-grounding", model=model)
        answer = grounder(video, text=args.text, task="stvg", **length)
        print(f"video: {args.video or 'made here: a red square crosses the scene from second 1 to 3 (320×240, 25 fps, 4 s)'}")
        print(f"question: {args.text}")
        print(json.dumps(answer, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
