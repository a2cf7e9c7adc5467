# SPDX-License-Identifier: Apache-2.0
"""What `llava-st eval`, `score` and `report` do."""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..distributed import shut_down_processes
from .answers import ANSWER_PARSERS, ParseContext
from .benchmarks import BENCHMARKS, read_benchmark
from .original_protocol import follows_original_program
from .predictions import append_predictions, read_predictions
from .rows import OWN_PARSER, GroundingResult, Prediction
from .runner import PREDICTIONS, EvaluationSettings, run_benchmark, this_process
from .scores import write_scores
from .scoring import PROTOCOLS, score


def read_own_answer(answer: str, question, media, processor) -> tuple:
    """What an answer of LLaVA-ST says; see `run_benchmark`."""
    asked = ParseContext(question.task, media, question.given, processor.num_temporal_bins, processor.num_spatial_bins, question.num_frames)
    return ANSWER_PARSERS[OWN_PARSER](answer, asked)


def run_eval(args: argparse.Namespace) -> None:
    # Before anything slow: settings and annotations.
    questions = read_benchmark(args.benchmark, args.annotations, args.media, args.seed)
    # A file of one's own is told from those of other tasks by its own.
    name = args.benchmark if BENCHMARKS[args.benchmark].task is not None else f"{args.benchmark}_{questions[0].task}"
    reading = {"video_backend": args.video_backend or "pyav", "allow_truncated": args.allow_truncated}
    settings = EvaluationSettings(name, args.model, args.batch_size, args.max_new_tokens, args.seed, **reading)
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit} leaves no question.")
    questions = questions[: args.limit]

    from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
    from ..model.processing_llava_st import LlavaSTProcessor

    state = this_process()
    processor = LlavaSTProcessor.from_pretrained(args.model)
    model = LlavaSTForConditionalGeneration.from_pretrained(args.model, dtype=args.dtype).eval().to(state.device)
    predictions = run_benchmark(
        questions, model, processor, args.output, settings, read_own_answer, num_workers=args.workers, show_overlap=True
    )
    if state.is_main_process:
        protocols = PROTOCOLS if all(map(follows_original_program, predictions)) else ("default",)
        scores = {protocol: score(questions[0].task, predictions, protocol) for protocol in protocols}
        write_scores(args.output, scores)
        print(json.dumps({protocol: metrics.to_dict() for protocol, metrics in scores.items()}, indent=2))
    shut_down_processes()


def run_score(args: argparse.Namespace) -> None:
    if args.reader is not None and args.reader not in ANSWER_PARSERS:
        raise ValueError(f"--reader {args.reader} is unknown; there are {', '.join(ANSWER_PARSERS)}.")
    if args.output is not None and os.path.exists(os.path.join(args.output, PREDICTIONS)):
        raise ValueError(f"{args.output} holds predictions already. Give another output folder.")
    path = os.path.join(args.predictions, PREDICTIONS) if os.path.isdir(args.predictions) else args.predictions
    if args.rows is not None and args.reader is None:
        raise ValueError("--rows needs --reader: the format of these answers.")
    if args.rows is not None:
        predictions = list(_joined(path, args.rows, args.reader))
    else:
        predictions = list(read_predictions(path))
        if args.reader is not None:
            predictions = [_read_again(prediction, args.reader) for prediction in predictions]
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


def _joined(answers: str, rows: str, reader: str) -> Iterator[Prediction]:
    """
    The rows of one file with the answers of another; a row without one counts as skipped.

    Args:
        answers: path of lines with `id` and `answer`. They may have `finished`, false where the answer was cut off, and `seen_size`,
            `[width, height]` in pixels of what the model was shown, where its boxes are pixels of that.
        rows: path of a predictions file.
        reader: of the answers.
    """
    found: dict[str, tuple[str | None, bool, tuple[int, int] | None]] = {}
    with open(answers, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
                size = values.get("seen_size")
                if size is not None:
                    width, height = map(int, size)
                    if width < 1 or height < 1:
                        raise ValueError(f"seen_size={size}")
                    size = width, height
                answer = values["answer"]
                if not isinstance(answer, str | None):
                    raise TypeError(f"answer={answer!r:.50} is no text")
                found[values["id"]] = answer, bool(values.get("finished", True)), size
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{answers}, line {number} is no object with id and answer: {error!r}") from error
    for row in read_predictions(rows):
        # Who answered and how is not told by `answers`.
        row = replace(row, prediction=GroundingResult(), notes=[], reader=reader, model=None, seed=None, versions={})
        answer, finished, seen_size = found.pop(row.id, (None, True, None))
        # Where the medium could not be opened, no answer can be placed in it.
        skipped = row.skipped if answer is not None else f"{os.path.basename(answers)} has no answer to it."
        yield _read_again(replace(row, answer=answer, finished=finished, skipped=skipped), reader, seen_size)
    if found:
        raise ValueError(f"{answers} answers {min(found)!r}, which is no row of {rows}.")


def _read_again(prediction: Prediction, reader: str, seen_size: tuple[int, int] | None = None) -> Prediction:
    if prediction.answer is None:
        return prediction
    asked = ParseContext(prediction.task, prediction.medium(), prediction.given, num_frames=prediction.num_frames, seen_size=seen_size)
    grounding, notes = ANSWER_PARSERS[reader](prediction.answer, asked)
    return replace(prediction, prediction=grounding, notes=notes, reader=reader)


def run_report(args: argparse.Namespace) -> None:
    from .report import write_report

    print(write_report(args.folder))
