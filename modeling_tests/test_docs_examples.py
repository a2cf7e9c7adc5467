# SPDX-License-Identifier: Apache-2.0
"""Python examples of README and docs: each block runs, after the blocks above it on the page, and gives the result that it shows.

The published checkpoint is replaced by the demo model, and the folder of the examples has `clip.mp4`, `photo.jpg` and the other files that
they name. A result is a comment behind an expression or a `print`; it is compared where it is complete (without "…") and of the demo model.
"""

import ast
import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from llava_st_hf import DEMO_MODEL_PATH, VideoGroundingPipeline
from llava_st_hf.evaluation.rows import GroundingResult, Prediction
from llava_st_hf.examples.sample_media import write_sample_media


ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Block of a page, by its first line → the reason why it cannot run here.
NOT_RUN = {
    ("checkpoints.md", "from llava_st_hf.checkpoints.conversion import merge_lora"): "stage folder of the original code: test_conversion",
    ("checkpoints.md", "from llava_st_hf.checkpoints.stage1_init import create_stage1_model"): "LLaVA-OneVision: test_stage1_init",
    (
        "checkpoints.md",
        "from llava_st_hf.checkpoints.stage1_parts import create_stage1_model_from_parts",
    ): "other weights: test_stage1_parts",
    ("publishing.md", "from transformers import pipeline"): "a repository of the Hub: test_publishing",
    ("publishing.md", "from llava_st_hf.checkpoints.publishing import publish_folder"): "a repository of the Hub: test_publishing",
    ("quantization.md", "import torch"): "bitsandbytes: test_quantization_llava_st",
    (
        "refinement.md",
        'grounder = pipeline("video-grounding", model="appletea2333/LLaVA-ST-Qwen2-7B", dtype="bfloat16", device_map="auto")',
    ): "weights of a detector: test_refinement_pipeline",
    ("refinement.md", "from llava_st_hf.refinement import Linking, load"): "weights of a detector: test_refinement",
    ("refinement.md", "from llava_st_hf.refinement import refine_answer"): "weights of a detector: test_refinement",
    ("vllm.md", "from pathlib import Path"): "vLLM: modeling_tests/serving",
    ("web_app.md", "from llava_st_hf.app.command import run"): "a server that runs until it is stopped: test_app",
    ("untrusted_input.md", "from llava_st_hf import DownloadLimits"): "another host: test_downloads_llava_st",
}
# Pages whose examples are run by their own test.
ELSEWHERE = {
    "api.md": "docstrings",
    "shapes.md": "test_docs_pages",
}
_SERVER = """
from transformers import pipeline
from modeling_tests.openai_server import serve_openai
demo = pipeline("video-grounding", model=MODEL, dtype="float32")
running = serve_openai(demo.model, demo.processor)
server = running.__enter__()  # until the test ends
"""
# What a page takes from pages that it continues, or from commands.
SETUP = {
    "batch_inference.md": """
from pathlib import Path
from llava_st_cli.main import main
Path("questions.jsonl").write_text('{"id": "a", "video": "clip.mp4", "task": "tvg", "text": "the small blue circle moves right"}')
assert main(["batch", "questions.jsonl", "answers"]) == 0
""",
    "client.md": _SERVER,
    "serving.md": _SERVER + "server.name = 'runs/llava-st'",
    "generation.md": """
from transformers import AutoModelForImageTextToText, AutoProcessor
import llava_st_hf
model, processor = AutoModelForImageTextToText.from_pretrained(MODEL), AutoProcessor.from_pretrained(MODEL)
messages = [{"role": "user", "content": [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "When does the circle move?"}]}]
inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
""",
}
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if CODE.search(page.read_text(encoding="utf-8"))]
PUBLISHED = '"appletea2333/LLaVA-ST-Qwen2-7B"'


def runnable(page: Path) -> list[str]:
    found = [code for code in CODE.findall(page.read_text(encoding="utf-8")) if not code.startswith("{")]  # not a result by itself
    return [code for code in found if (page.name, code.splitlines()[0]) not in NOT_RUN]


def with_demo_model(code: str) -> str:
    code = code.replace(PUBLISHED, repr(DEMO_MODEL_PATH)).replace('dtype="bfloat16", device_map="auto"', 'dtype="float32"')
    code = code.replace('output_dir="runs/mine"', 'output_dir="runs/mine", use_cpu=True, bf16=False')
    # The server that the page is about, see `SETUP`; of a long answer the beginning suffices.
    code = code.replace('"http://127.0.0.1:8000/v1"', "server.url").replace('"http://127.0.0.1:8000/v1/', 'server.url + "/')
    code = code.replace('"max_tokens": 2048', '"max_tokens": 64').replace('"temperature": 0}', '"temperature": 0, "max_tokens": 64}')
    # Compilation takes minutes; test_compilation_llava_st tests it.
    return code.replace('dtype="bfloat16"', 'dtype="float32"').replace(", compile=True", "")


def shown_result(lines: list[str], end: int) -> str | None:
    """The comment lines directly behind line number `end`, which is 1-based; None if there are none."""
    shown = []
    for line in lines[end:]:
        if not line.startswith("#"):
            break
        shown.append(line.removeprefix("# ").removeprefix("#"))
    return "\n".join(shown) or None


def run(code: str, scope: dict, compares: bool) -> int:
    """Runs a block and compares the results that it shows; returns how many were compared."""
    lines, compared = code.splitlines(), 0
    for statement in ast.parse(code).body:
        source = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
        shown = shown_result(lines, statement.end_lineno)
        if not isinstance(statement, ast.Expr):
            exec(source, scope)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            value = eval(source, scope)
        if shown is None or not compares or "…" in shown:
            continue
        if value is None and printed.getvalue():
            assert printed.getvalue().strip() == shown, source
        elif value is not None:
            assert value == eval(shown, dict(scope)), source
        compared += 1
    return compared


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video, image = write_sample_media(tmp_path)
    for name in ("a.mp4", "b.mp4", "match.mp4"):
        shutil.copy(video, tmp_path / name)
    shutil.copy(image, tmp_path / "b.jpg")
    sample = {"video": "clip.mp4", "task": "tvg", "text": "the small blue circle moves right", "span": [1.36, 2.51]}
    for data in ("my_data", "folder"):
        (tmp_path / data).mkdir()
        shutil.copy(video, tmp_path / data)
        shutil.copy(video, tmp_path / data / "sample.mp4")
    for path in ("my_data/rows.jsonl", "tvg.jsonl"):
        (tmp_path / path).write_text(json.dumps(sample) + "\n")
    source = "json_path: {}, data_folder: {}, format: jsonl"
    (tmp_path / "my_data/mixture.yaml").write_text(f"datasets: [{{{source.format('rows.jsonl', '.')}}}]")
    (tmp_path / "mixture.yaml").write_text(f"datasets: [{{{source.format('my_data/rows.jsonl', 'my_data')}}}]")
    (tmp_path / "runs/stvg").mkdir(parents=True)
    shutil.copytree(DEMO_MODEL_PATH, tmp_path / "runs/llava-st")  # examples may save to it
    event = GroundingResult(span=(0.3, 0.6), tubelet={13: (32.0, 58.0, 53.0, 78.0)})
    line = Prediction("1", "st_align_stvg", "stvg", "", truth=event, prediction=event).to_dict()
    (tmp_path / "runs/stvg/predictions.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ELSEWHERE], ids=lambda page: page.name)
def test_docs_examples_run_and_give_the_results_shown(page, folder, monkeypatch):
    torch.manual_seed(0)
    scope: dict = {"MODEL": DEMO_MODEL_PATH}
    exec(SETUP.get(page.name, ""), scope)
    # Texts that the demo model does not understand may get long answers.
    monkeypatch.setattr(VideoGroundingPipeline, "_default_generation_config", GenerationConfig(max_new_tokens=128))
    try:
        for code in runnable(page):
            run(with_demo_model(code), scope, compares=PUBLISHED not in code)
    finally:
        if "running" in scope:
            scope["running"].__exit__(None, None, None)


def test_docs_blocks_that_are_not_run_exist():
    first_lines = {(page.name, code.splitlines()[0]) for page in PAGES for code in CODE.findall(page.read_text(encoding="utf-8"))}
    assert set(NOT_RUN) <= first_lines
    assert set(ELSEWHERE) <= {page.name for page in PAGES}
