# SPDX-License-Identifier: Apache-2.0
"""TRL's GRPOTrainer for LLaVA-ST, with images and videos in the prompts.

TRL 1.16 computes log-probabilities with images only, and from the base model, which does not have the head that LAPE needs.
"""

import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import torch
from datasets import Dataset, Features, Value
from peft import PeftModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import entropy_from_logits, pad, selective_log_softmax

from ..data.rows import FEATURES
from ..model.batch_feature_llava_st import LlavaSTBatchFeature
from ..model.compatibility_llava_st import check_model_matches_processor
from ..model.configuration_llava_st import SPECIAL_TOKENS
from ..model.processing_llava_st import LlavaSTProcessor
from .liger_kernels import check_liger_config, register_liger_kernels, without_liger_warning
from .model_card import ModelCardMixin
from .saving import AtomicCheckpointMixin


# Column of TRL's datasets → type of the content items that it fills.
_MEDIA_COLUMNS = {"image": "image", "images": "image", "video": "video", "videos": "video"}
_PAYLOADS = ("image", "video", "path", "url", "base64")
# Model input → method of the base model that makes features of it.
_PIXELS = {"pixel_values": "get_image_features", "pixel_values_videos": "get_video_features"}
_MASKED = torch.finfo(torch.float32).min


def grpo_dataset(mixture: Dataset, tasks: list[str]) -> Dataset:
    """
    Returns prompts with the right answers of a mixture.

    Args:
        mixture: of conversations, as `load_mixture` returns it, not streamed.
        tasks: values of the column `task` that are kept.

    Returns:
        A dataset with the columns `id`, `task`, `prompt` (the messages without the last) and `solution` (the text of the last).

    Raises:
        ValueError: naming the tasks, if no conversation is of one of them.
    """
    chosen = [number for number, task in enumerate(mixture["task"]) if task in tasks]
    if not chosen:
        raise ValueError(
            f"The mixture has no conversation of the tasks {', '.join(tasks)}; it has {', '.join(sorted(set(mixture['task'])))}."
        )
    return mixture.select(chosen).map(
        lambda row: {"prompt": row["messages"][:-1], "solution": row["messages"][-1]["content"][0]["text"]},
        remove_columns=[name for name in mixture.column_names if name not in ("id", "task")],
        features=Features(
            {**{name: FEATURES[name] for name in ("id", "task")}, "prompt": FEATURES["messages"], "solution": Value("string")}
        ),
    )


class LlavaSTGRPOTrainer(ModelCardMixin, AtomicCheckpointMixin, GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] for prompts with images and videos.

    Prompts are chat messages with the content items of [`LlavaSTProcessor`], or those of TRL with the columns `image`, `images`, `video`
    or `videos`. Completions enter as token ids, in generation and in training: their coordinates are bins. Visual tokens and the
    placeholders of coordinates are never sampled. Reward functions get, besides the columns of the dataset and for each completion,
    `media_info` ([`MediaInfo`] of the last image or video, or None), `num_frames` (sampled of a video, else None) and `num_bins` (of time,
    and of height and width): see `llava_st_hf.training.rewards`.

    Args:
        model: [`LlavaSTForConditionalGeneration`] or a `PeftModel` around it, as `prepare_model_for_training` returns it; or its folder or
            hub id.
        reward_funcs: functions, as in TRL.
        args ([`~trl.GRPOConfig`]): arguments of the run.
        train_dataset: with the column `prompt`, and those of the reward functions.
        processing_class ([`LlavaSTProcessor`]): the model's processor, by default that of the model's folder.
        kwargs: further arguments of [`~trl.GRPOTrainer`].

    Raises:
        ValueError: if model and processor do not belong together, if the data has fewer prompts than a step needs, or for `use_vllm`.
    """

    _tag_names = ["trl", "grpo", "llava-st", "video-grounding"]

    def __init__(self, model, reward_funcs, args: GRPOConfig, train_dataset, processing_class: LlavaSTProcessor | None = None, **kwargs):
        if args.use_vllm:
            raise ValueError("use_vllm=True is not supported: TRL passes no videos to vLLM. Set use_vllm=False.")
        with without_liger_warning():
            super().__init__(
                model=model, reward_funcs=reward_funcs, args=args, train_dataset=train_dataset, processing_class=processing_class, **kwargs
            )
        if args.use_liger_kernel:
            check_liger_config(args.liger_kernel_config, selective=False)
            register_liger_kernels(args.device, self.model.config.get_text_config().model_type)
        check_model_matches_processor(self.model.config, self.processing_class)
        needed = self.args.generation_batch_size // self.args.num_generations
        if isinstance(train_dataset, Dataset) and len(train_dataset) < needed:
            raise ValueError(
                f"The training data has {len(train_dataset)} prompts, fewer than the {needed} of a generation, so that no step would be "
                "trained: reduce per_device_train_batch_size or gradient_accumulation_steps, or raise num_generations."
            )
        if args.bf16 or args.fp16:
            for parameter in self.model.parameters():  # small updates are lost in half precision
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        self._never_sampled = sorted(self._tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS.values())))
        self.generation_config.suppress_tokens = self._never_sampled
        self.generation_kwargs["suppress_tokens"] = self._never_sampled
        # Encoded prompt of each completion of the batch at hand.
        self._encoded: list[LlavaSTBatchFeature] = []
        self._rows: list[dict] = []

    # Prompts

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        self._rows = inputs
        outputs = super()._generate_and_score_completions([_with_media_in_prompt(row) for row in inputs])
        # Lists are shuffled and split together with the tensors.
        return {**outputs, "encoded": self._encoded}

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        """Encodes prompts; consecutive equal ones, the completions of a group, share their pixels."""
        self._encoded, previous = [], None
        for prompt in prompts:
            content = pickle.dumps(prompt)
            if content != previous:
                encoded, previous = self._encode(prompt), content
            self._encoded.append(encoded)
        return [encoded["input_ids"][0].tolist() for encoded in self._encoded], None, {}

    def _encode(self, prompt: str | list[dict]) -> LlavaSTBatchFeature:
        if isinstance(prompt, str):
            encoded = self.processing_class(text=prompt, return_tensors="pt")
        else:
            encoded = self.processing_class.apply_chat_template(
                prompt,
                chat_template=self.chat_template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **self.chat_template_kwargs,  # type: ignore[arg-type]  # TRL: a dictionary or its JSON, which it has parsed here
            )
        return encoded.to(self.model.dtype)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):
        # Media are encoded once for the completions of a group. On several processes a group may be cut, into parts of unequal sizes.
        groups = [list(group) for _, group in groupby(self._encoded, key=id)]
        size = math.gcd(*map(len, groups))
        encoded = self._encoded[::size]
        fields: dict[str, torch.Tensor] = dict(_pixels(encoded))
        if any("coordinate_values" in sample for sample in encoded):
            values = [_coordinate_values(sample) for sample in encoded]
            fields["coordinate_values"] = pad(values, float("nan"), padding_side="left", pad_to_multiple_of=self.pad_to_multiple_of)
        self.generation_config.num_return_sequences = size
        with self.accelerator.autocast():  # as in training: trained weights are float32 where the others are bfloat16
            return super()._generate_single_turn(prompt_ids[::size], None, fields, *args, **kwargs)

    # Rewards

    def _calculate_rewards(self, inputs: list[dict], prompts, completions, completion_ids_list):
        bins = (self.processing_class.num_temporal_bins, self.processing_class.num_spatial_bins)
        rows = [
            {**original, **row, "media_info": None, "num_frames": None, "num_bins": bins}
            for original, row in zip(self._rows, inputs, strict=True)
        ]
        for row, encoded in zip(rows, self._encoded, strict=True):
            if encoded.media_info and encoded.media_info[0]:
                row["media_info"] = encoded.media_info[0][-1]
                row["num_frames"] = encoded["pixel_values_videos"].shape[1] if row["media_info"].kind == "video" else None
        return super()._calculate_rewards(rows, prompts, completions, completion_ids_list)

    # Log-probabilities

    def _compute_loss(self, model, inputs: dict) -> torch.Tensor:
        self._encoded = inputs["encoded"]
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """
        Computes log-probabilities of completions under the distribution that they are sampled from, without `top_p`, `top_k` and `min_p`.

        Args:
            model: the policy or the reference model.
            input_ids, attention_mask: (batch, prompt + completion), prompts padded on the left, completions on the right.
            logits_to_keep: length of the completions.
            batch_size: rows per forward pass; all by default.
            compute_entropy: whether to also return entropies.
            kwargs: of TRL, not used; pixels are those of the encoded prompts.

        Returns:
            `(log_probs, entropies or None, None)`, (batch, completion) each.
        """
        log_probs, entropies = [], []
        for rows in torch.arange(len(input_ids)).split(batch_size or len(input_ids)):
            first, last = int(rows[0]), int(rows[-1]) + 1
            ids = input_ids[first:last]
            encoded = self._encoded[first:last]
            inputs = self._media_inputs(encoded, ids, ids.shape[1] - logits_to_keep)
            with self.accelerator.autocast(), _shared_features(self.accelerator.unwrap_model(model), encoded):
                logits = model(
                    input_ids=ids,
                    attention_mask=attention_mask[first:last],
                    use_cache=False,
                    logits_to_keep=logits_to_keep + 1,  # the token after position i is predicted at i
                    **inputs,
                ).logits[:, :-1]  # (batch, completion, vocabulary)
            logits = logits.float() / self.temperature
            logits = logits.index_fill(-1, torch.tensor(self._never_sampled, device=logits.device), _MASKED)
            log_probs.append(selective_log_softmax(logits, ids[:, -logits_to_keep:]))
            if compute_entropy:
                entropies.append(entropy_from_logits(logits))
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _media_inputs(self, encoded: list[LlavaSTBatchFeature], ids: torch.Tensor, prompt_length: int) -> dict[str, torch.Tensor]:
        """Returns the pixels of the distinct prompts, and the exact coordinate values of all, which end before `prompt_length`; NaN in
        completions."""
        inputs = {name: pixels.to(ids.device) for name, pixels in _pixels(_distinct(encoded))}
        if any("coordinate_values" in sample for sample in encoded):
            values = torch.full(ids.shape, float("nan"))
            for row, sample in zip(values, encoded, strict=True):
                own = _coordinate_values(sample)
                row[prompt_length - len(own) : prompt_length] = own
            inputs["coordinate_values"] = values.to(ids.device)
        return inputs


def _with_media_in_prompt(row: dict) -> dict:
    """
    Returns a row of a dataset without the columns of images and videos, which become content items of its prompt.

    They fill the items of their type that have no content, in order; if there are none, they precede the first user message.

    Raises:
        ValueError: if the number of such items differs from that of the images or videos.
    """
    given: dict[str, list] = {"image": [], "video": []}
    for column, kind in _MEDIA_COLUMNS.items():
        if row.get(column) is not None:
            given[kind] += row[column] if column.endswith("s") else [row[column]]
    rest = {name: value for name, value in row.items() if name not in _MEDIA_COLUMNS}
    if not any(given.values()):
        return rest
    if isinstance(row["prompt"], str):
        raise ValueError(f"The prompt of a row with images or videos must be chat messages, not the text {row['prompt']!r:.100}.")
    messages = []
    for message in row["prompt"]:
        content = message["content"]
        messages.append({**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else list(content)})
    for kind, media in given.items():
        places = [
            (message["content"], number)
            for message in messages
            for number, item in enumerate(message["content"])
            if item["type"] == kind and all(item.get(name) is None for name in _PAYLOADS)
        ]
        if not places:
            first = next((message["content"] for message in messages if message["role"] == "user"), messages[0]["content"])
            first[:0] = [{"type": kind, kind: medium} for medium in media]
        elif len(places) != len(media):
            raise ValueError(f"The prompt has places for {len(places)} {kind}s, but its row has {len(media)}.")
        else:
            for (content, number), medium in zip(places, media, strict=True):
                content[number] = {**content[number], kind: medium}
    return {**rest, "prompt": messages}


def _pixels(encoded: list[LlavaSTBatchFeature]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the images and the videos of a batch, in the order of its samples.

    Raises:
        ValueError: if videos have different numbers of frames.
    """
    for name in _PIXELS:
        pixels = [sample[name] for sample in encoded if name in sample]
        if len({tensor.shape[1:] for tensor in pixels}) > 1:
            frames = sorted({tensor.shape[1] for tensor in pixels})
            raise ValueError(f"Videos of {' and '.join(map(str, frames))} frames cannot share a batch: set num_frames of the processor.")
        if pixels:
            yield name, torch.cat(pixels)


def _distinct(encoded: list[LlavaSTBatchFeature]) -> list[LlavaSTBatchFeature]:
    """Returns each encoded prompt once; the completions of a group have the same object."""
    return list({id(sample): sample for sample in encoded}.values())


@contextmanager
def _shared_features(model, encoded: list[LlavaSTBatchFeature]) -> Iterator[None]:
    """
    Lets a model take the pixels of distinct prompts only, and repeat their features for all completions.

    The vision encoder is the larger part of a forward pass with short completions.

    Args:
        model: [`LlavaSTForConditionalGeneration`], or a `PeftModel` around it.
        encoded: prompt of each completion of the batch.
    """
    base = (model.get_base_model() if isinstance(model, PeftModel) else model).model
    distinct = _distinct(encoded)
    for pixels, method in _PIXELS.items():
        starts, count = {}, 0  # index of the first image or video of each prompt
        for sample in distinct:
            starts[id(sample)], count = count, count + len(sample.get(pixels, ()))
        index = [starts[id(sample)] + number for sample in encoded for number in range(len(sample.get(pixels, ())))]
        setattr(base, method, partial(_repeated, getattr(base, method), index))
    try:
        yield
    finally:
        for method in _PIXELS.values():
            delattr(base, method)


def _repeated(get_features: Callable, index: list[int], *args, **kwargs):
    outputs = get_features(*args, **kwargs)
    outputs.pooler_output = outputs.pooler_output[
        torch.tensor(index, device=outputs.pooler_output.device)
    ]  # (media of all rows, tokens, hidden)
    return outputs


def _coordinate_values(encoded: LlavaSTBatchFeature) -> torch.Tensor:
    """Returns the exact coordinate values of a prompt, (length,) with NaN at other tokens."""
    if "coordinate_values" in encoded:
        return encoded["coordinate_values"][0]
    return torch.full(encoded["input_ids"].shape[1:], float("nan"))


__all__ = ["LlavaSTGRPOTrainer", "grpo_dataset"]
