# SPDX-License-Identifier: Apache-2.0
"""Functions of the tasks of this folder, under the names that their YAML files use.

lmms-eval requires a Hugging Face dataset for each task. The benchmarks are local files in various formats, so the tasks name a
placeholder dataset of one row, and `process_docs` replaces it by the questions.

Metrics that are means over questions are computed per question by this package's `score` and averaged by lmms-eval, which then also
computes their standard errors; captions are scored together.
"""

import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial

from datasets import Dataset

from ....data.samples import GroundingSample
from ....evaluation.answers import ANSWER_PARSERS, ParseContext
from ....evaluation.benchmarks import read_benchmark
from ....evaluation.captions import METRICS, CaptionScoringError, missing_caption_tools, score_captions
from ....evaluation.ground_truth import to_clip_coordinates
from ....evaluation.rows import OWN_PARSER, GroundingResult, Prediction, Question
from ....evaluation.scoring import score
from ....model.grounding_llava_st import MediaInfo
from ..plugin import CUT_OFF, LlavaST


# Benchmark → name of its data in the environment: LLAVA_ST_<name>_ANNOTATIONS is a file, LLAVA_ST_<name>_MEDIA a folder.
DATA = {
    "vidstg_declarative": "VIDSTG",
    "vidstg_interrogative": "VIDSTG",
    "hc_stvg_v1": "HC_STVG_V1",
    "hc_stvg_v2": "HC_STVG_V2",
    "st_align_stvg": "ST_ALIGN_STVG",
    "st_align_svg": "ST_ALIGN_SVG",
    "st_align_elc": "ST_ALIGN_ELC",
}
# Counts of `score` that are meaningless for one answer.
_OF_MANY = ("count", "skipped")
# ELC is scored like STVG, and its captions in addition.
_SCORED_AS = {"elc": "stvg"}


def _questions(benchmark: str, placeholder: Dataset) -> Dataset:
    """
    Returns the questions of a benchmark instead of the placeholder.

    Raises:
        ValueError: naming an environment variable that is not set, or from `read_benchmark`.
        OSError: if a file cannot be read.
    """
    variables = [f"LLAVA_ST_{DATA[benchmark]}_{part}" for part in ("ANNOTATIONS", "MEDIA")]
    if missing := [name for name in variables if not os.environ.get(name)]:
        raise ValueError(f"The files of {benchmark} must be named by environment variables; not set: {', '.join(missing)}.")
    annotations, media = (os.environ[name] for name in variables)
    return Dataset.from_list([_doc(question) for question in read_benchmark(benchmark, annotations, media)])


vidstg_declarative = partial(_questions, "vidstg_declarative")
vidstg_interrogative = partial(_questions, "vidstg_interrogative")
hc_stvg_v1 = partial(_questions, "hc_stvg_v1")
hc_stvg_v2 = partial(_questions, "hc_stvg_v2")
st_align_stvg = partial(_questions, "st_align_stvg")
st_align_svg = partial(_questions, "st_align_svg")
st_align_elc = partial(_questions, "st_align_elc")


def _doc(question: Question) -> dict[str, str]:
    """Converts a question to a row of text columns; tubelets are JSON, since as columns they would need one for each frame."""
    rest = asdict(replace(question, truth=GroundingResult(), given=GroundingResult()))
    rest = {name: value for name, value in rest.items() if name not in ("id", "prompt", "path", "truth")}
    return {
        "id": question.id,
        "prompt": question.prompt,
        "path": question.path,
        "target": json.dumps(question.truth.to_dict()),
        "question": json.dumps({**rest, "given": question.given.to_dict()}),
    }


def _question(doc: dict) -> Question:
    """The question of a row, with its ground truth as the annotation has it: see `_prediction`."""
    rest = json.loads(doc["question"])
    rest["sample"] = None if rest["sample"] is None else _sample(rest["sample"])
    pairs = {name: None if rest[name] is None else tuple(rest[name]) for name in ("clip", "size", "frames")}
    groundings = {"truth": GroundingResult.from_dict(json.loads(doc["target"])), "given": GroundingResult.from_dict(rest["given"])}
    return Question(**{**rest, **pairs, **groundings, "id": doc["id"], "prompt": doc["prompt"], "path": doc["path"]})


def _sample(values: dict) -> GroundingSample:
    """A sample whose tuples JSON has turned into lists."""
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return GroundingSample(**{**values, **tuples, "boxes": tuple((time, tuple(box)) for time, box in values["boxes"])})


def doc_to_text(doc: dict) -> str:
    return doc["prompt"]


def doc_to_visual(doc: dict) -> list[str]:
    """For models that take a path: they process the whole video, not only the clip."""
    return [doc["path"]]


def doc_to_target(doc: dict) -> str:
    return doc["target"]


def doc_to_messages(doc: dict) -> list[dict]:
    """Returns the chat. `clip` is read by this package's model; others ignore it and process the whole video."""
    question = _question(doc)
    item: dict = {"type": question.kind, "url": question.path}
    if question.clip is not None:
        item["clip"] = list(question.clip)
    return [{"role": "user", "content": [item, {"type": "text", "text": question.prompt}]}]


def process_results(doc: dict, results: Sequence[str]) -> dict:
    """Returns the metrics of one answer by their names in `score`; for captions, the pair of answer and ground truth."""
    prediction = _prediction(_question(doc), results[0])
    scored_as = _SCORED_AS.get(prediction.task, prediction.task)
    scores = score(scored_as, [replace(prediction, task=scored_as)])
    own: dict = {name: float(value) for name, value in scores.items() if name not in _OF_MANY and not name.endswith(("_low", "_high"))}
    if prediction.task != "elc":
        return own
    if prediction.finished and not prediction.prediction.caption:
        own["unparsable"] = 1.0
    if problem := missing_caption_tools():
        warnings.warn(problem, stacklevel=2)
        return own
    return own | {name: [prediction.prediction.caption or "", prediction.truth.caption] for name in METRICS}


def _prediction(question: Question, text: str) -> Prediction:
    """
    Parses an answer. Its boxes are assigned to frames as the annotation counts them.

    lmms-eval passes only the text of an answer from the model to the task, not the size and frames of the video.

    Raises:
        ValueError: if no model `llava_st` was created in this process, whose number of sampled frames is needed.
    """
    if LlavaST.num_frames is None:
        raise ValueError("The tasks llava_st_* score answers of the model llava_st: run them with --model llava_st.")
    assert question.size is not None and question.frames is not None  # all benchmarks of `DATA` have both
    (width, height), (first, last) = question.size, question.frames
    answer = text.removesuffix(CUT_OFF)
    media = MediaInfo(question.kind, width, height, first_frame=first, last_frame=last)
    question = to_clip_coordinates(question, media, LlavaST.num_frames)
    context = ParseContext(question.task, media, question.given, num_frames=question.num_frames)
    found, notes = ANSWER_PARSERS[OWN_PARSER](answer, context)
    return Prediction(
        id=question.id,
        benchmark="",
        task=question.task,
        prompt=question.prompt,
        truth=question.truth,
        given=question.given,
        answer=answer,
        finished=answer == text,
        prediction=found,
        notes=notes,
        num_frames=question.num_frames,
    )


@lru_cache(maxsize=1)
def _caption_metrics(pairs: tuple[tuple[str, str], ...]) -> dict[str, float]:
    # Cached, since all caption metrics are computed at once and lmms-eval asks for one after another.
    try:
        return score_captions([answered for answered, _ in pairs], [true for _, true in pairs]).metrics
    except CaptionScoringError as error:  # lmms-eval would lose all other metrics
        warnings.warn(str(error), stacklevel=2)
        return dict.fromkeys(METRICS, math.nan)


def _caption_metric(name: str, items: Sequence[Sequence[str]]) -> float:
    return _caption_metrics(tuple((answered, true) for answered, true in items))[name]


bleu_1 = partial(_caption_metric, "BLEU-1")
bleu_2 = partial(_caption_metric, "BLEU-2")
bleu_3 = partial(_caption_metric, "BLEU-3")
bleu_4 = partial(_caption_metric, "BLEU-4")
meteor = partial(_caption_metric, "METEOR")
rouge_l = partial(_caption_metric, "ROUGE_L")
cider = partial(_caption_metric, "CIDEr")
