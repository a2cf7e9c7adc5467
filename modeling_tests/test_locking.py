# SPDX-License-Identifier: Apache-2.0
"""Lock on an output folder."""

import os
import signal
import socket
import subprocess
import sys

import filelock
import pytest
from packaging.version import Version

from llava_st_hf import locking
from llava_st_hf.locking import locked_folder


# The module alone: the import of its package takes seconds in each process.
HOLDER = f"""
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("locking", {locking.__file__!r})
locking = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locking)
with locking. locked_folder(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_locked_folder_held_by_another_process_names_folder_process_and_host(tmp_path):
    folder = tmp_path / "new/run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        for _ in range(2):  # the second message is equal: the first attempt did not change the file
            message = rf"{folder} is in use by process {holder.pid} on host {socket.gethostname()}\."
            with pytest.raises(ValueError, match=message), locked_folder(folder):
                pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked_folder(folder):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_locked_folder_is_released_after_the_block_and_after_an_error_in_it(tmp_path):
    with pytest.raises(KeyError), locked_folder(tmp_path):
        raise KeyError
    with locked_folder(tmp_path), pytest.raises(ValueError, match=f"process {os.getpid()} on"), locked_folder(tmp_path):
        pass
    with locked_folder(tmp_path):
        pass


@pytest.mark.skipif(Version(filelock.__version__) < Version("4.3"), reason="older versions leave the lock to forked processes")
def test_locked_folder_is_not_held_by_forked_workers_of_a_killed_process(tmp_path):
    """Data loader workers are forked, and end some seconds after their parent was killed."""
    code = HOLDER.replace(  # the worker states its id, when it has begun
        "    time.sleep", "    import os\n    if not os.fork(): print(os.getpid(), flush=True)\n    time.sleep"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = None
    try:
        assert holder.stdout.readline() == "locked\n"
        worker = int(holder.stdout.readline())
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # raises if the worker has ended
        with locked_folder(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        if worker:
            os.kill(worker, signal.SIGKILL)


def test_locked_folder_path_is_a_file_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file"), locked_folder(tmp_path / "file"):
        pass
