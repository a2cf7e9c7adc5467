# SPDX-License-Identifier: Apache-2.0
"""BLEU, METEOR, ROUGE-L and CIDEr of captions, as pycocoevalcap computes them.

It cuts captions into words with Stanford's tokenizer (lower case, no punctuation) and runs METEOR 1.5, both in Java.
"""

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


FIGURES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr")
# Of a corpus these are the mean of what single captions have; BLEU and METEOR count matches over the whole corpus.
MEANS = ("ROUGE_L", "CIDEr")


@dataclass(frozen=True)
class CaptionScores:
    """
    Args:
        figures: of all captions together, by the names in `FIGURES`. CIDEr lies in [0, 10], the others in [0, 1].
        values: (N,) of the single captions, by the same names. Their mean is the figure for those in `MEANS` alone.
    """

    figures: dict[str, float]
    values: dict[str, np.ndarray]


def missing_caption_tools() -> str | None:
    """What keeps captions from being scored here, in plain words with its remedy; None if nothing does."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "Captions are not scored: pycocoevalcap is not installed (pip install pycocoevalcap; it needs Java as well)."
    if shutil.which("java") is None:
        return (
            "Captions are not scored: METEOR and the tokenizer need Java, and there is no `java` on the PATH; install version 8 or later."
        )
    return None


def score_captions(captions: Sequence[str], references: Sequence[str]) -> CaptionScores:
    """
    Scores captions, each against one reference.

    Args:
        captions: what was said; empty where nothing was.
        references: what is true, in the same order.

    Raises:
        ValueError: where there are none, or not as many of one as of the other.
        RuntimeError: where `missing_caption_tools` names something, or a tool fails.
    """
    if len(captions) != len(references) or not captions:
        raise ValueError(f"Captions and references go in pairs; there are {len(captions)} and {len(references)}.")
    if problem := missing_caption_tools():
        raise RuntimeError(problem)
    # Here, and not above: without the package everything else of an evaluation works.
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    try:
        said, true = (PTBTokenizer().tokenize(_numbered(texts)) for texts in (captions, references))
        if len(said) != len(captions) or len(true) != len(references):
            raise RuntimeError("The tokenizer gave another number of captions than it got.")
        bleu, bleu_values = Bleu(4).compute_score(true, said, verbose=0)
        meteor, meteor_values = _meteor(Meteor(), true, said)
    except (OSError, ValueError) as error:  # a folder that cannot be written, a Java that does not start or dies
        raise RuntimeError(f"Captions could not be scored: {error or type(error).__name__}.") from error
    rouge, rouge_values = Rouge().compute_score(true, said)
    cider, cider_values = Cider().compute_score(true, said)
    figures = (*bleu, meteor, rouge, cider)
    values = (*bleu_values, meteor_values, rouge_values, cider_values)
    return CaptionScores(
        {name: float(figure) for name, figure in zip(FIGURES, figures, strict=True)},
        {name: np.asarray(value, dtype=float) for name, value in zip(FIGURES, values, strict=True)},
    )


def _meteor(meteor, true: dict, said: dict) -> tuple[float, list[float]]:
    try:
        return meteor.compute_score(true, said)
    finally:
        if meteor.lock.locked():  # it keeps its lock where it fails, and would wait for it for ever as it goes
            meteor.lock.release()


def _numbered(texts: Sequence[str]) -> dict[int, list[dict[str, str]]]:
    """As the tokenizer takes them. It reads a caption a line, and METEOR parts captions by bars: neither may stand in one."""
    return {number: [{"caption": " ".join(text.replace("|", " ").split())}] for number, text in enumerate(texts)}
