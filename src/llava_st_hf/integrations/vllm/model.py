# SPDX-License-Identifier: Apache-2.0
"""LLaVA-ST on vLLM's transformers backend: the base model of this package with vLLM's attention, linear layers and head."""

import re
from collections.abc import Iterable

import torch
from transformers import GenerationConfig
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM
from vllm.multimodal import MULTIMODAL_REGISTRY

from ...model.modeling_llava_st import LlavaSTForConditionalGeneration
from .fingerprint import check_served_features
from .processing import LlavaSTDummyInputs, LlavaSTMultiModalProcessor, LlavaSTProcessingInfo, check_layout


_HEAD = "lm_head.weight"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_options(vllm_config: VllmConfig) -> None:
    """Raises `ValueError` for options of vLLM that LLaVA-ST cannot be served with."""
    model_config, parallel_config = vllm_config.model_config, vllm_config.parallel_config
    check_layout(model_config.model, model_config.revision)
    if vllm_config.lora_config is not None:
        raise ValueError(
            "LLaVA-ST cannot be served with LoRA adapters (--enable-lora): they also train rows of the embeddings, which vLLM does not "
            "load. Merge the adapter with `llava-st merge-lora ADAPTER OUTPUT` and serve OUTPUT."
        )
    if parallel_config.pipeline_parallel_size > 1:
        raise ValueError(
            f"LLaVA-ST cannot be served with pipeline parallelism, got pipeline_parallel_size={parallel_config.pipeline_parallel_size}. "
            "Use tensor parallelism (--tensor-parallel-size)."
        )
    options = model_config.multimodal_config.media_io_kwargs
    if any(options.get(kind) for kind in ("image", "video")):
        raise ValueError(
            f"media_io_kwargs is {options}, but LLaVA-ST reads images and videos by its own processors. Remove --media-io-kwargs; the "
            "number of frames is set by --mm-processor-kwargs '{\"num_frames\": N}'."
        )


def check_weight_names(model: str, seen: set[str], expected: set[str], is_tied: bool, is_quantized: bool) -> None:
    """
    Compares the names of the weights of a checkpoint with those of the model. vLLM itself notices missing weights of some modules only, and
    none where it joins several weights in one.

    Args:
        model: name of the checkpoint, for the message.
        seen: names in the checkpoint.
        expected: names in the model.
        is_tied: whether the head has no weight of its own.
        is_quantized: whether modules may have other weights than in the model; modules are compared then.

    Raises:
        ValueError: naming weights that are missing or unexpected.
    """
    ignored = [re.compile(key) for key in LlavaSTForConditionalGeneration._keys_to_ignore_on_load_unexpected]
    seen = {name for name in seen if not any(key.search(name) for key in ignored)}
    expected = expected - {_HEAD} if is_tied else expected
    seen = seen - {_HEAD} if is_tied else seen
    if is_quantized:
        modules = {name.rpartition(".")[0] for name in expected}
        seen = {_module_of(name, modules) for name in seen}
        expected = modules
    for names, what in ((expected - seen, "misses"), (seen - expected, "has unexpected")):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise ValueError(f"The checkpoint {model} {what} weights: {shown}.")


def _module_of(name: str, modules: set[str]) -> str:
    """The module that a weight belongs to, or the name of a weight of none: `a.weight.absmax` belongs to `a`."""
    parts = name.split(".")
    return next((prefix for end in range(len(parts) - 1, 0, -1) if (prefix := ".".join(parts[:end])) in modules), name)


def suppressed_tokens(model_config: ModelConfig) -> list[int]:
    """Ids that `generate` never chooses, such as the rows that pad a vocabulary: `suppress_tokens` of the generation configuration."""
    try:
        generation = GenerationConfig.from_pretrained(model_config.model, revision=model_config.revision)
    except OSError:  # the checkpoint has none
        return []
    return list(generation.suppress_tokens or [])


@MULTIMODAL_REGISTRY.register_processor(LlavaSTMultiModalProcessor, info=LlavaSTProcessingInfo, dummy_inputs=LlavaSTDummyInputs)
class LlavaSTForVLLM(TransformersMultiModalForCausalLM):
    """The class that vLLM builds for the architecture `LlavaSTForConditionalGeneration`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        check_options(vllm_config)
        config = vllm_config.model_config.hf_config
        config.served_by_plugin = True  # not saved; see `LlavaSTModel`
        config.text_config.tie_word_embeddings = config.tie_word_embeddings  # vLLM ties a head if either is set
        with torch.device("meta"):  # before vLLM changes the decoder's class
            expected_weights = set(LlavaSTForConditionalGeneration(config).state_dict())
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._expected_weights = expected_weights
        # A copy of the coordinate rows of the head, because under tensor parallelism each process has a part of the head only.
        rows = None
        self._num_rows_loaded = 0
        self._is_checked = False
        if config.use_coordinate_tokens and not config.tie_word_embeddings:
            shape = (len(config.coordinates), config.text_config.hidden_size)
            rows = torch.zeros(shape, dtype=vllm_config.model_config.dtype, device=vllm_config.device_config.device)
        self.register_buffer("coordinate_output_embeddings", rows, persistent=False)
        suppressed = suppressed_tokens(vllm_config.model_config)
        self.register_buffer(
            "suppressed_tokens", torch.tensor(suppressed, dtype=torch.long, device=vllm_config.device_config.device), False
        )

    # Weights

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """
        Loads the weights of a checkpoint.

        Raises:
            ValueError: naming weights that are missing, unexpected, or quantized where their values are needed.
        """
        seen, loaded = set(), set()

        def without_head():
            for name, weight in weights:
                seen.add(name)
                if name == _HEAD:
                    loaded.update(self._load_head(weight))
                else:
                    yield name, weight

        loaded |= super().load_weights(without_head())
        is_quantized = self.quant_config is not None
        check_weight_names(self.model_config.model, seen, self._expected_weights, self.config.tie_word_embeddings, is_quantized)
        return loaded

    def _load_head(self, weight: torch.Tensor) -> set[str]:
        if self.config.tie_word_embeddings:
            return set()
        if weight.dtype not in _FLOATS:
            raise ValueError(
                f"{_HEAD} has a weight of type {weight.dtype}: visual features contain rows of it, which a quantized weight does not have. "
                "Exclude lm_head from quantization."
            )
        if self.coordinate_output_embeddings is not None:
            coordinates = self.config.coordinates
            rows = weight[coordinates.start_token_id : coordinates.end_token_id]
            self.coordinate_output_embeddings.copy_(rows)
            self._num_rows_loaded = len(rows)
        parameter = self.lm_head.weight
        getattr(parameter, "weight_loader", default_weight_loader)(parameter, weight)
        return {_HEAD}

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(num_tokens, hidden_size) hidden states → (num_tokens, vocab_size) logits, -inf for tokens that `generate` never chooses."""
        logits = super().compute_logits(hidden_states)
        if logits is not None and len(self.suppressed_tokens):  # None in processes that do not sample
            logits[:, self.suppressed_tokens] = -torch.inf
        return logits

    # Features

    def embed_multimodal(
        self,
        pixel_values: torch.Tensor | list[torch.Tensor] | None = None,
        pixel_values_videos: torch.Tensor | list[torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """
        Computes the features of images or videos.

        Args:
            pixel_values: `(num_images, 3, height, width)`, or a list of `(3, height, width)`.
            pixel_values_videos: `(num_videos, num_frames, 3, height, width)`, or a list of `(num_frames, 3, height, width)`.

        Returns:
            `(num_tokens, hidden_size)` for each image and video, one feature per token of its replacement.
        """
        if not self._is_checked:  # by a loader that did not call `eval`
            self._check_loaded()
        features = []
        if pixel_values is not None:
            images = pixel_values if isinstance(pixel_values, torch.Tensor) else torch.stack(pixel_values)
            rows = self.coordinate_output_embeddings
            features += self.model.get_image_features(images, coordinate_output_embeddings=rows, return_dict=True).pooler_output
        for video in pixel_values_videos if pixel_values_videos is not None else ():  # each may have another number of frames
            features.append(self._video_features(video))
        return features

    def _video_features(self, frames: torch.Tensor) -> torch.Tensor:
        """(num_frames, 3, height, width) pixels → (num_tokens, hidden_size) features"""
        rows = self.coordinate_output_embeddings
        return self.model.get_video_features(frames[None], coordinate_output_embeddings=rows, return_dict=True).pooler_output[0]

    def eval(self):
        # vLLM's loaders call it last, when quantized weights have their final form.
        super().eval()
        if not self._is_checked:
            self._check_loaded()
        return self

    @torch.no_grad()
    def _check_loaded(self):
        """Raises `ValueError` if the coordinate rows have not been loaded, or the features of the checkpoint's fingerprint differ."""
        self._is_checked = True  # before features are computed
        rows, load_format = self.coordinate_output_embeddings, self.vllm_config.load_config.load_format
        if load_format == "dummy":  # random weights, to measure speed
            return
        if rows is not None and self._num_rows_loaded != len(rows):
            raise ValueError(
                f"The coordinate rows of {_HEAD} have not been loaded: load_format={load_format!r} is not supported. Use 'auto'."
            )
        check_served_features(self.vllm_config, self._video_features)
