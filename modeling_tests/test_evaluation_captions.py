# SPDX-License-Identifier: Apache-2.0
"""Caption metrics of pycocoevalcap, and scoring without it."""

import json
import re

import pytest

from llava_st_hf.evaluation import captions
from llava_st_hf.evaluation.captions import MEANS, METRICS, CaptionScoringError, missing_caption_tools, score_captions
from llava_st_hf.evaluation.original_protocol import score_original
from llava_st_hf.evaluation.rows import GroundingResult, Prediction
from llava_st_hf.evaluation.scoring import score
from modeling_tests.reference import REFERENCE


requires_caption_tools = pytest.mark.skipif(missing_caption_tools() is not None, reason=str(missing_caption_tools()))


def described(said: str | None, true: str = "a child pushes a red toy") -> Prediction:
    truth, prediction = GroundingResult(caption=true), GroundingResult(caption=said)
    return Prediction("one", "b", "tr", "What?", truth, answer=said or "", prediction=prediction)


@requires_caption_tools
def test_score_captions_reference_data_equals_the_original_code(one_meteor):
    expected = json.loads((REFERENCE / "metrics" / "expected_metrics.json").read_text())["elc"]["caption_score"]
    found = score_original("elc", json.loads((REFERENCE / "metrics" / "elc.json").read_text()))
    assert [found[f"BLEU-{n}"] for n in range(1, 5)] == pytest.approx(expected["Bleu_4"], rel=1e-3)
    for name in ("METEOR", "ROUGE_L", "CIDEr"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3)


@requires_caption_tools
def test_score_captions_empty_and_unusual_captions_keep_their_index(one_meteor):
    true = ["a child pushes a red toy", "two dogs run on the beach", "a man opens the door", "a cat sleeps", "she sings"]
    said = ["", "two dogs\n\u2028run ||| on the beach", "...", "“Eine Katze” schläft 🐈", "She sings!"]
    scores = score_captions(said, true)
    assert set(scores.metrics) == set(scores.values) == set(METRICS)
    assert all(len(values) == 5 for values in scores.values.values())
    rouge = scores.values["ROUGE_L"]
    assert rouge[0] == rouge[2] == 0.0 and rouge[1] == rouge[4] == 1.0
    for name in MEANS:
        assert scores.metrics[name] == pytest.approx(scores.values[name].mean())
    assert all(value == value for value in scores.metrics.values())


@requires_caption_tools
def test_score_correct_caption_gives_the_maximum(one_meteor):
    scores = score("tr", [described("A child pushes a red toy.")])
    assert scores["BLEU-4"] == pytest.approx(1.0) and scores["ROUGE_L"] == scores["METEOR"] == pytest.approx(1.0)
    assert scores["ROUGE_L_low"] == scores["ROUGE_L_high"] == pytest.approx(1.0)
    assert "METEOR_low" not in scores


@requires_caption_tools
def test_score_skipped_captions_only_gives_zero(one_meteor):
    scores = score("reg", [Prediction("one", "b", "reg", "What?", GroundingResult(caption="a cat"), skipped="no file")])
    assert [scores[name] for name in METRICS] == pytest.approx([0.0] * len(METRICS), abs=1e-6)
    assert scores["skipped"] == 1


@pytest.mark.parametrize("said, true", [([], []), (["a"], ["a", "b"])])
def test_score_captions_empty_or_unequal_lists_raises(said, true):
    with pytest.raises(ValueError, match="pairs"):
        score_captions(said, true)


def described_event() -> Prediction:
    """Returns a prediction of "elc" that equals the ground truth."""
    truth = GroundingResult(span=(0.2, 0.6), tubelet={20: (0, 0, 10, 10)}, caption="a cat sleeps")
    media = {"kind": "video", "width": 100, "height": 100, "last_frame": 99}
    return Prediction("one", "b", "elc", "When?", truth, media=media, answer="Ends in <TEMP-059>, a cat.", prediction=truth, num_frames=100)


def check_other_metrics_and_note(reason: str) -> None:
    for protocol, name in (("default", "m_tiou"), ("original", "mtiou")):
        with pytest.warns(UserWarning, match=reason):
            scores = score("elc", [described_event()], protocol)
        assert name in scores and not {*METRICS} & scores.keys()
        assert len(scores.notes) == 1 and re.search(reason, scores.notes[0])
        assert scores.to_dict() == {**scores, "notes": scores.notes}


def test_score_without_java_keeps_other_metrics_and_a_note(monkeypatch):
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    check_other_metrics_and_note("no `java` on the PATH")
    with pytest.raises(RuntimeError, match="Java"):
        score_captions(["a"], ["a"])


def test_score_without_pycocoevalcap_warns_and_omits_caption_metrics(monkeypatch):
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: None)
    assert "pip install pycocoevalcap" in missing_caption_tools()
    with pytest.warns(UserWarning, match="pycocoevalcap is not installed"):
        scores = score("tr", [described("a toy")])
    assert scores.keys() == {"count", "unparsable", "cut_off", "skipped", "exact_match", "exact_match_low", "exact_match_high"}


@requires_caption_tools
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pycocoevalcap closes a pipe that no longer exists
def test_score_failing_java_keeps_other_metrics_and_a_note(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin:/usr/sbin")
    with pytest.raises(CaptionScoringError, match=r"Captions are not scored: .*Java"):
        score_captions(["a cat"], ["a dog"])
    check_other_metrics_and_note("Java process failed|tokenizer")


@requires_caption_tools
def test_score_captions_lone_surrogate_does_not_affect_the_other_captions(one_meteor):
    scores = score_captions(["a \ud83d cat sleeps", "a dog"], ["a cat sleeps", "a dog"])
    assert scores.values["ROUGE_L"].tolist() == [1.0, 1.0]
