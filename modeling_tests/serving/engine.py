# SPDX-License-Identifier: Apache-2.0
"""Answers of vLLM's offline engine, from a process of its own.

`python -m modeling_tests.serving.engine JOB OUTPUT`: `JOB` is a JSON file with `model`, `options` (arguments of `vllm.LLM`) and `rounds`,
lists of requests that are given to the engine together. A single request of a round that is refused has the message as `error`. Models of
transformers cannot be built in a process in which vLLM has built one.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from .server import ENVIRONMENT


SMALL = {"dtype": "float32", "max_model_len": 4096, "max_num_batched_tokens": 4096, "max_num_seqs": 16, "enforce_eager": True}


class EngineError(Exception):
    """The engine did not start, or ended. `args[0]` is the end of its output."""


def run_engine(
    folder: Path, model: str | Path, rounds: list[list[dict]], environment: dict[str, str] | None = None, **options
) -> list[list]:
    """
    Starts an engine, gives it requests and stops it.

    Args:
        folder: for files.
        model: checkpoint folder.
        rounds: lists of requests; each has `prompt`, `media`, `max_tokens`, and may have `regex` and `mm_processor_kwargs`.
        environment: further environment variables.
        options: arguments of `vllm.LLM` beside `SMALL`.

    Returns:
        For each request `{"ids", "prompt_length", "text"}`, or `{"error"}`.
    """
    job, output = folder / "job.json", folder / "output.json"
    job.write_text(json.dumps({"model": str(model), "options": {**SMALL, **options}, "rounds": rounds}), encoding="utf-8")
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "modeling_tests.serving.engine", str(job), str(output)]
    variables = {**os.environ, **ENVIRONMENT, "VLLM_LOGGING_LEVEL": "INFO", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **(environment or {})}
    result = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    (folder / "engine.log").write_text(result.stdout, encoding="utf-8")
    if result.returncode or not output.exists():
        raise EngineError(result.stdout[-6000:])
    return json.loads(output.read_text(encoding="utf-8"))


def _main(job_path: str, output_path: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import StructuredOutputsParams

    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    started = time.monotonic()
    engine = LLM(job["model"], **job["options"])
    print(f"The engine started in {time.monotonic() - started:.1f} s.", flush=True)
    outputs = []
    for requests in job["rounds"]:
        started = time.monotonic()
        prompts, sampling = [], []
        for request in requests:
            media: dict[str, list[bytes]] = {}
            for kind, path in request["media"]:
                media.setdefault(kind, []).append(Path(path).read_bytes())
            prompt = {"prompt": request["prompt"], "multi_modal_data": media}
            if "mm_processor_kwargs" in request:
                prompt["mm_processor_kwargs"] = request["mm_processor_kwargs"]
            prompts.append(prompt)
            structured = StructuredOutputsParams(regex=request["regex"]) if "regex" in request else None
            settings = {"temperature": 0, "max_tokens": request["max_tokens"], "skip_special_tokens": False}
            sampling.append(SamplingParams(**settings, structured_outputs=structured))
        try:
            found = engine.generate(prompts, sampling, use_tqdm=False)
        except (VLLMClientError, ValueError) as error:
            if len(requests) > 1:
                raise
            outputs.append([{"error": f"{type(error).__name__}: {error}"}])
            continue
        outputs.append(
            [
                {"ids": list(item.outputs[0].token_ids), "prompt_length": len(item.prompt_token_ids), "text": item.outputs[0].text}
                for item in found
            ]
        )
        if len(requests) > 1:
            print(f"{len(requests)} requests took {time.monotonic() - started:.1f} s.", flush=True)
    Path(output_path).write_text(json.dumps(outputs), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
