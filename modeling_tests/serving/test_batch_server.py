# SPDX-License-Identifier: Apache-2.0
"""`llava-st batch` with `llava-st serve`: answers equal to those of the pipeline, and a server that is killed and started again."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
import xgrammar.contrib.hf
from transformers import pipeline

from llava_st_cli.main import main
from llava_st_hf import DEMO_MODEL_PATH, Grounding
from llava_st_hf.batch import read_answers
from llava_st_hf.model.grammar_export_llava_st import answer_regex
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.shapes.files import write_image, write_video
from llava_st_hf.shapes.questions import sentence
from llava_st_hf.shapes.scenes import make_scene, scene_seed
from modeling_tests.serving.server import Server, running_server


SCENES, CONNECTIONS = 6, 4
SERVE = (sys.executable, "-m", "llava_st_hf", "serve")
OPTIONS = ("--name", "demo", "--", "--enforce-eager", "--max-num-seqs", "16", "--max-num-batched-tokens", "4096")


def write_manifest(path: Path, bins: bool) -> list[dict]:
    """
    Writes a manifest of questions of all tasks about images and videos, and of two about a damaged and a missing file.

    Args:
        bins: times and boxes of the questions are at bins, so that they are equal to those of exact positions; else between bins.

    Returns:
        Its rows.
    """
    rows: list[dict] = []
    for number in range(SCENES):
        rng = np.random.default_rng(number)
        for kind, suffix, write in (("image", "png", write_image), ("video", "mp4", write_video)):
            scene, name = make_scene(scene_seed("test", number), kind == "video"), f"{number}.{suffix}"
            write(scene, path.parent / name)
            fractions = np.sort(rng.uniform(0.1, 0.9, (3, 2)))  # of time, width and height
            fractions = np.round(fractions * 99) / 99 if bins else fractions
            duration = (scene.num_frames - 1) / scene.fps
            (start, end), (x1, x2), (y1, y2) = (fractions * [[duration], [scene.width], [scene.height]]).tolist()
            text = sentence(scene, scene.events[0], rng) if scene.events else "the large red circle"
            values = {"text": text, "span": [start, end], "box": [x1, y1, x2, y2], "time": start}
            for task, settings in TASKS.items():
                if settings.medium == kind:
                    rows.append({kind: name, "task": task, **{name: values[name] for name in settings.needs}})
    (path.parent / "damaged.mp4").write_bytes((path.parent / "0.mp4").read_bytes()[:500])
    for place, name in ((len(rows) // 3, "damaged.mp4"), (2 * len(rows) // 3, "missing.mp4")):
        rows.insert(place, {"video": name, "task": "tvg", "text": "the large red circle"})
    path.write_text("".join(json.dumps({"id": number, **row}) + "\n" for number, row in enumerate(rows)))
    return rows


def command(manifest: Path, output: Path, server: Server, *options: str) -> list[str]:
    found = ["batch", str(manifest), str(output), "--model", DEMO_MODEL_PATH, "--server", server.url, "--connections", str(CONNECTIONS)]
    return [*found, "--num-shards", "10", "--max-new-tokens", "400", "--wait-for-server", "600", *options]


def constraint(grounder, task: str) -> list[xgrammar.contrib.hf.LogitsProcessor]:
    """The regular expression of requests. The pipeline's own grammar also requires ascending times in the span of a question."""
    processor = grounder.processor
    regex = answer_regex(task, processor.num_temporal_bins, processor.num_spatial_bins)
    size, ends = grounder.model.config.get_text_config().vocab_size, processor.tokenizer.eos_token_id
    vocabulary = xgrammar.TokenizerInfo.from_huggingface(processor.tokenizer, vocab_size=size, stop_token_ids=ends)
    return [xgrammar.contrib.hf.LogitsProcessor(xgrammar.GrammarCompiler(vocabulary).compile_regex(regex))]


def check(output: Path, rows: list[dict], grounder, constrained: bool) -> list[dict]:
    """Checks that each row has one outcome: the answer of the pipeline, or a failure if its file cannot be read. Returns the rows."""
    found = list(read_answers(str(output)))
    assert [(row["row"], row["id"]) for row, _ in found] == [(number + 1, number) for number in range(len(rows))]
    failures = {row["video"]: (row["error_type"], row["requests"]) for row, answer in found if answer is None}
    assert failures == {"damaged.mp4": ("TruncatedVideoError", 0), "missing.mp4": ("FileNotFoundError", 0)}
    for (row, answer), asked in zip(found, rows, strict=True):
        if answer is not None:
            (kind,) = {"image", "video"} & set(asked)
            options = {"logits_processor": constraint(grounder, asked["task"])} if constrained else {}
            question = {**asked, kind: str(output.parent / asked[kind])}
            expected = Grounding.from_dict(grounder(question, max_new_tokens=400, generate_kwargs=options))
            assert (answer.text, answer.events) == (expected.text, expected.events), row
    return [row for row, _ in found]


def answered(server: Server) -> int:
    """Requests that the server has answered with status 200, from its log."""
    return len(re.findall(r'"POST /v1/chat/completions HTTP/1.1" 200', server.output))


def test_batch_whose_server_is_killed_has_the_answers_of_the_pipeline_and_asks_nothing_twice(tmp_path):
    torch.set_num_threads(1)
    between, at_bins = tmp_path / "between.jsonl", tmp_path / "at_bins.jsonl"
    rows, others = write_manifest(between, bins=False), write_manifest(at_bins, bins=True)
    assert Counter(row["task"] for row in rows) == {**dict.fromkeys(TASKS, SCENES), "tvg": SCENES + 2}
    exact, constrained = tmp_path / "exact", tmp_path / "constrained"
    with ExitStack() as stack:
        first = stack.enter_context(running_server(tmp_path / "log", *OPTIONS, command=SERVE, timeout=600))
        arguments = command(between, exact, first, "--exact")
        process = stack.enter_context(subprocess.Popen([sys.executable, "-m", "llava_st_hf", *arguments]))
        stack.callback(process.kill)
        deadline = time.monotonic() + 600
        while len(finished := list(exact.glob("answers/[0-9]*.parquet"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        first.kill()
        contents = {path: path.read_bytes() for path in finished}
        port = int(first.url.split(":")[-1].split("/")[0])
        second = stack.enter_context(running_server(tmp_path / "log2", *OPTIONS, command=SERVE, port=port, timeout=600))
        assert process.wait(600) == 3
        by_second = answered(second)
        assert main(command(at_bins, constrained, second, "--constrained")) == 3
    grounder = pipeline("video-grounding", model=DEMO_MODEL_PATH, dtype="float32", device="cpu")
    found = check(exact, rows, grounder, constrained=False)
    assert all(path.read_bytes() == content for path, content in contents.items())
    asked = sum(row["requests"] for row in found)
    assert 0 < by_second < len(rows) - 2 and len(rows) - 2 <= answered(first) + by_second <= asked <= len(rows) - 2 + CONNECTIONS
    assert all(row["requests"] == 1 for row in check(constrained, others, grounder, constrained=True) if row["error"] is None)
