# SPDX-License-Identifier: Apache-2.0
"""Files on disks and in object storage, through fsspec: whole files are read, and written atomically."""

import os
import posixpath
import re
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec


# A put of these stores makes the whole object visible at its end, or nothing.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "r2", "memory"}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}")
_CONNECTIONS = 16  # for the headers of many files
_Result = TypeVar("_Result")


def is_url(path: str) -> bool:
    """Whether a path has a scheme, such as `s3://`."""
    return _URL.match(path) is not None


def read_file(path: str, max_bytes: int | None = None) -> bytes:
    """
    Reads a whole file.

    Args:
        path: of a file, or a URL that fsspec reads.
        max_bytes: larger files are refused; None for no limit.

    Raises:
        OSError, ValueError: naming the path, if it cannot be read or is too large.
    """
    with _naming(path):
        fs, name = fsspec.core.url_to_fs(path)
        if max_bytes is not None and (size := fs.size(name)) is not None and size > max_bytes:
            raise ValueError(f"{path} has {size} bytes, more than the limit of {max_bytes}.")
        return fs.cat_file(name)


class Folder:
    """
    A folder on a disk or in object storage.

    Args:
        path: of the folder, which may not exist yet, or a URL such as `s3://bucket/folder`.
    """

    def __init__(self, path: str):
        self.path = path
        with _naming(path):
            self.fs, self._root = fsspec.core.url_to_fs(path)
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        self.is_local = bool(protocols & {"file", "local"})
        self._is_object_store = bool(protocols & _OBJECT_STORES)

    @property
    def local_path(self) -> str:
        """Path of a folder on a disk."""
        return self._root

    def name(self, file: str) -> str:
        """Path or URL of a file of the folder, for messages."""
        return f"{self.path.rstrip('/')}/{file}"

    def read(self, file: str) -> bytes | None:
        """Content of a file; None if it does not exist."""
        with _naming(self.name(file)):
            try:
                return self.fs.cat_file(self._place(file))
            except FileNotFoundError:
                return None

    def open(self, file: str):
        """A file of the folder, open for reading at any position."""
        with _naming(self.name(file)):
            self.fs.invalidate_cache()  # of a folder that other processes write to
            return self.fs.open(self._place(file), "rb")

    def write(self, file: str, content: bytes) -> None:
        """
        Writes a whole file: others read the old content or the new one, also after a crash and if two processes write it.

        Object stores get a single put. On disks and other file systems, a temporary file is renamed.

        Raises:
            OSError: naming the file.
        """
        place = self._place(file)
        with _naming(self.name(file)):
            if self._is_object_store:
                self.fs.pipe_file(place, content)
                return
            folder, name = posixpath.split(place)
            temporary = f"{folder}/.{name}.{uuid.uuid4().hex}"
            self.fs.makedirs(folder, exist_ok=True)
            if self.is_local:
                self._write_local(temporary, place, content)
            else:
                self.fs.pipe_file(temporary, content)
                self.fs.mv(temporary, place)

    @staticmethod
    def _write_local(temporary: str, place: str, content: bytes) -> None:
        try:
            with open(temporary, "wb") as written:
                written.write(content)
                written.flush()
                os.fsync(written.fileno())
            os.replace(temporary, place)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def delete(self, file: str) -> None:
        """Deletes a file if it exists."""
        with _naming(self.name(file)):
            try:
                self.fs.rm_file(self._place(file))
            except FileNotFoundError:
                return

    def names(self, subfolder: str) -> list[str]:
        """Names of the files of a subfolder, sorted; empty if it does not exist. Temporary files of killed processes are left out."""
        with _naming(self.name(subfolder)):
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(self._place(subfolder), detail=False)
            except FileNotFoundError:
                return []
        return sorted(name for name in map(posixpath.basename, found) if name and not name.startswith("."))

    def delete_temporary(self, subfolder: str) -> None:
        """Deletes the temporary files of killed processes in a subfolder. Call it while no other process writes to it."""
        place = self._place(subfolder)
        if self._is_object_store or not self.fs.exists(place):
            return
        for found in self.fs.ls(place, detail=False):
            if _TEMPORARY.fullmatch(posixpath.basename(found)):
                self.fs.rm_file(found)

    def _place(self, file: str) -> str:
        return posixpath.join(self._root, file)


def in_parallel(function: Callable[[Any], _Result], values: Iterable) -> list[_Result]:
    """Calls a function that waits for storage for many values at a time. The results are in the order of the values."""
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return list(pool.map(function, values))


class _naming:
    """Context manager: errors of a file system name the path, and a missing package the way to install it."""

    def __init__(self, path: str):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, ImportError):
            raise ImportError(f"{self.path} needs a package of fsspec that is not installed: {error}") from error
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"No such file: {self.path}") from error
        if isinstance(error, OSError) and self.path not in str(error):
            raise OSError(f"{self.path}: {error or type(error).__name__}") from error
        if isinstance(error, ValueError) and self.path not in str(error):
            raise ValueError(f"{self.path}: {error}") from error
