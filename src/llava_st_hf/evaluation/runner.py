# SPDX-License-Identifier: Apache-2.0
"""Runs a model on the questions of a benchmark: in batches, on several GPUs, decoding the next videos meanwhile, and resumable.

Batches are cut from the complete list of questions, whether or not some are answered already, and a batch is answered as a whole. So a
resumed run computes exactly the same batches as an uninterrupted one. Questions about the same image or clip are asked consecutively,
whatever their order, so that it is decoded and encoded once. If these are in several batches, its prefix (see `shared_media_llava_st`) is
computed by itself and not together with those of other media: equal in all batches, and in a run that resumes with one of them.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..files import write_file
from ..locking import locked_folder
from ..model.cached_media_llava_st import CachedMediaProcessor
from ..model.checks_llava_st import is_finite_number, is_integer
from ..model.compatibility_llava_st import check_model_matches_processor
from ..model.grounding_llava_st import MediaInfo
from ..model.media_files_llava_st import MEDIA_ERRORS
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.shared_media_llava_st import (
    KeptPrefix,
    can_share,
    encode_prefixes,
    join_prompts,
    prompt_prefix,
    prompts_for_generate,
    repeat_pixels,
)
from ..model.tasks_llava_st import TASKS
from ..model.video_decoding_llava_st import check_backend
from ..version import __version__
from .ground_truth import to_clip_coordinates
from .metrics import Tubelets, box_iou, temporal_iou, tubelet_iou
from .predictions import append_predictions, drop_broken_end, read_predictions
from .rows import Prediction, Question


PREDICTIONS, SETTINGS = "predictions.jsonl", "settings.json"
# Values of settings that older settings files do not contain.
_OLDER_SETTINGS = {"video_backend": "pyav", "allow_truncated": False, "temperature": None, "prompt_decimals": None}
# Settings that each prediction repeats.
_ANSWER_SETTINGS = ("dtype", "max_new_tokens", "temperature", "prompt_decimals")


@dataclass(frozen=True)
class EvaluationSettings:
    """
    The settings that answers depend on. A run resumes in a folder only with the same settings.

    Args:
        benchmark: its name.
        model: name of the model; recorded, and compared when a run resumes.
        batch_size: number of questions answered together.
        max_new_tokens: maximum length of an answer; a longer one is cut off.
        seed: for the choice of prompt templates.
        video_backend: library that decodes video files, see `open_video_file`.
        allow_truncated: read truncated video files as far as possible; the notes of the predictions then mention it.
        dtype: of the model's weights, "auto" for that of the checkpoint.
        temperature: of sampling among the 50 most probable tokens; None for greedy decoding.
        prompt_decimals: decimals that coordinates of prompts are rounded to, as fractions of the clip and the image; None for all.

    Raises:
        ValueError: if `batch_size` or `max_new_tokens` is below 1, `video_backend` is unknown, `temperature` is not positive, or
            `prompt_decimals` is negative.
    """

    benchmark: str
    model: str
    batch_size: int = 1
    max_new_tokens: int = 1536
    seed: int = 0
    video_backend: str = "pyav"
    allow_truncated: bool = False
    dtype: str = "auto"
    temperature: float | None = None
    prompt_decimals: int | None = None

    def __post_init__(self):
        check_backend(self.video_backend)
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be an integer of at least 1.")
        if self.temperature is not None and not (is_finite_number(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature!r} must be a positive number, or None for greedy decoding.")
        if self.prompt_decimals is not None and not (is_integer(self.prompt_decimals) and self.prompt_decimals >= 0):
            raise ValueError(f"prompt_decimals={self.prompt_decimals!r} must be an integer of at least 0, or None.")


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that a prediction depends on."""
    return {"llava_st_hf": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


def _media_key(question: Question) -> tuple:
    """Identifies the image or clip that is decoded for a question."""
    return question.kind, question.path, question.clip, question.start, question.end


def in_batches(questions: list[Question], batch_size: int) -> list[list[Question]]:
    """Cuts questions into batches, with those about the same image or clip consecutive and otherwise in their order."""
    first: dict[tuple, int] = {}
    for number, question in enumerate(questions):
        first.setdefault(_media_key(question), number)
    ordered = sorted(questions, key=lambda question: first[_media_key(question)])
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


@dataclass
class _MediaGroup:
    """An image or clip and the questions about it, with the ground truth at its frames, as a worker returns them.

    `problems` has for each question the reason why it cannot be asked, or None. `texts` are lists, since each tensor would need a file
    descriptor to be sent from the worker.
    """

    media: MediaInfo | None
    pixels: dict[str, torch.Tensor]
    questions: list[Question]
    texts: list[dict[str, list]]
    problems: list[str | None]


class _MediaReader(torch.utils.data.Dataset):
    """Images and clips as model inputs, each decoded once for all questions about it."""

    def __init__(self, groups: list[list[Question]], processor: LlavaSTProcessor, dtype: torch.dtype, reading: dict, decimals: int | None):
        self.groups, self.processor, self.dtype, self.reading, self.decimals = groups, processor, dtype, reading, decimals

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> _MediaGroup:
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
            return _MediaGroup(None, {}, group, [{}] * len(group), [str(error)] * len(group))
        # In the dtype of the model: half the bytes to transfer for a model in half precision.
        pixels = {name: alone[name].to(self.dtype) for name in ("pixel_values", "pixel_values_videos") if name in alone}
        media, processor = alone.media_info[0][-1], self.processor
        tokens = processor.replace_image_token({}, 0) if media.kind == "image" else processor.replace_video_token(pixels, 0)
        known = CachedMediaProcessor.from_processor(processor, media, tokens)
        result = _MediaGroup(media, pixels, [], [], [])
        for question in group:
            text: dict[str, list] = {}
            problem = None
            try:
                question = to_clip_coordinates(question, media, processor.video_processor.num_frames)
                text = _text(question, item, known, self.decimals)
            except MEDIA_ERRORS as error:
                problem = str(error)
            result.questions.append(question)
            result.texts.append(text)
            result.problems.append(problem)
        return result


def _text(question: Question, item: dict, processor: CachedMediaProcessor, decimals: int | None) -> dict[str, list]:
    """Token ids and coordinate values, rounded to `decimals`, of a question about an image or clip that is processed already."""
    message = {"role": "user", "content": [item, {"type": "text", "text": question.prompt}]}
    encoded = processor.apply_chat_template([message], tokenize=True, return_dict=True, add_generation_prompt=True)
    text = {name: encoded[name][0] for name in ("input_ids", "coordinate_values") if name in encoded}
    if decimals is not None and "coordinate_values" in text:
        text["coordinate_values"] = [round(value, decimals) for value in text["coordinate_values"]]  # NaN stays
    return text


@dataclass
class _EncodedQuestion:
    """A question with its model inputs; or with `problem`, the reason why it cannot be asked. Questions about the same image or clip have
    the same `group`."""

    question: Question
    media: MediaInfo | None
    text: dict[str, torch.Tensor]
    pixels: dict[str, torch.Tensor]
    problem: str | None
    group: str


def _encode(
    questions: list[Question], model, processor: LlavaSTProcessor, num_workers: int, settings: EvaluationSettings
) -> Iterator[_EncodedQuestion]:
    """Yields questions with their inputs, pixels on the model's device. Workers decode about two batches ahead."""
    groups = [list(group) for _, group in groupby(questions, _media_key)]
    reading = {"video_backend": settings.video_backend, "allow_truncated": settings.allow_truncated}
    loader = DataLoader(
        _MediaReader(groups, processor, model.dtype, reading, settings.prompt_decimals),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=max(2, -(-2 * settings.batch_size // num_workers)) if num_workers else None,
    )
    for number, group in enumerate(loader):
        # Transferred once for all questions about it; batches are concatenated on the device.
        pixels = {name: tensor.to(model.device, non_blocking=True) for name, tensor in group.pixels.items()}
        for question, text, problem in zip(group.questions, group.texts, group.problems, strict=True):
            tensors = {name: torch.tensor(values) for name, values in text.items()}
            yield _EncodedQuestion(question, None if problem else group.media, tensors, pixels, problem, str(number))


def run_benchmark(
    questions: list[Question],
    model: LlavaSTForConditionalGeneration,
    processor: LlavaSTProcessor,
    output: str | os.PathLike,
    settings: EvaluationSettings,
    read_answer: Callable[[str, Question, MediaInfo, LlavaSTProcessor], tuple],
    num_workers: int = 2,
    show_overlap: bool = False,
    show_progress: bool = True,
) -> list[Prediction]:
    """
    Answers the questions of a benchmark, or those that an interrupted run has left.

    Args:
        questions: of one benchmark, with unique ids.
        model, processor: in evaluation mode, on its device. Under `accelerate launch` each process has its own.
        output: folder for the predictions. It is locked until all questions are answered.
        settings: see there.
        read_answer: returns `(GroundingResult, notes)` of an answer.
        num_workers: number of processes that decode the next batches during generation; 0 decodes in this process.
        show_overlap: show the mean IoU of answers and ground truth so far in the progress bar.
        show_progress: show a progress bar on stderr.

    Returns:
        All predictions in the order of the questions, in every process.

    Raises:
        ValueError: if model and processor do not belong together, if the folder holds predictions of other settings or other questions,
            or if another run is writing to it.
        OSError: naming the file, if one cannot be written.
    """
    check_model_matches_processor(model.config, processor)
    if settings.dtype != "auto" and model.dtype != getattr(torch, settings.dtype):
        raise ValueError(f"settings have dtype={settings.dtype!r}, but the model has weights of {model.dtype}.")
    state, folder = this_process(), Path(output)
    # All processes of a run share the lock of the main one.
    with locked_folder(folder) if state.is_main_process else nullcontext():
        with state.main_process_first():
            _check_settings(folder, settings, len(questions), state.is_main_process)
        done = _answered(folder, questions, state)
        batches = in_batches(questions, settings.batch_size)
        missing = [batch for batch in batches if any(question.id not in done for question in batch)]
        # Consecutive batches, so that at most one image or clip is read by two processes, where their shares meet.
        first, last = (len(missing) * (state.process_index + more) // state.num_processes for more in (0, 1))
        torch.manual_seed(settings.seed)
        hidden = not (show_progress and state.is_main_process)
        with tqdm(total=len(questions), initial=len(done), disable=hidden, desc=settings.benchmark, unit="question") as bar:
            part = folder / f"part-{state.process_index:03d}.jsonl"
            total, count = 0.0, 0
            divided = _in_several(batches)
            for predictions in _answer(missing[first:last], divided, model, processor, settings, read_answer, num_workers):
                append_predictions(part, predictions)
                bar.update(len(predictions) * state.num_processes)
                if show_overlap:
                    total, count = total + sum(map(overlap, predictions)), count + len(predictions)
                    bar.set_postfix_str(f"overlap {total / count:.3f}")
        state.wait_for_everyone()
        if state.is_main_process:
            _merge(folder, questions)
        state.wait_for_everyone()
    return list(read_predictions(folder / PREDICTIONS))


def this_process() -> PartialState:
    """Returns the state of this process among those of the launcher. `PartialState` does not read what `accelerate launch --cpu` sets."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def overlap(prediction: Prediction) -> float:
    """IoU of answer and ground truth: of tubelets if the task has them, else of spans, else of boxes; 0 for a missing answer."""
    answered, true = prediction.prediction, prediction.truth
    if true.tubelet is not None:
        return float(tubelet_iou(Tubelets([answered.tubelet]), Tubelets([true.tubelet]))[0])
    if true.span is not None and answered.span is not None:
        return float(temporal_iou(np.array([answered.span]), np.array([true.span]))[0])
    if true.box is not None and answered.box is not None:
        return float(box_iou(np.array([answered.box]), np.array([true.box]))[0])
    return 0.0


def _check_settings(folder: Path, settings: EvaluationSettings, num_questions: int, is_main: bool) -> None:
    path = folder / SETTINGS
    wanted = {**vars(settings), "questions": num_questions}
    if path.is_file():
        try:
            found = {**_OLDER_SETTINGS, "dtype": settings.dtype, **json.loads(path.read_text(encoding="utf-8"))}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a valid settings file ({error}). Give another output folder.") from error
        different = [f"{name} was {found.get(name)!r} and is {value!r}" for name, value in wanted.items() if found.get(name) != value]
        if different:
            raise ValueError(f"{folder} holds answers of another run: {'; '.join(different)}. Give another output folder.")
    elif is_main:
        write_file(path, json.dumps(wanted, indent=2) + "\n")


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / PREDICTIONS, *sorted(folder.glob("part-*.jsonl"))) if path.is_file()]


def _answered(folder: Path, questions: list[Question], state: PartialState) -> set[str]:
    """Returns the ids of the questions that are answered already."""
    if state.is_main_process:
        for path in _files(folder):
            drop_broken_end(path)
    state.wait_for_everyone()
    done = {prediction.id for path in _files(folder) for prediction in read_predictions(path)}
    state.wait_for_everyone()  # no process may append answers while another one still reads the files
    if unknown := done - {question.id for question in questions}:
        raise ValueError(f"{folder} holds answers to other questions, such as {min(unknown)!r}. Give another output folder.")
    return done


def _merge(folder: Path, questions: list[Question]) -> None:
    """Writes one file in the order of the questions, which atomically replaces the parts of the processes."""
    found = {prediction.id: prediction for path in _files(folder) for prediction in read_predictions(path)}
    whole = folder / f".{PREDICTIONS}"
    whole.unlink(missing_ok=True)
    append_predictions(whole, (found[question.id] for question in questions))
    whole.replace(folder / PREDICTIONS)
    for path in folder.glob("part-*.jsonl"):
        path.unlink()


def _in_several(batches: list[list[Question]]) -> set[tuple]:
    """Keys of the images and clips whose questions are in more than one batch."""
    counts = Counter(key for batch in batches for key in {_media_key(question) for question in batch})
    return {key for key, count in counts.items() if count > 1}


def _answer(
    batches: list[list[Question]],
    divided: set[tuple],
    model,
    processor: LlavaSTProcessor,
    settings: EvaluationSettings,
    read_answer,
    num_workers: int,
) -> Iterator[list[Prediction]]:
    """Yields the predictions of each batch. `divided`: images and clips whose questions are in several batches."""
    encoded = _encode([question for batch in batches for question in batch], model, processor, num_workers, settings)
    kept = KeptPrefix()
    for batch in batches:
        yield _answer_batch(list(islice(encoded, len(batch))), divided, kept, model, processor, settings, read_answer)


@torch.inference_mode()
def _answer_batch(
    batch: list[_EncodedQuestion], divided: set[tuple], kept: KeptPrefix, model, processor, settings: EvaluationSettings, read_answer
) -> list[Prediction]:
    valid = [encoded for encoded in batch if encoded.problem is None]
    answers = iter(_generate(valid, divided, kept, model, processor, settings))
    predictions = []
    for encoded in batch:
        question = encoded.question
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
            settings={name: getattr(settings, name) for name in _ANSWER_SETTINGS},
            skipped=encoded.problem,
        )
        if encoded.media is not None:
            prediction.answer, prediction.finished = next(answers)
            prediction.media = encoded.media.to_dict()
            prediction.prediction, prediction.notes = read_answer(prediction.answer, question, encoded.media, processor)
        predictions.append(prediction)
    return predictions


def _generate(
    batch: list[_EncodedQuestion], divided: set[tuple], kept: KeptPrefix, model, processor, settings: EvaluationSettings
) -> list[tuple[str, bool]]:
    """Returns the answers, and whether each ended before `max_new_tokens`."""
    if not batch:
        return []
    inputs = _inputs(batch, divided, kept, model, processor)
    decoding: dict = {"do_sample": False}
    if settings.temperature is not None:
        # Seeded for each batch, so that a resumed run samples the same answers.
        torch.manual_seed(crc32(f"{settings.seed} {' '.join(encoded.question.id for encoded in batch)}".encode()))
        decoding = {"do_sample": True, "temperature": settings.temperature, "top_k": 50, "top_p": 1.0}
    # Drafts where no answer depends on them, in float32 without sampling.
    templates = [processor.draft_template(task if task in TASKS else None) for task in (encoded.question.task for encoded in batch)]
    decoding |= {"speculative": None, "draft_templates": templates}
    generated = model.generate(**inputs, **decoding, max_new_tokens=settings.max_new_tokens)[:, inputs["input_ids"].shape[1] :]
    end = processor.tokenizer.eos_token_id
    return [(processor.decode_answer(ids), bool((ids == end).any())) for ids in generated.cpu()]


def _inputs(batch: list[_EncodedQuestion], divided: set[tuple], kept: KeptPrefix, model, processor) -> dict:
    """Inputs of `generate`. `kept` holds the prefix of an image or clip of the batch before, and after that one of this batch."""
    samples = [{**encoded.text, **encoded.pixels} for encoded in batch]
    media_ids = model.config.all_media_token_ids
    prefixes = [prompt_prefix(sample, encoded.group, media_ids) for sample, encoded in zip(samples, batch, strict=True)]
    joined = join_prompts(samples, prefixes, processor.tokenizer.pad_token_id)
    inputs = {name: tensor.to(model.device, non_blocking=True) for name, tensor in joined.items()}
    if not can_share(model, lambda name: getattr(model.generation_config, name, None)):
        return repeat_pixels(inputs, prefixes)
    distinct = {prefix.key: row for row, prefix in reversed(list(enumerate(prefixes)))}  # the first row of each
    for row in sorted(distinct.values()):
        if _media_key(batch[row].question) in divided and prefixes[row].key not in kept.states:
            kept.states |= encode_prefixes(model, inputs, prefixes, [row])
    shared = prompts_for_generate(model, inputs, prefixes, kept if kept.states else None)
    kept.states = {key: states for key, states in kept.states.items() if key == prefixes[-1].key}
    return shared
