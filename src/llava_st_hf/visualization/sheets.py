# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: moments before, within and after each event of a video, above a timeline."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image

from ..model.downloads_llava_st import DownloadLimits
from ..model.results_llava_st import Grounding
from .colours import INK, RAIL, Colour, readable_on
from .frames import VideoFrames, open_frames
from .layout import CAPTION_SIZE, add_caption, one_above_another, resized, side_by_side
from .painter import FramePainter, clock_text
from .text import paragraph
from .timeline import draw_spans
from .tracks import Track
from .videos import NO_EVENTS


# Frames of a sheet of one event, and of each event if there are several, and the events with frames of their own.
_FRAMES_OF_ONE, _FRAMES_OF_EACH, _EVENTS = 8, 6, 8
# Of a sheet of one event, and of several: columns, width and height of a frame at most, width of lines and size of the font in pixels.
_ONE, _SEVERAL = (4, (300, 400), (3, CAPTION_SIZE)), (6, (200, 280), (2, 11))
# Frames before and after an event are this fraction of its duration away from it.
_DISTANCE = 0.3


@dataclass(frozen=True)
class Moment:
    """A frame of a contact sheet, and whether it is "before", "within" or "after" its event; None without events."""

    frame: int
    place: str | None


def moments(frames: range, first: int, last: int, count: int) -> list[Moment]:
    """
    Frames that show an event: one before and one after it, where the clip has them, and all others within it, the first and last included.

    Args:
        frames: of the event.
        first, last: frames of the clip.
        count: of the frames; fewer if the event has fewer.
    """
    distance = max(1, round(_DISTANCE * len(frames)))
    before = [Moment(max(first, frames[0] - distance), "before")] if frames[0] > first else []
    after = [Moment(min(last, frames[-1] + distance), "after")] if frames[-1] < last else []
    chosen = np.linspace(frames[0], frames[-1], max(count - len(before) - len(after), 1)).round().astype(int)
    return [*before, *(Moment(int(frame), "within") for frame in sorted(set(chosen.tolist()))), *after]


def draw_sheet(
    medium,
    groundings: Sequence[Grounding],
    tracks: Sequence[Track],
    heading: str | None = None,
    fps: float | None = None,
    download_limits: DownloadLimits | None = None,
) -> tuple[PIL.Image.Image, list[str]]:
    """
    Draws a contact sheet of a video.

    With one answer, each event has frames; with several answers, each event of the first one that has any, with the boxes of all answers.

    Args:
        heading: text above the frames; None for the first question of the answers that is known.
        medium, groundings, tracks, fps, download_limits: see `draw_video`. Without `fps` and with an unknown rate, times are frame indices.

    Returns:
        The picture, and notes on what of the answers is not in it.
    """

    def draw(frames: VideoFrames) -> tuple[PIL.Image.Image, list[str]]:
        notes = [] if tracks else [NO_EVENTS]
        rows = _rows(frames, tracks, notes)
        wanted = sorted({moment.frame for _, row in rows for moment in row})
        columns, cell, sizes = _ONE if len(rows) == 1 else _SEVERAL
        scale = min(cell[0] / frames.width, cell[1] / frames.height)
        width, height = (max(1, round(side * scale)) for side in (frames.width, frames.height))
        painter = FramePainter(tracks, width, height, scale, frames.bounds, frames.num_frames, sizes)
        images = {}
        for number, pixels in zip(wanted, frames.pixels(wanted), strict=True):
            drawn = np.array(resized(PIL.Image.fromarray(pixels), scale).resize((width, height)))
            painter.paint_boxes(drawn, number)
            images[number] = PIL.Image.fromarray(drawn)
        lines = []
        for track, row in rows:
            cells = [_cell(images[moment.frame], moment, track, frames) for moment in row]
            lines += [side_by_side(cells[start : start + columns]) for start in range(0, len(cells), columns)]
        whole = one_above_another(lines, gap=8)
        parts = [whole]
        if tracks:
            if frames.bounds is not None:
                axis, marks, unit = frames.bounds, [frames.exact_seconds(frame) for frame in wanted], "s"
            else:
                axis, marks, unit = (0.0, frames.num_frames - 1.0), [float(frame) for frame in wanted], "frame"
            parts.append(draw_spans(tracks, axis, max(whole.width, 480), marks if len(rows) == 1 else (), unit))
        sheet = one_above_another(parts, gap=8)
        queries = (grounding.query for grounding in groundings if grounding.query)
        text = next(queries, None) if heading is None else heading
        return (add_caption(sheet, text) if text else sheet), [*notes, *painter.notes]

    return open_frames(medium, groundings, draw, fps, download_limits)


def _rows(frames: VideoFrames, tracks: Sequence[Track], notes: list[str]) -> list[tuple[Track | None, list[Moment]]]:
    """The moments of each event that has frames of its own, or evenly spaced ones of the clip if there is none."""
    first, last = frames.media.first_frame, min(frames.media.last_frame, frames.num_frames - 1)
    shown = [track for track in tracks if len(track.frames)]
    shown = [track for track in shown if track.grounding is shown[0].grounding]
    if not shown:
        even = np.linspace(first, last, min(_FRAMES_OF_ONE, last - first + 1)).round().astype(int)
        return [(None, [Moment(int(frame), None) for frame in even])]
    if len(shown) > _EVENTS:
        notes.append(f"The sheet has frames of the first {_EVENTS} events; the answer has {len(shown)}.")
    count = _FRAMES_OF_ONE if len(shown) == 1 else _FRAMES_OF_EACH
    return [(track, moments(track.frames, first, last, count)) for track in shown[:_EVENTS]]


def _cell(image: PIL.Image.Image, moment: Moment, track: Track | None, frames: VideoFrames) -> PIL.Image.Image:
    """A frame below its time, on the colour of the event if it is within it."""
    seconds = frames.seconds(moment.frame)
    number = f"#{track.number} · " if track is not None and track.number is not None else ""
    colour: Colour = track.colour if track is not None and moment.place == "within" else RAIL
    place = moment.place if moment.place in ("before", "after") else None
    time = " · ".join(filter(None, [None if seconds is None else clock_text(seconds), place or f"frame {moment.frame}"]))
    ink = readable_on(colour) if moment.place == "within" else INK
    lines = paragraph([(f"{number}{time}", None)], CAPTION_SIZE, image.width, 1, colour, ink)
    return one_above_another([PIL.Image.fromarray(lines), image], gap=0)
