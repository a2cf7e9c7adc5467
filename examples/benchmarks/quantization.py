# SPDX-License-Identifier: Apache-2.0
"""
Measures what weights in 8 and 4 bits cost in accuracy, on a held-out split of the Shapes dataset.

    pip install 'bitsandbytes>=0.50' 'torchao>=0.18'
    python examples/benchmarks/quantization.py runs/shapes/test --output runs/shapes/quantized     # run it again to resume

If the folder of the split does not exist, `--questions` questions of each task of the test split are written to it. Every kind of weights
answers the same questions, greedily. Printed are the metrics, their differences from float32 with a 95 % interval (bootstrap over the
questions; both answers of a question are drawn together), the share of tokens equal to those of float32, the size of the saved weights, and
the CPU time of `generate` for questions asked one at a time, as a multiple of that of float32.

A name that ends in `, all` quantizes vision encoder, projector and packer, too; the others quantize the decoder only, as
`from_pretrained` does by default. What is not quantized is float32, as the activations are; bitsandbytes' int8 rounds the inputs of its
layers to 8 bits, too. nf4 is measured as float32 weights rounded to the values of nf4, without its time. torchao's int4 is stored in one
byte per weight on a CPU.
"""

import argparse
import logging as python_logging
import tempfile
import time
import warnings
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import logging

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.evaluation import EvaluationSettings, Prediction, read_benchmark, run_benchmark
from llava_st_hf.evaluation.commands import read_own_answer
from llava_st_hf.evaluation.metrics import bootstrap_interval
from llava_st_hf.evaluation.rows import Question
from llava_st_hf.evaluation.scoring import SampleColumns
from llava_st_hf.model.quantization_llava_st import FLOATING_POINT_MODULES, HEAD
from llava_st_hf.shapes.files import write_questions


# Task → metrics: means over the questions; R1@0.5 in percent.
METRICS = {
    "rec": ("R1@0.5", "miou"),
    "tvg": ("miou",),
    "stvg": ("m_tiou", "m_siou", "m_viou"),
    "svg": ("m_siou",),
    "elc": ("m_tiou",),
}
NUM_FRAMES = 20  # of a video of the Shapes dataset
MAX_NEW_TOKENS = 200
GROUP_SIZE = 32  # input features with one scale, of torchao's int4; each layer's input size must be a multiple


def options(kind: str) -> dict:
    """Arguments of `from_pretrained` for a kind of weights."""
    name, _, extent = kind.partition(", ")
    if name in ("float32", "bfloat16"):
        return {"dtype": name}
    only_head = [HEAD] if extent == "all" else None
    if name.startswith("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

        int4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP_SIZE))
        config = TorchAoConfig(int4 if name.endswith("int4") else Int8WeightOnlyConfig(), modules_to_not_convert=only_head)
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=only_head)
    return {"dtype": "float32", "quantization_config": config}


KINDS = (
    "float32",
    "bfloat16",
    "bitsandbytes int8",
    "bitsandbytes int8, all",
    "torchao int8",
    "torchao int8, all",
    "bitsandbytes nf4",
    "bitsandbytes nf4, all",
    "torchao int4",
    "torchao int4, all",
)


def round_to_nf4(model: torch.nn.Module, skipped: list[str]) -> int:
    """
    Replaces the weights of linear layers by the values that nf4 gives them, and returns the bytes that this saves.

    bitsandbytes' layers of 4 bits cannot be used with the demo model on a CPU: its kernels need numbers of inputs that 64 divides. Blocks
    of 64 weights are quantized here as on a GPU, across rows.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    saved = 0
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and should_convert_module(name, skipped):
            weight = layer.weight.data
            layer.weight.data = dequantize_4bit(*quantize_4bit(weight.view(1, -1), quant_type="nf4")).view_as(weight)
            saved += weight.nbytes - weight.numel() // 2 - 4 * weight.numel() // 64  # 4 bits, and a float32 scale for 64 weights
    return saved


def load(kind: str, path: str) -> tuple[LlavaSTForConditionalGeneration, int]:
    """A model with weights of a kind, and their size in bytes."""
    name, _, extent = kind.partition(", ")
    nf4 = name == "bitsandbytes nf4"
    model = LlavaSTForConditionalGeneration.from_pretrained(path, **options("float32" if nf4 else kind)).eval()
    size = saved_bytes(model)
    if nf4:
        size -= round_to_nf4(model, [HEAD] if extent == "all" else FLOATING_POINT_MODULES)
    return model, size


def saved_bytes(model) -> int:
    """Size of the weights of a saved checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def cpu_seconds(model, processor, questions: list[Question]) -> float:
    """CPU time of `generate` per question, in seconds: the mean over questions of the shortest of three calls. They are read before."""
    prepared = []
    for question in questions:
        content = [{"type": question.kind, question.kind: question.path}, {"type": "text", "text": question.prompt}]
        prepared.append(
            processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
            ).to(dtype=model.dtype)
        )
    shortest = []
    for inputs in prepared:
        times = []
        for _ in range(3):
            start = time.process_time()
            model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            times.append(time.process_time() - start)
        shortest.append(min(times))
    return float(np.mean(shortest))


def sample_values(task: str, predictions: list[Prediction]) -> dict[str, np.ndarray]:
    columns = SampleColumns(task)
    for prediction in predictions:
        columns.append(prediction)
    return columns.values()


def equal_tokens(processor, answers: list[str], expected: list[str]) -> tuple[int, int]:
    """Number of positions with the same token in both answers, and of all positions of the longer ones."""
    equal = total = 0
    for pair in zip(answers, expected, strict=True):
        tokens = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair]
        equal += sum(one == other for one, other in zip_longest(*tokens))
        total += max(map(len, tokens))
    return equal, total


def measure(kind: str, arguments: argparse.Namespace, questions: dict[str, list[Question]]) -> dict:
    """Answers of a model with one kind of weights, its size and time."""
    processor = LlavaSTProcessor.from_pretrained(arguments.model)
    model, size = load(kind, arguments.model)
    found = {"predictions": {}, "bytes": size}
    found["seconds"] = cpu_seconds(model, processor, questions["stvg"][: arguments.timed])
    for task, asked in questions.items():
        settings = EvaluationSettings(f"jsonl_{task}", f"{arguments.model}, {kind}", arguments.batch_size, MAX_NEW_TOKENS)
        folder = arguments.output / kind.replace(", ", "-").replace(" ", "-") / task
        found["predictions"][task] = run_benchmark(
            asked, model, processor, folder, settings, read_own_answer, num_workers=0, show_progress=False
        )
    return found


def print_metrics(results: dict[str, dict]) -> None:
    print("| task | metric | weights | value | difference | 95 % interval |\n|---|---|---|---:|---:|---:|")
    for task, names in METRICS.items():
        values = {kind: sample_values(task, found["predictions"][task]) for kind, found in results.items()}
        for name in names:
            digits = 1 if "@" in name else 3
            for kind in results:
                cells = f"| {task} | `{name}` | {kind} | {values[kind][name].mean():.{digits}f} |"
                if kind != "float32":
                    difference = values[kind][name] - values["float32"][name]
                    low, high = bootstrap_interval(difference)
                    cells += f" {difference.mean():+.{digits}f} | {low:+.{digits}f} – {high:+.{digits}f} |"
                print(cells if kind != "float32" else f"{cells} | |", flush=True)


def print_costs(results: dict[str, dict], processor) -> None:
    expected = results["float32"]
    print("\n| weights | MB (1e6 bytes) | tokens equal to float32 | answers equal | CPU time ÷ float32's |\n|---|---:|---:|---:|---:|")
    for kind, found in results.items():
        counts, same, total = np.zeros(2), 0, 0
        for task, predictions in found["predictions"].items():
            answers, reference = ([row.answer or "" for row in rows] for rows in (predictions, expected["predictions"][task]))
            counts += equal_tokens(processor, answers, reference)
            same, total = same + sum(map(str.__eq__, answers, reference)), total + len(answers)
        print(
            f"| {kind} | {found['bytes'] / 1e6:.2f} | {counts[0] / counts[1]:.1%} | {same / total:.1%} | "
            f"{'–' if 'nf4' in kind else format(found['seconds'] / expected['seconds'], '.2f')} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("split", type=Path, help="folder of the questions; written if it does not exist")
    parser.add_argument("--output", type=Path, required=True, help="folder for predictions")
    parser.add_argument("--model", default=DEMO_MODEL_PATH, help="folder or hub id; by default the demo model")
    parser.add_argument("--questions", type=int, default=500, help="questions of each task")
    parser.add_argument("--batch-size", type=int, default=25, help="questions answered together")
    parser.add_argument("--timed", type=int, default=10, help="questions whose time is measured")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="by default all; float32 is always measured")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    python_logging.getLogger("bitsandbytes").setLevel(
        python_logging.ERROR
    )  # a warning per layer and token: inputs of int8 layers are rounded to float16
    torch.set_num_threads(1)
    if not arguments.split.is_dir():
        write_questions(arguments.split, "test", arguments.questions, NUM_FRAMES)
    questions = {
        task: read_benchmark("jsonl", str(arguments.split / f"{task}.jsonl"), str(arguments.split / "media"))[: arguments.questions]
        for task in METRICS
    }
    results = {kind: measure(kind, arguments, questions) for kind in KINDS if kind == "float32" or kind in arguments.kinds}
    print(f"{sum(map(len, questions.values()))} questions, {arguments.model}")
    print_metrics(results)
    print_costs(results, LlavaSTProcessor.from_pretrained(arguments.model))


if __name__ == "__main__":
    main()
