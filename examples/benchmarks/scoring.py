# SPDX-License-Identifier: Apache-2.0
"""Measures how fast predictions are scored.

    taskset -c 0 python examples/benchmarks/scoring.py

It scores synthetic STVG predictions, tubelets of about 25 boxes in prediction and ground truth, given as objects and as the dicts of a
predictions file, with all confidence intervals, and prints seconds, rows per second, peak resident memory, and the ratio of the times of
ten times the rows: 10 is linear.
"""

import argparse
import itertools
import random
import resource
import time
from collections.abc import Iterator

from llava_st_hf.evaluation.rows import GroundingResult, Prediction
from llava_st_hf.evaluation.scoring import score


ROWS = (10_000, 100_000)
# Number of different predictions; larger files repeat them.
DIFFERENT = 1_000
WIDTH, HEIGHT, LAST_FRAME = 640, 360, 990


def prediction(number: int) -> Prediction:
    draw = random.Random(number)
    first, length = draw.randrange(60), draw.randint(10, 40)

    def grounding(shift: int) -> GroundingResult:
        bins = range(first + shift, min(first + shift + length, 100))
        corner = [draw.uniform(0, 200) for _ in range(2)]
        boxes = {10 * bin: (corner[0] + bin, corner[1], corner[0] + bin + 120.5, corner[1] + 90.25) for bin in bins}
        return GroundingResult(span=(bins[0] / 99, bins[-1] / 99), tubelet=boxes)

    media = {"kind": "video", "width": WIDTH, "height": HEIGHT, "last_frame": LAST_FRAME}
    predicted = grounding(draw.randint(0, 8))
    return Prediction(str(number), "made up", "stvg", "", grounding(0), media=media, answer="", prediction=predicted, num_frames=100)


def measure(name: str, samples: list, rows: int) -> float:
    repeated: Iterator = itertools.islice(itertools.cycle(samples), rows)
    start = time.perf_counter()
    figures = score("stvg", repeated)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    viou = f"m_viou {figures['m_viou']:.3f} [{figures['m_viou_low']:.3f}, {figures['m_viou_high']:.3f}]"
    print(f"{name:>7} {rows:>8,} rows: {seconds:6.2f} s, {rows / seconds:7,.0f} rows/s, peak {peak:5.0f} MiB, {viou}", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs=2, default=ROWS)
    few, many = parser.parse_args().rows
    objects = [prediction(number) for number in range(DIFFERENT)]
    boxes = sum(len(row.truth.tubelet or ()) for row in objects) / DIFFERENT
    print(f"{boxes:.1f} boxes a tubelet")
    for name, samples in (("objects", objects), ("dicts", [row.to_dict() for row in objects])):
        seconds = [measure(name, samples, rows) for rows in (few, many)]
        print(f"{name:>7} {many // few} times the rows take {seconds[1] / seconds[0]:.1f} times as long")


if __name__ == "__main__":
    main()
