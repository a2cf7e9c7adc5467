# SPDX-License-Identifier: Apache-2.0
"""What the tasks of this folder do, by the names that their YAML files call.

lmms-eval wants a Hugging Face dataset for each task. The benchmarks are files of the user's own, in formats of their own, so the tasks
name a placeholder of one row, and `process_docs` puts the questions in its place.

Figures that are means over questions are computed for each by this package's `score` and averaged by lmms-eval, which so knows their
standard errors; captions are scored together.
"""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial

from datasets import Dataset

from ....evaluation.answers import ANSWER_PARSERS, ParseContext
from ....evaluation.benchmarks import read_benchmark
from ....evaluation.captions import FIGURES, missing_caption_tools, score_captions
from ....evaluation.rows import OWN_PARSER, GroundingResult, Prediction, Question
from ....evaluation.scoring import score
from ....model.grounding_llava_st import MediaInfo
from ..plugin import CUT_OFF


# Benchmark → what its data are called in the environment: LLAVA_ST_<name>_ANNOTATIONS is a file, LLAVA_ST_<name>_MEDIA a folder.
DATA = {
    "vidstg_declarative": "VIDSTG",
    "vidstg_interrogative": "VIDSTG",
    "hc_stvg_v1": "HC_STVG_V1",
    "hc_stvg_v2": "HC_STVG_V2",
    "st_align_stvg": "ST_ALIGN_STVG",
    "st_align_svg": "ST_ALIGN_SVG",
    "st_align_elc": "ST_ALIGN_ELC",
}
# What `score` tells that means nothing for one answer.
_OF_MANY = ("count", "skipped")
# ELC is scored as STVG is, and its captions beside that.
_SCORED_AS = {"elc": "stvg"}


def _questions(benchmark: str, placeholder: Dataset) -> Dataset:
    """
    The questions of a benchmark in the place of a placeholder.

    Raises:
        ValueError: naming an environment variable that is not set, or as `read_benchmark` does.
        OSError: where a file cannot be read.
    """
    variables = [f"LLAVA_ST_{DATA[benchmark]}_{part}" for part in ("ANNOTATIONS", "MEDIA")]
    if missing := [name for name in variables if not os.environ.get(name)]:
        raise ValueError(f"Where {benchmark} is must be told in the environment; not set: {', '.join(missing)}.")
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
    """A row. What is not text is JSON: as columns, tubelets would have one for each frame of any of them."""
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
    rest = json.loads(doc["question"])
    pairs = {name: None if rest[name] is None else tuple(rest[name]) for name in ("clip", "size", "frames")}
    groundings = {"truth": GroundingResult.from_dict(json.loads(doc["target"])), "given": GroundingResult.from_dict(rest["given"])}
    return Question(**{**rest, **pairs, **groundings, "id": doc["id"], "prompt": doc["prompt"], "path": doc["path"]})


def doc_to_text(doc: dict) -> str:
    return doc["prompt"]


def doc_to_visual(doc: dict) -> list[str]:
    """For models that take a video as a whole: what they see beside the clip is theirs to leave out."""
    return [doc["path"]]


def doc_to_target(doc: dict) -> str:
    return doc["target"]


def doc_to_messages(doc: dict) -> list[dict]:
    """The chat. `clip` is for this package's model; others do not know it, and look at the whole video."""
    question = _question(doc)
    medium = {"type": question.kind, "url": question.path}
    if question.clip is not None:
        medium["clip"] = list(question.clip)
    return [{"role": "user", "content": [medium, {"type": "text", "text": question.prompt}]}]


def process_results(doc: dict, results: Sequence[str]) -> dict:
    """The figures of one answer, by the names that `score` has for them; of captions, what was said and what is true."""
    prediction = _prediction(_question(doc), results[0])
    scored_as = _SCORED_AS.get(prediction.task, prediction.task)
    figures = score(scored_as, [replace(prediction, task=scored_as)])
    own = {name: float(value) for name, value in figures.items() if name not in _OF_MANY and not name.endswith(("_low", "_high"))}
    if prediction.task != "elc":
        return own
    if prediction.finished and not prediction.prediction.caption:
        own["unparsable"] = 1.0
    if problem := missing_caption_tools():
        warnings.warn(problem, stacklevel=2)
        return own
    return own | {name: [prediction.prediction.caption or "", prediction.truth.caption] for name in FIGURES}


def _prediction(question: Question, text: str) -> Prediction:
    """
    What an answer says. Frames are those that the annotation counts.

    lmms-eval hands the answer alone from model to task, and not what the model saw.
    """
    assert question.size is not None and question.frames is not None  # all benchmarks of `DATA` tell
    (width, height), (first, last) = question.size, question.frames
    answer = text.removesuffix(CUT_OFF)
    asked = ParseContext(question.task, MediaInfo(question.kind, width, height, first_frame=first, last_frame=last), question.given)
    said, notes = ANSWER_PARSERS[OWN_PARSER](answer, asked)
    return Prediction(
        id=question.id,
        benchmark="",
        task=question.task,
        prompt=question.prompt,
        truth=question.truth,
        given=question.given,
        answer=answer,
        finished=answer == text,
        prediction=said,
        notes=notes,
    )


@lru_cache(maxsize=1)
def _caption_figures(pairs: tuple[tuple[str, str], ...]) -> dict[str, float]:
    # All figures of captions come at once, and lmms-eval asks for one after another.
    return score_captions([said for said, _ in pairs], [true for _, true in pairs]).figures


def _caption_figure(name: str, items: Sequence[Sequence[str]]) -> float:
    return _caption_figures(tuple((said, true) for said, true in items))[name]


bleu_1 = partial(_caption_figure, "BLEU-1")
bleu_2 = partial(_caption_figure, "BLEU-2")
bleu_3 = partial(_caption_figure, "BLEU-3")
bleu_4 = partial(_caption_figure, "BLEU-4")
meteor = partial(_caption_figure, "METEOR")
rouge_l = partial(_caption_figure, "ROUGE_L")
cider = partial(_caption_figure, "CIDEr")
