# SPDX-License-Identifier: Apache-2.0
"""Answers with the properties that file formats get wrong: used by `test_exports.py` and `read_exports.py`."""

from dataclasses import replace

from llava_st_hf import Box, Event, Grounding, MediaInfo


#: Markup, quotes, separators and an end of line, which JSON, XML, CSV and subtitles write in different ways.
ODD_CAPTION = 'Ein "Äffchen" <b>& 猴子</b> --> rennt,\n{\\an8} ]]> 🐒'
CAPTION = "a red ball rolls"
VIDEO = MediaInfo("video", 640, 480, fps=25.0, last_frame=99, total_num_frames=100, duration=4.0)
IMAGE = MediaInfo("image", 300, 200)


def box_at(frame: int, left: float, media: MediaInfo = VIDEO, top: float = 100.0, **values) -> Box:
    """A box of 60x40 pixels."""
    return Box(left, top, left + 60, top + 40, time=media.seconds_of_frame(frame), frame=frame, **values)


def event_at(frames: tuple[int, ...], caption: str | None = CAPTION, media: MediaInfo = VIDEO, top: float = 100.0, **values) -> Event:
    """An event from the first to the last of `frames`, with a box in each that moves by one pixel per frame."""
    start, end = media.seconds_of_frame(frames[0]), media.seconds_of_frame(frames[-1])
    return Event(caption, start, end, tuple(box_at(frame, float(frame), media, top) for frame in frames), **values)


def answer(*events: Event, media: MediaInfo = VIDEO, source: str | None = "videos/clip.mp4", **values) -> Grounding:
    return Grounding(events=events, media=media, source=source, **values)


def several_events(**values) -> Grounding:
    """Events with the same caption, of one frame, with odd characters, beyond the edges of the frame and without boxes."""
    wide = Event("wide", 0.4, 0.8, (Box(-10.0, 400.0, 50.0, 500.0, time=0.4, frame=10), Box(600.0, 0.0, 700.0, 50.0, time=0.8, frame=20)))
    return answer(
        event_at((10, 20, 30), score=0.75, span_score=0.5),
        event_at((20, 40), top=300.0),
        event_at((50,), "one moment"),
        event_at((60, 99), ODD_CAPTION),
        wide,
        Event("no boxes", 2.0, 3.0),
        **values,
    )


def two_videos() -> list[Grounding]:
    clip = replace(VIDEO, first_frame=25, last_frame=74)
    return [several_events(), answer(event_at((30, 50), "elsewhere"), media=clip, source="videos/more/other.mp4")]


def image_answer(**values) -> Grounding:
    boxes = (Box(10.0, 20.0, 110.0, 70.0, score=0.9), Box(250.0, 150.0, 320.0, 190.0, score=0.4))
    events = (Event(ODD_CAPTION, boxes=boxes[:1]), Event("a cat", boxes=boxes[1:]), Event("a cat", boxes=(Box(0.0, 0.0, 20.0, 20.0),)))
    return answer(*events, media=IMAGE, source="images/a photo.png", **values)
