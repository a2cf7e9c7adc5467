# SPDX-License-Identifier: Apache-2.0
"""
Compares questions about long videos in one look with the same questions in windows: recall against the length of the video.

    python examples/benchmarks/long_videos.py

The videos are scenes of the test split of the Shapes dataset, one after the other, at 10 frames per second. Questions of task "tvg" are on
events whose description is true of no other event of the video. An answer is right if its event has a temporal IoU of at least 0.3 or 0.5
with the true one. Printed for each length are the recall in one look and with `window`, the seconds of a call with all questions about a
video and of one with a single question, and the peak memory of the process during the call with all questions.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import pipeline
from transformers.utils import logging

import llava_st_hf  # noqa: F401  (registers pipeline("video-grounding"))
from llava_st_hf.model.windows_llava_st import temporal_iou
from llava_st_hf.shapes.long_videos import long_video, unique_instances


# Seconds → number of videos, and of questions about each.
LENGTHS = {10: (10, 4), 30: (5, 6), 60: (3, 8), 120: (2, 10), 300: (1, 12), 600: (1, 12)}


def peak_memory(call) -> tuple[object, float, float]:
    """`(result, seconds, peak resident memory in MB)` of a call. Linux resets the peak when 5 is written to `clear_refs`."""
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - begin
    lines = Path("/proc/self/status").read_text().splitlines()
    return result, seconds, next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--model", help="folder or hub id; by default the demo model")
    parser.add_argument("--window", type=float, default=4.0, help="seconds")
    parser.add_argument("--overlap", type=float, help="seconds; by default that of the pipeline")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--lengths", type=int, nargs="+", choices=LENGTHS, default=list(LENGTHS), help="seconds")
    parser.add_argument("--batch-size", type=int, default=32, help="questions answered together")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    grounder = pipeline("video-grounding", model=arguments.model, dtype="float32")
    ways = {"one look": {"scores": True}, "windows": {"window": arguments.window, "overlap": arguments.overlap}}
    print("| length (s) | videos | questions | way | recall@0.3 | recall@0.5 | s, all questions | s, one question | peak memory (MB) |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for length in arguments.lengths:
            count, most = LENGTHS[length]
            rows: dict[str, list] = {name: [] for name in ways}
            costs: dict[str, list] = {name: [] for name in ways}
            for number in range(count):
                video = long_video(arguments.split, number, length)
                unique = unique_instances(video)
                order = np.random.default_rng(number).permutation(len(unique))[:most]
                asked = [unique[place] for place in sorted(order)]
                path = str(Path(folder) / f"{length}-{number}.mp4")
                video.write(path)
                for name, options in ways.items():
                    options = {"task": "tvg", "batch_size": arguments.batch_size, **options}
                    texts = [instance.text for instance in asked]
                    answers, seconds, memory = peak_memory(lambda: grounder(path, text=texts, **options))  # noqa: B023
                    begin = time.perf_counter()
                    grounder(path, text=texts[0], **options)
                    costs[name].append((seconds, time.perf_counter() - begin, memory))
                    for answer, instance in zip(answers, asked, strict=True):
                        found = [(event["start"], event["end"]) for event in answer["events"][:1] if event["start"] is not None]
                        rows[name].append(max((temporal_iou(span, (instance.start, instance.end)) for span in found), default=0.0))
            for name in ways:
                ious, (seconds, single, memory) = np.array(rows[name]), np.array(costs[name]).mean(axis=0)
                recall = f"{(ious >= 0.3).mean():.3f} | {(ious >= 0.5).mean():.3f}"
                print(f"| {length} | {count} | {len(ious)} | {name} | {recall} | {seconds:.1f} | {single:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
