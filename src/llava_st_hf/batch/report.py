# SPDX-License-Identifier: Apache-2.0
"""Progress, time and cost of a run: a line on the terminal, a file for each session, and `summary.json`."""

import json
import secrets
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from tqdm.auto import tqdm

from .outcomes import Outcome, ShardInfo
from .storage import Folder, in_parallel


SUMMARY = "summary.json"
SESSIONS = "sessions"
_COUNTS = ("rows", "failed", "requests", "prompt_tokens", "completion_tokens", "media_bytes")
_LINE_S = 60.0  # seconds between lines of the progress where stderr is no terminal


def new_session() -> str:
    """Name of a session that no other process has."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


@dataclass
class Session:
    """
    Work of this process, saved with every shard.

    Args:
        folder: of the output.
        name: of `new_session`.
        total: rows of the manifest.
        done: rows that were finished before.
        gpus: number of GPUs that answer.
    """

    folder: Folder
    name: str
    total: int
    done: int
    gpus: int
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))

    def __post_init__(self):
        self._started, self._start = datetime.now(timezone.utc), time.monotonic()
        self._bar = tqdm(total=self.total, initial=self.done, unit="row", disable=None, file=sys.stderr, leave=False)
        self._next_line = self._start + _LINE_S

    def add(self, outcomes: list[Outcome]) -> None:
        """Adds new outcomes, and shows the progress."""
        self.add_counts(
            len(outcomes),
            failed=sum(not outcome.is_answered for outcome in outcomes),
            **{name: sum(getattr(outcome, name) or 0 for outcome in outcomes) for name in _COUNTS[2:]},
        )

    def add_counts(self, rows: int, **counts: int) -> None:
        """Adds the sums of rows that another process has asked, and shows the progress."""
        for name, value in {"rows": rows, **counts}.items():
            self.counts[name] += value
        self._bar.set_postfix_str(self._rates())
        self._bar.update(rows)
        if self._bar.disable and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_S
            print(f"{self.done + self.counts['rows']} of {self.total} rows, {self._rates()}", file=sys.stderr, flush=True)

    def _rates(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return f"{self.counts['failed']} failed, {self.counts['completion_tokens'] / seconds:.0f} tokens/s"

    def save(self, status: str = "running") -> None:
        """Writes the file of the session. `status` is "running", "complete" or "stopped"; a killed process leaves "running" behind."""
        seconds = round(time.monotonic() - self._start, 3)
        known = {"started": f"{self._started:%Y-%m-%dT%H:%M:%SZ}", "seconds": seconds, "gpus": self.gpus, "status": status}
        self.folder.write(f"{SESSIONS}/{self.name}.json", json.dumps({**known, **self.counts}, indent=2).encode())

    def close(self, status: str) -> None:
        """Writes the file of the session, and removes the line of the progress."""
        self._bar.close()
        self.save(status)


def summarize(folder: Folder, shards: Iterable[ShardInfo], rows: int, price_per_hour: float | None) -> dict[str, Any]:
    """
    Totals of an output folder.

    Args:
        shards: headers of the finished shards.
        rows: of the manifest.
        price_per_hour: of one GPU.

    Returns:
        Counts of rows, tokens and bytes, of all finished shards; time, rates, GPU-hours and cost, of all sessions. What a killed process
        did after the last shard that it finished is missing in the latter.
    """
    infos = list(shards)
    failures: dict[str, int] = {}
    for info in infos:
        for kind, count in info.failures.items():
            failures[kind] = failures.get(kind, 0) + count
    done = sum(info.rows for info in infos)
    failed = sum(failures.values())
    sums = {name: sum(getattr(info, name) for info in infos) for name in ("truncated", *_COUNTS[2:])}
    names = folder.names(SESSIONS)
    sessions = [json.loads(content or b"{}") for content in in_parallel(lambda name: folder.read(f"{SESSIONS}/{name}"), names)]
    seconds = round(sum(session["seconds"] for session in sessions), 3)
    asked = {name: sum(session[name] for session in sessions) for name in _COUNTS}
    gpu_hours = round(sum(session["seconds"] * session["gpus"] for session in sessions) / 3600, 6)
    return {
        **{"rows": rows, "answered": done - failed, "failed": failed, "unfinished": rows - done},
        "failures": dict(sorted(failures.items(), key=lambda entry: -entry[1])),
        **sums,
        "mean_latency_s": round(sum(info.latency_s for info in infos) / done, 3) if done else None,
        **{"sessions": len(sessions), "seconds": seconds},
        **{f"{name}_per_second": round(asked[name] / seconds, 3) if seconds else None for name in ("rows", *_COUNTS[2:])},
        "gpu_hours": gpu_hours,
        **{"price_per_gpu_hour": price_per_hour, "cost": None if price_per_hour is None else round(gpu_hours * price_per_hour, 4)},
    }


def describe(summary: dict[str, Any]) -> list[str]:
    """Lines of a summary for the terminal."""
    failures = ", ".join(f"{count} {kind}" for kind, count in summary["failures"].items())
    lines = [
        f"{summary['answered']} of {summary['rows']} rows answered, {summary['failed']} failed{f' ({failures})' if failures else ''}"
        + (f", {summary['unfinished']} unfinished" if summary["unfinished"] else ""),
    ]
    if summary["truncated"]:
        lines.append(f'{summary["truncated"]} answers were ended by the limit of tokens: finish_reason is "length".')
    if summary["seconds"]:
        requests = f", {summary['requests_per_second']} requests/s" if summary["requests"] else ""
        lines.append(
            f"{summary['seconds']:.1f} s, {summary['rows_per_second']} rows/s{requests}; "
            f"{summary['prompt_tokens']} tokens in, {summary['completion_tokens']} out ({summary['completion_tokens_per_second']}/s), "
            f"{summary['media_bytes'] / 1e6:.1f} MB of media"
        )
    cost = "" if summary["cost"] is None else f", cost {summary['cost']:g} at {summary['price_per_gpu_hour']:g} per GPU-hour"
    lines.append(f"{summary['gpu_hours']:g} GPU-hours{cost}")
    return lines
