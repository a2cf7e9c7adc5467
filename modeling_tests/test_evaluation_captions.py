# SPDX-License-Identifier: Apache-2.0
"""Captions: what pycocoevalcap says of them, and what happens where it cannot."""

import json

import pytest

from llava_st_hf.evaluation import captions
from llava_st_hf.evaluation.captions import FIGURES, MEANS, missing_caption_tools, score_captions
from llava_st_hf.evaluation.released_protocol import score_released
from llava_st_hf.evaluation.rows import GroundingResult, Prediction
from llava_st_hf.evaluation.scoring import score
from modeling_tests.reference import REFERENCE


requires_caption_tools = pytest.mark.skipif(missing_caption_tools() is not None, reason=str(missing_caption_tools()))


def described(said: str | None, true: str = "a child pushes a red toy") -> Prediction:
    truth, prediction = GroundingResult(caption=true), GroundingResult(caption=said)
    return Prediction("one", "b", "tr", "What?", truth, answer=said or "", prediction=prediction)


@requires_caption_tools
def test_captions_of_the_reference():
    expected = json.loads((REFERENCE / "metrics" / "expected_metrics.json").read_text())["elc"]["caption_score"]
    found = score_released("elc", json.loads((REFERENCE / "metrics" / "elc.json").read_text()))
    assert [found[f"BLEU-{n}"] for n in range(1, 5)] == pytest.approx(expected["Bleu_4"], rel=1e-3)
    for name in ("METEOR", "ROUGE_L", "CIDEr"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3)


@requires_caption_tools
def test_captions_that_are_empty_or_odd_keep_their_place():
    true = ["a child pushes a red toy", "two dogs run on the beach", "a man opens the door", "a cat sleeps", "she sings"]
    said = ["", "two dogs\n\u2028run ||| on the beach", "...", "“Eine Katze” schläft 🐈", "She sings!"]
    scores = score_captions(said, true)
    assert set(scores.figures) == set(scores.values) == set(FIGURES)
    assert all(len(values) == 5 for values in scores.values.values())
    rouge = scores.values["ROUGE_L"]
    assert rouge[0] == rouge[2] == 0.0 and rouge[1] == rouge[4] == 1.0
    for name in MEANS:
        assert scores.figures[name] == pytest.approx(scores.values[name].mean())
    assert all(figure == figure for figure in scores.figures.values())


@requires_caption_tools
def test_one_right_caption():
    figures = score("tr", [described("A child pushes a red toy.")])
    assert figures["BLEU-4"] == pytest.approx(1.0) and figures["ROUGE_L"] == figures["METEOR"] == pytest.approx(1.0)
    assert figures["ROUGE_L_low"] == figures["ROUGE_L_high"] == pytest.approx(1.0)
    assert "METEOR_low" not in figures


@requires_caption_tools
def test_nothing_said_at_all():
    figures = score("reg", [Prediction("one", "b", "reg", "What?", GroundingResult(caption="a cat"), skipped="no file")])
    assert [figures[name] for name in FIGURES] == pytest.approx([0.0] * len(FIGURES), abs=1e-6)
    assert figures["skipped"] == 1


@pytest.mark.parametrize("said, true", [([], []), (["a"], ["a", "b"])])
def test_captions_go_in_pairs(said, true):
    with pytest.raises(ValueError, match="pairs"):
        score_captions(said, true)


def test_without_java_the_other_figures_come_out(monkeypatch):
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    truth = GroundingResult(span=(0.2, 0.6), tubelet={20: (0, 0, 10, 10)}, caption="a cat sleeps")
    media = {"kind": "video", "width": 100, "height": 100, "last_frame": 99}
    row = Prediction("one", "b", "elc", "When?", truth, media=media, answer="Ends in <TEMP-059>, a cat.", prediction=truth)
    for protocol in ("default", "released"):
        with pytest.warns(UserWarning, match="no `java` on the PATH"):
            figures = score("elc", [row], protocol)
        assert "mtiou" in figures and "METEOR" not in figures
    with pytest.raises(RuntimeError, match="Java"):
        score_captions(["a"], ["a"])


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: None)
    assert "pip install pycocoevalcap" in missing_caption_tools()
    with pytest.warns(UserWarning, match="pycocoevalcap is not installed"):
        figures = score("tr", [described("a toy")])
    assert figures.keys() == {"count", "unparsable", "cut_off", "skipped", "exact_match", "exact_match_low", "exact_match_high"}


@requires_caption_tools
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pycocoevalcap closes a pipe that is gone
def test_a_java_that_does_not_run_is_named(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin:/usr/sbin")
    with pytest.raises(RuntimeError, match="Captions could not be scored"):
        score_captions(["a cat"], ["a dog"])
