# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer for LLaVA-ST."""

import logging
from contextlib import nullcontext

import torch
from accelerate.utils import gather_object
from datasets import IterableDataset
from peft import PeftModel
from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import ProgressCallback
from trl import SFTTrainer

from ..model.compatibility_llava_st import check_model_matches_processor
from ..model.compilation_llava_st import compile_encoder_layers
from ..model.processing_llava_st import LlavaSTProcessor
from .answer_coordinates import answer_coordinate_inputs, choose_bins
from .arguments import LlavaSTTrainingConfig
from .collator import LlavaSTDataCollator
from .labels import check_loss_on
from .liger_kernels import register_liger_kernels, without_liger_warning
from .metrics import TrainingMetrics
from .model_card import ModelCardMixin
from .muon import MuonAdamW
from .prefix_packing import packed_attention_mask
from .sampler import BucketSampler, EpochSampler
from .saving import AtomicCheckpointMixin
from .selective_checkpointing import enable_selective_checkpointing
from .trainable import part_of, uncast_lora_inputs
from .vision_memory import choose_vision_chunk_size


logger = logging.getLogger(__name__)

_MODALITIES = ("text", "image", "video")
_MUON_MODULES = ("projector", "packer", "language_model")  # their matrices map features to features
_SKIPPED = "SkippedSamples"  # key in the trainer state of a checkpoint


class LlavaSTTrainer(ModelCardMixin, AtomicCheckpointMixin, SFTTrainer):
    """
    [`~trl.SFTTrainer`] with LLaVA-ST's soft-target loss, computed at supervised positions only, a learning rate per module, and losses
    per task and bin errors in the logs.

    Args:
        model: [`LlavaSTForConditionalGeneration`] or a `PeftModel` around it, as `prepare_model_for_training` returns it.
        args ([`LlavaSTTrainingConfig`]): arguments of the run.
        train_dataset, eval_dataset: samples of chat messages, as `llava_st_hf.data.load_mixture` or `pack_by_video` return them.
        processing_class ([`LlavaSTProcessor`]): the model's processor.
        data_collator: [`LlavaSTDataCollator`] with the arguments' settings by default. A custom collator needs `blank_media`
            if several processes train.
        base_model_name, card_data, card_recipe: for the model card: the base model, a description of the data (Markdown), and further
            values of the recipe (a dictionary).
        kwargs: further arguments of [`~trl.SFTTrainer`].
    """

    _tag_names = ["trl", "sft", "llava-st", "video-grounding"]
    _name = "LLaVA-ST"

    def __init__(
        self,
        model,
        args: LlavaSTTrainingConfig,
        train_dataset,
        processing_class: LlavaSTProcessor,
        eval_dataset=None,
        data_collator: LlavaSTDataCollator | None = None,
        base_model_name: str | None = None,
        card_data: str | None = None,
        card_recipe: dict | None = None,
        **kwargs,
    ):
        if not isinstance(args, LlavaSTTrainingConfig):
            raise TypeError(f"args must be a LlavaSTTrainingConfig, got {type(args).__name__}.")
        check_model_matches_processor(model.config, processing_class)
        _check_data(args, train_dataset)
        for dataset in (train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset])):
            if dataset is not None and "conversations" in (dataset.column_names or ()):
                _check_groups(args, model)
        self.base_model_name, self.card_data, self.card_recipe = base_model_name, card_data, card_recipe
        if model.dtype not in (torch.float32, torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32):
            # Without autocast, updates smaller than the precision of the weights would be lost.
            raise ValueError(f"The model's weights are {model.dtype}: train it with bf16: true (or fp16), or load it in float32.")
        half = self._half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        if data_collator is None:
            reading = {"video_backend": args.video_backend, "allow_truncated": args.allow_truncated}
            data_collator = LlavaSTDataCollator(
                processing_class,
                check_loss_on(args.loss_on),
                args.on_error,
                max_length=args.max_length,
                pixel_dtype=half,
                processor_kwargs=reading,
                blank_media=args.world_size > 1,
            )
        if args.use_liger_kernel:
            register_liger_kernels(args.device, model.config.get_text_config().model_type)
        with without_liger_warning():
            super().__init__(
                model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        if (args.bf16 or args.fp16) and not self.is_deepspeed_enabled:
            # Small updates are lost in half precision. DeepSpeed keeps a copy in float32, and so does accelerate for FSDP.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        if args.compile_vision_tower:
            if self._shards_weights:
                logger.warning("compile_vision_tower has no effect with ZeRO-3 and FSDP, which shard the weights of the vision encoder.")
            else:
                base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
                compile_encoder_layers(base.model.vision_tower)
        config = self.model.config
        vocabulary = config.coordinates if config.use_coordinate_tokens else None
        self._training_metrics = {"train": TrainingMetrics(vocabulary), "eval": TrainingMetrics(vocabulary)}
        self._skipped: set[str] = set()
        self._sampler: EpochSampler | None = None
        self._micro_batch = (0, 0)  # step, and number of the next micro-batch in it
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(SpeedProgressCallback)
        self.add_callback(_RunStart(self))

    def train(self, *args, **kwargs):
        with nullcontext() if self._half == torch.float32 else uncast_lora_inputs(self.model):
            return super().train(*args, **kwargs)

    # Data

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        if self.args.train_sampling_strategy == "random":
            self._sampler = EpochSampler(len(train_dataset), seed)
        elif self.args.train_sampling_strategy == "group_by_length":
            kinds = torch.tensor([_MODALITIES.index(kind) for kind in train_dataset["modality"]], dtype=torch.int8)
            lengths = torch.tensor(train_dataset["length"][:], dtype=torch.int32)
            self._sampler = BucketSampler(kinds, lengths, self.args.train_batch_size * self.args.world_size, seed)
        else:
            return super()._get_train_sampler(train_dataset)
        return self._sampler

    def _run_epoch(self, *args, epoch, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed after its end
            self.control.should_training_stop = True
            return None
        if self._sampler is not None:
            # With several processes, accelerate does not set the epoch of the sampler in a loader that skips the first batches.
            self._sampler.set_epoch(epoch)
        return super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        for problem in inputs.pop("skipped", ()):
            if problem not in self._skipped:  # a sample counts once over all epochs and evaluations
                self._skipped.add(problem)
                logger.warning("Skipped (%d so far): %s", len(self._skipped), problem)
                self._check_skipped(problem)
        return inputs

    def _check_skipped(self, last: str) -> None:
        if len(self._skipped) > self.args.max_errors:
            raise RuntimeError(
                f"{len(self._skipped)} samples could not be used, more than max_errors={self.args.max_errors}. One of them: {last}"
            )

    def _share_skipped(self) -> None:
        """Unites the skipped samples of all processes, and stores them in the state that checkpoints save."""
        self._skipped.update(*gather_object([self._skipped]))
        if self._skipped:
            self._check_skipped(min(self._skipped))
            self.state.stateful_callbacks[_SKIPPED] = {"args": {}, "attributes": {"problems": sorted(self._skipped)}}

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """
        Computes the model's loss. TRL's loss would need hard targets.

        Args:
            inputs: a batch of [`LlavaSTDataCollator`].
            num_items_in_batch: number of supervised tokens in all micro-batches and processes of this step.

        Returns:
            The sum of token losses divided by `num_items_in_batch`, times the number of processes that gradients are averaged over.
        """
        tasks = inputs.get("tasks") or ["all"] * len(inputs["labels"])
        mode = "train" if self.model.training else "eval"
        # The Trainer adds skip_logits in evaluations with Liger's kernels.
        model_inputs = {name: value for name, value in inputs.items() if name not in ("tasks", "segment_ids", "skip_logits")}
        if "segment_ids" in inputs:
            model_inputs["attention_mask"] = packed_attention_mask(inputs["segment_ids"], _attention(self.model), self._half)
        bins = self._choose_bins(mode, len(tasks))
        if "coordinate_values" in inputs:
            exact = model_inputs["coordinate_targets"] = inputs["coordinate_values"]
            model_inputs["coordinate_values"] = answer_coordinate_inputs(exact, inputs["labels"], inputs.get("segment_ids"), bins)
        outputs = model(
            **model_inputs,
            use_cache=False,
            skip_logits=inputs.get("skip_logits", not return_outputs),
            num_items_in_batch=num_items_in_batch,
            vision_chunk_size=choose_vision_chunk_size(self.model.config.vision_config, model_inputs, self._shards_weights),
        )
        with torch.no_grad():
            self._training_metrics[mode].add(inputs, outputs, tasks, bins)
        loss = outputs.loss
        if mode == "train" and not loss.requires_grad:  # no trained weight has an effect on this batch
            loss = loss + 0 * sum(parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    @property
    def _shards_weights(self) -> bool:
        return self.is_fsdp_enabled or (self.is_deepspeed_enabled and is_deepspeed_zero3_enabled())

    def _choose_bins(self, mode: str, num_conversations: int) -> torch.Tensor:
        """(num_conversations,) booleans: whether the inputs of a conversation's answer coordinates are bins."""
        if mode == "eval":  # as in generation
            return choose_bins("bins", num_conversations, [])
        step, number = self._micro_batch
        if step != self.state.global_step:
            step, number = self.state.global_step, 0
        self._micro_batch = (step, number + 1)
        seed = [self.args.seed, step, number, self.accelerator.process_index]
        return choose_bins(self.args.answer_coordinates, num_conversations, seed)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        report = self._training_metrics[mode].report()
        self._share_skipped()
        if "num_tokens" in report:  # not in the summary at the end of a run
            if mode == "train":
                report.pop("loss", None)  # equal to the Trainer's
                self.state.num_input_tokens_seen += int(report["num_tokens"])
                report["num_tokens"] = self.state.num_input_tokens_seen
            else:
                # Replaces the mean over batches, in which a batch of few tokens would count as much as one of many.
                prefix = next(name.removesuffix("loss") for name in logs if name.endswith("_loss"))
                report = {prefix + name: value for name, value in report.items() if not name.endswith(("_second", "num_tokens"))}
            if self._skipped:
                report["skipped_samples"] = len(self._skipped)
            logs.update(report)
        super().log(logs, start_time)

    def evaluation_loop(self, *args, **kwargs):
        self._training_metrics["eval"].reset()
        with self._training_metrics["train"].paused():
            return super().evaluation_loop(*args, **kwargs)

    def _save_checkpoint(self, model, trial) -> None:
        with self._training_metrics["train"].paused():
            super()._save_checkpoint(model, trial)

    # Optimizer

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is not None or self.optimizer_cls_and_kwargs is not None:
            return super().create_optimizer(model)
        trained = self.model if model is None else model
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
        if self.args.muon:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise ValueError("muon=True needs complete matrices on every process; DeepSpeed and FSDP shard them: train without these.")
            optimizer_class = MuonAdamW
            options = {name: options[name] for name in ("lr", "betas", "eps")}
        options.setdefault("params", self._parameter_groups(trained))
        self.optimizer_cls_and_kwargs: tuple | None = (optimizer_class, options)
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = None

    def _parameter_groups(self, model) -> list[dict]:
        """Returns one parameter group per module, with or without weight decay, and updated by Muon or AdamW."""
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[str, bool, bool], list] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                part = part_of(name)
                muon = self.args.muon and part in _MUON_MODULES and parameter.ndim == 2
                groups.setdefault((part, name in decayed, muon), []).append(parameter)
        rates = self.args.learning_rates or {}
        found = []
        for (part, decay, muon), parameters in sorted(groups.items(), key=lambda item: item[0]):
            group = {"params": parameters, "weight_decay": self.args.weight_decay if decay else 0.0}
            group["lr"] = rates.get(part, self.args.learning_rate)
            found.append({**group, "muon": True} if muon else group)
        return found


def _check_data(args: LlavaSTTrainingConfig, dataset) -> None:
    if isinstance(dataset, IterableDataset):
        if args.train_sampling_strategy == "group_by_length":
            raise ValueError('train_sampling_strategy="group_by_length" needs all samples before training: set streaming: false.')
        return
    if len(dataset) == 0:
        raise ValueError("The training data has no samples.")
    if args.train_sampling_strategy == "group_by_length":
        missing = [name for name in ("modality", "length") if name not in dataset.column_names]
        if missing:
            raise ValueError(f'train_sampling_strategy="group_by_length" needs the columns modality and length; the data lacks {missing}.')


def _attention(model) -> str:
    return model.config.get_text_config()._attn_implementation


def _check_groups(args: LlavaSTTrainingConfig, model) -> None:
    """Raises an error if losses and gradients would not equal those of separate conversations."""
    if args.loss_on != "assistant":
        raise ValueError(
            f'loss_on="{args.loss_on}" includes tokens of the prefix that packed conversations share, whose loss would be counted once per '
            'conversation: set loss_on="assistant", or max_conversations_per_sequence=1.'
        )
    if _attention(model) not in ("sdpa", "eager"):
        raise ValueError(
            f"Packed conversations need an attention mask that attn_implementation={_attention(model)} does not support: set it to sdpa or "
            "eager, or set max_conversations_per_sequence=1."
        )


class SpeedProgressCallback(ProgressCallback):
    """Progress bar with the speed of the last steps."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=logs, **kwargs)
        if self.training_bar is not None and logs and "tokens_per_second" in logs:
            self.training_bar.set_postfix_str(
                f"{logs['tokens_per_second']:,.0f} tokens/s, {logs['samples_per_second']:.2f} samples/s", refresh=False
            )


class _RunStart(TrainerCallback):
    """Starts the clock of the metrics, restores the skipped samples of a checkpoint, and sets what gradient checkpointing keeps, when
    training starts."""

    def __init__(self, trainer: LlavaSTTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._training_metrics["train"].reset()
        if args.selective_checkpointing:
            enable_selective_checkpointing(self.trainer.model, args.selective_checkpointing)
        known = state.stateful_callbacks.get(_SKIPPED, {}).get("attributes", {})
        self.trainer._skipped.update(known.get("problems", ()))
