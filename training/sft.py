# SPDX-License-Identifier: Apache-2.0
"""
Trains LLaVA-ST: any of the three stages, or a fine-tuning of one's own.

    accelerate launch --config_file training/accelerate/ddp.yaml training/sft.py --config training/recipes/stage1_content_alignment.yaml

A recipe's values can be replaced on the command line (`--output_dir runs/try --learning_rate 1e-5`). A run that was interrupted
goes on from its last checkpoint when the same command is given again.
"""

from dataclasses import dataclass, field

import torch
from accelerate import PartialState
from transformers import BitsAndBytesConfig
from transformers.utils import logging
from trl import ModelConfig, TrlParser, get_quantization_config

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.data import load_mixture, pack_by_video
from llava_st_hf.training import (
    LlavaSTTrainer,
    LlavaSTTrainingConfig,
    check_resume_compatibility,
    describe_mixture,
    get_last_checkpoint,
    prepare_base_model,
    prepare_model_for_training,
)


logger = logging.get_logger(__name__)


@dataclass
class DataArguments:
    """
    What is trained on.

    Args:
        mixture: YAML file that lists the annotation files: see docs/data.md.
        eval_mixture: the same, for evaluation (with `eval_strategy`).
        streaming: read annotations as they are needed, in the order of the files; needs `max_steps`.
        max_conversations_per_sequence: pack at most so many conversations about the same video or image into one sequence, behind one copy
            of its tokens. Losses and gradients are those of separate conversations. Not for `eval_mixture`.
    """

    mixture: str = field(metadata={"help": "YAML file that lists the annotation files."})
    eval_mixture: str | None = field(default=None, metadata={"help": "The same, for evaluation."})
    streaming: bool = field(default=False, metadata={"help": "Read annotations as they are needed."})
    max_conversations_per_sequence: int = field(
        default=1, metadata={"help": "Conversations about one medium that share its tokens, at most."}
    )

    def __post_init__(self):
        if self.max_conversations_per_sequence < 1:
            raise ValueError(f"max_conversations_per_sequence={self.max_conversations_per_sequence} must be at least 1.")
        if self.streaming and self.max_conversations_per_sequence > 1:
            raise ValueError(
                "max_conversations_per_sequence packs questions from all over the data, and streaming sees one after the other: set "
                "streaming: false, or max_conversations_per_sequence: 1."
            )


def quantization_config(model_args: ModelConfig) -> BitsAndBytesConfig | None:
    """The decoder's linear layers are quantised; what is small or trained as a whole is not."""
    config = get_quantization_config(model_args)
    if config is not None:
        config.llm_int8_skip_modules = ["model.vision_tower", "model.multi_modal_projector", "model.packer", "lm_head"]
    return config


def _refuse_unused(training_args: LlavaSTTrainingConfig, model_args: ModelConfig) -> None:
    """Refuses settings that would have no effect."""
    for name in ("use_dora", "use_rslora", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save", "use_peft"):
        if getattr(model_args, name):
            raise ValueError(f"{name} has no effect here: `train` says which parts are trained.")
    if model_args.model_revision != "main":
        raise ValueError("model_revision has no effect here: model_name_or_path is a folder, or the newest of a hub id.")
    if str(training_args.resume_from_checkpoint).lower() in ("true", "false"):
        raise ValueError("resume_from_checkpoint names a checkpoint folder; without it a run goes on from its last one.")


def main(data_args: DataArguments, training_args: LlavaSTTrainingConfig, model_args: ModelConfig) -> None:
    state = PartialState()
    _refuse_unused(training_args, model_args)

    # ============================================================ Data
    on_error = {"on_error": training_args.on_error, "max_errors": training_args.max_errors}
    with state.main_process_first():  # the others find what it has cached
        mixture = train_dataset = load_mixture(data_args.mixture, streaming=data_args.streaming, seed=training_args.seed, **on_error)
        if data_args.max_conversations_per_sequence > 1:
            train_dataset = pack_by_video(mixture, data_args.max_conversations_per_sequence)
        eval_dataset = load_mixture(data_args.eval_mixture, **on_error) if data_args.eval_mixture else None

    # ============================================================ Model
    lora = {name: getattr(model_args, name) for name in ("lora_r", "lora_alpha", "lora_dropout")}
    with state.main_process_first():
        num_samples = None if data_args.streaming else len(train_dataset)
        settings = {"max_conversations_per_sequence": data_args.max_conversations_per_sequence, **lora}
        check_resume_compatibility(training_args, model_args.model_name_or_path, data_args.mixture, num_samples, **settings)
    dtype = getattr(torch, model_args.dtype) if model_args.dtype != "auto" else "auto"
    with state.main_process_first():  # the others find what it has merged
        folder = prepare_base_model(model_args.model_name_or_path, training_args.output_dir, training_args.train, dtype)
    quantization = quantization_config(model_args)
    model = LlavaSTForConditionalGeneration.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
        device_map={"": state.device} if quantization is not None else None,
    )
    processor = LlavaSTProcessor.from_pretrained(folder)
    torch.manual_seed(training_args.seed)  # an adapter begins with random numbers
    model = prepare_model_for_training(model, training_args.train, **lora)

    # ============================================================ Training
    trainer = LlavaSTTrainer(
        model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        base_model_name=model_args.model_name_or_path,
        card_data=describe_mixture(data_args.mixture, mixture),
        card_recipe={"dtype": model_args.dtype, **lora} if "lora" in training_args.train else {"dtype": model_args.dtype},
    )
    checkpoint = training_args.resume_from_checkpoint or get_last_checkpoint(training_args.output_dir)
    if checkpoint:
        logger.warning("Going on from %s.", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if eval_dataset is not None and training_args.eval_strategy == "no":
        trainer.evaluate()
    trainer.create_model_card()
    trainer.accelerator.print(f"Saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    parser = TrlParser((DataArguments, LlavaSTTrainingConfig, ModelConfig))
    main(*parser.parse_args_and_config())
