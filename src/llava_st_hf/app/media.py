# SPDX-License-Identifier: Apache-2.0
"""Files of the page: what may be uploaded, copies that browsers play, and the examples."""

import io
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from ..model.image_files_llava_st import load_image
from ..model.video_index_llava_st import open_container
from ..model.video_reading_llava_st import read_video
from ..shapes.files import write_image, write_video
from ..shapes.questions import happening, name_of
from ..shapes.scenes import make_scene, scene_seed
from .limits import Limits
from .visits import Medium


_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".gif")
_VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp")
#: Suffixes of files that may be uploaded.
SUFFIXES = _IMAGES + _VIDEOS
# What all current browsers play.
_CONTAINERS = {".mp4", ".m4v", ".mov", ".webm"}
_CODECS = {"h264": ("yuv420p", "yuvj420p"), "vp8": ("yuv420p",), "vp9": ("yuv420p",), "av1": ("yuv420p",)}
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
_PREVIEW_SIDE = 960  # pixels of the longer side of a copy for the browser
_TICKS = 90_000  # per second in the copy
# Scenes of the test split of the Shapes dataset: kind and number.
_EXAMPLES = (("video", 1), ("video", 2), ("video", 9), ("image", 3), ("image", 5))
_POSTER_SIDE = 168  # pixels


def checked_suffix(name: str) -> str:
    """
    The suffix of the name of an uploaded file.

    Raises:
        ValueError: if it is not one of `SUFFIXES`.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{name[-80:]} is not a kind of file that can be uploaded: {', '.join(SUFFIXES)}.")
    return suffix


def receive(path: Path, name: str, limits: Limits, side_folder: Path) -> Medium:
    """
    Checks an uploaded file, and makes a copy for the browser where it needs one.

    Args:
        path: of the file.
        name: of the file on the visitor's computer.
        side_folder: of the copy.

    Raises:
        ValueError, OSError: for visitors, naming what is wrong.
    """
    info = limits.read_medium(str(path), name)
    shown = path
    if info.kind == "image" and path.suffix not in _PICTURES:
        shown = side_folder / f"{path.stem}-shown.png"
        load_image(str(path)).convert("RGB").save(shown)
    elif info.kind == "video" and not is_playable(path):
        shown = side_folder / f"{path.stem}-shown.mp4"
        write_preview(path, shown)
    return Medium(path, shown, name, info)


def is_playable(path: Path) -> bool:
    """Whether browsers play a video file, from its container and codec."""
    if path.suffix not in _CONTAINERS:
        return False
    with open_container(str(path)) as container:
        codec = container.streams.video[0].codec_context
        return codec.pix_fmt in _CODECS.get(codec.name, ())


def write_preview(path: Path, output: Path) -> None:
    """Writes a copy of a video as H.264 in MP4, upright, without sound, at most 960 pixels long, with the same frame times."""
    read_video(str(path), lambda reader: _write_preview(reader, output))


def _write_preview(reader, output: Path) -> None:
    metadata = reader.metadata
    rate = Fraction(metadata.fps).limit_denominator(1000)
    with av.open(str(output), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, _TICKS)
        number, last = 0, -1
        for chunk in reader.chunks(list(range(metadata.total_num_frames))):
            for pixels in chunk.numpy():  # (height, width, 3) uint8
                image = Image.fromarray(pixels)
                image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
                if number == 0:
                    stream.width, stream.height = (max(side // 2 * 2, 2) for side in image.size)
                frame = av.VideoFrame.from_image(image.resize((stream.width, stream.height)))
                frame.pts = last = max(round(metadata.seconds(number) * _TICKS), last + 1)
                frame.time_base = stream.codec_context.time_base
                target.mux(stream.encode(frame))
                number += 1
        target.mux(stream.encode())


def write_examples(folder: Path, limits: Limits) -> dict[str, tuple[Medium, str]]:
    """
    Writes images and videos of the Shapes dataset.

    Returns:
        Name → (medium, title). A poster of each, a JPEG file, has the suffix `.poster.jpg`.
    """
    folder.mkdir(parents=True)
    found = {}
    for kind, number in _EXAMPLES:
        scene = make_scene(scene_seed("test", number), is_video=kind == "video")
        path = folder / f"{kind}-{number}{'.mp4' if kind == 'video' else '.jpg'}"
        (write_video if kind == "video" else write_image)(scene, path)
        title = name_of(scene, 0) if kind == "image" else f"“{happening(scene, scene.events[0])}”"
        _write_poster(path)
        medium = Medium(path, path, path.name, limits.read_medium(str(path), path.name), example=path.stem)
        found[path.stem] = (medium, title)
    return found


def _write_poster(path: Path) -> None:
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            image = next(container.decode(video=0)).to_image()
    else:
        image = load_image(str(path))
    image.thumbnail((_POSTER_SIDE, _POSTER_SIDE))
    content = io.BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=85)
    path.with_suffix(".poster.jpg").write_bytes(content.getvalue())


__all__ = ["SUFFIXES", "checked_suffix", "is_playable", "receive", "write_examples", "write_preview"]
