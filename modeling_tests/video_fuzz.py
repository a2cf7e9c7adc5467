# SPDX-License-Identifier: Apache-2.0
"""
Reads many damaged videos, each in a child process, and counts the outcomes.

    python -m modeling_tests.video_fuzz COUNT [--save FOLDER] [--backend pyav] [--first 0]

A damaged file must be read, or rejected with an `OSError` or `ValueError` that names it. Any other exception, a crash, and
a call of more than 10 seconds are faults: the exit status is 1, and the files are written into the folder.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np

from modeling_tests.child_processes import Died, Hung, call_each
from modeling_tests.numbered_videos import CODECS
from modeling_tests.odd_videos import write_one
from modeling_tests.video_verdicts import read_raw, video_processor


SECONDS_PER_FILE = 10.0
NUM_FRAMES = 8
# Suffix and codec of the files that are damaged: 30 frames each, of 2 to 15 KB.
SOURCES = ((".mp4", "H.264"), (".mkv", "HEVC"), (".avi", "MPEG-4"), (".ts", "H.264"), (".webm", "VP9"), (".flv", "H.264"))
EXTREMES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEADER_BYTES = 1024
FAULTS = ("exception", "file not named", "died", "hung")


@cache
def source(suffix: str, codec: str) -> bytes:
    """The bytes of an intact file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"source{suffix}"
        write_one(path, CODECS[codec], numbers=range(30), file_options={"fflags": "+bitexact"})  # no random identifiers
        return path.read_bytes()


def damaged(index: int) -> tuple[str, bytes]:
    """Suffix and bytes of damaged file number `index`; deterministic."""
    suffix, codec = SOURCES[index % len(SOURCES)]
    data = bytearray(source(suffix, codec))
    random = np.random.default_rng(index)
    kind = index // len(SOURCES) % 5
    # Headers are in the first bytes, in MP4 and AVI also in the last: half of the damage is placed there.
    spans = ((0, HEADER_BYTES), (len(data) - HEADER_BYTES, len(data)), (0, len(data)), (0, len(data)))
    if kind in (0, 1):  # flipped bits: a few, or many
        for _ in range(random.integers(1, 4) if kind == 0 else random.integers(8, 200)):
            low, high = spans[random.integers(len(spans))]
            data[random.integers(max(low, 0), high)] ^= 1 << random.integers(8)
    if kind == 2:  # very large numbers in headers
        for _ in range(random.integers(1, 4)):
            low, high = spans[random.integers(len(spans))]
            at = int(random.integers(max(low, 0), high - 4))
            data[at : at + 4] = int(random.choice(EXTREMES)).to_bytes(4, "big" if random.integers(2) else "little")
    if kind == 3:  # truncated
        del data[random.integers(len(data)) :]
    if kind == 4:  # a section removed or repeated, and a flipped bit
        start, size = int(random.integers(len(data))), int(random.integers(1, 600))
        data[start : start + size] = data[start : start + size] * 2 if random.integers(2) else b""
        data[random.integers(len(data))] ^= 1 << random.integers(8)
    return suffix, bytes(data)


def read_damaged(index: int, folder: Path, backend: str | None) -> tuple[str, str]:
    """Reads one damaged file, written into `folder` during the call; returns the outcome and details of an error."""
    suffix, data = damaged(index)
    path = folder / f"damaged{index}{suffix}"
    path.write_bytes(data)
    try:
        read_raw(video_processor(), path, num_frames=NUM_FRAMES, **({} if backend is None else {"video_backend": backend}))
    except (OSError, ValueError) as error:
        return ("refused" if path.name in str(error) else "file not named"), f"{type(error).__name__}: {error}"
    except Exception as error:
        return "exception", f"{type(error).__name__}: {error}"
    finally:
        path.unlink()
    return "read", ""


def outcomes(indices: range, backend: str | None = None) -> Iterator[tuple[int, str, str]]:
    """Yields number, outcome (`"read"`, `"refused"` or one of `FAULTS`) and details of an error, for each damaged file."""
    with tempfile.TemporaryDirectory() as folder:
        for index, result in call_each(partial(read_damaged, folder=Path(folder), backend=backend), indices, SECONDS_PER_FILE):
            if isinstance(result, Died):
                yield index, "died", result.reason
            elif isinstance(result, Hung):
                yield index, "hung", f"more than {result.seconds} s"
            else:
                yield index, *result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("count", type=int, help="of damaged files")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--backend", help="`video_backend` of the processor; by default its own default")
    parser.add_argument("--save", type=Path, help="folder for the files that are faults")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    for index, outcome, detail in outcomes(range(arguments.first, arguments.first + arguments.count), arguments.backend):
        counts[outcome] += 1
        if outcome in FAULTS:
            suffix, data = damaged(index)
            print(f"{outcome}: number {index}, {suffix[1:]}: {detail[:300]}", flush=True)
            if arguments.save is not None:
                arguments.save.mkdir(parents=True, exist_ok=True)
                (arguments.save / f"damaged{index}{suffix}").write_bytes(data)
    for outcome in ("read", "refused", *FAULTS):
        print(f"{outcome}: {counts[outcome]}")
    return int(any(counts[outcome] for outcome in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
