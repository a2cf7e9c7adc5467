# SPDX-License-Identifier: Apache-2.0
"""
Measures refined positions and scores of a model on the Shapes dataset, and fits the calibration of the scores.

    python examples/benchmarks/scores.py runs/shapes/validation runs/shapes/test

The folders are written by `write_questions` if they do not exist: 400 and 500 questions of each task. The calibration is fitted on the
first, and everything is measured on the second. Decoding is greedy, without a grammar.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.evaluation import read_benchmark
from llava_st_hf.evaluation.ground_truth import boxes_at_nearest_frames, to_clip_coordinates
from llava_st_hf.evaluation.metrics import Tubelets, bootstrap_interval, box_iou, spatial_iou, temporal_iou, tubelet_iou
from llava_st_hf.evaluation.rows import Question
from llava_st_hf.model.batch_feature_llava_st import join_samples
from llava_st_hf.model.grounding_llava_st import parse_answer
from llava_st_hf.model.media_info_llava_st import MediaInfo
from llava_st_hf.model.scores_llava_st import SCORE_KINDS, ScoredPosition, score_answer
from llava_st_hf.shapes.files import write_questions


TASKS = ("rec", "tvg", "stvg", "svg", "elc")
QUESTIONS = {"validation": 400, "test": 500}
TICKS = 10**6  # seconds of the clip in which answers are parsed: positions times this number
NUM_BINS = 10  # of the reliability table
KIND_NAMES = {
    "span": "span: tIoU",
    "image_box": "box of an image: IoU",
    "video_box": "box of a video: IoU",
    "event": "event with boxes: vIoU",
}


def answer_questions(model, processor, split: Path, task: str, arguments: argparse.Namespace) -> Iterator[tuple]:
    """Yields `(question, media, text, coordinates)`: ground truth in clip coordinates, text and scored positions of the answer."""
    questions = list(read_benchmark("jsonl", str(split / f"{task}.jsonl"), str(split / "media")))[: arguments.limit]
    for first in range(0, len(questions), arguments.batch_size):
        batch, converted = [], []
        for question in questions[first : first + arguments.batch_size]:
            content = [{"type": question.kind, question.kind: question.path}, {"type": "text", "text": question.prompt}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
            )
            media = inputs.media_info[0][-1]
            converted.append((to_clip_coordinates(question, media, processor.video_processor.num_frames), media))
            batch.append(inputs)
        inputs = join_samples(batch, processor.tokenizer.pad_token_id, "left")
        output = model.generate(**inputs, max_new_tokens=200, do_sample=False, output_coordinate_scores=True, return_dict_in_generate=True)
        answers = output.sequences[:, inputs["input_ids"].shape[1] :]
        for (question, media), ids, logits in zip(converted, answers, output.coordinate_logits, strict=True):
            yield question, media, processor.decode_answer(ids), score_answer(processor, ids, logits)


def read_events(
    question: Question,
    media: MediaInfo,
    text: str,
    processor: LlavaSTProcessor,
    coordinates: list[ScoredPosition | None] | None = None,
    calibration: dict | None = None,
) -> list[dict]:
    """The events of an answer, with `TICKS` times the position instead of seconds."""
    clip = MediaInfo(media.kind, media.width, media.height, fps=1.0 if media.kind == "video" else None, last_frame=TICKS)
    start = {"start": question.given.span[0]} if question.task == "elc" and question.given.span else {}
    bins = processor.num_temporal_bins, processor.num_spatial_bins
    return parse_answer(text, clip, *bins, coordinates=coordinates, score_calibration=calibration, **start)["events"]


def measure(question: Question, media: MediaInfo, events: list[dict], num_frames: int) -> dict[str, float]:
    """IoU of the first event with the ground truth, by the metrics of the task; 0 where a part is missing."""
    event = events[0] if events else {"boxes": [], "start": None, "end": None}
    boxes = [(moment.get("time"), tuple(moment["box"].values())) for moment in event["boxes"]]
    truth, values = question.truth, {}
    if truth.box is not None:
        values["IoU"] = float(box_iou(np.array([boxes[0][1] if boxes else [np.nan] * 4]), np.array([truth.box]))[0])
    if truth.span is not None:
        span = [np.nan if event[name] is None else event[name] / TICKS for name in ("start", "end")]
        values["tIoU"] = float(temporal_iou(np.array([span]), np.array([truth.span]))[0])
    if truth.tubelet is not None:
        moments = [(time / TICKS, box) for time, box in boxes if time is not None]
        pair = Tubelets([boxes_at_nearest_frames(moments, media, num_frames)]), Tubelets([truth.tubelet])
        values["sIoU"], values["vIoU"] = float(spatial_iou(*pair)[0]), float(tubelet_iou(*pair)[0])
    return values


def scored_pairs(question: Question, media: MediaInfo, events: list[dict], values: dict[str, float], num_frames: int) -> Iterator[tuple]:
    """Yields `(kind, score, IoU)` of the first event, its span and its boxes. Boxes at frames without ground truth are left out."""
    if not events:
        return
    event = events[0]
    if event.get("span_score") is not None and "tIoU" in values:
        yield "span", event["span_score"], values["tIoU"]
    if event["score"] is not None and "vIoU" in values:
        yield "event", event["score"], values["vIoU"]
    for moment in event["boxes"]:
        box = tuple(moment["box"].values())
        truth = question.truth.box
        if media.kind == "video":
            if moment["time"] is None:
                continue
            [frame] = boxes_at_nearest_frames([(moment["time"] / TICKS, box)], media, num_frames)
            truth = (question.truth.tubelet or {}).get(frame)
        if truth is not None and moment["score"] is not None:
            yield f"{media.kind}_box", moment["score"], float(box_iou(np.array([box]), np.array([truth]))[0])


def fit_calibration(scores: np.ndarray, ious: np.ndarray) -> tuple[float, float]:
    """Slope and offset of `calibrated` with the lowest cross-entropy between calibrated scores and IoUs."""
    logits = torch.logit(torch.tensor(scores), eps=1e-6)
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(parameters[0] * logits + parameters[1], torch.tensor(ious))
        value.backward()
        return value

    optimizer.step(loss)
    slope, offset = parameters.tolist()
    if slope <= 0:
        raise ValueError(f"The scores do not increase with the IoU (slope {slope:g}), so that they cannot be calibrated.")
    return round(slope, 4), round(offset, 4)


def reliability(scores: np.ndarray, ious: np.ndarray) -> tuple[float, list[tuple[int, float, float]]]:
    """`(expected calibration error, [(count, mean score, mean IoU)])` of `NUM_BINS` equal intervals of the score that are not empty."""
    interval = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
    rows = [
        (int(chosen.sum()), float(scores[chosen].mean()), float(ious[chosen].mean()))
        for i in range(NUM_BINS)
        if (chosen := interval == i).any()
    ]
    return sum(count * abs(score - iou) for count, score, iou in rows) / len(scores), rows


def area_under_curve(scores: np.ndarray, correct: np.ndarray) -> float:
    """Probability that a correct answer has a higher score than a wrong one, ties counted half; NaN if all are correct or all wrong."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    right, wrong = int(correct.sum()), int((~correct).sum())
    return float((ranks[correct].sum() - right * (right + 1) / 2) / (right * wrong)) if right and wrong else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("validation", type=Path, help="folder of the questions that the calibration is fitted on")
    parser.add_argument("test", type=Path, help="folder of the questions to measure on")
    parser.add_argument("--model", default=DEMO_MODEL_PATH, help="folder or hub id; by default the demo model")
    parser.add_argument("--batch-size", type=int, default=25, help="questions answered together")
    parser.add_argument("--limit", type=int, help="number of questions of each task; by default all")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="tasks; by default all that ask for times or boxes")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    processor = LlavaSTProcessor.from_pretrained(arguments.model)
    model = LlavaSTForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    num_frames = processor.video_processor.num_frames
    for name in ("validation", "test"):
        if not getattr(arguments, name).is_dir():
            write_questions(getattr(arguments, name), name, QUESTIONS[name], num_frames)

    found = defaultdict(list)  # kind of score → (score, IoU)
    for task in arguments.tasks:
        for question, media, text, coordinates in answer_questions(model, processor, arguments.validation, task, arguments):
            events = read_events(question, media, text, processor, coordinates)
            values = measure(question, media, events, num_frames)
            for kind, *pair in scored_pairs(question, media, events, values, num_frames):
                found[kind].append(pair)
    calibration = {kind: fit_calibration(*np.array(found[kind]).T) for kind in SCORE_KINDS if found[kind]}
    print(f"set_calibration(model.generation_config, {json.dumps(calibration)})", flush=True)

    print("\n| task | metric | questions | bins | refined | gain | 95 % interval of the gain |\n|---|---|---|---|---|---|---|")
    pairs = {"uncalibrated": defaultdict(list), "calibrated": defaultdict(list)}
    for task in arguments.tasks:
        columns = defaultdict(list)
        for question, media, text, coordinates in answer_questions(model, processor, arguments.test, task, arguments):
            before = measure(question, media, read_events(question, media, text, processor), num_frames)
            for version, used in (("uncalibrated", None), ("calibrated", calibration)):
                events = read_events(question, media, text, processor, coordinates, used)
                after = measure(question, media, events, num_frames)
                for kind, *pair in scored_pairs(question, media, events, after, num_frames):
                    pairs[version][kind].append(pair)
            for metric, value in before.items():
                columns[metric].append((value, after[metric]))
        for metric, rows in columns.items():
            values = np.array(rows)
            gain = values[:, 1] - values[:, 0]
            low, high = (bound.item() for bound in bootstrap_interval(gain[:, None]))
            means = f"{values[:, 0].mean():.4f} | {values[:, 1].mean():.4f} | {gain.mean():+.4f} | {low:+.4f} – {high:+.4f}"
            print(f"| {task} | {metric} | {len(rows)} | {means} |", flush=True)

    print("\n| score | count | mean score | mean IoU | ECE | mean squared error | AUC (IoU ≥ 0.5) |\n|---|---|---|---|---|---|---|")
    tables = {}
    for kind in KIND_NAMES:
        for version in pairs:
            if not (rows := pairs[version][kind]):
                continue
            scores, ious = np.array(rows).T
            error, tables[kind, version] = reliability(scores, ious)
            squared = float(((scores - ious) ** 2).mean())
            numbers = f"{scores.mean():.3f} | {ious.mean():.3f} | {error:.3f} | {squared:.4f} | {area_under_curve(scores, ious >= 0.5):.3f}"
            print(f"| {KIND_NAMES[kind]}, {version} | {len(rows)} | {numbers} |")
    for (kind, version), rows in tables.items():
        print(f"\n{KIND_NAMES[kind]}, {version}\n\n| count | mean score | mean IoU |\n|---|---|---|")
        for count, score, iou in rows:
            print(f"| {count} | {score:.3f} | {iou:.3f} |")


if __name__ == "__main__":
    main()
