# SPDX-License-Identifier: Apache-2.0
"""`llava-st ground`: one question about one or several images and videos."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from tqdm.auto import tqdm

from llava_st_cli.terminal import error_line

from ..model.media_kind_llava_st import media_kind
from ..model.pipeline_llava_st import VideoGroundingPipeline
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.questions_llava_st import PreparedQuestion, prepare_question
from ..model.results_llava_st import Grounding
from ..model.tasks_llava_st import check_task_arguments
from .models import load_pipeline, load_processor
from .option_names import with_option_names
from .records import AnswerFile, print_json, print_table


_QUESTION = ("text", "task", "clip", "start", "end", "span", "time", "box", "fps")
_READING = ("num_frames", "video_backend", "allow_truncated")
_GENERATION = ("max_new_tokens", "scores", "grammar")
# Options with which the pipeline reads the file itself: in windows, or again for a detector.
_OF_FILES = ("window", "overlap", "all", "refine")
_PICTURES = (".png", ".jpg", ".jpeg")  # suffixes of drawings of images


def run_ground(args: Namespace) -> int:
    """Answers the question about each of `args.inputs`. Returns the exit status, 1 if an input failed."""
    if args.task is not None:
        given = {name for name in ("text", "span", "time", "box") if getattr(args, name) is not None}
        check_task_arguments(args.task, given, prefix="--")
    _check_drawings(args)
    output = _Output(args)
    inputs = [source for source in args.inputs if source not in output.answered]
    if skipped := len(args.inputs) - len(inputs):
        print(error_line(f"{args.jsonl} has the answers for {skipped} of {len(args.inputs)} inputs already."), file=sys.stderr)
    records = _answers(inputs, args) if inputs else iter(())
    with tqdm(total=len(args.inputs), disable=None if args.several else True, unit="input", leave=False) as bar:
        for source in args.inputs:
            is_new = source not in output.answered
            record = next(records) if is_new else output.answered[source]
            if is_new:
                output.save(record)
            bar.clear()
            output.show(record, is_new)
            bar.update()
    try:
        output.export()
    finally:  # an export that fails does not hide the inputs that failed
        status = output.status()
    return status


def _check_drawings(args: Namespace) -> None:
    """
    Checks that the images among the inputs are drawn as pictures.

    Raises:
        ValueError: naming the image whose drawing would be a video.
    """
    for source, drawing in zip(args.inputs, args.drawings or (), strict=False):
        try:
            kind = media_kind(source)
        except (ValueError, OSError):
            continue  # reported when the input is read
        if kind == "image" and not drawing.lower().endswith(_PICTURES):
            raise ValueError(f"--draw {drawing}: {source} is an image, whose drawing must end in {', '.join(_PICTURES)}.")


class _Output:
    """Where the records go: stdout, the file of --jsonl, pictures and exports."""

    def __init__(self, args: Namespace):
        self.args = args
        self.file = None if args.jsonl is None else AnswerFile(args.jsonl, _settings(args))
        #: Source → record that is known from an earlier call.
        self.answered = {} if self.file is None else self.file.answers
        self.answers: list[Grounding] = []
        self.failures: list[str] = []
        self.drawings = iter(args.drawings or ())
        if args.drawings and find_spec("supervision") is None:
            raise ImportError("--draw needs supervision: pip install 'llava-st-hf[draw]'.")

    def save(self, record: dict) -> None:
        """Appends a new record to the file of --jsonl."""
        if self.file is not None:
            self.file.append(record)

    def show(self, record: dict, is_new: bool) -> None:
        """
        Prints a record and draws it, unless it is known from an earlier call that has drawn it. With --jsonl, nothing is printed to a pipe
        unless --json is given.
        """
        is_terminal = sys.stdout.isatty()
        if self.args.json or (not is_terminal and self.file is None):
            print_json(record, indent=None if self.args.several else 2)
        elif is_terminal:
            print_table(record)
        drawing = next(self.drawings, None)
        if "error" in record:
            named = record["source"] in record["error"]
            self.failures.append(record["error"] if named else f"{record['source']}: {record['error']}")
            return
        answer = Grounding.from_dict(record)
        self.answers.append(answer)
        if drawing is not None and (is_new or self.args.overwrite or not os.path.exists(drawing)):
            self._draw(answer, drawing)

    def _draw(self, answer: Grounding, path: str) -> None:
        import llava_st_hf

        try:
            llava_st_hf.draw(answer.source, answer, path, fps=self.args.fps, scale=self.args.scale)  # type: ignore[operator]  # defined on first use
        except (ValueError, OSError) as error:
            if not self.args.several:
                raise
            self.failures.append(f"{answer.source}: --draw {path}: {error}")

    def export(self) -> None:
        """Writes the answers to the file of --export-to."""
        if self.args.export_to is not None and self.answers:
            import llava_st_hf

            llava_st_hf.export(self.answers, self.args.export_to, format=self.args.export)  # type: ignore[operator]

    def status(self) -> int:
        """Reports failures on stderr, and returns the exit status."""
        for failure in self.failures:
            print(error_line(failure), file=sys.stderr)
        return 1 if self.failures else 0


def _given(args: Namespace, names: tuple[str, ...]) -> dict:
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def _settings(args: Namespace) -> dict:
    """The options that decide an answer."""
    return _given(args, ("model", "dtype", *_QUESTION, *_READING, *_GENERATION, *_OF_FILES))


def _answers(inputs: list[str], args: Namespace) -> Iterator[dict]:
    """
    Yields a record for each input, in their order.

    The weights are loaded when the first question has been checked, and media of at most `args.batch_size` inputs are in memory.

    Raises:
        ValueError, OSError: naming what is wrong with media or question, if there is one input only.
    """
    processor = load_processor(args)
    if _given(args, _OF_FILES):
        yield from _answers_from_files(inputs, args, processor)
        return
    grounder: VideoGroundingPipeline | None = None
    for first in range(0, len(inputs), args.batch_size):
        sources = inputs[first : first + args.batch_size]
        prepared = [_prepare(processor, source, args) for source in sources]
        questions = [question for question in prepared if isinstance(question, PreparedQuestion)]
        if questions and grounder is None:
            grounder = load_pipeline(args, processor)
        answers = iter(_generate(grounder, questions, args) if grounder is not None and questions else ())
        for source, question in zip(sources, prepared, strict=True):
            yield {"source": source, **(next(answers) if isinstance(question, PreparedQuestion) else question)}


def _prepare(processor: LlavaSTProcessor, source: str, args: Namespace) -> dict:
    """The model inputs of a question, or `{"error"}` if it is one of several and its input cannot be used."""
    try:
        with with_option_names(_QUESTION + _READING):
            return prepare_question(processor, source, **_given(args, _QUESTION + _READING))
    except (ValueError, OSError) as error:
        if not args.several:
            raise
        return {"error": str(error)}


def _answers_from_files(inputs: list[str], args: Namespace, processor: LlavaSTProcessor) -> Iterator[dict]:
    """Records of questions that the pipeline prepares itself. Inputs are checked here until one is good and the weights are loaded."""
    grounder: VideoGroundingPipeline | None = None
    options = {**_given(args, _QUESTION + _READING + _GENERATION + _OF_FILES), "batch_size": args.batch_size}
    for source in inputs:
        record = {} if grounder is not None else _prepare(processor, source, args)
        if "error" not in record:
            grounder = load_pipeline(args, processor) if grounder is None else grounder
            record = _answer_from_file(grounder, source, args, options)
        yield {"source": source, **record}


def _answer_from_file(grounder: VideoGroundingPipeline, source: str, args: Namespace, options: dict) -> dict:
    try:
        with with_option_names(_QUESTION + _READING + _OF_FILES):
            return grounder(source, **options)
    except (ValueError, OSError) as error:
        if not args.several:
            raise
        return {"error": str(error)}
    except torch.OutOfMemoryError as error:
        return _out_of_memory(error, args)


def _generate(grounder: VideoGroundingPipeline, questions: list[PreparedQuestion], args: Namespace) -> list[dict]:
    """
    Answers of a batch. If the memory does not suffice, its questions are answered one by one.

    Raises:
        MemoryError: if the memory does not suffice for the only question.
    """
    try:
        return grounder(questions, batch_size=len(questions), **_given(args, _GENERATION))
    except torch.OutOfMemoryError as error:
        failure = error
    # Not in the handler, whose traceback refers to the tensors of the batch.
    failure = failure.with_traceback(None)
    if len(questions) > 1:
        return [answer for question in questions for answer in _generate(grounder, [question], args)]
    return [_out_of_memory(failure, args)]


def _out_of_memory(error: Exception, args: Namespace) -> dict:
    """
    Record of an input that the memory does not suffice for.

    Raises:
        MemoryError: if it is the only input.
    """
    reason = f"Out of memory: {error}. Try --dtype bfloat16 or a smaller --num-frames. `llava-st doctor MODEL` computes what is needed."
    if not args.several:
        raise MemoryError(reason)
    return {"error": reason}
