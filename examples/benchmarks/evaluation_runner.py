# SPDX-License-Identifier: Apache-2.0
"""Compares the throughput of the evaluation runner with a loop that only generates from inputs in memory.

    python examples/benchmarks/evaluation_runner.py

The runner decodes videos, generates, parses answers and writes them to disk; the loop only generates. Both process the same batches on
the same device with a small random model, and each question is about another video.

The model runs on a GPU if there is one. Otherwise it has one thread, so that with two cores decoding has a core of its own, as it has
with a GPU: the result is the time that the model waits for the runner. `--threads 2` measures model and decoder sharing cores.

Rates are given in total, with the start of the workers and the first batch, for which no decoding can be done in advance, and after the
first batch, as in a benchmark of thousands of questions. The share of the runner's time in `generate` is less sensitive to other load.
"""

import argparse
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration, LlavaSTImageProcessor, LlavaSTProcessor, LlavaSTVideoProcessor
from llava_st_hf.evaluation import EvaluationSettings, GroundingResult, Question, run_benchmark
from llava_st_hf.evaluation.commands import read_own_answer
from llava_st_hf.examples.tiny_model import build_tokenizer
from llava_st_hf.model.batch_feature_llava_st import join_samples


FPS, SECONDS, HEIGHT, WIDTH = 25, 8, 240, 320


def write_video(path: Path, number: int) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for frame in range(FPS * SECONDS):
            gray = 110 + 60 * np.sin(rows / 17 + frame / 9) + 40 * np.cos(columns / (11 + number))
            picture = np.stack([gray] * 3, axis=-1).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def small_model() -> tuple[LlavaSTForConditionalGeneration, LlavaSTProcessor]:
    """Builds a random model with the published numbers of patches and frames, and a decoder large enough to take most of the time."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlavaSTConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 384, "patch_size": 14,
        },
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        packer_hidden_size=64,
        packer_num_attention_heads=4,
    )  # fmt: skip
    processor = LlavaSTProcessor(LlavaSTImageProcessor(), tokenizer, LlavaSTVideoProcessor())
    return LlavaSTForConditionalGeneration(config).eval(), processor


def ready_inputs(batch: list[Question], processor: LlavaSTProcessor) -> dict[str, torch.Tensor]:
    samples = []
    for question in batch:
        content = [{"type": "video", "path": question.path}, {"type": "text", "text": question.prompt}]
        messages = [{"role": "user", "content": content}]
        encoded = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
        samples.append(dict(encoded))
    return join_samples(samples, processor.tokenizer.pad_token_id, "left")


def rates(start: float, ends: list[float], batch_size: int) -> tuple[float, float]:
    """Questions per second, of the whole and after the first batch, by the times at which batches were answered."""
    return len(ends) * batch_size / (ends[-1] - start), (len(ends) - 1) * batch_size / (ends[-1] - ends[0])


@torch.inference_mode()
def main(args: argparse.Namespace) -> None:
    if args.questions % args.batch_size or args.questions <= args.batch_size:
        raise SystemExit("--questions must be at least two batches, whole ones.")
    torch.set_num_threads(args.threads)
    model, processor = small_model()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        questions = []
        for number in range(args.questions):
            path = Path(folder, f"{number}.mp4")
            write_video(path, number)
            questions.append(Question(str(number), "tvg", str(path), "video", "When does it happen?", GroundingResult(span=(0.1, 0.5))))
        settings = EvaluationSettings("made", "small", batch_size=args.batch_size, max_new_tokens=args.max_new_tokens)
        batches = [questions[start : start + args.batch_size] for start in range(0, len(questions), args.batch_size)]
        ready = [ready_inputs(batch, processor) for batch in batches]

        worked: list[tuple[float, float]] = []  # when each call of `generate` began and ended
        generate = model.generate

        def timed(**inputs) -> torch.Tensor:
            start = time.perf_counter()
            answers = generate(**inputs).cpu()  # .cpu() waits for the device
            worked.append((start, time.perf_counter()))
            return answers

        model.generate = timed

        def loop() -> tuple[float, float]:
            worked.clear()
            start = time.perf_counter()
            for inputs in ready:
                moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
                model.generate(**moved, do_sample=False, max_new_tokens=args.max_new_tokens)
            return rates(start, [end for _, end in worked], args.batch_size)

        def runner(run: int) -> tuple[float, float, float, float]:
            """Returns rates, and shares of the time in `generate`: in total and after the first batch."""
            worked.clear()
            start = time.perf_counter()
            run_benchmark(questions, model, processor, Path(folder, f"run{run}"), settings, read_own_answer, num_workers=args.workers)
            end = time.perf_counter()  # after the last answers are written and sorted
            ends = [end for _, end in worked[:-1]] + [end]
            busy = [end - start for start, end in worked]
            return *rates(start, ends, args.batch_size), sum(busy) / (end - start), sum(busy[1:]) / (end - ends[0])

        warm_up = {name: tensor.to(model.device) for name, tensor in ready[0].items()}
        model.generate(**warm_up, do_sample=False, max_new_tokens=8)
        loops, runs = zip(*((loop(), runner(run)) for run in range(args.repeats)), strict=True)
    print(
        f"{model.device}, {torch.get_num_threads()} model threads, {args.workers} workers, {args.questions} questions in batches of "
        f"{args.batch_size}, {args.max_new_tokens} tokens an answer, best of {args.repeats}"
    )
    for column, name in enumerate(("whole", "after the first batch")):
        best, own = (max(run[column] for run in measured) for measured in (loops, runs))
        busy = max(run[2 + column] for run in runs)
        print(f"{name:>21}: loop {best:.3f} questions/s, runner {own:.3f}, {own / best:.1%} of it; model at work {busy:.1%} of the time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=192)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    main(parser.parse_args())
