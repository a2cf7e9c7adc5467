# SPDX-License-Identifier: Apache-2.0
"""Counts greedy answers that differ between `speculative=True` and one token per pass, over all tasks, batch sizes and caches.

    python examples/benchmarks/generation_equality.py --prompts 2000                   # float32: none may differ
    python examples/benchmarks/generation_equality.py --prompts 400 --dtype bfloat16   # how often rounding decides

Questions of the eight tasks about the test split of the Shapes dataset to the demo model, images and videos mixed in batches of 1 to 8
prompts of different lengths, padded on the left. Batches alternate between the caches of `CACHES` and between generation with and without
a grammar. The answers of a batch are compared token by token.

In bfloat16 a pass over one token and one over several round differently, so that nearly equal logits may change their order. For
comparison, one-token passes in batches are compared with one-token passes of single prompts, which differ for the same reason.
"""

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.model.batch_feature_llava_st import join_samples
from llava_st_hf.model.questions_llava_st import PreparedQuestion, prepare_question
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.shapes.questions import image_rows, video_rows
from llava_st_hf.shapes.scenes import Painter, make_scene, scene_seed


BATCH_SIZES = (1, 2, 3, 5, 8)
CACHES = ("dynamic", "static", "passed by the caller")
_LIMIT = 200  # tokens; an answer over all 20 frames has about 150


@dataclass
class Prompt:
    """A prepared question and its task."""

    task: str
    prepared: PreparedQuestion


def arguments(row: dict) -> dict:
    """Returns the arguments of the pipeline for an annotation of the Shapes dataset."""
    given = {"text": row.get("text"), "span": row.get("span"), "box": row.get("box")}
    if row["task"] == "elc":
        given |= {"time": row["span"][0], "box": row["boxes"][0]["box"]}
    return {"task": row["task"], **{name: given.get(name) for name in TASKS[row["task"]].needs}}


def prompts(processor: LlavaSTProcessor) -> Iterator[Prompt]:
    """Yields questions about one image and one video in turn, without end."""
    num_frames = processor.video_processor.num_frames
    for number in itertools.count():
        for is_video in (False, True):
            scene = make_scene(scene_seed("test", number), is_video)
            painter, rng = Painter(scene), np.random.default_rng([scene.seed, 3])
            if is_video:
                frames = np.stack([painter.frame(place) for place in range(scene.num_frames)])
                inputs, rows = {"video": frames, "fps": scene.fps}, video_rows(scene, "", rng, num_frames)
            else:
                inputs, rows = Image.fromarray(painter.frame(0)), image_rows(scene, "", rng)
            for row in rows:
                yield Prompt(row["task"], prepare_question(processor, inputs, **arguments(row)))


def batches(processor: LlavaSTProcessor, count: int) -> Iterator[list[Prompt]]:
    """Yields `count` prompts, shuffled in groups of 64 and split into batches of `BATCH_SIZES` in turn."""
    stream, rng, sizes = itertools.islice(prompts(processor), count), np.random.default_rng(0), itertools.cycle(BATCH_SIZES)
    while group := list(itertools.islice(stream, 64)):
        order, first = rng.permutation(len(group)), 0
        while first < len(group):
            last = first + next(sizes)
            yield [group[place] for place in order[first:last]]
            first = last


class Comparison:
    """Generates the answers of a batch in different ways."""

    def __init__(self, dtype: torch.dtype):
        self.model = LlavaSTForConditionalGeneration.from_pretrained(DEMO_MODEL_PATH, dtype=dtype).eval()
        self.processor = LlavaSTProcessor.from_pretrained(DEMO_MODEL_PATH)

    def answers(self, batch: list[Prompt], cache: str, grammar: bool, speculative: bool) -> list[list[int]]:
        """Returns the token ids of each answer, without padding."""
        samples = [prompt.prepared["model_inputs"] for prompt in batch]
        inputs = join_samples(samples, self.processor.tokenizer.pad_token_id, "left", self.model.dtype)
        options: dict = {"max_new_tokens": _LIMIT, "do_sample": False}
        if cache == "static":
            options["cache_implementation"] = "static"
        elif cache == "passed by the caller":
            options["past_key_values"] = DynamicCache(config=self.model.config.get_text_config())
        if grammar:
            contexts = [prompt.prepared["context"] for prompt in batch]
            options["grammar"] = self.processor.answer_constraint(
                [prompt.task for prompt in batch],
                [context.medium.kind for context in contexts],
                spans=[context.prompt_positions.get("span") for context in contexts],
            )
        if speculative:
            options |= {"speculative": True, "draft_templates": [self.processor.draft_template(prompt.task) for prompt in batch]}
        sequences = self.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        end = self.model.generation_config.eos_token_id
        rows = sequences.tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def bin_changes(self, one: list[int], other: list[int]) -> list[int] | None:
        """Returns how many bins each coordinate changes; None if the answers differ in anything else."""
        vocabulary = self.model.config.coordinates
        axes = [vocabulary.token_ids(axis) for axis in ("temporal", "height", "width")]
        if len(one) != len(other):
            return None
        changes = []
        for first, second in zip(one, other, strict=True):
            if any(first in ids and second in ids for ids in axes):
                changes.append(abs(first - second))
            elif first != second:
                return None
        return changes


def interval(count: int, total: int) -> str:
    """95 % interval of a fraction (Wilson)."""
    z, p = 1.96, count / total
    centre, half = p + z**2 / (2 * total), z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    low, high = ((centre + sign * half) / (1 + z**2 / total) for sign in (-1, 1))
    return f"{max(0.0, low):.2%} – {high:.2%}"


@dataclass
class Tally:
    """Prompts, tokens and differences of one way of generation."""

    prompts: int = 0
    tokens: int = 0
    different: int = 0
    only_bins: int = 0  # differing answers of which only coordinates differ
    largest: int = 0  # largest change of a coordinate in these, in bins

    def add(self, comparison: Comparison, one: list[list[int]], other: list[list[int]]) -> None:
        for first, second in zip(one, other, strict=True):
            self.prompts += 1
            self.tokens += len(first)
            if first == second:
                continue
            self.different += 1
            if (changes := comparison.bin_changes(first, second)) is not None:
                self.only_bins += 1
                self.largest = max(self.largest, *changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    comparison = Comparison(getattr(torch, args.dtype))
    tallies: dict[tuple[str, str], Tally] = {}
    tasks: Counter = Counter()
    for number, batch in enumerate(batches(comparison.processor, args.prompts)):
        cache, grammar = CACHES[number % len(CACHES)], number // len(CACHES) % 2 == 1
        plain, ours = (comparison.answers(batch, cache, grammar, speculative) for speculative in (False, True))
        key = (f"speculative, cache {cache}", "with" if grammar else "without")
        tallies.setdefault(key, Tally()).add(comparison, plain, ours)
        tasks.update(prompt.task for prompt in batch)
        if args.dtype != "float32" and len(batch) > 1:
            single = [answer for prompt in batch for answer in comparison.answers([prompt], cache, grammar, False)]
            key = ("one token per pass, batch against single", "with" if grammar else "without")
            tallies.setdefault(key, Tally()).add(comparison, single, plain)
        if number % 50 == 49:
            print(f"{sum(tasks.values())} prompts", flush=True)
    print(", ".join(f"{task} {count}" for task, count in sorted(tasks.items())), f"; {args.dtype}")
    print("| compared | grammar | answers | tokens | differ | 95 % interval | only in bins | largest change |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, grammar), tally in sorted(tallies.items()):
        print(
            f"| {name} | {grammar} | {tally.prompts} | {tally.tokens} | {tally.different} | {interval(tally.different, tally.prompts)} | "
            f"{tally.only_bins} | {tally.largest} bins |"
        )


if __name__ == "__main__":
    main()
