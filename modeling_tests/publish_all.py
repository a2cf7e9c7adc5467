# SPDX-License-Identifier: Apache-2.0
"""Publishes a model in every way, as a program that tests start with HF_ENDPOINT set to a stand-in of the hub.

python -m modeling_tests.publish_all FOLDER
"""

import sys
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from transformers import pipeline

from llava_st_cli.main import main as llava_st
from modeling_tests.one_training import make_trainer
from modeling_tests.processors import model_for, tiny_processor


def main(folder: Path) -> None:
    grounder = pipeline("video-grounding")
    grounder.push_to_hub("someone/pipeline", max_shard_size="3MB")
    for name, part in {
        "model": grounder.model,
        "processor": grounder.processor,
        "image": grounder.processor.image_processor,
        "video": grounder.processor.video_processor,
        "config": grounder.model.config,
    }.items():
        part.push_to_hub(f"someone/{name}")
    grounder.processor.push_to_hub("someone/model")  # keeps the card of the model
    grounder.save_pretrained(folder / "model")
    scores = ["--scores", str(folder / "scores.json"), "--license", "apache-2.0", "--base-model", "owner/base", "--dataset", "owner/data"]
    assert llava_st(["push", str(folder / "model"), "someone/pushed", *scores]) == 0
    ModelCard("---\nlicense: mit\n---\nWritten on the hub.\n").push_to_hub("someone/config")
    assert llava_st(["push", str(folder / "model"), "someone/config", "--base-model", "owner/base"]) == 0
    assert llava_st(["convert", str(folder / "model"), str(folder / "converted")]) == 0
    ModelCard.load(folder / "converted/README.md").validate()
    assert llava_st(["push", str(folder / "converted"), "someone/converted"]) == 0
    torch.manual_seed(0)  # the base model of `make_trainer`
    processor = tiny_processor()
    model_for(processor).push_to_hub("someone/base")
    processor.push_to_hub("someone/base")
    trainer = make_trainer(folder, count=3, max_steps=1)
    trainer.model.peft_config["default"].base_model_name_or_path = trainer.base_model_name = "someone/base"
    trainer.hub_model_id = "someone/trained"
    trainer.train()
    (folder / "run/base").mkdir()
    (folder / "run/base/model.safetensors").touch()
    for name in (".lock", ".lock-owner", "run.json"):
        (folder / "run" / name).touch()
    trainer.push_to_hub()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
