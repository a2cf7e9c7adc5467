# SPDX-License-Identifier: Apache-2.0
"""Whether an evaluation keeps the model busy: the runner against a loop over inputs that are ready in memory.

    python examples/benchmarks/evaluation_runner.py

The runner decodes, asks, reads answers and writes them to disk; the loop only generates. Both answer the same batches on the same
device with a small random model. Videos are decoded in a worker: where model and worker share the same few cores, as on a
laptop, the work of decoding is paid for once more.
"""

import argparse
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration, LlavaSTImageProcessor, LlavaSTProcessor, LlavaSTVideoProcessor
from llava_st_hf.evaluation import EvaluationSettings, Grounding, Question, run_benchmark
from llava_st_hf.evaluation.commands import read_own_answer
from llava_st_hf.evaluation.runner import _Batches


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
    """Released numbers of patches and frames; a decoder that has something to do."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tiny_model import build_tokenizer

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


@torch.inference_mode()
def main(args: argparse.Namespace) -> None:
    model, processor = small_model()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        questions = []
        for number in range(args.questions):
            path = Path(folder, f"{number % 4}.mp4")
            if not path.exists():
                write_video(path, number)
            questions.append(Question(str(number), "tvg", str(path), "video", "When does it happen?", Grounding(span=(0.1, 0.5))))
        settings = EvaluationSettings("made", "small", batch_size=args.batch_size, max_new_tokens=args.max_new_tokens)
        batches = [questions[start : start + args.batch_size] for start in range(0, len(questions), args.batch_size)]
        ready = [batch["inputs"] for batch in _Batches(batches, processor, model.dtype)]

        def loop() -> None:
            for inputs in ready:
                model.generate(**{name: tensor.to(model.device) for name, tensor in inputs.items()}, do_sample=False,
                               max_new_tokens=args.max_new_tokens)  # fmt: skip

        def runner(run: int) -> None:
            run_benchmark(questions, model, processor, Path(folder, f"run{run}"), settings, read_own_answer, num_workers=args.workers)

        loop()  # warms up
        loops, runs = [], []
        for run in range(args.repeats):
            for times, work in ((loops, loop), (runs, lambda run=run: runner(run))):
                start = time.perf_counter()
                work()
                times.append(time.perf_counter() - start)
    print(f"{model.device}, {torch.get_num_threads()} threads, {args.workers} workers, batches of {args.batch_size}")
    print(f"loop over ready inputs {args.questions / min(loops):6.2f} questions/s")
    print(f"runner                 {args.questions / min(runs):6.2f} questions/s, {min(loops) / min(runs):.0%} of it")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    main(parser.parse_args())
