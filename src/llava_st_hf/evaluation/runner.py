# SPDX-License-Identifier: Apache-2.0
"""Asks a model the questions of a benchmark: in batches, on several GPUs, with the next videos decoded meanwhile, and from where it
was if it was killed.

Batches are cut from the list of questions, whatever is answered already, and a batch is answered as a whole: so a run that was
interrupted computes exactly what one that was not would have.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..batch_feature_llava_st import join_samples
from ..grounding import Media
from ..image_processing_llava_st import MEDIA_ERRORS
from ..modeling_llava_st import LlavaSTForConditionalGeneration
from ..processing_llava_st import LlavaSTProcessor
from ..version import __version__
from .metrics import Tubelets, box_iou, temporal_iou, tubelet_iou
from .predictions import append_predictions, drop_broken_end, read_predictions
from .rows import Prediction, Question


PREDICTIONS, SETTINGS = "predictions.jsonl", "settings.json"


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
    """

    benchmark: str
    model: str
    batch_size: int = 1
    max_new_tokens: int = 1536
    seed: int = 0

    def __post_init__(self):
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


def versions() -> dict[str, str]:
    """Of what a prediction was made with."""
    return {"llava_st_hf": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


class _Batches(torch.utils.data.Dataset):
    """Batches of questions as model inputs, made in the loader's workers."""

    def __init__(self, batches: list[list[Question]], processor: LlavaSTProcessor, dtype: torch.dtype):
        self.batches, self.processor, self.dtype = batches, processor, dtype

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict:
        """`inputs` of the questions that have any, `media` and `problems` of all of them."""
        samples: list[dict] = []
        media: list[Media | None] = []
        problems: list[str | None] = []
        for question in self.batches[index]:
            try:
                encoded = self._encode(question)
            except MEDIA_ERRORS as error:
                media.append(None)
                problems.append(str(error))
                continue
            media.append(encoded.media[0][-1])
            problems.append(None)
            samples.append(dict(encoded))
        inputs = join_samples(samples, self.processor.tokenizer.pad_token_id, "left") if samples else None
        return {"questions": self.batches[index], "inputs": inputs, "media": media, "problems": problems}

    def _encode(self, question: Question):
        medium = {"type": question.kind, "path": question.path}
        if question.clip is not None:
            medium["clip"] = list(question.clip)
        message = {"role": "user", "content": [medium, {"type": "text", "text": question.prompt}]}
        encoded = self.processor.apply_chat_template(
            [message], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        for name in ("pixel_values", "pixel_values_videos"):
            if name in encoded:
                encoded[name] = encoded[name].to(self.dtype)  # half the bytes on the way to a model in half precision
        return encoded


def run_benchmark(
    questions: list[Question],
    model: LlavaSTForConditionalGeneration,
    processor: LlavaSTProcessor,
    output: str | os.PathLike,
    settings: EvaluationSettings,
    read_answer: Callable[[str, Question, Media, LlavaSTProcessor], tuple],
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
        read_answer: makes `(Grounding, notes)` of an answer.
        num_workers: processes that decode the next batches while the model works; 0 for none.
        show_overlap: whether the progress bar tells the mean overlap of answers and truths so far.

    Returns:
        All predictions, in the order of the questions; in other processes than the main one as well.

    Raises:
        ValueError: where the folder holds predictions of other settings or other questions.
    """
    state, folder = PartialState(), Path(output)
    with state.main_process_first():
        _check_settings(folder, settings, len(questions), state.is_main_process)
    done = _answered(folder, questions, state)
    batches = [questions[start : start + settings.batch_size] for start in range(0, len(questions), settings.batch_size)]
    missing = [batch for batch in batches if any(question.id not in done for question in batch)]
    mine = missing[state.process_index :: state.num_processes]
    part = folder / f"part-{state.process_index:03d}.jsonl"
    prefetch = 2 if num_workers else None
    loader = DataLoader(_Batches(mine, processor, model.dtype), batch_size=None, num_workers=num_workers, prefetch_factor=prefetch)
    torch.manual_seed(settings.seed)
    total, count = 0.0, 0
    with tqdm(total=len(questions), initial=len(done), disable=not state.is_main_process, desc=settings.benchmark, unit="question") as bar:
        for batch in loader:
            predictions = _answer_batch(batch, model, processor, settings, read_answer)
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
        found = json.loads(path.read_text())
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
def _answer_batch(batch: dict, model, processor, settings: EvaluationSettings, read_answer) -> list[Prediction]:
    answers: list[tuple[str, bool]] = []
    if batch["inputs"] is not None:
        inputs = {name: tensor.to(model.device, non_blocking=True) for name, tensor in batch["inputs"].items()}
        length = inputs["input_ids"].shape[1]
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=settings.max_new_tokens)[:, length:]
        end = processor.tokenizer.eos_token_id
        answers = [(processor.decode_answer(ids), bool((ids == end).any())) for ids in generated.cpu()]
    remaining = iter(answers)
    predictions = []
    for question, media, problem in zip(batch["questions"], batch["media"], batch["problems"], strict=True):
        prediction = Prediction(
            id=question.id,
            benchmark=settings.benchmark,
            task=question.task,
            prompt=question.prompt,
            truth=question.truth,
            given=question.given,
            path=question.path,
            model=settings.model,
            seed=settings.seed,
            versions=versions(),
            skipped=problem,
        )
        if problem is None:
            prediction.answer, prediction.finished = next(remaining)
            prediction.media = media.to_dict()
            prediction.prediction, prediction.notes = read_answer(prediction.answer, question, media, processor)
        predictions.append(prediction)
    return predictions
