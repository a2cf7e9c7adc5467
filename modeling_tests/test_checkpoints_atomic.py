# SPDX-License-Identifier: Apache-2.0
"""Atomic writing of model folders: after a killed process, a folder loads as the old model, as the new one, or not at all."""

import errno
import os
from pathlib import Path

import pytest

from llava_st_hf.checkpoints import atomic
from llava_st_hf.checkpoints.atomic import atomic_folder, finish_interrupted_write
from modeling_tests.child_processes import call_in_child


OLD = {"model-00001-of-00002.safetensors": "old", "model-00002-of-00002.safetensors": "old", "model.safetensors.index.json": "old"}
OLD |= {"processor_config.json": "old", "config.json": "old", "notes.txt": "mine"}
NEW = {"model.safetensors": "new", "processor_config.json": "new", "tokenizer": {"vocab.json": "new"}, "config.json": "new"}


def write(folder: Path, content: dict) -> None:
    for name, value in content.items():
        if isinstance(value, dict):
            (folder / name).mkdir()
            write(folder / name, value)
        else:
            (folder / name).write_text(value)


def read(folder: Path) -> dict:
    return {path.name: read(path) if path.is_dir() else path.read_text() for path in folder.iterdir()}


def write_and_die(target: Path, calls: int) -> bool:
    """Writes NEW in a child process that is killed before its system call number `calls` that changes `target`.

    Returns:
        Whether the child was killed; False if it finished before.
    """
    child = os.fork()
    if child == 0:
        made = 0

        def dying(function):
            def call(*args, **kwargs):
                nonlocal made
                if made == calls:
                    os._exit(9)
                made += 1
                return function(*args, **kwargs)

            return call

        for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, dying(getattr(os, name)))
        with atomic_folder(target) as folder:
            write(folder, NEW)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_atomic_folder_killed_at_any_rename_leaves_old_or_new_or_no_model(tmp_path):
    errors = tmp_path / "errors"
    assert call_in_child(kill_at_each_call, tmp_path, errors=errors) == 0, errors.read_text()
    assert (tmp_path / "target0").exists()


def kill_at_each_call(folder: Path) -> None:
    """Kills the process at each system call in turn. Runs in a small child process, which is quick to fork."""
    complete = {**NEW, "notes.txt": "mine"}
    found, calls = [], 0
    while True:
        target = folder / f"target{calls}"
        target.mkdir()
        write(target, OLD)
        died = write_and_die(target, calls)
        content = read(target)
        partial, new = content.pop(".partial", None), content.pop(".complete", None)
        if "config.json" not in content:
            found.append("none")
        else:
            assert content in (OLD, complete), f"killed before call {calls}"
            found.append("old" if content == OLD else "new")
        if not died:
            assert partial is None and new is None
            break
        finish_interrupted_write(target)  # the first step of the next command
        content = read(target)
        content.pop(".partial", None)
        assert content == (complete if new is not None or found[-1] == "new" else OLD), f"killed before call {calls}"
        with atomic_folder(target) as partial_folder:
            write(partial_folder, NEW)
        assert read(target) == complete
        calls += 1
    assert found == sorted(found, key=["old", "none", "new"].index) and set(found) == {"old", "none", "new"}


def test_atomic_folder_killed_again_while_completing_is_completed_by_the_next_call(tmp_path):
    errors = tmp_path / "errors"
    assert call_in_child(kill_twice, tmp_path, errors=errors) == 0, errors.read_text()
    assert (tmp_path / "3-0").exists()


def kill_twice(folder: Path) -> None:
    """Kills the process during the moves, and again at every system call of the process that completes them."""
    for first in range(3, 12):
        for second in range(8):
            target = folder / f"{first}-{second}"
            target.mkdir()
            write(target, OLD)
            write_and_die(target, first)
            if not (target / ".complete").exists():
                continue
            write_and_die(target, second)
            finish_interrupted_write(target)
            content = read(target)
            content.pop(".partial", None)
            assert content == {**NEW, "notes.txt": "mine"}, (first, second)


def test_publish_removes_config_json_first_and_moves_the_new_one_last(tmp_path, monkeypatch):
    write(tmp_path, OLD)
    log = []
    for name in ("replace", "unlink"):
        method = getattr(Path, name)

        def logged(self, *args, method=method, name=name, **kwargs):
            log.append((name, self.name))
            return method(self, *args, **kwargs)

        monkeypatch.setattr(Path, name, logged)
    with atomic_folder(tmp_path) as folder:
        write(folder, NEW)
    changes = [change for change in log if change[1] != ".manifest.json"]
    old_config = changes.index(("unlink", "config.json"))
    assert all(name in ("config.json", "adapter_config.json") for _, name in changes[: old_config + 1])
    assert changes[-1] == ("replace", "config.json") and ("replace", "model.safetensors") in changes


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), RuntimeError("writing failed")])
def test_atomic_folder_error_in_the_block_keeps_the_old_model(tmp_path, error):
    target = tmp_path / "model"
    target.mkdir()
    write(target, OLD)
    message = None if isinstance(error, KeyboardInterrupt) else rf"The model could not be saved to {target} .*GiB are free"
    with pytest.raises(KeyboardInterrupt if message is None else OSError, match=message), atomic_folder(target) as folder:
        write(folder, NEW)
        raise error
    assert read(target) == OLD


def test_publish_full_disk_names_the_folder_and_keeps_the_old_model(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path, OLD)
    monkeypatch.setattr(atomic, "flush", full)
    with pytest.raises(OSError, match=rf"could not be saved to {tmp_path} .*No space left"), atomic_folder(tmp_path) as folder:
        write(folder, NEW)
    assert read(tmp_path) == OLD


def test_atomic_folder_parent_is_a_file_raises_with_the_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"could not be saved to {tmp_path}/file/model"), atomic_folder(tmp_path / "file/model"):
        pass
