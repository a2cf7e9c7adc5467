# SPDX-License-Identifier: Apache-2.0
"""Subtitles with the spans of events: WebVTT (https://www.w3.org/TR/webvtt1/) and SubRip, `.srt`
(https://www.matroska.org/technical/subtitles.html#srt-subtitles).

- A cue per event, in the order of start times; its text is the caption, else the query, in one line. Times are in seconds from the start
  of the container, which is what players count, for clips and variable rates as well.
- A cue needs a length: an event without one is displayed for the duration of one frame, and noted.
- WebVTT: `&`, `<` and `>` are escaped. SRT has no escapes, and players read `<…>` and `{\\…}` as markup: `<` and `>` are written as ‹ and
  ›, `{\\` as `{ \\`, and noted.

Not in the file: boxes, scores, events without a span; the name of the video.
"""

from collections.abc import Callable
from pathlib import Path

from ..files import write_file
from ..model.results_llava_st import Grounding
from .tracks import Track, one_video, read_tracks, report_missing


_SRT_REPLACEMENTS = {"<": "‹", ">": "›", "{\\": "{ \\"}
# Duration of a frame where the rate is unknown.
_SHORTEST = 0.04


def write_webvtt(answers: list[Grounding], path: Path) -> list[str]:
    """Writes the file. Returns notes about what was left out or changed."""
    notes, cues = _cues(answers, "webvtt", _escape)
    blocks = [f"{track.number}\n{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n" for track, start, end, text in cues]
    write_file(path, "\n".join(["WEBVTT\n", *blocks]))
    return notes


def write_srt(answers: list[Grounding], path: Path) -> list[str]:
    """Writes the file. Returns notes about what was left out or changed."""
    notes, cues = _cues(answers, "srt", _without_markup)
    changed = sum(text != track.label for track, _, _, text in cues)
    if changed:
        notes.append(f"{changed} texts contain < > or {{\\, which players read as markup: they are written as ‹ › and {{ \\.")
    blocks = [f"{n}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n" for n, (_, start, end, text) in enumerate(cues, start=1)]
    write_file(path, "\n".join(blocks))
    return notes


def _cues(answers: list[Grounding], format: str, text_of: Callable[[str], str]) -> tuple[list[str], list[tuple[Track, float, float, str]]]:
    media = one_video(answers, format)
    tracks = read_tracks(answers)
    notes: list[str] = []
    cues = []
    for track in tracks:
        if (span := track.event.span) is None:
            reason = "the frame rate of the video is unknown" if media.fps is None and media.frame_times is None else "it has no span"
            notes.append(f"{track.name} was left out: {reason}.")
            continue
        start, end = max(span.start, 0.0), span.end
        if round(1000 * end) <= round(1000 * start):
            end = start + (1 / media.fps if media.fps else _SHORTEST)
            notes.append(f"{track.name} has no length: its cue lasts {end - start:.3f} s.")
        cues.append((track, start, end, text_of(track.label)))
    if tracks and not cues:
        raise ValueError(f"There are no spans for subtitles: {' '.join(notes)}")
    report_missing(tracks, ("boxes", "scores", "presence"), format, notes)
    return notes, sorted(cues, key=lambda cue: (cue[1], cue[2]))


def _clock(seconds: float, point: str) -> str:
    """`HH:MM:SS.mmm`."""
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _without_markup(text: str) -> str:
    for found, replacement in _SRT_REPLACEMENTS.items():
        text = text.replace(found, replacement)
    return text
