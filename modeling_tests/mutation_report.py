# SPDX-License-Identifier: Apache-2.0
"""Prints the share of killed mutants of each module after `make mutation`: `python -m modeling_tests.mutation_report`."""

import json
import sys
from pathlib import Path


MUTANTS = Path("mutants")
REQUIRED_SHARE = 0.9
# Exit codes in mutmut's result files: pytest found a failure or an error, or the time limit was reached. Negative: ended by a signal.
KILLED = {1, 3, 24, 36, 152}


def counts(result_file: Path) -> tuple[int, int, int]:
    """`(killed, survived, not run)` mutants of one module; those that no test reaches count as survived."""
    codes = list(json.loads(result_file.read_text())["exit_code_by_key"].values())
    not_run = codes.count(None)
    killed = sum(code in KILLED or code < 0 for code in codes if code is not None)
    return killed, len(codes) - not_run - killed, not_run


def main() -> int:
    total = [0, 0, 0]
    print(f"{'module':28} {'killed':>7} {'survived':>9} {'share':>8} {'not run':>8}")
    for file in sorted(MUTANTS.rglob("*.py.meta")):
        found = counts(file)
        total = [a + b for a, b in zip(total, found, strict=True)]
        print_row(file.name.removesuffix(".py.meta"), *found)
    print_row("all", *total)
    killed, survived, _ = total
    return 0 if killed and killed >= REQUIRED_SHARE * (killed + survived) else 1


def print_row(name: str, killed: int, survived: int, not_run: int) -> None:
    share = f"{100 * killed / (killed + survived):.1f} %" if killed + survived else "–"
    print(f"{name:28} {killed:7} {survived:9} {share:>8} {not_run:8}")


if __name__ == "__main__":
    sys.exit(main())
