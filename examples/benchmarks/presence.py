# SPDX-License-Identifier: Apache-2.0
"""
Fits the calibration of the presence on videos in which an event occurs in none, one or several scenes, and measures `all=True`.

    python examples/benchmarks/presence.py

The videos are four scenes of the Shapes dataset, one after the other (about 14 s). In none, one, two or three of them the same object does
the same; half of the questions use another verb than the answers of the training data. The calibration and the threshold are fitted on
videos of the validation split, and everything is measured on the test split:

- events of windows: how well the score of the span, the agreement and the presence tell events that are described from others (area under
  the ROC curve), and the expected calibration error of the presence;
- answers: the same for videos, with the presence of the answer;
- instances: precision, recall and F1 of the events that `all=True` returns, at temporal IoU 0.5, by the number of instances.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scores import area_under_curve, reliability
from transformers import pipeline
from transformers.utils import logging

import llava_st_hf  # noqa: F401  (registers pipeline("video-grounding"))
from llava_st_hf.model.presence_llava_st import PresenceCalibration, set_presence_calibration
from llava_st_hf.model.window_answers_llava_st import WindowedQuestions, WindowOptions
from llava_st_hf.model.windows_llava_st import WindowEvent, merge_events, temporal_iou
from llava_st_hf.shapes.long_videos import repeated_event_video
from llava_st_hf.shapes.questions import VERBS


COUNTS = (0, 1, 2, 3)  # scenes with the event
THRESHOLDS = [round(0.05 * number, 2) for number in range(1, 20)]


def videos(split: str, count: int, folder: Path):
    """Yields `(path, question, spans of the event)` of `count` videos."""
    for number in range(count):
        video, text = repeated_event_video(split, number, COUNTS[number % len(COUNTS)])
        spans = [(instance.start, instance.end) for instance in video.instances if instance.text == text]
        name, kind = " ".join(text.split()[:4]), " ".join(text.split()[4:])
        if number // len(COUNTS) % 2:
            text = f"{name} {np.random.default_rng(number).choice(VERBS[kind])}"
        path = folder / f"{split}-{number}.mp4"
        video.write(path)
        yield str(path), text, spans


def window_events(grounder, path: str, text: str, options: WindowOptions) -> list[WindowEvent]:
    """The events of all windows, not merged."""
    run = WindowedQuestions(grounder, [{"video": path, "text": text, "task": "tvg"}], {}, options).run()
    return [event for event, _ in run.found[0]]


def is_described(event: WindowEvent, spans: Sequence[tuple[float, float]]) -> bool:
    """Whether an event of a window has a temporal IoU of at least 0.5 with the part of a true one that is in the window."""
    parts = [(max(start, event.window[0]), min(end, event.window[1])) for start, end in spans]
    return any(start < end and temporal_iou((event.start, event.end), (start, end)) >= 0.5 for start, end in parts)


def num_matched(found: Sequence[tuple[float, float]], spans: Sequence[tuple[float, float]]) -> int:
    """Number of pairs with a temporal IoU of at least 0.5, each span in at most one, the best first."""
    pairs = sorted(((temporal_iou(one, other), i, j) for i, one in enumerate(found) for j, other in enumerate(spans)), reverse=True)
    used: tuple[set, set] = set(), set()
    for iou, i, j in pairs:
        if iou >= 0.5 and i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
    return len(used[0])


def logits(values: Sequence[float]) -> torch.Tensor:
    return torch.logit(torch.tensor(values, dtype=torch.float64), eps=1e-4)


def fit(events: list[WindowEvent], labels: list[bool]) -> PresenceCalibration:
    """Weights with the lowest cross-entropy; the weight of the span score is 0 if it would be negative."""
    columns = [logits([event.agreement for event in events]), logits([event.span_score for event in events])]
    columns.append(torch.ones_like(columns[0]))
    target = torch.tensor(labels, dtype=torch.float64)
    for used in (columns, [columns[0], torch.zeros_like(columns[0]), columns[2]]):
        weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

        def loss(used=used, weights=weights, optimizer=optimizer):
            optimizer.zero_grad()
            values = sum(weight * column for weight, column in zip(weights, used, strict=True))
            value = torch.nn.functional.binary_cross_entropy_with_logits(values, target) + 1e-3 * weights[:2].square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        if weights[1] >= 0:
            break
    text, span, offset = (round(value, 4) for value in weights.tolist())
    return PresenceCalibration(text, max(span, 0.0), offset)


def instance_table(rows: list[tuple[int, list, list]]) -> None:
    """Prints precision, recall and F1 by the number of instances; `rows` are `(count, found spans, true spans)`."""
    print("\n| instances | videos | found | precision | recall | F1 | without an event |\n|---|---|---|---|---|---|---|")
    for name, chosen in [*((str(count), [row for row in rows if row[0] == count]) for count in COUNTS), ("all", rows)]:
        matched, found, true = (sum(values) for values in zip(*((num_matched(f, t), len(f), len(t)) for _, f, t in chosen), strict=True))
        ratios = [f"{matched / whole:.3f}" if whole else "–" for whole in (found, true)] + [f"{2 * matched / max(found + true, 1):.3f}"]
        print(f"| {name} | {len(chosen)} | {found} | {' | '.join(ratios)} | {sum(not f for _, f, _ in chosen)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--model", help="folder or hub id; by default the demo model")
    parser.add_argument("--videos", type=int, nargs=2, default=(48, 80), help="number of videos of the validation and of the test split")
    parser.add_argument("--window", type=float, default=4.0, help="seconds")
    parser.add_argument("--overlap", type=float, help="seconds; by default that of the pipeline")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    grounder = pipeline("video-grounding", model=arguments.model, dtype="float32")
    options = WindowOptions(arguments.window, arguments.overlap, batch_size=32)
    with tempfile.TemporaryDirectory() as folder:
        asked = videos("validation", arguments.videos[0], Path(folder))
        found = [(window_events(grounder, path, text, options), spans) for path, text, spans in asked]
        pairs = [(event, is_described(event, spans)) for events, spans in found for event in events]
        weights = fit(*map(list, zip(*pairs, strict=True)))

        def f1(threshold: float) -> float:
            matched = counted = 0
            for events, spans in found:
                present = [event for event in events if weights.presence(event.agreement, event.span_score) >= threshold]
                merged = merge_events(present, (0.0, max(event.window[1] for event in events)))
                matched += num_matched([(event.start, event.end) for event in merged], spans)
                counted += len(merged) + len(spans)
            return 2 * matched / max(counted, 1)

        calibration = {**vars(weights), "threshold": max(THRESHOLDS, key=f1)}
        described = sum(label for _, label in pairs)
        print(f"validation: {len(pairs)} events of windows, {described} of them described, F1 {f1(calibration['threshold']):.3f}")
        print(f"set_presence_calibration(model.generation_config, {json.dumps(calibration)})", flush=True)
        set_presence_calibration(grounder.model.generation_config, calibration)

        events, labels, answers, several = [], [], [], {"one look": [], "windows": []}
        for number, (path, text, spans) in enumerate(videos("test", arguments.videos[1], Path(folder))):
            count = COUNTS[number % len(COUNTS)]
            asked = WindowedQuestions(
                grounder, [{"video": path, "text": text, "task": "tvg"}], {}, WindowOptions(arguments.window, arguments.overlap, True, 32)
            )
            run = asked.run()
            answer = run.answer(0)
            answers.append((answer["presence"], count > 0))
            # Not those of parts of windows, which depend on the events found before.
            of_windows = [event for event, _ in run.found[0] if event.window[1] - event.window[0] > 0.9 * arguments.window]
            events += of_windows
            labels += [is_described(event, spans) for event in of_windows]
            whole = grounder(path, text=text, task="tvg", all=True)
            for name, result in (("one look", whole), ("windows", answer)):
                several[name].append((count, [(event["start"], event["end"]) for event in result["events"]], spans))
    correct = np.array(labels)
    print(f"\ntest: {len(events)} events of windows, {correct.sum()} of them described\n\n| value | AUROC | ECE |\n|---|---|---|")
    for name, values in (
        ("span score", [event.span_score for event in events]),
        ("agreement", [event.agreement for event in events]),
        ("presence of an event", [event.presence for event in events]),
    ):
        print(f"| {name} | {area_under_curve(np.array(values), correct):.3f} | {reliability(np.array(values), correct)[0]:.3f} |")
    presence, occurs = np.array(answers).T
    print(f"| presence of an answer | {area_under_curve(presence, occurs > 0):.3f} | {reliability(presence, occurs)[0]:.3f} |")
    for name, rows in several.items():
        print(f"\nall=True, {name}")
        instance_table(rows)


if __name__ == "__main__":
    main()
