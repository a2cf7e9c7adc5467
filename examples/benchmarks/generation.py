# SPDX-License-Identifier: Apache-2.0
"""Compares `generate` with `speculative=True` and with one token per pass: passes of the decoder, seconds, equal answers.

    python examples/benchmarks/generation.py                            # the demo model
    python examples/benchmarks/generation.py --sixty runs/sixty/model   # and the model that training/shapes/sixty_frames.py makes
    python examples/benchmarks/generation.py --cost                     # time and memory against answer length, frames and batch
    python examples/benchmarks/generation.py --accepted                 # tokens of each pass, for generation_gpu.py
    python examples/benchmarks/generation.py --tolerance 1 2 3          # accepting drafts that differ by some bins, and the loss in IoU

STVG questions about the test split of the Shapes dataset, in float32:

- "demo model": the questions of the split; answers have 5 to 11 boxes;
- "demo model, 20 boxes": clips of 20 sampled frames that one event fills. The demo model was trained on events of at most half of a
  clip, so its answers are continued to 20 boxes by `suppress_tokens`, which excludes the token that closes a list of boxes;
- "60 frames": clips of 60 sampled frames of which one event fills 70 to 100 %; the answers are as the model gives them.

A pass is a call of the decoder after the prompt's. Plain and speculative generation alternate; seconds are the minimum over the
repeats, the mean of all batches. They include the vision encoder and the prompt, but not the reading of frames.
"""

import argparse
import math
import statistics
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.generation import BaseStreamer

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTForConditionalGeneration, LlavaSTProcessor, MediaInfo, parse_answer
from llava_st_hf.evaluation.metrics import Tubelets, tubelet_iou
from llava_st_hf.model import decode_loop_llava_st
from llava_st_hf.model.batch_feature_llava_st import join_samples
from llava_st_hf.model.questions_llava_st import prepare_question
from llava_st_hf.shapes.questions import video_rows
from llava_st_hf.shapes.scenes import Painter, make_scene, scene_seed
from llava_st_hf.shapes.slow_events import event_clip


TASK = "stvg"
BATCH_SIZES = (1, 4, 8)
GPU_DRAFTS = 23  # drafts of a pass on a GPU
_LIMIT = 600  # tokens; an answer with 60 boxes has about 440
_CLOSING = "]."  # token that closes a list of boxes


@dataclass
class Question:
    """
    A prepared question.

    Args:
        inputs: model inputs of one prompt.
        media: of the video.
        truth: index of a sampled frame → box in pixels.
    """

    inputs: dict
    media: MediaInfo
    truth: dict[int, tuple[float, float, float, float]]


@dataclass
class Workload:
    """Questions to one model. `options` are arguments of `generate`."""

    name: str
    model: LlavaSTForConditionalGeneration
    processor: LlavaSTProcessor
    questions: list[Question]
    options: dict = field(default_factory=dict)

    def batches(self, size: int) -> Iterator[list[Question]]:
        """Yields the questions in batches."""
        return (self.questions[first : first + size] for first in range(0, len(self.questions), size))

    def inputs(self, questions: list[Question]) -> dict:
        """Returns the model inputs of a batch, padded on the left."""
        return join_samples([question.inputs for question in questions], self.processor.tokenizer.pad_token_id, "left")

    def answers(self, inputs: dict, sequences: torch.Tensor) -> list[list[int]]:
        """Returns the token ids of each answer, with its end token and without padding."""
        ends, rows = {self.model.generation_config.eos_token_id}, []
        for row in sequences[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
            rows.append(row[: end + 1])
        return rows

    def parse(self, question: Question, token_ids: list[int]) -> dict:
        """Returns the answer in seconds and pixels."""
        text = self.processor.decode_answer(torch.tensor(token_ids))
        return parse_answer(text, question.media, self.processor.num_temporal_bins, self.processor.num_spatial_bins)


# ============================================================ Questions


def load(path: str) -> tuple[LlavaSTForConditionalGeneration, LlavaSTProcessor]:
    model = LlavaSTForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    return model, LlavaSTProcessor.from_pretrained(path)


def scene_questions(processor: LlavaSTProcessor, count: int) -> list[Question]:
    """Returns STVG questions of the test split."""
    found: list[Question] = []
    number = 0
    while len(found) < count:
        scene = make_scene(scene_seed("test", number), is_video=True)
        rows = video_rows(scene, "", np.random.default_rng([scene.seed, 3]), processor.video_processor.num_frames)
        number += 1
        if row := next((row for row in rows if row["task"] == TASK), None):
            painter = Painter(scene)
            frames = [painter.frame(place) for place in range(scene.num_frames)]
            found.append(_question(processor, frames, scene.fps, row["text"], row["boxes"]))
    return found


def slow_questions(processor: LlavaSTProcessor, count: int, fraction: tuple[float, float]) -> list[Question]:
    """Returns STVG questions about clips of the test split of which one event fills a fraction in this range."""
    found: list[Question] = []
    number, num_frames = 0, processor.video_processor.num_frames
    while len(found) < count:
        clip = event_clip("test", number, num_frames, fraction)
        number += 1
        if clip is not None:
            found.append(_question(processor, list(clip.frames()), clip.scene.fps, clip.text(TASK), clip.boxes(num_frames)))
    return found


def _question(processor: LlavaSTProcessor, frames: list, fps: int, text: str, boxes: list[dict]) -> Question:
    prepared = prepare_question(processor, {"video": np.stack(frames), "fps": fps}, task=TASK, text=text)
    media = prepared["context"].medium
    return Question(prepared["model_inputs"], media, {round(item["time"] * fps): tuple(item["box"]) for item in boxes})


def closing_tokens(processor: LlavaSTProcessor) -> list[int]:
    """Returns the ids of the tokens that end an answer after a box."""
    return [processor.tokenizer.convert_tokens_to_ids(_CLOSING), processor.tokenizer.eos_token_id]


def workloads(sixty: str | None, count: int) -> Iterator[Workload]:
    """Yields the workloads, each when it is needed."""
    model, processor = load(DEMO_MODEL_PATH)
    yield Workload("demo model", model, processor, scene_questions(processor, count), {"max_new_tokens": _LIMIT})
    boxes = processor.video_processor.num_frames
    template = processor.draft_template(TASK)  # three boxes
    per_box = (len(template) - template.index(processor.tokenizer.convert_tokens_to_ids(":[")) + 1) // 3  # a time before each
    options = {"max_new_tokens": len(template) + (boxes - 3) * per_box, "suppress_tokens": closing_tokens(processor)}
    yield Workload(f"demo model, {boxes} boxes", model, processor, slow_questions(processor, count, (1.0, 1.0)), options)
    if sixty is not None:
        model, processor = load(sixty)
        frames = processor.video_processor.num_frames
        yield Workload(f"{frames} frames", model, processor, slow_questions(processor, count, (0.7, 1.0)), {"max_new_tokens": _LIMIT})


def print_header(columns: str) -> None:
    print(f"| {columns} |\n|{'---|' * (columns.count('|') + 1)}")


# ============================================================ Passes and time


@dataclass
class Run:
    """One call of `generate`: token ids, passes of the decoder, and seconds in total and after the prompt."""

    sequences: torch.Tensor
    passes: int
    seconds: float
    decode_seconds: float


def run(workload: Workload, inputs: dict, **options) -> Run:
    """Calls `generate` and counts the passes of the decoder."""
    ends: list[float] = []
    handle = workload.model.model.language_model.register_forward_hook(lambda *_: ends.append(time.perf_counter()))
    try:
        start = time.perf_counter()
        sequences = workload.model.generate(**inputs, do_sample=False, **{**workload.options, **options})
        end = time.perf_counter()
    finally:
        handle.remove()
    return Run(sequences, len(ends) - 1, end - start, end - ends[0])


def speculative_options(workload: Workload, batch_size: int) -> dict:
    return {"speculative": True, "draft_templates": [workload.processor.draft_template(TASK)] * batch_size}


def measure_speed(workload: Workload, batch_size: int, repeats: int) -> str:
    """Returns a row of the table: one token per pass against drafts."""
    tokens, boxes, different = [], [], 0
    totals = {name: [0, 0.0, 0.0] for name in ("plain", "speculative")}  # passes, seconds, seconds after the prompt
    for questions in workload.batches(batch_size):
        inputs = workload.inputs(questions)
        best: dict[str, Run] = {}
        for repeat in range(repeats):
            runs = [("plain", {}), ("speculative", speculative_options(workload, len(questions)))]
            for name, options in runs if repeat % 2 == 0 else runs[::-1]:
                found = run(workload, inputs, **options)
                if name not in best or found.seconds < best[name].seconds:
                    best[name] = found
        plain, ours = (workload.answers(inputs, best[name].sequences) for name in ("plain", "speculative"))
        different += sum(one != other for one, other in zip(plain, ours, strict=True))
        tokens += [len(answer) for answer in plain]
        for question, answer in zip(questions, plain, strict=True):
            boxes.append(sum(len(event["boxes"]) for event in workload.parse(question, answer)["events"]))
        for name, total in totals.items():
            for place, value in enumerate((best[name].passes, best[name].seconds, best[name].decode_seconds)):
                total[place] += value
    (passes, seconds, decode), (fewer, shorter, shorter_decode) = totals.values()
    rows = sum(1 for _ in workload.batches(batch_size))
    return (
        f"| {workload.name} | {statistics.mean(boxes):.1f} | {statistics.mean(tokens):.0f} | {batch_size} | {passes / rows:.0f} → "
        f"{fewer / rows:.1f} | {passes / fewer:.2f} | {seconds / rows:.3f} → {shorter / rows:.3f} s | {seconds / shorter:.2f} | "
        f"{decode / shorter_decode:.2f} | {different} of {len(tokens)} |"
    )


def print_speed(args) -> None:
    print_header("questions | boxes | tokens | batch | passes | ratio | time of `generate` | ratio | ratio after the prompt | differ")
    for workload in workloads(args.sixty, args.questions):
        run(workload, workload.inputs(workload.questions[:1]), **speculative_options(workload, 1))  # warm-up
        for batch_size in args.batch_sizes:
            print(measure_speed(workload, batch_size, args.repeats), flush=True)


# ============================================================ Cost


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is active: `peak`, the largest number at one time."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.total = self.peak = 0

    def _forget(self, key: int) -> None:
        self.total -= self.sizes.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes and key not in inputs:
                    self.sizes[key] = storage.nbytes()
                    self.total += self.sizes[key]
                    weakref.finalize(storage, self._forget, key).atexit = False
        self.peak = max(self.peak, self.total)
        return out


@dataclass
class Cost:
    """Seconds of vision encoder, prompt and decoding, and MB (1e6 bytes) of the KV cache and of all tensors at the peak."""

    vision: float
    prompt: float
    plain: float
    speculative: float
    cache: float
    peak: float


def measure_cost(workload: Workload, tokens: int, frames: int, batch_size: int, repeats: int) -> Cost:
    """Measures answers of exactly `tokens` tokens about videos of `frames` sampled frames."""
    model, question = workload.model, workload.questions[0]
    config, text = model.config, model.config.get_text_config()
    # The number of video tokens depends on the number of frames: the prompt is built again, about the same frames.
    inputs = workload.inputs([question] * batch_size)
    pixels = inputs["pixel_values_videos"]
    fast, slow = frames * config.fast_grid_size**2, -(-frames // config.packer_temporal_stride) * config.packed_grid_size**2
    streams = [
        [config.video_start_token_id, *[config.video_token_id] * (fast - 2), config.video_end_token_id],
        [config.slow_video_start_token_id, *[config.video_token_id] * (slow - 2), config.slow_video_end_token_id],
    ]
    ids = inputs["input_ids"][0].tolist()
    first, last = ids.index(config.video_start_token_id), ids.index(config.slow_video_end_token_id)
    row = torch.tensor([*ids[:first], *streams[0], *streams[1], *ids[last + 1 :]])
    batch = {
        "input_ids": row.repeat(batch_size, 1),
        "attention_mask": torch.ones(batch_size, len(row), dtype=torch.long),
        "pixel_values_videos": pixels[:, torch.linspace(0, pixels.shape[1] - 1, frames).long()],
    }
    options = {"max_new_tokens": tokens, "suppress_tokens": closing_tokens(workload.processor)}
    speculative = {**options, **speculative_options(workload, batch_size)}
    visions: list[float] = []
    plain, ours = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.no_grad():
            model.get_video_features(batch["pixel_values_videos"])
        visions.append(time.perf_counter() - start)
        plain.append(run(workload, batch, **options))
        ours.append(run(workload, batch, **speculative))
    vision = min(visions)
    prompt = min(one.seconds - one.decode_seconds for one in plain) - vision
    with PeakBytes() as memory:
        run(workload, batch, **speculative)
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * 4
    return Cost(
        vision,
        prompt,
        min(one.decode_seconds for one in plain),
        min(one.decode_seconds for one in ours),
        cache * batch_size * (len(row) + tokens) / 1e6,
        memory.peak / 1e6,
    )


# Values of tokens, frames and batch size: one varies, the others have the first value of their own.
COST_AXES = {"tokens": (150, 300, 600), "frames": (20, 40, 80), "batch": (1, 2, 4, 8)}


def exponent(values: list[float], costs: list[float]) -> str:
    """Exponent of the power law between the first and the last value; 1 is proportional."""
    if min(costs) <= 0:
        return "–"
    return f"{math.log(costs[-1] / costs[0]) / math.log(values[-1] / values[0]):.2f}"


def print_cost(args) -> None:
    model, processor = load(DEMO_MODEL_PATH)
    workload = Workload("demo model", model, processor, slow_questions(processor, 1, (1.0, 1.0)))
    print_header("tokens | frames | batch | vision | prompt | decoding, plain | decoding, speculative | KV cache | peak")
    base = {name: values[0] for name, values in COST_AXES.items()}
    for name, values in COST_AXES.items():
        costs = []
        for value in values:
            at = {**base, name: value}
            cost = measure_cost(workload, at["tokens"], at["frames"], at["batch"], args.repeats)
            costs.append(cost)
            print(
                f"| {at['tokens']} | {at['frames']} | {at['batch']} | {cost.vision:.3f} s | {cost.prompt:.3f} s | {cost.plain:.3f} s | "
                f"{cost.speculative:.3f} s | {cost.cache:.2f} MB | {cost.peak:.1f} MB |",
                flush=True,
            )
        found = [exponent(list(values), [getattr(cost, part) for cost in costs]) for part in Cost.__dataclass_fields__]
        print(f"| exponent of {name} | | | {' | '.join(found)} |", flush=True)


# ============================================================ Tolerance


def viou(workload: Workload, answers: list[list[int]]) -> np.ndarray:
    """(N,) vIoU of the answers to all questions."""
    found = []
    for question, answer in zip(workload.questions, answers, strict=True):
        boxes = [item for event in workload.parse(question, answer)["events"] for item in event["boxes"]]
        found.append({item["frame"]: tuple(item["box"].values()) for item in boxes if item["frame"] is not None})
    return tubelet_iou(Tubelets(found), Tubelets(question.truth for question in workload.questions))


def print_tolerance(args) -> None:
    print_header("questions | tolerance in bins | passes | ratio | time | ratio | vIoU | change, 95 % interval | differ")
    for workload in workloads(args.sixty, args.questions):
        drafts = speculative_options(workload, 1)
        settings = {"plain": {}} | {str(bins): {**drafts, "coordinate_tolerance": bins} for bins in (0, *args.tolerance)}
        found: dict[str, list[Run]] = {name: [] for name in settings}
        answers: dict[str, list[list[int]]] = {name: [] for name in settings}
        for question in workload.questions:
            inputs = workload.inputs([question])
            for name, options in settings.items():
                found[name].append(run(workload, inputs, **options))
                answers[name] += workload.answers(inputs, found[name][-1].sequences)
        count, plain = len(workload.questions), viou(workload, answers["plain"])
        totals = {name: (sum(one.passes for one in runs), sum(one.seconds for one in runs)) for name, runs in found.items()}
        for name, (passes, seconds) in totals.items():
            values = viou(workload, answers[name])
            change, half = (values - plain).mean(), 1.96 * (values - plain).std(ddof=1) / math.sqrt(count)
            different = sum(one != other for one, other in zip(answers[name], answers["plain"], strict=True))
            print(
                f"| {workload.name} | {name} | {passes / count:.1f} | {totals['plain'][0] / passes:.2f} | {seconds / count:.3f} s | "
                f"{totals['plain'][1] / seconds:.2f} | {values.mean():.4f} | {change:+.4f} ({change - half:+.4f} – {change + half:+.4f}) | "
                f"{different} of {count} |",
                flush=True,
            )


# ============================================================ Accepted drafts


class TokensPerPass(BaseStreamer):
    """Counts the tokens that each pass adds to a single answer. The first two calls are for the prompt and for the token after it."""

    def __init__(self):
        self.calls: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.calls.append(value.numel())

    def end(self) -> None:
        """Does nothing."""

    @property
    def counts(self) -> list[int]:
        return self.calls[2:]


def print_accepted(args) -> None:
    """Prints the tokens of each pass with as many drafts as on a GPU: of the answer whose mean is the median of all answers."""
    with mock.patch.dict(decode_loop_llava_st.NUM_DRAFTS, {"cpu": GPU_DRAFTS}):
        for workload in workloads(args.sixty, args.questions):
            rows = []
            for question in workload.questions:
                streamer = TokensPerPass()
                run(workload, workload.inputs([question]), **speculative_options(workload, 1), streamer=streamer)
                rows.append(streamer.counts)
            total = sum(map(sum, rows)) / sum(map(len, rows))
            row = sorted(rows, key=statistics.mean)[len(rows) // 2]
            print(f"{workload.name}: {total:.2f} tokens per pass; the median answer, {statistics.mean(row):.2f}: {tuple(row)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sixty", help="folder of the model for 60 frames")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cost", action="store_true", help="print the cost table instead")
    parser.add_argument("--tolerance", type=int, nargs="+", help="print the table of these tolerances in bins instead")
    parser.add_argument("--accepted", action="store_true", help="print the tokens of each pass instead")
    args = parser.parse_args()
    if args.cost:
        print_cost(args)
    elif args.accepted:
        print_accepted(args)
    elif args.tolerance:
        print_tolerance(args)
    else:
        print_speed(args)


if __name__ == "__main__":
    main()
