# SPDX-License-Identifier: Apache-2.0
"""Sends requests to a server of the demo model, and prints latencies and memory.

    python examples/benchmarks/serving_load.py                                             # starts `llava-st serve` with vLLM
    python examples/benchmarks/serving_load.py -- --enforce-eager --max-num-seqs 16        # with further flags of vLLM

`--requests` questions about `--clips` clips of the Shapes dataset, in turn, are sent `--connections` at a time. Printed are the number of
answers and of requests without one; the latency of a request in seconds, with the upload of its clip (the 50th, 90th and 99th percentile);
answers per second; and after every `--every` requests the resident memory of each process of the server in MiB, without pages that
another process of it has as well (unique set size). Memory rises until each clip has been seen once: vLLM keeps processed clips.
"""

import argparse
import asyncio
import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from llava_st_hf import DEMO_MODEL_PATH
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.shapes.files import write_video
from llava_st_hf.shapes.questions import video_rows
from llava_st_hf.shapes.scenes import make_scene, scene_seed


FRAMES = 20  # that the demo model samples


def questions(folder: Path, clips: int) -> list[list[dict]]:
    """Content of a message for questions about each clip: of a task with a short answer (tvg) and of one with a long one (stvg)."""
    found: list[list[dict]] = []
    number = 0
    while len(found) < clips:
        scene = make_scene(scene_seed("test", number), is_video=True)
        path = folder / f"{number}.mp4"
        write_video(scene, path)
        # Which questions are asked about a scene is random; some scenes have no event.
        rows = [row for seed in range(8) for row in video_rows(scene, path.name, np.random.default_rng(seed), FRAMES)]
        task = ("tvg", "stvg")[len(found) % 2]
        texts = [row["text"] for row in rows if row["task"] == task]
        number += 1
        if texts:
            url = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
            text = TASKS[task].prompt.format(text=texts[0])
            found.append([{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": text}])
    return found


def memory(group: int) -> dict[str, float]:
    """Process → unique set size in MiB, of all processes of a process group."""
    sizes = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == group:
                lines = (entry / "smaps_rollup").read_text().splitlines()
                private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
                if private > 50 * 1024:  # not helpers such as the resource tracker of multiprocessing
                    sizes[f"{(entry / 'comm').read_text().strip()} {entry.name}"] = private / 1024
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sizes


async def send(url: str, contents: list[list[dict]], args: argparse.Namespace, group: int) -> tuple[list[float], list[str]]:
    """Sends all requests, and returns the latencies of those that were answered, and the errors."""
    limit = asyncio.Semaphore(args.connections)
    latencies: list[float] = []
    errors: list[str] = []
    print_memory("start", memory(group))
    async with httpx.AsyncClient(timeout=600) as client:

        async def ask(number: int):
            body = {
                "model": "demo",
                "messages": [{"role": "user", "content": contents[number % len(contents)]}],
                "max_completion_tokens": 256,
                "temperature": 0,
            }
            async with limit:
                start = time.perf_counter()
                try:
                    response = await client.post(f"{url}/v1/chat/completions", json=body)
                    response.raise_for_status()
                    latencies.append(time.perf_counter() - start)
                except httpx.HTTPError as error:
                    errors.append(repr(error))
                done = len(latencies) + len(errors)
                if done % args.every == 0:
                    print_memory(f"{done}", memory(group))

        await asyncio.gather(*(ask(number) for number in range(args.requests)))
    return latencies, errors


def print_memory(when: str, sizes: dict[str, float]) -> None:
    if when == "start":
        print(f"{'requests':>8s} {'total':>7s}  MiB of each process: {', '.join(sizes)}")
    print(f"{when:>8s} {sum(sizes.values()):7.0f}  {', '.join(f'{size:.0f}' for size in sizes.values())}", flush=True)


def start(port: int, log: Path, flags: list[str]) -> subprocess.Popen:
    """Starts the server and waits until it accepts requests."""
    command = [sys.executable, "-m", "llava_st_hf", "serve", DEMO_MODEL_PATH, "--name", "demo", "--port", str(port), "--", *flags]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    while server.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                return server
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"The server has ended with status {server.returncode}: {log.read_text(errors='replace')[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("flags", nargs="*", help="of vLLM, after --")
    args = parser.parse_args()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        contents = questions(Path(name), args.clips)
        server = start(port, Path(name, "log"), args.flags)
        try:
            begin = time.perf_counter()
            latencies, errors = asyncio.run(send(f"http://127.0.0.1:{port}", contents, args, server.pid))
            seconds = time.perf_counter() - begin
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
    print(f"{len(latencies)} of {args.requests} requests answered, {len(errors)} errors {errors[:3]}; {args.connections} connections")
    if latencies:
        parts = ", ".join(f"p{share} {np.percentile(latencies, share):.2f} s" for share in (50, 90, 99))
        print(f"latency {parts}; {len(latencies) / seconds:.2f} answers/s")


if __name__ == "__main__":
    main()
