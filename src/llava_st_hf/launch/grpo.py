# SPDX-License-Identifier: Apache-2.0
"""
Trains LLaVA-ST by GRPO: several completions of each question are sampled, and rewarded by their IoU with the right answer. `llava-st train`
runs it for recipes with "grpo" in their name; directly:

    accelerate launch --config_file ddp.yaml -m llava_st_hf.launch.grpo --config grpo.yaml

Values of a recipe can be replaced on the command line (`--output_dir runs/try --temperature 0.9`). To resume an interrupted run, run the
same command again: training continues from the last checkpoint.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import PartialState
from transformers.utils import logging
from trl import GRPOConfig, ModelConfig, TrlParser

from ..data import load_mixture
from ..distributed import set_fsdp_layers, shut_down_processes
from ..locking import locked_folder
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.processing_llava_st import LlavaSTProcessor
from ..shapes.demo_model import DEMO_MODEL_NAME, DEMO_MODEL_PATH
from ..training import (
    LlavaSTGRPOTrainer,
    check_resume_compatibility,
    describe_mixture,
    grpo_dataset,
    load_initial_processor,
    prepare_base_model,
    prepare_model_for_training,
    rewards,
)
from ..training.trainable import check_trainable_modules
from .sft import check_upload, checkpoint_to_resume, quantization_config, refuse_unused_arguments


logger = logging.get_logger(__name__)


@dataclass
class GRPOArguments:
    """
    Data, rewards and trained modules.

    Args:
        mixture: YAML file that lists the annotation files: see docs/data.md. The last answer of each conversation is the right one.
        tasks: of the questions that are used.
        reward_funcs: names of functions of `llava_st_hf.training.rewards`; `reward_weights` has their weights.
        trainable_modules: modules to train; all others are frozen.
    """

    mixture: str = field(metadata={"help": "YAML file that lists the annotation files."})
    tasks: list[str] = field(
        default_factory=lambda: ["rec", "tvg", "stvg", "svg"], metadata={"help": "Tasks of the questions that are used."}
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["tiou_siou_reward", "viou_reward", "format_reward"],
        metadata={"help": "Names of functions of llava_st_hf.training.rewards."},
    )
    trainable_modules: list[str] = field(default_factory=lambda: ["lora"], metadata={"help": "Modules to train; all others are frozen."})

    def __post_init__(self):
        self.trainable_modules = check_trainable_modules(self.trainable_modules, "trainable_modules")
        if unknown := [name for name in self.reward_funcs if name not in rewards.__all__]:
            raise ValueError(f"reward_funcs contains {', '.join(unknown)}; it must list functions among {', '.join(rewards.__all__)}.")


def main(grpo_args: GRPOArguments, training_args: GRPOConfig, model_args: ModelConfig) -> None:
    """Trains in the output folder, which is locked meanwhile. On return all processes have finished and the process group is destroyed."""
    refuse_unused_arguments(training_args, model_args)
    if model_args.model_name_or_path is None:
        raise ValueError("model_name_or_path is missing: set it in the recipe, or by --model_name_or_path.")
    if model_args.model_name_or_path == DEMO_MODEL_NAME:
        model_args.model_name_or_path = DEMO_MODEL_PATH
    state = PartialState()
    with locked_folder(training_args.output_dir) if state.is_main_process else nullcontext():
        train(state, grpo_args, training_args, model_args)
        shut_down_processes()


def train(state: PartialState, grpo_args: GRPOArguments, training_args: GRPOConfig, model_args: ModelConfig) -> None:
    """Loads data and model, trains, and saves."""

    # ============================================================ Data
    model_name = str(model_args.model_name_or_path)
    num_frames = load_initial_processor(model_name, training_args.output_dir).video_processor.num_frames
    with state.main_process_first():  # the others read its cache files
        mixture = load_mixture(grpo_args.mixture, seed=training_args.seed, num_frames=num_frames)
        train_dataset = grpo_dataset(mixture, grpo_args.tasks)

    # ============================================================ Model
    lora = {name: getattr(model_args, name) for name in ("lora_r", "lora_alpha", "lora_dropout")}
    if state.is_main_process:
        settings = {**vars(grpo_args), **vars(model_args)}
        del settings["model_name_or_path"], settings["mixture"]
        check_resume_compatibility(training_args, model_name, grpo_args.mixture, len(train_dataset), **settings)
    checkpoint = checkpoint_to_resume(training_args)
    dtype = "auto" if model_args.dtype in (None, "auto") else getattr(torch, str(model_args.dtype))
    with state.main_process_first():  # the others read the model that it has saved
        folder = prepare_base_model(model_name, training_args.output_dir, grpo_args.trainable_modules, dtype, training_args.seed)
    quantization = quantization_config(model_args)
    model = LlavaSTForConditionalGeneration.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
        device_map={"": state.device} if quantization is not None else None,
    )
    processor = LlavaSTProcessor.from_pretrained(folder)
    torch.manual_seed(training_args.seed)  # LoRA weights are initialized randomly
    model = prepare_model_for_training(model, grpo_args.trainable_modules, **lora)
    check_upload(training_args, model, folder)
    set_fsdp_layers(model)

    # ============================================================ Training
    trainer = LlavaSTGRPOTrainer(
        model,
        reward_funcs=[getattr(rewards, name) for name in grpo_args.reward_funcs],
        args=training_args,
        train_dataset=train_dataset,
        processing_class=processor,
    )
    trainer.base_model_name, trainer.card_data = model_name, describe_mixture(grpo_args.mixture, mixture)
    trainer.card_recipe = {"reward_funcs": grpo_args.reward_funcs, "tasks": grpo_args.tasks, "dtype": model_args.dtype, **lora}
    if checkpoint:
        logger.warning("Resuming from %s.", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    trainer.accelerator.print(f"Saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub()


def run() -> None:
    """Reads recipe and command line, and trains."""
    parser = TrlParser((GRPOArguments, GRPOConfig, ModelConfig))  # type: ignore[arg-type]  # classes of different types
    main(*parser.parse_args_and_config())


if __name__ == "__main__":
    run()
