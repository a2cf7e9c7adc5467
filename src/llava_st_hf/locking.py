# SPDX-License-Identifier: Apache-2.0
"""A lock on an output folder, so that two runs do not write to it at the same time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


LOCK_FILE = ".lock"  # stays in the folder after the run; only an open lock on it counts


@contextmanager
def locked_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Locks a folder until the block ends or the process dies, however it dies. Creates the folder if needed.

    Call it in one process of a run. Processes forked in the block do not hold the lock. It also works on network file systems that
    support `flock`.

    Args:
        folder: where a run writes.

    Raises:
        ValueError: if another process holds the lock; the message names the folder, the process id and the host.
        NotADirectoryError: if `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, but must be a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    try:
        lock = FileLock(path, blocking=False, is_singleton=False).acquire()
    except Timeout:
        owner = path.read_text(encoding="utf-8").strip() or "another process"
        raise ValueError(
            f"{folder} is in use by {owner}. Two runs in one folder would overwrite each other's files: wait until that run has ended, "
            "or choose another folder."
        ) from None
    with lock:
        path.write_text(f"process {os.getpid()} on host {socket.gethostname()}\n", encoding="utf-8")
        yield
