# SPDX-License-Identifier: Apache-2.0
"""`llava_st_hf.draw`: annotated videos, contact sheets, labelled images and animated pictures of answers."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import PIL.Image
from transformers.utils import logging

from ..model.checks_llava_st import check_rate, is_finite_number
from ..model.downloads_llava_st import DownloadLimits
from ..model.image_processing_llava_st import channels_first, checked_pixels, float_scale, load_image
from ..model.media_files_llava_st import is_data_url, is_file_content, is_url
from ..model.media_kind_llava_st import media_kind
from ..model.results_llava_st import Grounding
from .boxes import import_supervision
from .colours import Colour
from .fonts import missing_glyphs_note, printable
from .images import draw_image
from .sheets import draw_sheet
from .tracks import Answer, Track, make_tracks, read_answers
from .videos import draw_animation, draw_video
from .writer import ENCODERS, atomic_output


logger = logging.get_logger(__name__)

PICTURES = (".png", ".jpg", ".jpeg")
ANIMATIONS = (".gif", ".webp")
MAX_SCALE = 16


def draw(
    medium,
    answer: Answer | Sequence[Answer],
    output: str | os.PathLike | None = None,
    *,
    names: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
    scale: float | None = None,
    fps: float | None = None,
    heading: str | None = None,
    download_limits: DownloadLimits | None = None,
) -> str | PIL.Image.Image:
    """
    Draws answers on their image or video. The suffix of `output` decides what is drawn:

    - .mp4, .mov, .mkv or .webm: the video with the boxes on every frame of each event, captions and a time bar; its size, frame times,
      sound and orientation are those of the original.
    - .png or .jpg: of a video a contact sheet with moments before, within and after each event and a timeline, of an image the image with
      labelled boxes and the text of the answer.
    - .gif or .webp: an animated picture of the events of a video.

    Args:
        medium: a path or URL, bytes, an open file, a PIL image, a folder of frames, an array or a list of frames: what the answer is about.
        answer: an answer of the pipeline, a [`Grounding`], or a list of several answers about the same medium, which are compared.
        output: path of the file to write. An existing file is replaced when the new one is complete.
        names: of the answers in labels, one for each.
        colours: (red, green, blue) from 0 to 255: one for each answer, or for the events of a single answer.
        scale: size of the result as a multiple of the original: by default 1 for videos, and a whole number for pictures of small images.
            Without it, frames of less than 120 pixels are annotated without text. Contact sheets have a size of their own.
        fps: frames per second, only for frames whose rate is unknown.
        heading: text above a contact sheet; by default the question of the answer, if it is known.
        download_limits: limits of a download; None for the default limits.

    Returns:
        The path of the file that was written; without `output`, the contact sheet or the labelled image. What could not be drawn or kept
        is logged as a warning.

    Raises:
        ValueError: naming the argument, if it is not valid, if the answer is about another image or video, or if the suffix is unknown.
        OSError: naming the file, if it cannot be read or written.
        ImportError: with the installation command, if supervision or matplotlib are not installed.
    """
    groundings = read_answers(answer)
    kinds = {grounding.media.kind for grounding in groundings}
    if len(kinds) > 1:
        raise ValueError(f"Answers to draw together must be about one medium; got answers about {' and '.join(sorted(kinds))}.")
    (kind,) = kinds
    path = None if output is None else _checked_output(Path(output), kind, medium)
    suffix = ".png" if path is None else path.suffix.lower()
    _check_options(kind, suffix, scale, fps, heading)
    if isinstance(medium, (str, os.PathLike)) and (found := media_kind(medium)) != kind:
        raise ValueError(f"{os.fspath(medium):.500} is {_article(found)}, but the answer is about {_article(kind)}.")
    tracks = make_tracks(groundings, names, colours)
    import_supervision()
    notes = _glyph_notes(groundings, tracks, names, heading)
    if suffix in ENCODERS and path is not None:
        notes += draw_video(medium, groundings, tracks, path, 1 if scale is None else scale, fps, download_limits)
    elif suffix in ANIMATIONS and path is not None:
        notes += draw_animation(medium, groundings, tracks, path, scale, fps, download_limits)
    else:
        if kind == "video":
            picture, more = draw_sheet(medium, groundings, tracks, heading, fps, download_limits)
        else:
            picture, more = draw_image(_read_image(medium, download_limits), groundings, tracks, scale)
        notes += more
        if path is not None:
            with atomic_output(path) as temporary:
                picture.save(temporary, quality=92)
    for note in notes:
        logger.warning(note)
    return picture if path is None else os.fspath(path)


def _check_options(kind: str, suffix: str, scale: float | None, fps: float | None, heading: str | None) -> None:
    if scale is not None and (not is_finite_number(scale) or not 0 < scale <= MAX_SCALE):
        raise ValueError(f"scale must be a number above 0 and at most {MAX_SCALE}, got {scale!r}.")
    is_sheet = kind == "video" and suffix in PICTURES
    if scale is not None and is_sheet:
        raise ValueError(f"scale={scale!r} cannot be given for a contact sheet, whose frames have a size of their own.")
    if heading is not None and not is_sheet:
        raise ValueError(f"heading={heading!r:.100} can only be given for a contact sheet, the .png or .jpg of a video.")
    if fps is not None:
        check_rate(fps, "fps")
        if kind == "image":
            raise ValueError(f"fps={fps!r} cannot be given for an image.")


def _checked_output(output: Path, kind: str, medium) -> Path:
    suffix = output.suffix.lower()
    allowed = PICTURES if kind == "image" else (*ENCODERS, *PICTURES, *ANIMATIONS)
    if suffix not in allowed:
        raise ValueError(f"output={os.fspath(output)!r} must end with {', '.join(allowed)} for an answer about {_article(kind)}.")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {output.parent} (for output={os.fspath(output)!r})")
    if output.is_dir():
        raise IsADirectoryError(f"output={os.fspath(output)!r} is a folder, not a file")
    source = getattr(medium, "name", None) if is_file_content(medium) else medium
    if isinstance(source, (str, os.PathLike)) and not is_url(source) and not is_data_url(source) and _is_same_file(source, output):
        raise ValueError(f"output={os.fspath(output)!r} is the medium itself, which would be replaced; give another path.")
    return output


def _is_same_file(source: str | os.PathLike, output: Path) -> bool:
    """Whether two paths are of the same existing file. `file://` URLs are paths."""
    path = url2pathname(urlsplit(os.fspath(source)).path) if str(source)[:7].lower() == "file://" else source
    return output.exists() and os.path.exists(path) and os.path.samefile(path, output)


def _article(kind: str) -> str:
    return "an image" if kind == "image" else "a video"


def _read_image(medium, download_limits: DownloadLimits | None) -> PIL.Image.Image:
    if isinstance(medium, (PIL.Image.Image, str, os.PathLike)) or is_file_content(medium):
        return load_image(medium, download_limits)
    pixels = channels_first(medium[None], None)  # (1, channels, height, width)
    pixels = checked_pixels(pixels, True, float_scale([pixels], None, 1 / 255)).round().byte()
    return PIL.Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())


def _glyph_notes(groundings: Sequence[Grounding], tracks: Sequence[Track], names: Sequence[str] | None, heading: str | None) -> list[str]:
    """A note about the characters of all texts to draw that no font has."""
    texts = [*(names or ()), *filter(None, [heading]), *(track.grounding.label(track.event) or "" for track in tracks)]
    texts += [grounding.query or "" if grounding.is_video else grounding.text for grounding in groundings]
    missing = "".join(dict.fromkeys("".join(printable(str(text))[1] for text in texts)))
    return [missing_glyphs_note(missing)] if missing else []
