# SPDX-License-Identifier: Apache-2.0
"""Annotation of one frame of a video: boxes, labels, captions of the current events, and a time bar."""

from collections.abc import Sequence

import numpy as np

from .boxes import Rectangle, draw_labelled
from .colours import BLACK, SMALLEST_WITH_TEXT, WHITE, Colour, font_size_for, line_width_for
from .text import blend, paragraph, text_mask, text_width
from .tracks import Track, scaled


# The frame behind the time bar is darkened by this many halvings.
_DARKER = 2
# A caption is drawn at the box if it needs at most this fraction of the width of the frame, else at the top.
_LABEL_WIDTH = 0.35
# The captions of the current events take at most this many lines each, and this fraction of the height of the frame.
_CAPTION_LINES, _CAPTION_HEIGHT = 2, 0.3
_GREY: Colour = (120, 120, 120)


def clock_text(seconds: float) -> str:
    """Seconds as text: "7.5 s", "1:07.5", "1:01:07"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds, 1), 60)
    if minutes < 60:
        return f"{int(minutes)}:{rest:04.1f}"
    return f"{int(minutes) // 60}:{int(minutes) % 60:02d}:{int(rest):02d}"


def span_rows(intervals: Sequence[tuple[float, float]]) -> list[int]:
    """The row of each interval, from 0: the first whose intervals end before it starts, so that none overlap within a row."""
    ends: list[float] = []
    rows = [0] * len(intervals)
    for index in sorted(range(len(intervals)), key=lambda index: intervals[index]):
        start, end = intervals[index]
        row = next((row for row, last in enumerate(ends) if last < start), len(ends))
        ends[row : row + 1] = [end]
        rows[index] = row
    return rows


class FramePainter:
    """
    Draws the events of answers on the frames of a video.

    Args:
        tracks: events.
        width, height: of the drawn frames, in pixels.
        scale: their size as a multiple of that of the video.
        bounds: seconds at which the first frame is displayed and at which the last one ends; None if the times are unknown, then the time
            bar has frame indices.
        num_frames: of the video.
        sizes: width of lines and size of the font in pixels; None for those that fit the frame, without text on frames that are too small.

    Attributes:
        notes: what was not drawn, without repetitions.
    """

    def __init__(
        self,
        tracks: Sequence[Track],
        width: int,
        height: int,
        scale: float,
        bounds: tuple[float, float] | None,
        num_frames: int,
        sizes: tuple[int, int] | None = None,
    ):
        self.tracks, self.width, self.height, self.scale = tracks, width, height, scale
        self.line_width, self.font_size = sizes or (line_width_for(width, height), font_size_for(width, height))
        self.has_text = sizes is not None or min(width, height) >= SMALLEST_WITH_TEXT
        self.bounds, self.num_frames = bounds, num_frames
        self._notes: dict[str, None] = {}
        if tracks and not self.has_text:
            self._note(
                f"Frames of {width}x{height} pixels have no room for text: captions and times are left out. Draw with a larger scale "
                f"(scale={-(-SMALLEST_WITH_TEXT // min(width, height)) * max(scale, 1):g})."
            )
        fits = (text_width(track.label(with_text=True) or "", self.font_size) <= _LABEL_WIDTH * width for track in tracks)
        self._has_caption_at_box = [track.text is not None and is_short for track, is_short in zip(tracks, fits, strict=True)]
        self._captions: dict[tuple[int, ...], np.ndarray] = {}
        self._rails_top = 0  # first row of the rails in the time bar
        self._bar = self._time_bar() if tracks else None

    @property
    def notes(self) -> list[str]:
        return list(self._notes)

    def _note(self, text: str) -> None:
        self._notes.setdefault(text)

    def paint(self, pixels: np.ndarray, frame: int, seconds: float | None) -> None:
        """
        Draws on a frame in place.

        Args:
            pixels: (height, width, 3) uint8.
            frame: its index in the file.
            seconds: at which it is displayed; None if unknown.
        """
        if not self.tracks:
            return
        occupied: list[Rectangle] = []
        bar_top = self.height if self._bar is None else self.height - len(self._bar[0])
        if self._bar is not None:
            self._paint_bar(pixels, bar_top, frame, seconds)
            occupied.append((0, bar_top, self.width, self.height))
        self.paint_boxes(pixels, frame, occupied, has_captions=True)

    def paint_boxes(self, pixels: np.ndarray, frame: int, occupied: Sequence[Rectangle] = (), has_captions: bool = False) -> None:
        """
        Draws the boxes of a frame with labels in place.

        Args:
            pixels, frame: see `paint`.
            occupied: rectangles that labels may not cover.
            has_captions: whether captions are drawn: short ones at the boxes, others at the top. Without them, labels are names, numbers
                and scores.
        """
        active = [index for index, track in enumerate(self.tracks) if frame in track.frames]
        boxes, captioned, taken = [], [], list(occupied)
        for index in active:
            track, box = self.tracks[index], self.tracks[index].box_at(frame)
            size = (track.grounding.media.width, track.grounding.media.height)
            if box is not None and (box.xmax < 0 or box.ymax < 0 or box.xmin > size[0] or box.ymin > size[1]):
                self._note(f"The box {list(box.xyxy)} of frame {frame} is outside the frame; it is not drawn.")
                box = None
            if box is not None:
                with_text = has_captions and self._has_caption_at_box[index]
                boxes.append(scaled(box, track, self.scale, size, self.has_text, with_text))
            if track.title and (box is None or not self._has_caption_at_box[index]):
                captioned.append(index)
        caption = self._caption(tuple(captioned)) if captioned and self.has_text and has_captions else None
        if caption is not None:
            taken.append((0, 0, self.width, len(caption)))
        for box in draw_labelled(pixels, boxes, self.line_width, self.font_size, taken):
            self._note(f"There is no room for the label {box.label!r} in frame {frame} without covering another one.")
        if caption is not None:
            pixels[: len(caption)] = (pixels[: len(caption)].astype(np.uint16) + 3 * caption.astype(np.uint16)) // 4

    def _caption(self, active: tuple[int, ...]) -> np.ndarray:
        """Captions of events as pixels (height, width, 3), as many as there is room for."""
        if active not in self._captions:
            if len(self._captions) > 64:
                self._captions.clear()
            blocks: list[np.ndarray] = []
            room = int(_CAPTION_HEIGHT * self.height)
            for index in active:
                track = self.tracks[index]
                stripe = max(2, self.font_size // 3)  # of the colour of the event, at the left
                text = paragraph([(track.title, None)], self.font_size, self.width - stripe, _CAPTION_LINES, BLACK, WHITE)
                block = np.empty((len(text), self.width, 3), np.uint8)
                block[:, :stripe], block[:, stripe:] = track.colour, text
                room -= len(block)
                if room < 0 and blocks:
                    self._note("There is no room for the captions of all events that take place at the same time.")
                    break
                blocks.append(block)
            self._captions[active] = np.concatenate(blocks)
        return self._captions[active]

    # Time bar

    def _position(self, track: Track) -> tuple[float, float] | None:
        """Start and end of an event as fractions of the video; None if it has none."""
        if self.bounds is not None and track.span is not None:
            start, end = self.bounds
            low, high = ((time - start) / max(end - start, 1e-9) for time in (track.span.start, track.span.end))
        elif len(track.frames):
            low, high = track.frames[0] / self.num_frames, (track.frames[-1] + 1) / self.num_frames
        else:
            return None
        return min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)

    def _time_bar(self) -> tuple[np.ndarray, int, int]:
        """The bar without the position mark, (height, width, 3), and the first and last column of the video in it."""
        spans = [(position, track) for track in self.tracks if (position := self._position(track)) is not None]
        groups: dict[str | None, list] = {}
        for item in spans:  # the events of each answer are in rows of their own
            groups.setdefault(item[1].name, []).append(item)
        placed, count = [], 0
        for items in groups.values():
            rows = span_rows([position for position, _ in items])
            placed += [(count + row, *item) for row, item in zip(rows, items, strict=True)]
            count += max(rows) + 1
        padding = max(1, self.font_size // 3) if self.has_text else 1
        row_height = max(2, min(round(0.75 * self.font_size if self.has_text else 3), round(0.25 * self.height / max(count, 1))))
        rows_height = max(count, 1) * row_height
        height = min(max(rows_height, round(1.4 * self.font_size) if self.has_text else 0) + 2 * padding, self.height)
        left = 2 * padding
        right = self.width - 1 - left - (self._clock_width() + padding if self.has_text else 0)
        rows_height = min(rows_height, height)
        height += (height - rows_height) % 2  # the rails are in the middle
        pixels = np.zeros((height, self.width, 3), np.uint8)
        top = self._rails_top = (height - rows_height) // 2
        pixels[top : top + rows_height, left : right + 1] = _GREY
        gap = 1 if row_height > 3 else 0
        shortest = max(2, self.width // 300)  # a span of one moment is visible
        for row, (low, high), track in placed:
            first, last = (left + round(position * (right - left)) for position in (low, high))
            last = min(max(last, first + shortest), right)
            first = min(first, last - shortest)
            pixels[top + row * row_height + gap : top + (row + 1) * row_height - gap, first : last + 1] = track.colour
        return pixels, left, right

    def _clock_width(self) -> int:
        longest = f"frame {self.num_frames - 1}" if self.bounds is None else clock_text(self.bounds[1])
        return text_width("0" * len(longest), self.font_size)

    def _paint_bar(self, pixels: np.ndarray, top: int, frame: int, seconds: float | None) -> None:
        bar, left, right = self._bar
        region = pixels[top:]
        region >>= _DARKER
        above = self._rails_top
        rails = slice(above, len(bar) - above), slice(left, right + 1)
        region[rails] = bar[rails]
        if self.bounds is not None and seconds is not None:
            position = (seconds - self.bounds[0]) / max(self.bounds[1] - self.bounds[0], 1e-9)
            text = clock_text(seconds)
        else:
            position, text = frame / max(self.num_frames - 1, 1), f"frame {frame}"
        x = left + round(min(max(position, 0.0), 1.0) * (right - left))
        half = max(1, self.line_width // 2)
        region[:, max(x - half - 1, 0) : x + half + 2] = BLACK
        region[:, max(x - half, 0) : x + half + 1] = WHITE
        if self.has_text:
            mask = text_mask(text, self.font_size)
            blend(region, mask, self.width - mask.shape[1] - left // 2, (len(bar) - mask.shape[0]) // 2, WHITE)
