# SPDX-License-Identifier: Apache-2.0
"""Converts one entry of a mixture to rows and problems, whatever the format of its file."""

from collections.abc import Iterator
from dataclasses import replace

from ..model.tasks_llava_st import TASKS
from .charades_sta import read_charades_sta
from .hc_stvg import read_hc_stvg
from .json_rows import read_rows
from .jsonl import Chat, read_jsonl
from .mixture import Entry
from .paths import join_path
from .questions import TUBELET_TASKS, question_and_answer
from .refcoco import read_refcoco
from .rows import Medium, conversation_row
from .samples import GroundingSample
from .st_align import st_align_row
from .vidstg import read_vidstg


# Formats with a box for every frame of the event. ST-Align's training samples have the boxes of the sampled frames only.
DENSE_FORMATS = ("vidstg", "hc_stvg")


def needs_num_frames(entry: Entry) -> bool:
    """Whether the answers of an entry depend on the number of frames that the model samples of a clip."""
    return entry.format in DENSE_FORMATS and entry.task in TUBELET_TASKS


def check_num_frames_given(entry: Entry, num_frames: int | None) -> None:
    """Raises `ValueError`, naming the file, where the answers of an entry depend on `num_frames` and it is None."""
    if num_frames is None and needs_num_frames(entry):
        raise ValueError(
            f"num_frames is missing: {entry.json_path} (format {entry.format!r}) has a box for every frame, and answers to the task "
            f"{entry.task!r} have one for each frame that the model samples. Pass num_frames=processor.video_processor.num_frames."
        )


def read_entry(entry: Entry, num_frames: int | None = None) -> Iterator[tuple[int, dict | str]]:
    """
    Reads all rows of one annotation file, in its order, whatever the sampling strategy.

    Args:
        entry: of the mixture.
        num_frames: frames that the model samples of a clip; see `questions.sampled_moments`. Needed if `needs_num_frames`.

    Yields:
        `(row, values)` as `rows.FEATURES` has them, or `(row, problem)`. Rows of the file count from 1; a row of VidSTG, which has
        several sentences, is yielded several times. Questions are skipped where the task needs a description.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read any further.
        ValueError: where `num_frames` is needed and None.
    """
    check_num_frames_given(entry, num_frames)
    if entry.format == "st_align":
        annotations: Iterator = read_rows(entry.json_path)
    elif entry.format == "refcoco":
        annotations = read_refcoco(entry.json_path)
    elif entry.format == "charades_sta":
        annotations = read_charades_sta(entry.json_path)
    elif entry.format == "vidstg":
        annotations = read_vidstg(entry.json_path, entry.boxes_folder or "")
    elif entry.format == "hc_stvg":
        annotations = read_hc_stvg(entry.json_path)
    else:
        annotations = read_jsonl(entry.json_path)
    for row, annotation in annotations:
        try:
            if isinstance(annotation, str):
                yield row, annotation
            elif isinstance(annotation, Chat):
                yield row, _chat_row(annotation, entry)
            elif isinstance(annotation, GroundingSample):
                task = annotation.task or entry.task or ""
                if not (annotation.is_question and "text" not in TASKS[task].needs):
                    yield row, _grounding_row(annotation, task, entry, num_frames)
            else:
                default_id = f"{entry.source}-{row}"
                yield row, st_align_row(annotation, entry.data_folder, entry.source, entry.task or "", default_id)
        except ValueError as error:
            yield row, str(error)


def _grounding_row(sample: GroundingSample, task: str, entry: Entry, num_frames: int | None) -> dict:
    question, answer = question_and_answer(sample, task, num_frames)
    medium = Medium(sample.kind, sample.path, clip=sample.clip, start=sample.start, end=sample.end)
    return conversation_row(sample.id, task, entry.source, _located(medium, entry), [("user", question), ("assistant", answer)])


def _chat_row(chat: Chat, entry: Entry) -> dict:
    medium = None if chat.medium is None else _located(chat.medium, entry)
    return conversation_row(chat.id, chat.task, entry.source, medium, list(chat.turns))


def _located(medium: Medium, entry: Entry) -> Medium:
    """The image or video with its absolute path."""
    if entry.data_folder is None:
        raise ValueError(f"The row has the {medium.kind} {medium.path!r:.200}, but its entry in the mixture has no data_folder.")
    return replace(medium, path=join_path(entry.data_folder, medium.path))
