# SPDX-License-Identifier: Apache-2.0
"""Pictures and annotated videos of answers. [`draw`] chooses the kind by the suffix of the file; the other functions draw one kind each."""

from .colours import ANSWER_COLOUR, PALETTE, TRUTH_COLOUR, Colour
from .drawing import draw
from .images import draw_boxes, draw_image
from .layout import add_caption, as_image, one_above_another, side_by_side
from .sheets import draw_sheet
from .timeline import draw_spans, draw_timeline
from .tracks import make_tracks, read_answers
from .videos import draw_animation, draw_video


__all__ = [
    "ANSWER_COLOUR",
    "PALETTE",
    "TRUTH_COLOUR",
    "Colour",
    "add_caption",
    "as_image",
    "draw",
    "draw_animation",
    "draw_boxes",
    "draw_image",
    "draw_sheet",
    "draw_spans",
    "draw_timeline",
    "draw_video",
    "make_tracks",
    "one_above_another",
    "read_answers",
    "side_by_side",
]
