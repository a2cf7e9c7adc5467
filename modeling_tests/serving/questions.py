# SPDX-License-Identifier: Apache-2.0
"""Questions of the Shapes dataset in all tasks, and the answers of `generate` to them.

`python -m modeling_tests.serving.questions MODEL QUESTIONS ANSWERS` writes the answers, in a process of its own: transformers' model classes
cannot be built in a process in which vLLM has built a model.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_st_hf.model.tasks_llava_st import TASKS, task_content
from llava_st_hf.shapes.files import write_image, write_video
from llava_st_hf.shapes.questions import image_rows, video_rows
from llava_st_hf.shapes.scenes import make_scene, scene_seed


@dataclass
class Answer:
    """
    A question as vLLM takes it, and the greedy answer of `generate` to it, with coordinates of the prompt as bins.

    Args:
        task: its task.
        prompt: rendered chat with `<image>` and `<video>`, and coordinates as tokens.
        media: `[kind, path]` of each image and video, in the order of the prompt.
        prompt_length: tokens of the prompt with those of media.
        ids: token ids of the answer.
        margins: difference of the two highest logits at each of them.
    """

    task: str
    prompt: str
    media: list[tuple[str, str]]
    prompt_length: int
    ids: list[int]
    margins: list[float]


def shapes_questions(folder: Path, per_task: int, num_frames: int) -> list[dict]:
    """`per_task` questions of each task about images and videos that are written to `folder`: `{"task", "messages"}`."""
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
                item = {"type": kind, "path": str(path)}
                questions.append({"task": task, "messages": [{"role": "user", "content": [item, *content]}]})
                counts[task] += 1
        number += 1
    return questions


def reference_answers(model: str | Path, questions: list[dict], max_new_tokens: int, folder: Path) -> list[Answer]:
    """The answers of `generate` in float32, from another process. The files that it reads and writes are in `folder`."""
    asked, answered = folder / "questions.json", folder / "answers.json"
    asked.write_text(json.dumps(questions), encoding="utf-8")
    command = [sys.executable, "-m", "modeling_tests.serving.questions", str(model), str(asked), str(answered), str(max_new_tokens)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    return [Answer(**row) for row in json.loads(answered.read_text(encoding="utf-8"))]


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
def write_answers(model_path: str, questions_path: str, answers_path: str, max_new_tokens: int) -> None:
    """Writes the answers to the questions of a file, one `generate` at a time."""
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(model_path)
    answers = []
    for question in json.loads(Path(questions_path).read_text(encoding="utf-8")):
        messages = question["messages"]
        inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
        inputs.pop("coordinate_values", None)
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=max_new_tokens, return_dict_in_generate=True, output_logits=True
        )
        prompt_length = inputs["input_ids"].shape[1]
        top = torch.stack(output.logits)[:, 0].float().topk(2).values  # (steps, 2)
        media = [
            (item["type"], item["path"]) for message in messages for item in message["content"] if item["type"] in ("image", "video")
        ]
        answers.append(
            Answer(
                task=question["task"],
                prompt=served_prompt(processor, inputs["input_ids"][0].tolist()),
                media=media,
                prompt_length=prompt_length,
                ids=output.sequences[0, prompt_length:].tolist(),
                margins=(top[:, 0] - top[:, 1]).tolist(),
            )
        )
    Path(answers_path).write_text(json.dumps([asdict(answer) for answer in answers]), encoding="utf-8")


if __name__ == "__main__":
    write_answers(*sys.argv[1:4], int(sys.argv[4]))
