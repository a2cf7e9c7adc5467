# SPDX-License-Identifier: Apache-2.0
"""
Compares the inputs of answer coordinates in training (`answer_coordinates`: exact, bins, mixed) on the demo model.

    python training/shapes/answer_coordinates.py runs/answers --seed 0

Two measurements for each choice, both from the demo model:

- memorized: after the steps of `MEMORIZE` on 22 rows about images and videos, the tokens of their answers that are predicted from the exact
  inputs, and from token ids alone; and the answers that greedy decoding reproduces. A coordinate counts as equal if it is one of the two
  bins around the annotation.
- held out: after the steps of `FINETUNE` on new scenes, the metrics of questions about scenes that were not trained on.

A choice that has a result in the folder is not run again.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from measure import measure
from transformers.utils import logging
from vision_pretraining import NUM_FRAMES

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.data import load_mixture, pack_by_video
from llava_st_hf.shapes.files import make_rows, write_questions
from llava_st_hf.training import LlavaSTDataCollator, LlavaSTTrainer, LlavaSTTrainingConfig, prepare_model_for_training


CHOICES = ("exact", "bins", "mixed")
MEMORIZED = {("image", "rec"): 8, ("image", "dgc"): 8, ("video", "svg"): 6}  # kind of medium and task → number of rows, one per scene
NUM_SCENES, NUM_QUESTIONS = 240, 100
MEMORIZE_FRAMES = 5  # sampled of a video that is memorized; the demo model's 20 take longer and are as easy to memorize
WORLD = 21  # scenes that the demo model was not trained on
MODULES = ["projector", "packer", "input_embeddings", "output_embeddings", "language_model"]
METRICS = {"rec": "miou", "tvg": "miou"}
MEMORIZE = {"per_device_train_batch_size": 7, "max_steps": 40, "learning_rate": 2e-3}  # after 120 steps "exact" reproduces all
FINETUNE = {"per_device_train_batch_size": 3, "max_steps": 150, "learning_rate": 5e-4}


def write_rows(folder: Path) -> None:
    """Writes annotations and mixtures of both measurements: `memorize.yaml` and `finetune.yaml`."""
    rows: dict[str, list[dict]] = {"memorize": [], "finetune": []}
    missing = dict(MEMORIZED)
    for kind in ("image", "video"):
        for [found] in make_rows(folder / "media", "train", kind, NUM_SCENES, NUM_FRAMES, WORLD):
            rows["finetune"] += [row for row in found if row["task"] in METRICS]
            for row in found:
                if missing.get((kind, row["task"])):
                    missing[kind, row["task"]] -= 1
                    rows["memorize"].append(row)
                    break
    for name, chosen in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(f"datasets:\n  - {{json_path: {name}.jsonl, data_folder: media, format: jsonl}}\n")


def train(choice: str, dataset, processor, output: Path, seed: int, options: dict) -> LlavaSTForConditionalGeneration:
    """Fine-tunes the demo model with a choice of `answer_coordinates`, and returns it in evaluation mode."""
    model = LlavaSTForConditionalGeneration.from_pretrained(DEMO_MODEL_PATH, dtype=torch.float32)
    args = LlavaSTTrainingConfig(
        output_dir=str(output), answer_coordinates=choice, trainable_modules=MODULES, muon=True, lr_scheduler_type="linear",
        warmup_steps=10, adam_beta2=0.98, bf16=False, use_cpu=True, gradient_checkpointing=False, seed=seed, report_to="none",
        save_strategy="no", logging_steps=20, disable_tqdm=True, **options,
    )  # fmt: skip
    LlavaSTTrainer(prepare_model_for_training(model, MODULES), args, dataset, processor).train()
    return model.eval()


@torch.no_grad()
def memorized(model: LlavaSTForConditionalGeneration, processor, dataset) -> dict[str, str]:
    """Counts tokens predicted under teacher forcing, and answers and coordinates reproduced by greedy decoding."""
    collator, vocabulary = LlavaSTDataCollator(processor), model.config.coordinates
    counts = dict.fromkeys(("tokens", "exact", "ids", "coordinates", "generated coordinates", "generated answers"), 0)

    def equal(ids: torch.Tensor, labels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        lower, upper, _ = vocabulary.between_tokens(labels, values)
        return (ids == lower) | (ids == upper)

    for row in dataset:
        batch = collator([row])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "pixel_values_videos") if name in batch}
        start = int((batch["labels"][0] != -100).nonzero()[0])
        labels = batch["labels"][0, start:]
        labels = labels[labels != -100]
        values = batch["coordinate_values"]
        answer_values, is_coordinate = values[0, start : start + len(labels)], ~values[0, start : start + len(labels)].isnan()
        counts["tokens"] += len(labels)
        counts["coordinates"] += int(is_coordinate.sum())
        from_ids = values.clone()
        from_ids[:, start:] = math.nan
        for name, given in (("exact", values), ("ids", from_ids)):
            predicted = model(**inputs, coordinate_values=given).logits[0, start - 1 : start - 1 + len(labels)].argmax(-1)
            counts[name] += int(equal(predicted, labels, answer_values).sum())
        cut = {name: inputs[name][:, :start] for name in ("input_ids", "attention_mask")}
        prompt = {**inputs, **cut, "coordinate_values": values[:, :start]}
        generated = model.generate(**prompt, do_sample=False, max_new_tokens=len(labels))[0, start:]
        same = torch.zeros(len(labels), dtype=torch.bool)
        same[: len(generated)] = equal(generated, labels[: len(generated)], answer_values[: len(generated)])
        counts["generated coordinates"] += int((same & is_coordinate).sum())
        counts["generated answers"] += int(same.all())
    return {
        "tokens, exact inputs": f"{counts['exact']} of {counts['tokens']}",
        "tokens, ids alone": f"{counts['ids']} of {counts['tokens']}",
        "coordinates generated": f"{counts['generated coordinates']} of {counts['coordinates']}",
        "answers generated": f"{counts['generated answers']} of {len(dataset)}",
    }


def memorize(folder: Path, choice: str, seed: int) -> dict[str, str]:
    """Trains a choice on few rows and counts what it has memorized."""
    processor = LlavaSTProcessor.from_pretrained(DEMO_MODEL_PATH)
    processor.video_processor.num_frames = MEMORIZE_FRAMES
    dataset = load_mixture(folder / "memorize.yaml")
    model = train(choice, dataset, processor, folder / f"runs/memorize-{choice}-{seed}", seed, MEMORIZE)
    return memorized(model, processor, dataset)


def finetune(folder: Path, choice: str, seed: int) -> dict[str, str]:
    """Trains a choice on new scenes and returns the metrics of questions about others."""
    processor = LlavaSTProcessor.from_pretrained(DEMO_MODEL_PATH)
    dataset = pack_by_video(load_mixture(folder / "finetune.yaml"), 12)
    output = folder / f"runs/finetune-{choice}-{seed}"
    model = train(choice, dataset, processor, output, seed, FINETUNE)
    measured = measure(model, processor, folder / "validation", output / "measured", choice, 25, NUM_QUESTIONS, METRICS)
    return {f"{task} {metric}": f"{measured[task][metric]:.3f}" for task, metric in METRICS.items()}


def results(folder: Path, seed: int, part) -> dict[str, dict]:
    """Choice → what `part` returns for it, with the seconds that it took; a result in the folder is read."""
    found = {}
    for choice in CHOICES:
        file = folder / f"{part.__name__}-{choice}-{seed}.json"
        if not file.is_file():
            start = time.monotonic()
            result = part(folder, choice, seed)
            file.write_text(json.dumps({**result, "seconds": round(time.monotonic() - start)}))
        found[choice] = json.loads(file.read_text())
    return found


def print_table(found: dict[str, dict]) -> None:
    columns = list(next(iter(found.values())))
    print("| answer_coordinates | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for choice, result in found.items():
        print(f"| {choice} | " + " | ".join(str(result[column]) for column in columns) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of data, runs and results")
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not (arguments.folder / "finetune.yaml").is_file():
        write_rows(arguments.folder)
        write_questions(arguments.folder / "validation", "validation", NUM_QUESTIONS, NUM_FRAMES, WORLD)
    for part in (memorize, finetune):
        print_table(results(arguments.folder, arguments.seed, part))
