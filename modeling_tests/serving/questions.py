# SPDX-License-Identifier: Apache-2.0
"""Questions as vLLM takes them, and the answers of `generate` to them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xgrammar.contrib.hf

from llava_st_hf.model.grammar_export_llava_st import answer_regex
from llava_st_hf.model.tasks_llava_st import TASKS, task_content
from llava_st_hf.shapes.files import write_image, write_video
from llava_st_hf.shapes.questions import image_rows, video_rows
from llava_st_hf.shapes.scenes import make_scene, scene_seed


@dataclass
class Answer:
    """
    A request, and the greedy answer of `generate` in float32 to it, with coordinates of the prompt as bins.

    Args:
        request: `prompt`, a rendered chat with `<image>` and `<video>` and with coordinates as tokens; `media`, `[kind, path]` of each
            image and video in the order of the prompt; further keys of `engine.py`.
        prompt_length: tokens of the prompt with those of media.
        ids: token ids of the answer.
        margins: difference of the two highest logits at each of them.
    """

    request: dict
    prompt_length: int
    ids: list[int]
    margins: list[float]
    task: str | None = None


def shapes_questions(folder: Path, per_task: int, num_frames: int) -> list[tuple[str, list[dict]]]:
    """`per_task` questions of each task about images and videos that are written to `folder`: `(task, messages)`."""
    questions, counts = [], Counter()
    number = 0
    while min(counts[task] for task in TASKS) < per_task:
        for kind, suffix in (("image", "jpg"), ("video", "mp4")):
            seed = scene_seed("test", number)
            scene, path = make_scene(seed, kind == "video"), folder / f"{number}.{suffix}"
            rng = np.random.default_rng([seed, 3])
            rows = image_rows(scene, path.name, rng) if kind == "image" else video_rows(scene, path.name, rng, num_frames)
            chosen = {row["task"]: row for row in rows if counts[row["task"]] < per_task}
            if chosen and not path.exists():
                (write_image if kind == "image" else write_video)(scene, path)
            for task, row in chosen.items():
                needs = {"span" if need == "time" else need for need in TASKS[task].needs}
                # The box of "elc" is that at the start of its span.
                values = {**row, "box": row["box"] if "box" in row else row.get("boxes", [{"box": None}])[0]["box"]}
                content = task_content(task, **{need: values[need] for need in needs})
                questions.append((task, [{"role": "user", "content": [{"type": kind, "path": str(path)}, *content]}]))
                counts[task] += 1
        number += 1
    return questions


def served_prompt(processor, ids: list[int]) -> str:
    """The text of a processed prompt with coordinates as tokens, and `<image>` and `<video>` in the place of the tokens of media."""
    tokenizer = processor.tokenizer
    openings = {tokenizer.convert_tokens_to_ids(token): kind for token, kind in (("<im_start>", "<image>"), ("<vid_start>", "<video>"))}
    media_ids = {*processor.image_token_ids, *processor.video_token_ids}
    parts: list[str | list[int]] = [[]]
    for token_id in ids:
        if token_id in openings:
            parts += [openings[token_id], []]
        elif token_id not in media_ids:
            parts[-1].append(token_id)
    return "".join(part if isinstance(part, str) else tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in parts)


@torch.no_grad()
def answer(
    model, processor, messages: list[dict], max_tokens: int, task: str | None = None, constrained: bool = False, **video_options
) -> Answer:
    """
    The answer of `generate`.

    Args:
        constrained: to the form of answers of `task`; the request then has the regular expression of this form.
        video_options: `num_frames` or `fps`.
    """
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=dict(video_options)
    )
    inputs.pop("coordinate_values", None)
    media = [[item["type"], item["path"]] for message in messages for item in message["content"] if item["type"] in ("image", "video")]
    request = {"prompt": served_prompt(processor, inputs["input_ids"][0].tolist()), "media": media, "max_tokens": max_tokens}
    options = {}
    if constrained:
        request["regex"] = answer_regex(task, processor.num_temporal_bins, processor.num_spatial_bins)
        # Not the grammar of `generate`, which also requires ascending times and ordered sides of boxes: a regular expression cannot.
        size, ends = model.config.get_text_config().vocab_size, processor.tokenizer.eos_token_id
        vocabulary = xgrammar.TokenizerInfo.from_huggingface(processor.tokenizer, vocab_size=size, stop_token_ids=ends)
        compiled = xgrammar.GrammarCompiler(vocabulary).compile_regex(request["regex"])
        options["logits_processor"] = [xgrammar.contrib.hf.LogitsProcessor(compiled)]
    if video_options:
        request["mm_processor_kwargs"] = video_options
    output = model.generate(
        **inputs, **options, do_sample=False, max_new_tokens=max_tokens, return_dict_in_generate=True, output_scores=True
    )
    prompt_length = inputs["input_ids"].shape[1]
    top = torch.stack(output.scores)[:, 0].float().topk(2).values  # (steps, 2)
    margins = (top[:, 0] - top[:, 1]).tolist()
    return Answer(request, prompt_length, output.sequences[0, prompt_length:].tolist(), margins, task)


def differences(answers: list[Answer], outputs: list[dict]) -> list[str]:
    """Descriptions of the outputs of `engine.py` that are not those of `generate`, with the margin of the first token that differs."""
    found = []
    for number, (expected, output) in enumerate(zip(answers, outputs, strict=True)):
        name = f"Question {number} ({expected.task})"
        if output.get("prompt_length") != expected.prompt_length:
            found.append(f"{name}: {output.get('error') or output['prompt_length']} instead of {expected.prompt_length} prompt tokens")
        elif output["ids"] != expected.ids:
            pairs = enumerate(zip(output["ids"], expected.ids, strict=False))
            step = next((i for i, (a, b) in pairs if a != b), min(len(output["ids"]), len(expected.ids)))
            margin = expected.margins[step] if step < len(expected.margins) else None
            found.append(f"{name}: step {step} of {len(expected.ids)}, margin {margin}")
    return found
