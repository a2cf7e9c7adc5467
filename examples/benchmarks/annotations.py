# SPDX-License-Identifier: Apache-2.0
"""Measures how fast annotation files are converted to training rows, and the memory that this takes.

    python examples/benchmarks/annotations.py

Needs `llava-st-hf[data]`, `psutil` and 4 GB of disk. It writes ST-Align files with 100,000 and 1,000,000 rows, as JSON lists and as
JSONL, loads each with an empty cache in its own process, and prints

- `rows/s`: rows of the file divided by the time of `load_mixture`;
- `growth`: peak resident memory while loading and then reading 1,000 rows spread over the file, minus the memory before, without the
  pages of the Arrow files, which the system can free. It should hardly depend on the number of rows;
- `random`: the same after loading half of the rows at random, from the cache. It grows by some bytes per row.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


ROWS = (100_000, 1_000_000)


def sample(number: int) -> dict:
    """An ELC sample: start time and box in the question, three boxes in the answer."""
    share = (number % 1000) / 1000
    box = "[<WIDTH-{0}><HEIGHT-{0}><WIDTH-{0}><HEIGHT-{0}>]"
    moments = ("<TEMP-OUTPUT>:" + box.format("OUTPUT")) * 3
    question = f"<video>\nStarts in <TEMP-INPUT>, what happened about the subject/object within the specified region {box.format('INPUT')}?"
    answer = f"Ends in <TEMP-OUTPUT>, a child pushes a toy. Object bounding box: {moments}."
    return {
        "id": str(number),
        "video": f"{number % 1000:04d}/{number}.mp4",
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        "variables": {
            "temporal_input_locations": [0.1],
            "temporal_output_locations": [0.9, *(0.1 + 0.08 * moment for moment in range(3))],
            **{f"spatial_{side}_input_locations": [share / 2, 0.5 + share / 2] for side in ("height", "width")},
            **{f"spatial_{side}_output_locations": [share / 2, 0.5 + share / 2] * 3 for side in ("height", "width")},
        },
        "meta": {"split": [0, 500]},
    }


def write_file(path: Path, rows: int) -> None:
    is_list = path.suffix == ".json"
    with path.open("w") as file:
        file.write("[" if is_list else "")
        for number in range(rows):
            file.write("," if is_list and number else "")
            file.write(json.dumps(sample(number)) + "\n")
        file.write("]" if is_list else "")


def measure(path: Path, rows: int) -> None:
    """Loads one file and prints its row of the table."""
    import psutil

    from llava_st_hf.data import load_mixture

    process, peak, done = psutil.Process(), 0, threading.Event()

    def resident() -> int:
        memory = process.memory_info()
        return memory.rss - memory.shared  # pages of files are shared ones

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident())

    mixture = path.with_suffix(".yaml")
    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds, growth = [], []
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        for strategy in ("all", "random:50%"):
            mixture.write_text(f"datasets: [{{json_path: {path.name}, data_folder: videos, sampling_strategy: '{strategy}'}}]")
            start = time.perf_counter()
            dataset = load_mixture(mixture, cache_dir=cache)
            seconds.append(time.perf_counter() - start)
            for place in range(0, len(dataset), len(dataset) // 1000):
                dataset[place]
            growth.append((max(peak, resident()) - before) / 2**20)
        done.set()
        watcher.join()
    size = path.stat().st_size / 2**20
    print(
        f"{path.suffix[1:]:>5} {rows:>9,} rows, {size:4.0f} MiB: {rows / seconds[0]:6,.0f} rows/s, growth {growth[0]:4.0f} MiB, "
        f"random {growth[1]:4.0f} MiB in {seconds[1]:.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # used by the subprocesses
    arguments = parser.parse_args()
    if arguments.one is not None:
        measure(arguments.one, arguments.rows[0])
        return
    for rows in arguments.rows:
        for suffix in ("json", "jsonl"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"rows.{suffix}"
                write_file(path, rows)
                subprocess.run([sys.executable, __file__, "--one", str(path), "--rows", str(rows)], check=True)


if __name__ == "__main__":
    main()
