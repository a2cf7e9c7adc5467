# SPDX-License-Identifier: Apache-2.0
"""Paths of annotations, kept inside the data folder."""

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from .schemas import LONE_SURROGATE


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # a URL, a `data:` URI or a Windows drive


def join_path(data_folder: str | os.PathLike, path) -> str:
    """
    The absolute path of an image or video, from the data folder of the user and the path of an annotation.

    Annotation files come from others, so they may name files inside the folder only. The check is of the characters and does not
    access the disk: links that the user made inside the folder are followed, wherever they lead.

    Args:
        data_folder: the user's own folder, anywhere.
        path: as the annotation has it. A backslash is checked as the separator that it is on some systems.

    Raises:
        ValueError: naming the path, where it is not a string, is blank, absolute or a URL, has a NUL character, a lone surrogate or a
            `..`, or names the folder itself.
    """
    if not isinstance(path, str):
        raise ValueError(f"The path {path!r:.200} must be a string.")
    if not path.strip():
        raise ValueError(f"The path {path!r} is empty.")
    if "\0" in path:
        raise ValueError(f"The path {path!r:.200} has a NUL character.")
    if LONE_SURROGATE.search(path):
        raise ValueError(f"The path {path!r:.200} has a lone surrogate, which UTF-8 cannot encode.")
    if _SCHEME.match(path):
        raise ValueError(f"The path {path!r:.200} is a URL or names a drive; a path inside the data folder is needed.")
    windows = PureWindowsPath(path)
    if PurePosixPath(path).is_absolute() or windows.root:
        raise ValueError(f"The path {path!r:.200} is absolute; a path inside the data folder is needed.")
    if ".." in windows.parts:  # Windows' reading splits at both kinds of slash
        raise ValueError(f"The path {path!r:.200} has a '..', which could leave the data folder.")
    if not windows.parts:
        raise ValueError(f"The path {path!r:.200} names the data folder itself, not a file in it.")
    return os.path.join(Path(data_folder).absolute(), path)
