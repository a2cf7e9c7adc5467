# SPDX-License-Identifier: Apache-2.0
"""Compares the time of five questions about one video with that of one question.

    python examples/benchmarks/session.py

The demo model answers five questions about a clip of the Shapes dataset, of the task "stvg" (a span and a box for each sampled frame in
it, about 60 tokens) and of the task "tvg" (a span, 4 tokens), with drafts (`speculative`, the default in float32) and without. Printed
are seconds, and the ratio to the mean time of the five questions in calls of their own:

- `separate calls`: `grounder(video, text=…)` for each question;
- `list of texts`: `grounder(video, text=[…])`;
- `list of inputs`: `grounder([{"video": …, "text": …}, …])` with batches of 5 and of 1;
- `session`: opening it and `ask` with all questions, with one after the other, or with one and then `follow_up` for the others;
- `evaluation`: the runner with batches of 5, with the five questions about each of `--clips` clips; and with each question about its own
  copy of the clip, so that the clip is encoded for each question. Seconds per clip.

The answers of all but the follow-ups are compared with those of the separate calls. All ways are measured in turn `--repeats` times, and
the fastest run of each counts, so that other load on the machine affects them less.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from transformers import pipeline

import llava_st_hf  # noqa: F401  (registers pipeline("video-grounding"))
from llava_st_hf.evaluation import EvaluationSettings, GroundingResult, Question, run_benchmark
from llava_st_hf.evaluation.commands import read_own_answer
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.shapes.files import write_video
from llava_st_hf.shapes.questions import video_rows
from llava_st_hf.shapes.scenes import make_scene, scene_seed


QUESTIONS, TASK_NAMES = 5, ("stvg", "tvg")


def clips(folder: Path, count: int, num_frames: int) -> list[tuple[str, list[str]]]:
    """Writes clips of the test split, and returns the path of each with the texts of questions about its events."""
    found = []
    for number in range(count):
        scene = make_scene(scene_seed("test", number), is_video=True)
        path = folder / f"{number}.mp4"
        write_video(scene, path)
        rows = [row for seed in range(8) for row in video_rows(scene, path.name, np.random.default_rng(seed), num_frames, None)]
        texts = list(dict.fromkeys(row["text"] for row in rows if row["task"] == "stvg"))
        found.append((str(path), [texts[index % len(texts)] for index in range(QUESTIONS)]))
    return found


def ways(grounder, video: str, texts: list[str], task: str, options: dict) -> dict[str, Callable[[], list]]:
    """Functions that ask all questions and return the answers."""
    inputs = [{"video": video, "text": text, "task": task} for text in texts]

    def session(ask: Callable) -> list:
        with grounder.open(video, **options) as opened:
            return ask(opened)

    return {
        "separate calls": lambda: [grounder(video, text=text, task=task, **options) for text in texts],
        "list of texts": lambda: grounder(video, text=texts, task=task, **options),
        "list of inputs, batches of 5": lambda: grounder(inputs, batch_size=QUESTIONS, **options),
        "list of inputs, batches of 1": lambda: grounder(inputs, **options),
        "session, all at once": lambda: session(lambda opened: opened.ask(text=texts, task=task)),
        "session, one by one": lambda: session(lambda opened: [opened.ask(text=text, task=task) for text in texts]),
        "session, follow-ups": lambda: session(
            lambda opened: [(opened.follow_up if number else opened.ask)(text=text, task=task) for number, text in enumerate(texts)]
        ),
    }


def fastest(functions: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, object]]:
    """Seconds of the fastest of `repeats` runs of each function, called in turn after one run that is not measured; and the results."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    results = {name: function() for name, function in functions.items()}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}, results


def evaluation_ways(grounder, folder: Path, made: list[tuple[str, list[str]]], task: str) -> dict[str, Callable[[], object]]:
    """Functions that run the questions about all clips through the evaluation runner."""

    def questions(copies: bool) -> list[Question]:
        found = []
        for video, texts in made:
            for number, text in enumerate(texts):
                path = video
                if copies:
                    path = f"{video}.{number}.mp4"
                    shutil.copyfile(video, path)
                prompt, name = TASKS[task].prompt.format(text=text), f"{Path(video).stem}-{number}"
                found.append(Question(name, task, path, "video", prompt, GroundingResult(span=(0.1, 0.5))))
        return found

    def run(asked: list[Question]) -> list[str | None]:
        settings = EvaluationSettings("shapes", "demo", batch_size=QUESTIONS, max_new_tokens=256)
        with tempfile.TemporaryDirectory(dir=folder) as output:
            predictions = run_benchmark(asked, grounder.model, grounder.processor, output, settings, read_own_answer, num_workers=0)
        return [prediction.answer for prediction in predictions]

    shared, copied = questions(copies=False), questions(copies=True)
    return {"evaluation, one clip": lambda: run(shared), "evaluation, copies": lambda: run(copied)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clips", type=int, default=4, help="of the evaluation")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    grounder = pipeline("video-grounding")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = clips(folder, args.clips, grounder.processor.video_processor.num_frames)
        for task, speculative in product(TASK_NAMES, (True, False)):
            measure(grounder, folder, made, task, {"speculative": speculative}, args)


def measure(grounder, folder: Path, made: list[tuple[str, list[str]]], task: str, options: dict, args: argparse.Namespace) -> None:
    """Prints the times of one task."""
    video, texts = made[0]
    functions = ways(grounder, video, texts, task, options)
    functions |= {f"question {n}": partial(grounder, video, text=text, task=task, **options) for n, text in enumerate(texts)}
    times, results = fastest(functions, args.repeats)
    one = sum(times.pop(f"question {n}") for n in range(QUESTIONS)) / QUESTIONS
    print(f"{task}, {options}: one question {one:.3f} s (mean of {QUESTIONS}), {args.threads} threads, fastest of {args.repeats}")
    for name, seconds in times.items():
        same = "" if name.endswith("follow-ups") else f", answers equal: {results[name] == results['separate calls']}"
        print(f"  {name:30s} {seconds:7.3f} s {seconds / one:5.2f} × one question{same}")
    if not options["speculative"]:  # the runner decodes without drafts
        times, results = fastest(evaluation_ways(grounder, folder, made, task), args.repeats)
        equal = len({str(answers) for answers in results.values()}) == 1
        for name, seconds in times.items():
            print(f"  {name:30s} {seconds / args.clips:7.3f} s a clip, answers equal: {equal}")


if __name__ == "__main__":
    main()
