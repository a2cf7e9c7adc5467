# SPDX-License-Identifier: Apache-2.0
"""Images and videos on the command line: paths, folders, patterns and URLs → one path or URL for each input."""

import glob
import mimetypes
import os


# Suffixes of video files, for folders. Single files are recognized by their content.
VIDEO_SUFFIXES = {
    ".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv",
    ".rmvb", ".ts", ".vob", ".webm", ".wmv",
}  # fmt: skip


def expand_media(given: list[str]) -> tuple[list[str], bool]:
    """
    Converts the arguments to inputs.

    An argument is a file, a URL, a folder or a pattern such as `videos/*.mp4`, where `**` matches folders at any depth. A folder that has
    video files stands for each of them, one that has image files for one video, whose frames they are. Subfolders and other files of a
    folder of videos are left out. Files of a folder or pattern are in the order of their names.

    Returns:
        `(inputs, several)`: paths and URLs, and whether the arguments can stand for more than one input.

    Raises:
        ValueError, OSError: naming an argument that matches nothing, and a folder with both videos and images or with neither.
    """
    inputs: list[str] = []
    several = len(given) > 1
    for argument in given:
        if is_url(argument) or os.path.isfile(argument):
            inputs.append(argument)
        elif os.path.isdir(argument):
            found = _folder(argument)
            several = several or found != [argument]
            inputs += found
        elif not os.path.exists(argument) and glob.has_magic(argument):
            several = True
            matches = sorted(glob.glob(argument, recursive=True))
            # Folders are inputs only of patterns that match no files: `videos/**` matches the folders themselves, too.
            files = [path for path in matches if not os.path.isdir(path)] or [path for folder in matches for path in _folder(folder)]
            if not files:
                raise FileNotFoundError(f"No file matches the pattern {argument[:500]}.")
            inputs += files
        elif os.path.exists(argument):
            inputs.append(argument)  # a pipe or device, which the reader refuses
        else:
            raise FileNotFoundError(f"No such file or folder: {argument[:500]}")
    return inputs, several


def is_url(argument: str) -> bool:
    return "://" in argument or argument[:5].lower() == "data:"


def _folder(path: str) -> list[str]:
    """The videos in a folder, or the folder itself if its images are the frames of a video."""
    names = sorted(name for name in os.listdir(path) if not name.startswith(".") and os.path.isfile(os.path.join(path, name)))
    videos = [name for name in names if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES]
    images = [name for name in names if name not in videos and _is_image(name)]
    if videos and images:
        raise ValueError(
            f"The folder {path} has both videos ({videos[0]}) and images ({images[0]}): its images may be frames of a video or not. Give "
            f"the files by a pattern, such as '{os.path.join(path, '*' + os.path.splitext(videos[0])[1])}'."
        )
    if not videos and not images:
        raise FileNotFoundError(f"The folder {path} has neither video files nor image files.")
    return [os.path.join(path, name) for name in videos] or [path]


def _is_image(name: str) -> bool:
    kind = mimetypes.guess_type(name, strict=False)[0] or ""
    return kind.startswith("image/") or name.lower().endswith(".apng")
