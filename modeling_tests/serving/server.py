# SPDX-License-Identifier: Apache-2.0
"""A server process (`vllm serve` with the plug-in, or another command) on a free loopback port."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llava_st_hf import DEMO_MODEL_PATH


# vLLM for CPU: the memory for keys and values in GiB, and no binding of threads to cores, which tests share with other processes.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# The server of `vllm serve`, whose own command looks for the distribution `vllm` and does not start where it is named `vllm-cpu`.
VLLM_SERVE = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model")
# Options that keep a server on a CPU small and quick to start. Prompts of the bundled model have up to 2,700 tokens.
SMALL = ("--dtype", "float32", "--max-model-len", "4096", "--max-num-batched-tokens", "4096", "--enforce-eager")


@dataclass
class Server:
    """A running server. `url` ends in `/v1`; `model` is the name of the model in requests; `log` is the file with its output."""

    url: str
    model: str
    process: subprocess.Popen
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self):
        """Ends all processes of the server at once, as a crash or an out-of-memory kill does."""
        stop_group(self.process, signal.SIGKILL)


def free_port() -> int:
    """A loopback port that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def stop_group(process: subprocess.Popen, sent: signal.Signals = signal.SIGTERM, timeout: float = 30):
    """Ends a process that was started with `start_new_session=True`, and all processes that it started."""
    for number in (sent, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def start_server(
    log: Path,
    *options: str,
    model: str | Path = DEMO_MODEL_PATH,
    command: Sequence[str] = VLLM_SERVE,
    port: int | None = None,
    environment: dict[str, str] | None = None,
) -> Server:
    """
    Starts a server without waiting for it.

    Args:
        log: file for the output of all its processes.
        options: further arguments of the command, such as `SMALL`.
        model: checkpoint folder, the argument after `command`.
        command: `vllm serve` by default; `--host` and `--port` are added.
        port: by default a free one.
        environment: variables beside those of this process and `ENVIRONMENT`.
    """
    port = free_port() if port is None else port
    arguments = [*command, str(model), "--host", "127.0.0.1", "--port", str(port), *options]
    with log.open("ab") as output:
        process = subprocess.Popen(
            arguments,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
            start_new_session=True,
        )
    return Server(f"http://127.0.0.1:{port}/v1", str(model), process, log)


def wait_until_ready(server: Server, timeout: float = 300):
    """Waits until `/health` answers. Raises `RuntimeError` with the end of the log if the server ends, or after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"The server ended with status {server.process.returncode}:\n{server.output[-4000:]}")
        try:
            with urllib.request.urlopen(server.url.removesuffix("/v1") + "/health", timeout=2) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    raise RuntimeError(f"The server has not become ready in {timeout} s:\n{server.output[-4000:]}")


@contextmanager
def running_server(log: Path, *options: str, timeout: float = 300, **arguments) -> Iterator[Server]:
    """Starts a server (see `start_server`), waits until it is ready, and stops all of its processes at the end."""
    server = start_server(log, *options, **arguments)
    try:
        wait_until_ready(server, timeout)
        yield server
    finally:
        stop_group(server.process)
