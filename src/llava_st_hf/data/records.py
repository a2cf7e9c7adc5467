# SPDX-License-Identifier: Apache-2.0
"""From one entry of a mixture to rows and problems, whatever the format of its file."""

from collections.abc import Iterator
from dataclasses import replace

from ..model.tasks_llava_st import TASKS
from .charades_sta import read_charades_sta
from .hc_stvg import read_hc_stvg
from .json_rows import read_rows
from .jsonl import Chat, read_jsonl
from .mixture import Entry
from .paths import join_path
from .questions import question_and_answer
from .refcoco import read_refcoco
from .rows import Medium, conversation_row
from .samples import GroundingSample
from .st_align import st_align_row
from .vidstg import read_vidstg


def read_entry(entry: Entry) -> Iterator[tuple[int, dict | str]]:
    """
    The rows of one annotation file, in its order and all of them, whatever the sampling strategy.

    Yields:
        `(row, values)` as `rows.FEATURES` has them, or `(row, problem)`. Rows of the file count from 1; one of VidSTG, which has
        several sentences, comes several times. Sentences that a task cannot use, questions where it wants a description, are
        passed over.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read on.
    """
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
                    yield row, _grounding_row(annotation, task, entry)
            else:
                default_id = f"{entry.source}-{row}"
                yield row, st_align_row(annotation, entry.data_folder, entry.source, entry.task or "", default_id)
        except ValueError as error:
            yield row, str(error)


def _grounding_row(sample: GroundingSample, task: str, entry: Entry) -> dict:
    question, answer = question_and_answer(sample, task)
    medium = Medium(sample.kind, sample.path, clip=sample.clip, start=sample.start, end=sample.end)
    return conversation_row(sample.id, task, entry.source, _located(medium, entry), [("user", question), ("assistant", answer)])


def _chat_row(chat: Chat, entry: Entry) -> dict:
    medium = None if chat.medium is None else _located(chat.medium, entry)
    return conversation_row(chat.id, chat.task, entry.source, medium, list(chat.turns))


def _located(medium: Medium, entry: Entry) -> Medium:
    """The medium with its absolute path."""
    if entry.data_folder is None:
        raise ValueError(f"The row has the {medium.kind} {medium.path!r:.200}, but its entry in the mixture has no data_folder.")
    return replace(medium, path=join_path(entry.data_folder, medium.path))
