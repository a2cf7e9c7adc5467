# SPDX-License-Identifier: Apache-2.0
"""`llava-st batch --ray local`, with workers and the command killed: needs `llava-st-hf[ray]`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llava_st_hf import DEMO_MODEL_PATH
from llava_st_hf.batch import read_answers
from llava_st_hf.examples.sample_media import write_sample_media
from modeling_tests.openai_server import OpenAIServer, serve_openai


pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'llava-st-hf[ray]'")

COUNT, SHARDS = 48, 12
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


class CountingServer:
    """Server that answers without a model, so that its speed depends on nothing else; `texts` are those of the questions it answered."""

    def __init__(self, running: OpenAIServer):
        self.running, self.texts = running, []
        running.delay, running.answer = 0.2, self.answer

    def answer(self, body: dict) -> dict:
        self.texts.append(next(item["text"] for item in reversed(body["messages"][-1]["content"]) if item["type"] == "text"))
        choice = {"index": 0, "message": {"role": "assistant", "content": "{<TEMP-029><TEMP-062>}"}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"completion_tokens": 4}}


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with serve_openai(None, None) as running:
        yield CountingServer(running)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Working folder with a manifest, of which one row has a damaged video."""
    monkeypatch.chdir(tmp_path)
    write_sample_media(".")
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    rows = [{"video": "bad.mp4" if n == 5 else "clip.mp4", "task": "tvg", "text": f"event {n} happens"} for n in range(COUNT)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def descendants(process: subprocess.Popen, name: str) -> list[int]:
    """Ids of the processes that a process has started, directly or not, and whose title contains `name`."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    parents, titles = {}, {}
    for line in listed.splitlines():
        pid, parent, title = line.split(None, 2)
        parents[int(pid)], titles[int(pid)] = int(parent), title

    def is_below(pid: int) -> bool:
        while pid in parents and pid != process.pid:
            pid = parents[pid]
        return pid == process.pid

    return [pid for pid in titles if pid != process.pid and name in titles[pid] and is_below(pid)]


@pytest.fixture
def start(server, folder) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the command with further options. What still runs at the end of the test is killed."""
    processes = []

    def run(*options: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "llava_st_hf",
            "batch",
            "m.jsonl",
            "out",
            "--model",
            DEMO_MODEL_PATH,
            "--server",
            server.running.url,
        ]
        command += ["--connections", "2", "--num-shards", str(SHARDS), "--ray", "local", "--workers", "2", *options]
        process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            kill_with_descendants(process)


def kill_with_descendants(process: subprocess.Popen) -> None:
    """Kills a process, and the processes of Ray that it has started, some of which end late by themselves."""
    started = descendants(process, "")
    process.kill()
    process.communicate()
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 900
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check(folder: Path, server: CountingServer, most_repeated: int) -> None:
    """Checks that each row has one row of the output, and that at most so many questions were answered more than once."""
    found = list(read_answers("out"))
    assert [row["row"] for row, _ in found] == list(range(1, COUNT + 1))
    assert [row["row"] for row, answer in found if answer is None] == [6]
    counts = Counter(server.texts)
    assert len(counts) == COUNT - 1
    assert sum(count > 1 for count in counts.values()) <= most_repeated, counts


def test_killed_worker_loses_no_row_and_repeats_only_its_shard(folder, server, start):
    process = start()
    wait_until(lambda: len(server.texts) >= 10, process)
    os.kill(descendants(process, "ShardWorker")[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 3, errors
    check(folder, server, COUNT // SHARDS)


def test_killed_driver_is_resumed_without_finished_shards(folder, server, start):
    process = start()
    wait_until(lambda: len(server.texts) >= 16, process)
    kill_with_descendants(process)
    finished = {path.name for path in (folder / "out/answers").iterdir() if not path.name.startswith(".")}
    assert finished
    before = {name: (folder / "out/answers" / name).stat().st_mtime_ns for name in finished}
    process = start()
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 3, errors
    assert {name: (folder / "out/answers" / name).stat().st_mtime_ns for name in finished} == before
    check(folder, server, 2 * COUNT // SHARDS)


def test_rows_that_lost_their_server_are_asked_again_by_retry_failed(folder, server, start):
    served = server.running.next_fault
    server.running.next_fault = lambda *request: served(*request) if len(server.texts) < 12 else "close"
    process = start("--max-retries", "0")
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 3, errors  # the server lists its model, but closes the connections of all other requests
    server.running.next_fault = served
    process = start("--retry-failed")
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 3, errors
    check(folder, server, 2)
