# SPDX-License-Identifier: Apache-2.0
"""One short training run of a tiny model, as a program that tests start in one or several separate processes.

    python -m modeling_tests.one_training FOLDER '{"max_steps": 2, …}'

The videos and images are written to FOLDER (see corpora.py), the run to FOLDER/run. The second argument contains arguments of
`LlavaSTTrainingConfig` and of `make_trainer`, "kill_at": a step after which the program ends as by `kill -9`, and "fail_at": a step
after which the last process raises an error.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback

from llava_st_hf.distributed import shut_down_processes
from llava_st_hf.training import LlavaSTTrainer, LlavaSTTrainingConfig, get_last_checkpoint, prepare_model_for_training
from modeling_tests.corpora import mixed_dataset
from modeling_tests.processors import model_for, tiny_processor


OPTIONS = {
    "per_device_train_batch_size": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "learning_rate": 0.05,
    "optim": "sgd",  # small differences stay small
    "max_grad_norm": 0.0,
    "seed": 3,
    "trainable_modules": ["packer", "input_embeddings", "coordinate_embeddings", "lora"],
}


class Killer(TrainerCallback):
    """Callback that ends the program immediately after step `step`, without cleanup."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Failer(TrainerCallback):
    """Callback that raises an error after step `step`, in the last process."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.process_index == args.world_size - 1:
            raise RuntimeError("the last process fails")


def make_trainer(folder: Path, count: int = 8, lora_dropout: float = 0.0, callbacks=None, eval_rows=None, **options) -> LlavaSTTrainer:
    """Creates a trainer of a tiny model on `count` rows with a video, an image and text only in turn."""
    options = {**OPTIONS, **options}
    dataset = mixed_dataset(folder, count)
    args = LlavaSTTrainingConfig(output_dir=str(folder / "run"), **options)
    processor = tiny_processor()
    torch.manual_seed(0)
    model = prepare_model_for_training(model_for(processor), args.trainable_modules, lora_r=2, lora_alpha=4, lora_dropout=lora_dropout)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # initialized to zero, where the gradient of lora_A is zero too
            torch.nn.init.normal_(parameter, std=0.1)
    evaluated = None if eval_rows is None else Dataset.from_list(eval_rows)
    return LlavaSTTrainer(model, args, dataset, processor, evaluated, callbacks=callbacks)


def main(folder: Path, options: dict) -> None:
    callbacks = [callback(options.pop(name)) for name, callback in (("kill_at", Killer), ("fail_at", Failer)) if name in options]
    trainer = make_trainer(folder, callbacks=callbacks, **options)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train(resume_from_checkpoint=get_last_checkpoint(trainer.args.output_dir))
    if trainer.is_world_process_zero():
        changes = {name: p.detach() - before[name] for name, p in trainer.model.named_parameters() if p.requires_grad}
        torch.save(changes, folder / "changes.pt")
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    shut_down_processes()
    assert not torch.distributed.is_initialized()
    threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]  # empty where there is no /proc
    assert not [name for name in threads if "gloo" in name], threads
