# SPDX-License-Identifier: Apache-2.0
"""A lock on an output folder, so that two runs do not write to it at the same time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


# Both stay in the folder after the run; only an open lock on the first counts. The owner has a file of its own, since some versions of
# filelock empty a lock file that another process holds.
LOCK_FILE = ".lock"
OWNER_FILE = ".lock-owner"


@contextmanager
def locked_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Locks a folder until the block ends or the process dies, however it dies. Creates the folder if needed.

    Call it in one process of a run. It also works on network file systems that support `flock`. Processes forked in the block, such as
    data loader workers, do not hold the lock with filelock 4.3 or newer; with older versions they hold it until they end.

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
    owner_file = folder / OWNER_FILE
    try:
        lock = FileLock(folder / LOCK_FILE, blocking=False, is_singleton=False).acquire()
    except Timeout:
        owner = owner_file.read_text(encoding="utf-8").strip() if owner_file.is_file() else "another process"
        raise ValueError(
            f"{folder} is in use by {owner}. Two runs in one folder would overwrite each other's files: wait until that run has ended, "
            "or choose another folder."
        ) from None
    with lock:
        owner_file.write_text(f"process {os.getpid()} on host {socket.gethostname()}\n", encoding="utf-8")
        yield
