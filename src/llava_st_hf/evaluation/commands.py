# SPDX-License-Identifier: Apache-2.0
"""The commands `llava-st eval`, `score` and `report`."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..distributed import shut_down_processes
from ..model.checks_llava_st import is_integer
from .answers import ANSWER_PARSERS, ParseContext
from .benchmarks import BENCHMARKS, read_benchmark
from .original_protocol import follows_original_program
from .predictions import append_predictions, read_predictions
from .published import PUBLISHED_SETTINGS
from .rows import OWN_PARSER, GroundingResult, Prediction
from .runner import PREDICTIONS, EvaluationSettings, run_benchmark, this_process
from .scores import write_scores
from .scoring import PROTOCOLS, score


def read_own_answer(answer: str, question, media, processor) -> tuple:
    """Parses an answer of LLaVA-ST; see `run_benchmark`."""
    asked = ParseContext(question.task, media, question.given, processor.num_temporal_bins, processor.num_spatial_bins, question.num_frames)
    return ANSWER_PARSERS[OWN_PARSER](answer, asked)


def run_eval(args: argparse.Namespace) -> None:
    # Settings and annotations are checked before the model is loaded.
    decoding = _decoding(args)
    questions = read_benchmark(args.benchmark, args.annotations, args.data_folder, args.seed)
    # The name of a custom file includes its task.
    name = args.benchmark if BENCHMARKS[args.benchmark].task is not None else f"{args.benchmark}_{questions[0].task}"
    reading = {"video_backend": args.video_backend or "pyav", "allow_truncated": args.allow_truncated}
    settings = EvaluationSettings(name, args.model, args.batch_size, seed=args.seed, **decoding, **reading)
    questions = questions[: args.limit]

    from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
    from ..model.processing_llava_st import LlavaSTProcessor

    state = this_process()
    processor = LlavaSTProcessor.from_pretrained(args.model)
    model = LlavaSTForConditionalGeneration.from_pretrained(args.model, dtype=settings.dtype).eval().to(state.device)
    predictions = run_benchmark(
        questions,
        model,
        processor,
        args.output,
        settings,
        read_own_answer,
        num_workers=args.workers,
        show_overlap=True,
        show_progress=sys.stderr.isatty(),
    )
    if state.is_main_process:
        protocols = PROTOCOLS if all(map(follows_original_program, predictions)) else ("default",)
        scores = {protocol: score(questions[0].task, predictions, protocol) for protocol in protocols}
        if args.as_published:
            for metrics in scores.values():
                metrics.notes.append(f"Generated with the settings of the published results: {PUBLISHED_SETTINGS}.")
        write_scores(args.output, scores)
        print(json.dumps({protocol: metrics.to_dict() for protocol, metrics in scores.items()}, indent=2))
    shut_down_processes()


def _decoding(args: argparse.Namespace) -> dict:
    """Returns the settings of `eval` about weights and decoding: those given, or with `--as-published` those of the published results."""
    given = {name: getattr(args, name) for name in ("dtype", "max_new_tokens") if getattr(args, name) is not None}
    if not args.as_published:
        return given
    if given:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"--as-published sets dtype={PUBLISHED_SETTINGS['dtype']} and the length of answers: leave out {options}.")
    return PUBLISHED_SETTINGS


def run_score(args: argparse.Namespace) -> None:
    if args.answer_format is not None and args.answer_format not in ANSWER_PARSERS:
        raise ValueError(f"--answer-format {args.answer_format} is not a valid format; it must be one of {', '.join(ANSWER_PARSERS)}.")
    if args.output is not None and os.path.exists(os.path.join(args.output, PREDICTIONS)):
        raise ValueError(f"--output {args.output} already contains predictions. Give another folder.")
    path = os.path.join(args.predictions, PREDICTIONS) if os.path.isdir(args.predictions) else args.predictions
    if args.references is not None:
        predictions = list(_joined(path, args.references, args.answer_format))
    else:
        predictions = list(read_predictions(path))
        if args.answer_format is not None:
            predictions = [_parse_again(prediction, args.answer_format) for prediction in predictions]
    if not predictions:
        raise ValueError(f"{path} has no predictions.")
    tasks = sorted({prediction.task for prediction in predictions})
    if len(tasks) > 1:
        raise ValueError(f"{path} has predictions of several tasks: {', '.join(tasks)}.")
    scores = score(tasks[0], predictions, args.protocol)
    if args.output is not None:
        Path(args.output).mkdir(parents=True, exist_ok=True)
        append_predictions(Path(args.output, PREDICTIONS), predictions)
        write_scores(args.output, {args.protocol: scores})
    print(json.dumps(scores.to_dict(), indent=2))


def _joined(answers: str, references: str, answer_format: str) -> Iterator[Prediction]:
    """
    Yields the samples of a predictions file with the answers of another file; a sample without an answer counts as skipped.

    Args:
        answers: path of a JSONL file, see `_read_answer`.
        references: path of a predictions file.
        answer_format: of the answers.
    """
    found: dict[str, tuple[str | None, bool, tuple[int, int] | None]] = {}
    with open(answers, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                sample_id, given = _read_answer(line)
            except ValueError as error:
                raise ValueError(f"{answers}, line {number}: {error}") from error
            found[sample_id] = given
    for row in read_predictions(references):
        # The file with the answers does not state which model gave them and how.
        row = replace(row, prediction=GroundingResult(), notes=[], reader=answer_format, model=None, seed=None, versions={}, settings={})
        answer, finished, seen_size = found.pop(row.id, (None, True, None))
        # If the media could not be opened, an answer cannot be converted to seconds and pixels.
        skipped = row.skipped if answer is not None else f"{os.path.basename(answers)} has no answer to it."
        yield _parse_again(replace(row, answer=answer, finished=finished, skipped=skipped), answer_format, seen_size)
    if found:
        raise ValueError(f"{answers} has an answer for the id {min(found)!r}, which is not in {references}.")


def _read_answer(line: str) -> tuple[str, tuple[str | None, bool, tuple[int, int] | None]]:
    """
    Parses a line with an answer of another model.

    Args:
        line: a JSON object with `id` and `answer` (null if there is none). Optional keys: `finished`, false if the answer was cut
            off; `seen_size`, `[width, height]` in pixels of the model's input, if its boxes are pixels of that.

    Returns:
        `(id, (answer, finished, seen_size))`.

    Raises:
        ValueError: naming the key, its value and what was expected.
    """
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"This is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"Each line must be an object with `id` and `answer`; got {line.strip()!r:.100}.")
    for key in ("id", "answer"):
        if key not in values:
            raise ValueError(f"`{key}` is missing; each line must be an object with `id` and `answer`.")
    if not isinstance(values["id"], str):
        raise ValueError(f"`id` must be a string, got {values['id']!r:.100}.")
    if not isinstance(values["answer"], str | None):
        raise ValueError(f"`answer` must be a string or null, got {values['answer']!r:.100}.")
    finished, size = values.get("finished", True), values.get("seen_size")
    if not isinstance(finished, bool):
        raise ValueError(f"`finished` must be true or false, got {finished!r:.100}.")
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(is_integer(side) and side >= 1 for side in size)):
        raise ValueError(f"`seen_size` must be [width, height], integers of at least 1; got {size!r:.100}.")
    return values["id"], (values["answer"], finished, None if size is None else (size[0], size[1]))


def _parse_again(prediction: Prediction, answer_format: str, seen_size: tuple[int, int] | None = None) -> Prediction:
    if prediction.answer is None:
        return prediction
    context = ParseContext(prediction.task, prediction.medium(), prediction.given, num_frames=prediction.num_frames, seen_size=seen_size)
    grounding, notes = ANSWER_PARSERS[answer_format](prediction.answer, context)
    return replace(prediction, prediction=grounding, notes=notes, reader=answer_format)


def run_report(args: argparse.Namespace) -> None:
    from .report import write_report

    print(write_report(args.folder))
