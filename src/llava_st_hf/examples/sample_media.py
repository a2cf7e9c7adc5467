# SPDX-License-Identifier: Apache-2.0
"""Writes a synthetic video and image that the demo model understands: `python -m llava_st_hf.examples.sample_media [FOLDER]`."""

import os
import sys
from pathlib import Path

from ..shapes.files import write_image, write_video
from ..shapes.scenes import make_scene, scene_seed


_VIDEO, _IMAGE = 9, 3  # scenes of the test split of the Shapes dataset


def write_sample_media(folder: str | os.PathLike = ".") -> tuple[Path, Path]:
    """
    Writes `clip.mp4`, in which a small green circle appears and a small blue circle moves right, and `photo.jpg`, with a large yellow
    cross and a small yellow triangle.

    Args:
        folder: existing folder.

    Returns:
        `(video, image)`, their paths.

    Raises:
        FileExistsError: if one of the files exists; none is overwritten.
    """
    video, image = Path(folder) / "clip.mp4", Path(folder) / "photo.jpg"
    for path in (video, image):
        if path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten. Choose another folder.")
    write_video(make_scene(scene_seed("test", _VIDEO), is_video=True), video)
    write_image(make_scene(scene_seed("test", _IMAGE), is_video=False), image)
    return video, image


if __name__ == "__main__":
    try:
        print(*write_sample_media(*sys.argv[1:2]), sep="\n")
    except OSError as error:
        sys.exit(f"error: {error}")
