# SPDX-License-Identifier: Apache-2.0
"""What `llava-st eval`, `score` and `report` do."""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .answers import READERS, Asked
from .benchmarks import BENCHMARKS, read_benchmark
from .predictions import read_predictions
from .rows import Prediction
from .runner import PREDICTIONS, EvaluationSettings, run_benchmark
from .scoring import PROTOCOLS, score


def read_own_answer(answer: str, question, media, processor) -> tuple:
    """What an answer of LLaVA-ST says; see `run_benchmark`."""
    asked = Asked(question.task, media, question.given, processor.num_temporal_bins, processor.num_spatial_bins)
    return READERS["llava_st"](answer, asked)


def run_eval(args: argparse.Namespace) -> None:
    # Before anything slow: settings and annotations.
    settings = EvaluationSettings(args.benchmark, args.model, args.batch_size, args.max_new_tokens, args.seed)
    questions = read_benchmark(args.benchmark, args.annotations, args.media, args.seed)
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit} leaves no question.")
    questions = questions[: args.limit]

    from accelerate import PartialState

    from .. import LlavaSTForConditionalGeneration, LlavaSTProcessor

    state = PartialState()
    processor = LlavaSTProcessor.from_pretrained(args.model)
    model = LlavaSTForConditionalGeneration.from_pretrained(args.model, dtype=args.dtype).eval().to(state.device)
    predictions = run_benchmark(
        questions, model, processor, args.output, settings, read_own_answer, num_workers=args.workers, show_overlap=True
    )
    if state.is_main_process:
        task = BENCHMARKS[args.benchmark].task
        scores = {protocol: score(task, predictions, protocol) for protocol in PROTOCOLS}
        Path(args.output, "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        print(json.dumps(scores, indent=2))


def run_score(args: argparse.Namespace) -> None:
    if args.reader is not None and args.reader not in READERS:
        raise ValueError(f"--reader {args.reader} is unknown; there are {', '.join(READERS)}.")
    path = os.path.join(args.predictions, PREDICTIONS) if os.path.isdir(args.predictions) else args.predictions
    if args.rows is not None and args.reader is None:
        raise ValueError("--rows needs --reader: the format of these answers.")
    predictions = list(_joined(path, args.rows)) if args.rows is not None else list(read_predictions(path))
    if not predictions:
        raise ValueError(f"{path} has no predictions.")
    if args.reader is not None:
        predictions = [_read_again(prediction, args.reader) for prediction in predictions]
    tasks = sorted({prediction.task for prediction in predictions})
    if len(tasks) > 1:
        raise ValueError(f"{path} has predictions of several tasks: {', '.join(tasks)}.")
    print(json.dumps(score(tasks[0], predictions, args.protocol), indent=2))


def _joined(answers: str, rows: str) -> Iterator[Prediction]:
    """The rows of one file with the answers of another; a row without one counts as skipped."""
    found: dict[str, str] = {}
    with open(answers, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
                found[values["id"]] = values["answer"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{answers}, line {number} is no object with id and answer: {error!r}") from error
    for row in read_predictions(rows):
        answer = found.pop(row.id, None)
        missing = None if answer is not None else f"{os.path.basename(answers)} has no answer to it."
        yield replace(row, answer=answer, finished=True, skipped=missing, model=None)
    if found:
        raise ValueError(f"{answers} answers {min(found)!r}, which is no row of {rows}.")


def _read_again(prediction: Prediction, reader: str) -> Prediction:
    if prediction.answer is None:
        return prediction
    grounding, notes = READERS[reader](prediction.answer, Asked(prediction.task, prediction.medium(), prediction.given))
    return replace(prediction, prediction=grounding, notes=notes)


def run_report(args: argparse.Namespace) -> None:
    from .report import write_report

    print(write_report(args.folder))
