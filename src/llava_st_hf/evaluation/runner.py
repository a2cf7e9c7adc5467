# SPDX-License-Identifier: Apache-2.0
"""Asks a model the questions of a benchmark: in batches, on several GPUs, with the next videos decoded meanwhile, and from where it
was if it was killed.

Batches are cut from the list of questions, whatever is answered already, and a batch is answered as a whole: so a run that was
interrupted computes exactly what one that was not would have. Questions about one medium are asked one after the other, in whatever
order they come, and the medium is decoded once for all of them.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..model.batch_feature_llava_st import join_samples
from ..model.cached_media_llava_st import CachedMediaProcessor
from ..model.grounding_llava_st import MediaInfo
from ..model.media_files_llava_st import MEDIA_ERRORS
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.video_decoding_llava_st import check_backend
from ..version import __version__
from .metrics import Tubelets, box_iou, temporal_iou, tubelet_iou
from .placing import to_clip_coordinates
from .predictions import append_predictions, drop_broken_end, read_predictions
from .rows import Prediction, Question


PREDICTIONS, SETTINGS = "predictions.jsonl", "settings.json"
# What settings files without these names stand for.
_BEFORE = {"video_backend": "pyav", "allow_truncated": False}


@dataclass(frozen=True)
class EvaluationSettings:
    """
    What answers depend on. A folder of predictions goes on under the same settings only.

    Args:
        benchmark: its name.
        model: name of the model, for the record.
        batch_size: questions answered together.
        max_new_tokens: after so many an answer is cut off.
        seed: of the wording of prompts, and of sampling if the model's generation configuration samples.
        video_backend: what reads video files, see `open_video_file`.
        allow_truncated: read truncated video files as far as they go; the notes of predictions then say so.
    """

    benchmark: str
    model: str
    batch_size: int = 1
    max_new_tokens: int = 1536
    seed: int = 0
    video_backend: str = "pyav"
    allow_truncated: bool = False

    def __post_init__(self):
        check_backend(self.video_backend)
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


def versions() -> dict[str, str]:
    """Of what a prediction was made with."""
    return {"llava_st_hf": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


def _medium(question: Question) -> tuple:
    """What is decoded for a question."""
    return question.kind, question.path, question.clip, question.start, question.end


def in_batches(questions: list[Question], batch_size: int) -> list[list[Question]]:
    """Batches in which questions about one medium follow each other, so that it is decoded once; media in the order of the questions."""
    place: dict[tuple, int] = {}
    for number, question in enumerate(questions):
        place.setdefault(_medium(question), number)
    ordered = sorted(questions, key=lambda question: place[_medium(question)])
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


@dataclass
class _Read:
    """A medium and the questions about it, with truths in its frames, made in a worker: `problems` says of each question why it cannot
    be asked, if so.

    `texts` are lists and no tensors, of which each would take a file descriptor on the way from the worker.
    """

    media: MediaInfo | None
    pixels: dict[str, torch.Tensor]
    questions: list[Question]
    texts: list[dict[str, list]]
    problems: list[str | None]


class _MediaReader(torch.utils.data.Dataset):
    """Media as model inputs, each read once for all questions about it."""

    def __init__(self, groups: list[list[Question]], processor: LlavaSTProcessor, dtype: torch.dtype, reading: dict):
        self.groups, self.processor, self.dtype, self.reading = groups, processor, dtype, reading

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> _Read:
        group = self.groups[index]
        item = {"type": group[0].kind, "path": group[0].path}
        if group[0].clip is not None:
            item["clip"] = list(group[0].clip)
        item |= {name: seconds for name in ("start", "end") if (seconds := getattr(group[0], name)) is not None}
        try:
            alone = self.processor.apply_chat_template(
                [{"role": "user", "content": [item]}],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=self.reading,
            )
        except MEDIA_ERRORS as error:
            return _Read(None, {}, group, [{}] * len(group), [str(error)] * len(group))
        # In the model's type, which is half the bytes on the way to a model in half precision.
        pixels = {name: alone[name].to(self.dtype) for name in ("pixel_values", "pixel_values_videos") if name in alone}
        media, processor = alone.media_info[0][-1], self.processor
        tokens = processor.replace_image_token({}, 0) if media.kind == "image" else processor.replace_video_token(pixels, 0)
        known = CachedMediaProcessor.after(processor, media, tokens)
        read = _Read(media, pixels, [], [], [])
        for question in group:
            text: dict[str, list] = {}
            problem = None
            try:
                question = to_clip_coordinates(question, media, processor.video_processor.num_frames)
                text = _text(question, item, known)
            except MEDIA_ERRORS as error:
                problem = str(error)
            read.questions.append(question)
            read.texts.append(text)
            read.problems.append(problem)
        return read


def _text(question: Question, item: dict, processor: CachedMediaProcessor) -> dict[str, list]:
    """What the processor makes of the words of a question behind the content item of its medium."""
    message = {"role": "user", "content": [item, {"type": "text", "text": question.prompt}]}
    encoded = processor.apply_chat_template([message], tokenize=True, return_dict=True, add_generation_prompt=True)
    return {name: encoded[name][0] for name in ("input_ids", "coordinates") if name in encoded}


@dataclass
class _Asked:
    """A question with its inputs; or with the problem with it."""

    question: Question
    media: MediaInfo | None
    text: dict[str, torch.Tensor]
    pixels: dict[str, torch.Tensor]
    problem: str | None


def _ask(questions: list[Question], model, processor: LlavaSTProcessor, num_workers: int, settings: EvaluationSettings) -> Iterator[_Asked]:
    """Questions with their inputs, pixels on the model's device. Workers are about two batches ahead."""
    groups = [list(group) for _, group in groupby(questions, _medium)]
    reading = {"video_backend": settings.video_backend, "allow_truncated": settings.allow_truncated}
    loader = DataLoader(
        _MediaReader(groups, processor, model.dtype, reading),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=max(2, -(-2 * settings.batch_size // num_workers)) if num_workers else None,
    )
    for read in loader:
        # Once for all questions about it, and joined there: copies within the device take no time.
        pixels = {name: tensor.to(model.device, non_blocking=True) for name, tensor in read.pixels.items()}
        for question, text, problem in zip(read.questions, read.texts, read.problems, strict=True):
            tensors = {name: torch.tensor(values) for name, values in text.items()}
            yield _Asked(question, None if problem else read.media, tensors, pixels, problem)


def run_benchmark(
    questions: list[Question],
    model: LlavaSTForConditionalGeneration,
    processor: LlavaSTProcessor,
    output: str | os.PathLike,
    settings: EvaluationSettings,
    read_answer: Callable[[str, Question, MediaInfo, LlavaSTProcessor], tuple],
    num_workers: int = 2,
    show_overlap: bool = False,
) -> list[Prediction]:
    """
    Answers questions, or those of them that were not answered before.

    Args:
        questions: of one benchmark, ids unique.
        model, processor: in evaluation mode, on its device. Under `accelerate launch` each process has one.
        output: folder for the predictions.
        settings: see there.
        read_answer: makes `(GroundingResult, notes)` of an answer.
        num_workers: processes that decode the next batches while the model works; 0 for none.
        show_overlap: whether the progress bar tells the mean overlap of answers and truths so far.

    Returns:
        All predictions, in the order of the questions; in other processes than the main one as well.

    Raises:
        ValueError: where the folder holds predictions of other settings or other questions.
    """
    state, folder = this_process(), Path(output)
    with state.main_process_first():
        _check_settings(folder, settings, len(questions), state.is_main_process)
    done = _answered(folder, questions, state)
    batches = in_batches(questions, settings.batch_size)
    missing = [batch for batch in batches if any(question.id not in done for question in batch)]
    # Consecutive ones, so that no other process reads the same media, but for one medium where two shares meet.
    first, last = (len(missing) * (state.process_index + more) // state.num_processes for more in (0, 1))
    mine = missing[first:last]
    part = folder / f"part-{state.process_index:03d}.jsonl"
    asked = _ask([question for batch in mine for question in batch], model, processor, num_workers, settings)
    torch.manual_seed(settings.seed)
    total, count = 0.0, 0
    with tqdm(total=len(questions), initial=len(done), disable=not state.is_main_process, desc=settings.benchmark, unit="question") as bar:
        for batch in mine:
            predictions = _answer_batch(list(islice(asked, len(batch))), model, processor, settings, read_answer)
            append_predictions(part, predictions)
            bar.update(len(predictions) * (state.num_processes if state.num_processes > 1 else 1))
            if show_overlap:
                total, count = total + sum(map(overlap, predictions)), count + len(predictions)
                bar.set_postfix_str(f"overlap {total / count:.3f}")
    state.wait_for_everyone()
    if state.is_main_process:
        _merge(folder, questions)
    state.wait_for_everyone()
    return list(read_predictions(folder / PREDICTIONS))


def this_process() -> PartialState:
    """This process among those of the launcher. `accelerate launch --cpu` speaks of itself where `PartialState` does not look."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def overlap(prediction: Prediction) -> float:
    """IoU of answer and truth in the widest sense that the task has: tubelets, else spans, else boxes; 0 for a missing one."""
    said, true = prediction.prediction, prediction.truth
    if true.tubelet is not None:
        return float(tubelet_iou(Tubelets([said.tubelet]), Tubelets([true.tubelet]))[0])
    if true.span is not None and said.span is not None:
        return float(temporal_iou(np.array([said.span]), np.array([true.span]))[0])
    if true.box is not None and said.box is not None:
        return float(box_iou(np.array([said.box]), np.array([true.box]))[0])
    return 0.0


def _check_settings(folder: Path, settings: EvaluationSettings, num_questions: int, is_main: bool) -> None:
    path = folder / SETTINGS
    wanted = {**vars(settings), "questions": num_questions}
    if path.is_file():
        found = {**_BEFORE, **json.loads(path.read_text())}
        different = [f"{name} was {found.get(name)!r} and is {value!r}" for name, value in wanted.items() if found.get(name) != value]
        if different:
            raise ValueError(f"{folder} holds answers of another run: {'; '.join(different)}. Give another output folder.")
    elif is_main:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=2) + "\n")


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / PREDICTIONS, *sorted(folder.glob("part-*.jsonl"))) if path.is_file()]


def _answered(folder: Path, questions: list[Question], state: PartialState) -> set[str]:
    """Ids of the questions that were answered before."""
    if state.is_main_process:
        for path in _files(folder):
            drop_broken_end(path)
    state.wait_for_everyone()
    done = {prediction.id for path in _files(folder) for prediction in read_predictions(path)}
    if strangers := done - {question.id for question in questions}:
        raise ValueError(f"{folder} holds answers to other questions, such as {min(strangers)!r}. Give another output folder.")
    return done


def _merge(folder: Path, questions: list[Question]) -> None:
    """One file in the order of the questions. It takes the place of the parts in one step."""
    found = {prediction.id: prediction for path in _files(folder) for prediction in read_predictions(path)}
    whole = folder / f".{PREDICTIONS}"
    whole.unlink(missing_ok=True)
    append_predictions(whole, (found[question.id] for question in questions))
    whole.replace(folder / PREDICTIONS)
    for path in folder.glob("part-*.jsonl"):
        path.unlink()


@torch.inference_mode()
def _answer_batch(batch: list[_Asked], model, processor, settings: EvaluationSettings, read_answer) -> list[Prediction]:
    answers = iter(_generate([asked for asked in batch if asked.problem is None], model, processor, settings))
    predictions = []
    for asked in batch:
        question = asked.question
        prediction = Prediction(
            id=question.id,
            benchmark=settings.benchmark,
            task=question.task,
            prompt=question.prompt,
            truth=question.truth,
            given=question.given,
            path=question.path,
            num_frames=question.num_frames,
            model=settings.model,
            seed=settings.seed,
            versions=versions(),
            skipped=asked.problem,
        )
        if asked.media is not None:
            prediction.answer, prediction.finished = next(answers)
            prediction.media = asked.media.to_dict()
            prediction.prediction, prediction.notes = read_answer(prediction.answer, question, asked.media, processor)
        predictions.append(prediction)
    return predictions


def _generate(batch: list[_Asked], model, processor, settings: EvaluationSettings) -> list[tuple[str, bool]]:
    """Answers, and whether each ended by itself."""
    if not batch:
        return []
    texts = join_samples([asked.text for asked in batch], processor.tokenizer.pad_token_id, "left")
    inputs = {name: tensor.to(model.device, non_blocking=True) for name, tensor in texts.items()}
    for name in ("pixel_values", "pixel_values_videos"):
        pixels = [asked.pixels[name] for asked in batch if name in asked.pixels]
        if pixels:
            inputs[name] = torch.cat(pixels) if len(pixels) > 1 else pixels[0]
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=settings.max_new_tokens)[:, inputs["input_ids"].shape[1] :]
    end = processor.tokenizer.eos_token_id
    return [(processor.decode_answer(ids), bool((ids == end).any())) for ids in generated.cpu()]
