# SPDX-License-Identifier: Apache-2.0
"""Registry of the benchmarks by name, and the function that reads their questions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..data.inline import check_text
from ..data.json_rows import BrokenFileError
from .charades_sta import charades_sta_questions
from .hc_stvg import hc_stvg_questions
from .jsonl import jsonl_questions
from .refcoco import refcoco_questions
from .rows import Question
from .st_align import elc_questions, stvg_questions, svg_questions
from .vidstg import declarative_questions, interrogative_questions


@dataclass(frozen=True)
class Benchmark:
    """
    One benchmark.

    Args:
        questions: loader, `(annotations, media, seed)` → `(row, question)` or `(row, problem)` of each row.
        task: of all its questions; None where the file decides it.
        annotations: description of the annotation file.
    """

    questions: Callable[[str, str, int], Iterator[tuple[int, Question | str]]]
    task: str | None
    annotations: str


_REFCOCO_SPLITS = {"refcoco": ("val", "testA", "testB"), "refcoco+": ("val", "testA", "testB"), "refcocog": ("val", "test")}
_VIDSTG = "VidSTG's sentences (`test_annotations.json`), with VidOR's `<group>/<vid>.json` in the folder `boxes` next to the file"
BENCHMARKS = {
    **{
        f"{family}_{split}": Benchmark(refcoco_questions, "rec", f"`{{images, annotations}}` of {family} {split}")
        for family, splits in _REFCOCO_SPLITS.items()
        for split in splits
    },
    "charades_sta": Benchmark(charades_sta_questions, "tvg", "`[{image_id, caption, timestamp}]`, times as fractions of the video"),
    "st_align_stvg": Benchmark(stvg_questions, "stvg", "ST-Align's file for STVG"),
    "st_align_svg": Benchmark(svg_questions, "svg", "ST-Align's file for SVG"),
    "st_align_elc": Benchmark(elc_questions, "elc", "ST-Align's file for ELC"),
    "vidstg_declarative": Benchmark(declarative_questions, "stvg", _VIDSTG),
    "vidstg_interrogative": Benchmark(interrogative_questions, "stvg", _VIDSTG),
    "hc_stvg_v1": Benchmark(hc_stvg_questions, "stvg", "HC-STVG's `test.json`"),
    "hc_stvg_v2": Benchmark(hc_stvg_questions, "stvg", "HC-STVG 2's `val_v2.json`"),
    "jsonl": Benchmark(jsonl_questions, None, "this package's own format, rows of one task"),
}


def read_benchmark(name: str, annotations: str, media: str, seed: int = 0) -> list[Question]:
    """
    Reads all questions of a benchmark, in the order of its file. Images and videos are not accessed.

    Args:
        name: a key of `BENCHMARKS`.
        annotations: path of the annotation file.
        media: folder of the videos or images.
        seed: of the choice of prompt templates, where there are several.

    Raises:
        ValueError: naming an unknown benchmark; naming file and row (`BrokenFileError`), where a row cannot be used (scores on a subset
            of the rows are not comparable), two samples have the same id, or the file has no samples or samples of several tasks.
        OSError: where a file cannot be read.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"{name!r} is not a valid benchmark; it must be one of {', '.join(BENCHMARKS)}.")
    rows: dict[str, int] = {}
    questions = []
    for row, question in BENCHMARKS[name].questions(annotations, media, seed):
        if isinstance(question, str):
            raise BrokenFileError(annotations, row, question)
        try:
            check_text(question.prompt, question.kind)
        except ValueError as error:
            raise BrokenFileError(annotations, row, str(error)) from error
        if question.id in rows:
            raise BrokenFileError(annotations, row, f"The id {question.id!r} is also that of row {rows[question.id]}; ids must be unique.")
        rows[question.id] = row
        questions.append(question)
    if len(tasks := sorted({question.task for question in questions})) > 1:
        raise BrokenFileError(
            annotations, 0, f"The file has rows of the tasks {', '.join(tasks)}; put the rows of each task into a file of their own."
        )
    if not questions:
        raise BrokenFileError(annotations, 0, f"The file has no samples of {name}.")
    return questions
