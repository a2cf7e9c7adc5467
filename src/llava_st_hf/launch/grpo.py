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

from accelerate import PartialState
from trl import GRPOConfig, ModelConfig, TrlParser

from ..data import load_mixture
from ..distributed import shut_down_processes
from ..locking import locked_folder
from ..training import (
    LlavaSTGRPOTrainer,
    check_resume_compatibility,
    describe_mixture,
    grpo_dataset,
    load_initial_processor,
    rewards,
)
from ..training.trainable import check_trainable_modules
from .sft import checkpoint_to_resume, load_model, lora_settings, refuse_unused_arguments, resolve_model_name, run_training


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
    resolve_model_name(model_args)
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
    if state.is_main_process:
        settings = {**vars(grpo_args), **vars(model_args)}
        del settings["model_name_or_path"], settings["mixture"]
        check_resume_compatibility(training_args, model_name, grpo_args.mixture, len(train_dataset), **settings)
    checkpoint = checkpoint_to_resume(training_args)
    model, processor = load_model(state, training_args, model_args, grpo_args.trainable_modules)

    # ============================================================ Training
    trainer = LlavaSTGRPOTrainer(
        model,
        reward_funcs=[getattr(rewards, name) for name in grpo_args.reward_funcs],
        args=training_args,
        train_dataset=train_dataset,
        processing_class=processor,
    )
    trainer.base_model_name, trainer.card_data = model_name, describe_mixture(grpo_args.mixture, mixture)
    trainer.card_recipe = {
        "reward_funcs": grpo_args.reward_funcs,
        "tasks": grpo_args.tasks,
        "dtype": model_args.dtype,
        **lora_settings(model_args),
    }
    run_training(trainer, checkpoint)


def run() -> None:
    """Reads recipe and command line, and trains."""
    parser = TrlParser((GRPOArguments, GRPOConfig, ModelConfig))  # type: ignore[arg-type]  # classes of different types
    main(*parser.parse_args_and_config())


if __name__ == "__main__":
    run()
