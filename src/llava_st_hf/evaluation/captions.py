# SPDX-License-Identifier: Apache-2.0
"""BLEU, METEOR, ROUGE-L and CIDEr of captions, computed by pycocoevalcap.

pycocoevalcap splits captions into words with Stanford's tokenizer (lower case, no punctuation) and runs METEOR 1.5; both need Java.
"""

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr")
# The corpus value of these is the mean of the values of the captions. BLEU and METEOR count matches over the whole corpus.
MEANS = ("ROUGE_L", "CIDEr")


class CaptionScoringError(RuntimeError):
    """Raised if captions cannot be scored because pycocoevalcap or Java is missing or fails. Other metrics do not depend on them."""


@dataclass(frozen=True)
class CaptionScores:
    """
    Args:
        metrics: of all captions together, by the names in `METRICS`. CIDEr is in [0, 10], the others in [0, 1].
        values: (N,) per caption, by the same names. Only for the names in `MEANS` is their mean the metric.
    """

    metrics: dict[str, float]
    values: dict[str, np.ndarray]


def missing_caption_tools() -> str | None:
    """Returns why captions cannot be scored in this environment, with the remedy; None if the tools are installed."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "Captions are not scored: pycocoevalcap is not installed (pip install pycocoevalcap; it also needs Java)."
    if shutil.which("java") is None:
        return (
            "Captions are not scored: METEOR and the tokenizer need Java, and there is no `java` on the PATH; install version 8 or later."
        )
    return None


def score_captions(captions: Sequence[str], references: Sequence[str]) -> CaptionScores:
    """
    Scores captions, each against one reference.

    Args:
        captions: of the answers; an empty string for an answer without a caption.
        references: ground truth, in the same order.

    Raises:
        ValueError: if there are no captions, or their number differs from that of the references.
        CaptionScoringError: if `missing_caption_tools` returns a reason, or a tool fails.
    """
    if len(captions) != len(references) or not captions:
        raise ValueError(f"Captions and references must be pairs, at least one; got {len(captions)} and {len(references)}.")
    if problem := missing_caption_tools():
        raise CaptionScoringError(problem)
    # Imported here, so that all other metrics work without the package.
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    try:
        answered, true = (PTBTokenizer().tokenize(_numbered(texts)) for texts in (captions, references))
        if len(answered) != len(captions) or len(true) != len(references):
            raise CaptionScoringError("Captions are not scored: the tokenizer (Java) returned a different number of captions.")
        bleu, bleu_values = Bleu(4).compute_score(true, answered, verbose=0)
        meteor, meteor_values = _meteor(Meteor(), true, answered)
    except (OSError, ValueError) as error:  # a folder that cannot be written, or a Java process that does not start or dies
        reason = str(error) or type(error).__name__
        raise CaptionScoringError(f"Captions are not scored: pycocoevalcap or its Java process failed ({reason}).") from error
    rouge, rouge_values = Rouge().compute_score(true, answered)
    cider, cider_values = Cider().compute_score(true, answered)
    metrics = (*bleu, meteor, rouge, cider)
    values = (*bleu_values, meteor_values, rouge_values, cider_values)
    return CaptionScores(
        {name: float(metric) for name, metric in zip(METRICS, metrics, strict=True)},
        {name: np.asarray(value, dtype=float) for name, value in zip(METRICS, values, strict=True)},
    )


def _meteor(meteor, true: dict, answered: dict) -> tuple[float, list[float]]:
    try:
        return meteor.compute_score(true, answered)
    finally:
        if meteor.lock.locked():  # it keeps its lock after an error, and its destructor would wait for it for ever
            meteor.lock.release()


def _numbered(texts: Sequence[str]) -> dict[int, list[dict[str, str]]]:
    """Converts texts to the tokenizer's format. It reads one caption per line, METEOR separates captions by bars, and both write UTF-8:
    line breaks and bars become blanks, lone surrogates question marks."""
    encodable = (text.encode("utf-8", "replace").decode() for text in texts)
    return {number: [{"caption": " ".join(text.replace("|", " ").split())}] for number, text in enumerate(encodable)}
