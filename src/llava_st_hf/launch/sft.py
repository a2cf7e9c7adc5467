# SPDX-License-Identifier: Apache-2.0
"""
Trains LLaVA-ST: any of the three stages, or fine-tuning on custom data. `llava-st train` runs it; directly:

    accelerate launch --config_file ddp.yaml -m llava_st_hf.launch.sft --config stage1_content_alignment.yaml

Values of a recipe can be replaced on the command line (`--output_dir runs/try --learning_rate 1e-5`). To resume an interrupted run, run
the same command again: training continues from the last checkpoint.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from trl import ModelConfig, TrlParser, get_quantization_config

from ..data import load_mixture, pack_by_video
from ..distributed import set_fsdp_layers, shut_down_processes
from ..locking import locked_folder
from ..model.model_card_llava_st import hub_id
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.quantization_llava_st import FLOATING_POINT_MODULES
from ..shapes.demo_model import DEMO_MODEL_NAME, DEMO_MODEL_PATH
from ..training import (
    LlavaSTGRPOTrainer,
    LlavaSTTrainer,
    LlavaSTTrainingConfig,
    check_resume_compatibility,
    describe_mixture,
    get_last_checkpoint,
    load_initial_processor,
    prepare_base_model,
    prepare_model_for_training,
)
from ..training.arguments import replace_renamed_arguments


logger = logging.get_logger(__name__)


@dataclass
class DataArguments:
    """
    Training and evaluation data.

    Args:
        mixture: YAML file that lists the annotation files: see docs/data.md.
        eval_mixture: the same for evaluation during training (with `eval_strategy`) or after it.
        streaming: read annotations during training, in the order of the files, instead of before it; needs `max_steps`.
        max_conversations_per_sequence: maximum number of conversations about the same video or image that are packed into one sequence
            and share its tokens. Losses and gradients equal those of separate conversations. Not used for `eval_mixture`.
    """

    mixture: str = field(metadata={"help": "YAML file that lists the annotation files."})
    eval_mixture: str | None = field(default=None, metadata={"help": "YAML file that lists the annotation files for evaluation."})
    streaming: bool = field(default=False, metadata={"help": "Read annotations during training instead of before it."})
    max_conversations_per_sequence: int = field(
        default=1, metadata={"help": "Maximum number of conversations about the same video or image packed into one sequence."}
    )
    questions_per_medium: int | None = field(default=None, metadata={"help": "Deprecated: use max_conversations_per_sequence."})

    def __post_init__(self):
        replace_renamed_arguments(self, {"questions_per_medium": "max_conversations_per_sequence"})
        if self.max_conversations_per_sequence < 1:
            raise ValueError(f"max_conversations_per_sequence={self.max_conversations_per_sequence} must be at least 1.")
        if self.streaming and self.max_conversations_per_sequence > 1:
            raise ValueError(
                f"max_conversations_per_sequence={self.max_conversations_per_sequence} needs all conversations before training, and "
                "streaming reads them during training: set streaming: false, or max_conversations_per_sequence: 1."
            )


def quantization_config(model_args: ModelConfig) -> BitsAndBytesConfig | None:
    """Returns the quantization of the language model's linear layers, or None. Other modules are small or trained, and not quantized."""
    config = get_quantization_config(model_args)
    if config is not None:
        config.llm_int8_skip_modules = list(FLOATING_POINT_MODULES)
    return config


def refuse_unused_arguments(training_args: TrainingArguments, model_args: ModelConfig) -> None:
    """Raises an error for arguments that would have no effect."""
    for name in ("use_dora", "use_rslora", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save", "use_peft"):
        if getattr(model_args, name):
            raise ValueError(f"{name} has no effect here: set trainable_modules.")
    if training_args.push_to_hub and training_args.hub_strategy != HubStrategy.END:
        raise ValueError(f'hub_strategy={training_args.hub_strategy.value!r} must be "end": checkpoints are not uploaded during a run.')
    if model_args.model_revision != "main":
        raise ValueError(
            f"model_revision={model_args.model_revision!r} has no effect here: model_name_or_path is a folder, or a hub id whose main "
            "revision is used."
        )


def checkpoint_to_resume(training_args: TrainingArguments) -> str | None:
    """Returns the checkpoint folder to resume from: the one that is given, or the last one of the run; None if there is none yet.

    Raises:
        ValueError: for `resume_from_checkpoint: false`, and for `true` if there is no checkpoint.
    """
    given, last = training_args.resume_from_checkpoint, get_last_checkpoint(training_args.output_dir)
    if given is None:
        return last
    if str(given).lower() == "false":
        raise ValueError(
            "resume_from_checkpoint=false is not supported: a run resumes from the last checkpoint in its output_dir. To train from the "
            "start, choose another output_dir or delete it."
        )
    if str(given).lower() != "true":
        return given
    if last is None:
        raise ValueError(
            f"resume_from_checkpoint=true, but {training_args.output_dir} has no complete checkpoint. Remove the argument to start the run."
        )
    return last


def check_upload(training_args: TrainingArguments, model: PreTrainedModel | PeftModel, base: str) -> None:
    """Raises an error if the result is an adapter of a local base model, which others could not load from the hub."""
    if training_args.push_to_hub and isinstance(model, PeftModel) and hub_id(base) is None:
        raise ValueError(
            f"push_to_hub=true would upload an adapter whose base model {base} is no hub id. Set push_to_hub: false, and upload the result "
            "with `llava-st merge-lora` and `llava-st push`, or start from a model of the hub that has all modules to train."
        )


def resolve_model_name(model_args: ModelConfig) -> None:
    """Replaces the name of the demo model by its folder, in place. Raises a `ValueError` if no model is given."""
    if model_args.model_name_or_path is None:
        raise ValueError("model_name_or_path is missing: set it in the recipe, or by --model_name_or_path.")
    if model_args.model_name_or_path == DEMO_MODEL_NAME:
        model_args.model_name_or_path = DEMO_MODEL_PATH


def lora_settings(model_args: ModelConfig) -> dict:
    """Returns rank, scale and dropout of LoRA, as arguments of `prepare_model_for_training`."""
    return {name: getattr(model_args, name) for name in ("lora_r", "lora_alpha", "lora_dropout")}


def load_model(
    state: PartialState, training_args: TrainingArguments, model_args: ModelConfig, trainable_modules: list[str]
) -> tuple[PreTrainedModel | PeftModel, LlavaSTProcessor]:
    """
    Loads the model that a run starts from, with the modules of the run trainable.

    Args:
        state: of this process; the main process saves a model that a stage derives from another, and the others wait for it.
        training_args, model_args: of the run.
        trainable_modules: modules to train; all others are frozen.

    Raises:
        ValueError: if the result could not be uploaded as `push_to_hub` demands, or FSDP is configured for layers that the model lacks.
    """
    start = str(model_args.model_name_or_path)
    dtype = "auto" if model_args.dtype in (None, "auto") else getattr(torch, str(model_args.dtype))
    with state.main_process_first():  # the others read the model that it has saved
        folder = prepare_base_model(start, training_args.output_dir, trainable_modules, dtype, training_args.seed)
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
    model = prepare_model_for_training(model, trainable_modules, **lora_settings(model_args))
    check_upload(training_args, model, folder)
    set_fsdp_layers(model)
    return model, processor


def run_training(trainer: LlavaSTTrainer | LlavaSTGRPOTrainer, checkpoint: str | None) -> None:
    """Trains from a checkpoint, or from the start if it is None; saves, evaluates if training has not done so, and uploads if it is set."""
    args = trainer.args
    if checkpoint:
        logger.warning("Resuming from %s.", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.eval_dataset is not None and args.eval_strategy == "no":
        trainer.evaluate()
    trainer.create_model_card()
    trainer.accelerator.print(f"Saved to {args.output_dir}.")
    if args.push_to_hub:
        trainer.push_to_hub()


def main(data_args: DataArguments, training_args: LlavaSTTrainingConfig, model_args: ModelConfig) -> None:
    """Trains in the output folder, which is locked meanwhile. On return all processes have finished and the process group is destroyed."""
    resolve_model_name(model_args)
    refuse_unused_arguments(training_args, model_args)
    state = PartialState()
    with locked_folder(training_args.output_dir) if state.is_main_process else nullcontext():
        train(state, data_args, training_args, model_args)
        shut_down_processes()


def train(state: PartialState, data_args: DataArguments, training_args: LlavaSTTrainingConfig, model_args: ModelConfig) -> None:
    """Loads data and model, trains, and saves."""
    start = str(model_args.model_name_or_path)  # `main` has checked that there is one

    # ============================================================ Data
    # Answers about densely annotated videos have one box for each frame that the processor samples.
    num_frames = load_initial_processor(start, training_args.output_dir).video_processor.num_frames
    loading = {"on_error": training_args.on_error, "max_errors": training_args.max_errors, "num_frames": num_frames}
    with state.main_process_first():  # the others read its cache files
        mixture = train_dataset = load_mixture(data_args.mixture, streaming=data_args.streaming, seed=training_args.seed, **loading)
        if data_args.max_conversations_per_sequence > 1:
            train_dataset = pack_by_video(mixture, data_args.max_conversations_per_sequence)
        eval_dataset = load_mixture(data_args.eval_mixture, **loading) if data_args.eval_mixture else None

    # ============================================================ Model
    if state.is_main_process:
        num_samples = None if data_args.streaming else len(train_dataset)
        settings = {"max_conversations_per_sequence": data_args.max_conversations_per_sequence, "streaming": data_args.streaming}
        settings |= {name: value for name, value in vars(model_args).items() if name != "model_name_or_path"}
        check_resume_compatibility(training_args, start, data_args.mixture, num_samples, **settings)
    checkpoint = checkpoint_to_resume(training_args)
    model, processor = load_model(state, training_args, model_args, training_args.trainable_modules)

    # ============================================================ Training
    trainer = LlavaSTTrainer(
        model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        base_model_name=model_args.model_name_or_path,
        card_data=describe_mixture(data_args.mixture, mixture),
        card_recipe={
            "dtype": model_args.dtype,
            **(lora_settings(model_args) if "lora" in training_args.trainable_modules else {}),
        },
    )
    run_training(trainer, checkpoint)


def run() -> None:
    """Reads recipe and command line, and trains."""
    parser = TrlParser((DataArguments, LlavaSTTrainingConfig, ModelConfig))  # type: ignore[arg-type]  # classes of different types
    main(*parser.parse_args_and_config())


if __name__ == "__main__":
    run()
