# SPDX-License-Identifier: Apache-2.0
"""Generates answers from random logits with the grammar, and measures its time in a decode step.

    python examples/benchmarks/grammar.py                     # 100,000 answers, then times on CPU
    python examples/benchmarks/grammar.py --answers 0 --device cuda --step-ms 6.5
    python examples/benchmarks/grammar.py --answers 2000 --demo 20    # and answers of the demo model, with and without the grammar

Answers are to all tasks and to questions in free text, in batches of 1 to 256, with limits from the shortest answer to 60 tokens more.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, pipeline

from llava_st_hf import DEMO_MODEL_PATH, MediaInfo, parse_answer
from llava_st_hf.model.cache_name_llava_st import CACHE_NAME
from llava_st_hf.model.grammar_tables_llava_st import FIRST_TEXT
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.shapes.files import write_image, write_video
from llava_st_hf.shapes.questions import image_rows, video_rows
from llava_st_hf.shapes.scenes import make_scene, scene_seed


MEDIA = {
    "video": MediaInfo("video", width=640, height=360, fps=25.0, last_frame=499),
    "image": MediaInfo("image", width=640, height=360),
}
KINDS = [*((task, TASKS[task].medium) for task in TASKS), (None, "image"), (None, "video")]
BATCH_SIZES = (1, 2, 8, 32, 256)


def random_answers(constraint, limits: torch.Tensor, generator: torch.Generator) -> list[list[int]]:
    """Token ids of greedy answers to random logits: a preference of each answer for each token, and noise of different strength."""
    grammar, state, rows = constraint.grammar, constraint.start, len(limits)
    noise = 3 * torch.rand(rows, 1, generator=generator)
    liked = 3 * torch.randn(rows, grammar.vocab_size, generator=generator)
    liked[:, grammar.signature < FIRST_TEXT] += 6 * torch.rand(rows, 1, generator=generator)  # coordinates and end
    ends, finished, tokens = torch.tensor(grammar.end_token_ids), torch.zeros(rows, dtype=torch.bool), []
    while not finished.all():
        logits = liked + noise * torch.randn(liked.shape, generator=generator)
        chosen = logits.masked_fill(grammar.mask(state, (limits - len(tokens)).clamp(min=1)), -torch.inf).argmax(-1)
        state = grammar.advance(state, chosen)
        tokens.append(chosen)
        finished |= torch.isin(chosen, ends)
    answers = torch.stack(tokens, dim=1).tolist()
    return [ids[: next(place for place, token in enumerate(ids) if token in grammar.end_token_ids) + 1] for ids in answers]


def check_random_answers(processor, count: int) -> None:
    """Prints how many of `count` random answers are complete and parse without notes."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    number = complete = tokens = boxes = 0
    notes: Counter[str] = Counter()
    start = time.perf_counter()
    while number < count:
        size = min(BATCH_SIZES[rng.integers(len(BATCH_SIZES))], count - number)
        kinds = [KINDS[(number + row) % len(KINDS)] for row in range(size)]
        spans = [sorted(rng.random(2)) for _ in kinds]
        given = [
            {"tr": {"span": span}, "svg": {"span": span}, "elc": {"start": span[0], "box": (0, 0, 1, 1)}, "reg": {"box": (0, 0, 1, 1)}}
            for span in spans
        ]
        given = [values.get(task, {}) for values, (task, _) in zip(given, kinds, strict=True)]
        prompt_spans = [values.get("span") or ((values["start"], None) if "start" in values else None) for values in given]
        constraint = processor.answer_constraint([task for task, _ in kinds], [kind for _, kind in kinds], prompt_spans)
        shortest = torch.tensor([constraint.grammar.shortest(rule) for rule in constraint.rules])
        limits = shortest + torch.tensor(rng.choice([0, 1, 2, 5, 10, 30, 60], size=size))
        answers = random_answers(constraint, limits, generator)
        for ids, (_, kind), values, limit in zip(answers, kinds, given, limits.tolist(), strict=True):
            text = processor.decode_answer(ids)
            answer = parse_answer(text, MEDIA[kind], processor.num_temporal_bins, processor.num_spatial_bins, **values, words_suffice=True)
            notes.update(answer["notes"])
            complete += len(ids) <= limit and bool(answer["events"] or text)
            tokens, boxes = tokens + len(ids), boxes + sum(len(event["boxes"]) for event in answer["events"])
        number += size
    print(f"{number:,} answers of {tokens:,} tokens with {boxes:,} boxes in {time.perf_counter() - start:.0f} s:")
    print(f"  complete within the limit {100 * complete / number:.3f} %, notes {sum(notes.values())} {dict(notes.most_common(3))}")


def median_us(run, device: str, count: int = 50) -> float:
    """Median time of `run`, in microseconds."""
    times = []
    for _ in range(count + 5):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times[5:])


def captured(run, device: str):
    """`run` as a CUDA graph, as the decode loop runs it; on CPU `run` itself."""
    if device == "cpu":
        return run
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@torch.inference_mode()
def demo_step_ms(device: str) -> float:
    """Median time of a decode step of the demo model with a context of 300 tokens, in milliseconds."""
    model = AutoModelForImageTextToText.from_pretrained(DEMO_MODEL_PATH).to(device).float().eval()
    cache, token = DynamicCache(config=model.config.get_text_config()), torch.full((1, 1), 300, device=device)
    model(input_ids=token.expand(1, 300), use_cache=True, **{CACHE_NAME: cache})
    return median_us(lambda: model(input_ids=token, use_cache=True, **{CACHE_NAME: cache}), device) / 1000


@torch.inference_mode()
def measure_step(processor, device: str, step_ms: float | None) -> None:
    """Prints the time of `advance` and `mask` of one step for the vocabulary of the demo model and for one of 152,000 tokens."""
    if step_ms is None:
        step_ms = demo_step_ms(device)
    start = time.perf_counter()
    grammar = processor.answer_constraint([], []).grammar
    print(f"tables for {len(processor.tokenizer):,} tokens: {time.perf_counter() - start:.2f} s, {grammar.need.shape[0]} states")
    for vocabulary in (len(processor.tokenizer), 152_000):
        for batch_size in (1, 8):
            constraint = processor.answer_constraint(["stvg"] * batch_size, ["video"] * batch_size)
            bound = constraint.bound_to(vocabulary, None, device)
            tokens = torch.full((batch_size,), processor.tokenizer.convert_tokens_to_ids("{"), device=device)
            remaining = torch.full((batch_size,), 100, device=device)

            def step(bound=bound, tokens=tokens, remaining=remaining):
                return bound.grammar.mask(bound.grammar.advance(bound.start, tokens), remaining)

            micros = median_us(captured(step, device), device)
            share = f"{micros / 10 / step_ms:.2f} % of a step of {step_ms:.2f} ms"
            print(f"vocabulary {vocabulary:7,}, batch {batch_size}: advance and mask {micros:7.1f} µs, {share}")


def demo_questions(folder: Path, scenes: int, num_frames: int) -> list[dict]:
    """Questions of all tasks about scenes of the test split."""
    questions = []
    for number in range(scenes):
        rng = np.random.default_rng(number)
        for kind, suffix, write, rows_of in (
            ("video", "mp4", write_video, lambda *args: video_rows(*args, num_frames)),
            ("image", "jpg", write_image, image_rows),
        ):
            scene, path = make_scene(scene_seed("test", number), kind == "video"), folder / f"{number}.{suffix}"
            write(scene, path)
            for row in rows_of(scene, "", rng):
                values = {"text": row.get("text"), "span": row.get("span"), "box": row.get("box")}
                if row["task"] == "elc":
                    values |= {"time": row["span"][0], "box": row["boxes"][0]["box"]}
                needed = {name: values[name] for name in TASKS[row["task"]].needs}
                questions.append({kind: str(path), "task": row["task"], **needed})
    return sorted(questions, key=lambda question: question["task"])


def compare_demo(scenes: int) -> None:
    """Prints how many greedy answers of the demo model the grammar changes, and whether the others follow it."""
    grounder = pipeline("video-grounding")
    processor, asked = grounder.processor, Counter()
    with tempfile.TemporaryDirectory() as folder:
        questions = demo_questions(Path(folder), scenes, processor.video_processor.num_frames)
        times, answers = {}, {}
        for grammar in (None, "auto"):
            start = time.perf_counter()
            answers[grammar] = grounder(questions, batch_size=16, grammar=grammar)
            times[grammar] = time.perf_counter() - start
    changed = Counter(q["task"] for q, a, b in zip(questions, *answers.values(), strict=True) if a["text"] != b["text"])
    asked.update(question["task"] for question in questions)
    notes = {grammar: sum(bool(answer["notes"]) for answer in found) for grammar, found in answers.items()}
    print(f"demo model, {len(questions)} questions: {times[None]:.0f} s, with the grammar {times['auto']:.0f} s")
    print(f"  answers with notes {notes[None]}, with the grammar {notes['auto']}")
    print("  changed:", ", ".join(f"{task} {changed[task]} of {count}" for task, count in sorted(asked.items())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--step-ms", type=float, help="time of a decode step to compare with; measured of the demo model by default")
    parser.add_argument("--demo", type=int, default=0, metavar="SCENES", help="also compare answers of the demo model about test scenes")
    args = parser.parse_args()
    processor = AutoProcessor.from_pretrained(DEMO_MODEL_PATH)
    measure_step(processor, args.device, args.step_ms)
    if args.answers:
        check_random_answers(processor, args.answers)
    if args.demo:
        compare_demo(args.demo)


if __name__ == "__main__":
    main()
