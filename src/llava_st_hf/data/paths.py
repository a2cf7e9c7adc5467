# SPDX-License-Identifier: Apache-2.0
"""Paths that stand in annotations, kept inside the folder of the media."""

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # a URL, a `data:` URI or a Windows drive


def join_path(data_folder: str | os.PathLike, path) -> str:
    """
    The absolute path of a medium, from the folder that the user named and the path that an annotation gives.

    An annotation file comes from somewhere, so it may name files in the folder and nothing else. The check is of the letters
    alone and does not look at the disk: links that the user made inside the folder are followed, wherever they lead.

    Args:
        data_folder: the user's own folder; it may lie anywhere.
        path: as it stands in the annotation. A backslash is checked as the separator that it is on some systems.

    Raises:
        ValueError: naming the path, where it is no string, blank, absolute, a URL, has a NUL character or a `..`, or names the
            folder itself.
    """
    if not isinstance(path, str):
        raise ValueError(f"The path {path!r:.200} must be a string.")
    if not path.strip():
        raise ValueError(f"The path {path!r} is empty.")
    if "\0" in path:
        raise ValueError(f"The path {path!r} has a NUL character.")
    if _SCHEME.match(path):
        raise ValueError(f"The path {path!r:.200} is a URL or names a drive; a path inside the data folder is needed.")
    windows = PureWindowsPath(path)
    if PurePosixPath(path).is_absolute() or windows.root:
        raise ValueError(f"The path {path!r:.200} is absolute; a path inside the data folder is needed.")
    if ".." in windows.parts:  # Windows' reading splits at both kinds of slash
        raise ValueError(f"The path {path!r:.200} has a '..', which could leave the data folder.")
    if not windows.parts:
        raise ValueError(f"The path {path!r:.200} names the data folder itself and no file.")
    return os.path.join(Path(data_folder).absolute(), path)
