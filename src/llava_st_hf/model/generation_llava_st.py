# SPDX-License-Identifier: Apache-2.0
"""`generate` for LLaVA-ST: exact coordinate values belong to prompt tokens only, and features replace marker tokens too."""

import inspect
from dataclasses import replace

import torch
from transformers import GenerationMixin
from transformers import __version__ as transformers_version
from transformers.generation import GenerationMode
from transformers.generation import utils as generation_utils
from transformers.utils import ModelOutput

from .cache_name_llava_st import CACHE_NAME, accept_cache_names
from .compilation_llava_st import compile_encoder_layers
from .continuous_batching_llava_st import PromptEmbeddings, prepare_prompts
from .decode_loop_llava_st import DecodeLoop, DecodeSettings
from .grammar_logits_llava_st import GrammarOfCall
from .grammar_tables_llava_st import AnswerConstraint
from .renamed_arguments_llava_st import accept_renamed_arguments


_PROMPTS = ("inputs", "input_ids", "inputs_embeds")


class LlavaSTGenerationMixin(GenerationMixin):
    """Adapts [`~transformers.GenerationMixin`] to LLaVA-ST's inputs."""

    @accept_renamed_arguments
    @accept_cache_names
    def generate(
        self,
        *args,
        grammar: AnswerConstraint | None = None,
        speculative: bool | None = False,
        draft_templates: list[list[int]] | None = None,
        coordinate_tolerance: int = 0,
        output_coordinate_scores: bool = False,
        compile: bool = False,
        **kwargs,
    ):
        """
        See [`~transformers.GenerationMixin.generate`], of which it takes all other arguments.

        Args:
            grammar (`AnswerConstraint`, *optional*):
                Of `LlavaSTProcessor.answer_constraint`: answers are complete within the limit of tokens and well-formed. Logits processors
                of the call are applied before it.
            speculative (`bool`, *optional*, defaults to `False`):
                Whether to generate several tokens per pass of the decoder, by drafts that the pass verifies. Greedy answers are the
                same, samples have the same distribution; in half precision, rounding of a pass over several tokens may decide between
                tokens of nearly the same probability. None: in float32 and without sampling only, and where the other arguments allow it.
            draft_templates (`list[list[int]]`, *optional*):
                For each prompt token ids of an answer in its usual form, with any bins, for drafts of its text: see
                [`LlavaSTProcessor.draft_template`].
            coordinate_tolerance (`int`, *optional*, defaults to 0):
                With `speculative`, accept a drafted coordinate that differs by up to this number of bins. Answers then differ.
            output_coordinate_scores (`bool`, *optional*, defaults to `False`):
                Whether to return `token_logprobs` and `coordinate_logits`: see [`LlavaSTGenerateOutput`]. Needs
                `return_dict_in_generate=True`.

            compile (`bool`, *optional*, defaults to `False`):
                Whether to compile the layers of the vision encoder and the decoder's pass, and on a GPU to record the pass as a CUDA graph.
                The first call takes up to minutes longer; the model keeps the compiled code.

        Raises:
            ValueError: If the limit of tokens is too small for an answer by the grammar, the grammar is for another number of prompts, or
                `speculative=True`, `output_coordinate_scores=True` or `compile=True` is not possible with another argument, which is named.
        """
        if coordinate_tolerance < 0:
            raise ValueError(f"coordinate_tolerance is a number of bins, at least 0; got {coordinate_tolerance}.")
        if coordinate_tolerance and not speculative:
            raise ValueError(f"coordinate_tolerance={coordinate_tolerance} is for drafts. Set speculative=True.")
        settings = DecodeSettings(speculative, draft_templates, coordinate_tolerance, output_coordinate_scores, compile)
        if grammar is None:
            return self._generate_with(settings, *args, **kwargs)
        prompts = next((value for value in (*args[:1], *(kwargs.get(name) for name in _PROMPTS)) if value is not None), None)
        if prompts is not None and len(prompts) != len(grammar.start):
            raise ValueError(f"The grammar is for {len(grammar.start)} prompts, but there are {len(prompts)}.")
        of_call = GrammarOfCall(grammar)
        kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or []), of_call]
        outputs = self._generate_with(settings, *args, **kwargs)
        of_call.check(outputs.sequences if isinstance(outputs, ModelOutput) else outputs)
        return outputs

    def _generate_with(self, settings: DecodeSettings, *args, **kwargs):
        """Calls `generate` of transformers, with the decode loop for the settings that need it."""
        speculative, needs_loop = settings.speculative, settings.output_coordinate_scores or settings.compile
        is_default = speculative is None
        if not (is_default or speculative or needs_loop):
            return super().generate(*args, **kwargs)
        kwargs |= dict(zip(list(inspect.signature(GenerationMixin.generate).parameters)[1:], args, strict=False))
        custom_generate = kwargs.pop("custom_generate", None)
        generation_config, _ = self._prepare_generation_config(**{"generation_config": None, **kwargs})
        mode = generation_config.get_generation_mode(kwargs.get("assistant_model"))
        # `generate` does not pass the tokenizer, which stop strings need, to a `custom_generate` callable.
        others = [
            *(["custom_generate"] if custom_generate is not None else []),
            *(["stop_strings"] if generation_config.stop_strings else []),
            *([f"the generation mode {mode.value!r}"] if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE) else []),
        ]
        if is_default:
            is_exact = mode == GenerationMode.GREEDY_SEARCH and self.dtype == torch.float32
            speculative = is_exact and self.config.use_coordinate_tokens and not others
        if (speculative or settings.output_coordinate_scores) and not self.config.use_coordinate_tokens:
            raise ValueError("speculative=True and output_coordinate_scores=True need a model with coordinate tokens. Leave them out.")
        if not (speculative or needs_loop):
            return super().generate(custom_generate=custom_generate, **kwargs)
        if others:
            name = "output_coordinate_scores" if settings.output_coordinate_scores else "speculative" if speculative else "compile"
            raise ValueError(f"{name}=True does not go with {others[0]}. Use greedy decoding or sampling without it.")
        if settings.compile:
            compile_encoder_layers(self.model.vision_tower)
        # Nor does `generate` pass these two.
        own = self._extract_generation_mode_kwargs(None, {}, kwargs.pop("synced_gpus", None), None, kwargs.get("streamer"))
        loop = DecodeLoop(
            replace(settings, speculative=bool(speculative)),
            only_where_supported=is_default,
            cache_is_given=kwargs.get(CACHE_NAME) is not None,
            synced_gpus=own["synced_gpus"],
            streamer=own.get("streamer"),
        )
        return super().generate(custom_generate=loop, **kwargs)

    def _get_logits_processor(self, generation_config, input_ids_seq_length=None, *args, logits_processor=None, **kwargs):
        # Only here are the limit of tokens and the end tokens of the call known.
        processors = list(logits_processor or [])
        if processors and isinstance(processors[-1], GrammarOfCall):
            ends = generation_config._eos_token_tensor
            if ends is None:
                raise ValueError("A grammar needs an end token: set eos_token_id in the generation config.")
            vocab_size, limit = self.config.get_text_config().vocab_size, generation_config.max_length - input_ids_seq_length
            processors[-1] = processors[-1].bind(vocab_size, ends.tolist(), input_ids_seq_length, limit, self.device)
        return super()._get_logits_processor(generation_config, input_ids_seq_length, *args, logits_processor=processors, **kwargs)

    @torch.no_grad()
    def generate_batch(self, inputs, *args, **kwargs):
        """
        Generates by continuous batching: see `generate_batch` of transformers, of which it takes all other arguments.

        Args:
            inputs (`Mapping` or `list`):
                Output of the processor for one or more prompts, or a list of such outputs and lists of token ids. The features of all
                prompts are computed first and kept until the end (2,520 vectors of `hidden_size` for a video of 100 frames).

        Returns:
            `dict` from request id to output, in transformers' form.

        Raises:
            ValueError: If an input is not complete, or `persistent_manager` is set, since features belong to one call.
        """
        prompts, rows, tokens = prepare_prompts(self, inputs)
        if not tokens:
            return super().generate_batch(prompts, *args, **kwargs)
        if kwargs.get("persistent_manager"):
            raise ValueError("persistent_manager=True is for prompts of text alone. With images, videos or exact coordinates leave it out.")
        embeddings = self.get_input_embeddings()
        first_id = embeddings.weight.shape[0]
        self.set_input_embeddings(PromptEmbeddings(embeddings, rows, first_id))
        try:
            outputs = super().generate_batch(prompts, *args, **kwargs)
        finally:
            self.set_input_embeddings(embeddings)
        for output in outputs.values():
            output.prompt_ids = [tokens[token - first_id] if token >= first_id else token for token in output.prompt_ids]
        return outputs

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs):
        # transformers calls the feature methods of the base model, which does not have the head.
        model_kwargs["coordinate_output_embeddings"] = None
        if any(model_kwargs.get(name) is not None for name in ("pixel_values", "pixel_values_videos")):
            model_kwargs["coordinate_output_embeddings"] = self.get_coordinate_output_embeddings()
        return super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)

    def _patch_token_ids(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """
        Replaces the markers around images and videos by patch tokens.

        transformers counts and slices features by `config.image_token_id` and `config.video_token_id`; here features replace the markers
        as well. The model gives equal outputs for both ids.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Token ids.

        Returns:
            `torch.LongTensor` of the same shape.
        """
        for kind in ("image", "video"):
            patch = self.config.media_token_ids(kind)[1][0]
            input_ids = input_ids.masked_fill(self.model.get_placeholder_mask(kind, input_ids), patch)
        return input_ids

    def _expand_multimodal_outputs(self, input_ids, mm_encoder_output, expand_size=1, inputs_embeds=None):
        if input_ids is None or input_ids.numel() == 0:
            # For prompts given as embeddings: ids with media tokens at the positions of features are enough to count them.
            input_ids = torch.full(inputs_embeds.shape[:-1], -1, device=inputs_embeds.device)
            for kind in ("image", "video"):
                patch = self.config.media_token_ids(kind)[1][0]
                input_ids = input_ids.masked_fill(self.model.get_placeholder_mask(kind, None, inputs_embeds), patch)
        return super()._expand_multimodal_outputs(
            self._patch_token_ids(input_ids), mm_encoder_output, expand_size=expand_size, inputs_embeds=inputs_embeds
        )

    def _prefill(self, input_ids, generation_config, model_kwargs, is_first_iteration=True):
        if (
            generation_config.prefill_chunk_size is not None
            and any((model_kwargs.get("mm_encoder_outputs") or {}).values())
            and not hasattr(generation_utils, "_slice_mm_encoder_output")
        ):
            # transformers 5.20 would ignore the media without an error.
            raise ValueError(
                "prefill_chunk_size with images or videos needs transformers>=5.21; installed is "
                f"{transformers_version}. Upgrade transformers, or do not set prefill_chunk_size."
            )
        coordinate_values, cache = model_kwargs.get("coordinate_values"), model_kwargs.get(CACHE_NAME)
        if coordinate_values is not None and cache is not None and is_first_iteration:
            # With a cache from an earlier turn, ids and coordinate values may be those of the new tokens alone.
            attention_mask = model_kwargs.get("attention_mask")
            # transformers ≥ 5.24 keeps no mask but its length where nothing is masked.
            length = getattr(generation_config, "_mask_length", None) if attention_mask is None else attention_mask.shape[1]
            length = cache.get_seq_length() + input_ids.shape[1] if length is None else length
            seen = max(0, length - coordinate_values.shape[1])
            model_kwargs["coordinate_values"] = torch.nn.functional.pad(coordinate_values, (seen, 0), value=float("nan"))
        return super()._prefill(self._patch_token_ids(input_ids), generation_config, model_kwargs, is_first_iteration)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        attention_mask=None,
        # `generate` accepts a cache and embeddings only if this signature names them.
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        coordinate_values=None,
        **kwargs,
    ):
        cache = past_key_values if cache is None else cache
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        token_ids = model_inputs.get("input_ids")
        if coordinate_values is None:
            return model_inputs
        if token_ids is None:
            raise ValueError("coordinate_values go with input_ids: inputs_embeds contain the coordinates already. Leave one of them out.")
        # Only prompt tokens have exact values. These inputs are the tokens [end - length, end) of the sequence: all of it, a chunk of a
        # long prompt, tokens that are not in the cache yet, or the one token of a decode step, which has no exact value.
        length = token_ids.shape[1]
        if attention_mask is not None and attention_mask.ndim == 2:
            end = attention_mask.shape[1]
        else:
            end = length + (cache.get_seq_length() if cache is not None else 0)
        if end - length >= coordinate_values.shape[1]:
            return model_inputs
        missing = max(0, end - coordinate_values.shape[1])
        coordinate_values = torch.nn.functional.pad(coordinate_values, (0, missing), value=float("nan"))
        model_inputs["coordinate_values"] = coordinate_values[:, end - length : end]
        return model_inputs
