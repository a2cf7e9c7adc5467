# SPDX-License-Identifier: Apache-2.0
"""What `generate` must know about LLaVA-ST: exact positions belong to the prompt, and features stand at marker tokens too."""

import torch
from transformers import GenerationMixin
from transformers.generation import utils as generation_utils


class LlavaSTGenerationMixin(GenerationMixin):
    def _patch_token_ids(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """`input_ids` with patch tokens in place of the markers around media.

        transformers counts and slices features by `config.image_token_id` and `config.video_token_id`; ours stand at the
        markers as well. Which of these ids stands there makes no difference to the model: features replace them all.
        """
        for kind in ("image", "video"):
            patch = self.config.media_token_ids(kind)[1][0]
            input_ids = input_ids.masked_fill(self.model.get_placeholder_mask(kind, input_ids), patch)
        return input_ids

    def _expand_multimodal_outputs(self, input_ids, mm_encoder_output, expand_size=1, inputs_embeds=None):
        if input_ids is None or input_ids.numel() == 0:
            # Prompts given as embeddings: ids that have media tokens at the right places serve the count.
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
            # transformers 5.20 would leave the media out without a word.
            raise ValueError("prefill_chunk_size with images or videos needs a newer transformers, which cuts their features too.")
        coordinates, cache = model_kwargs.get("coordinates"), model_kwargs.get("past_key_values")
        if coordinates is not None and cache is not None and is_first_iteration:
            # Where a kept cache goes on, prompt and coordinates may be those of the new tokens alone.
            attention_mask = model_kwargs.get("attention_mask")
            length = cache.get_seq_length() + input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
            seen = max(0, length - coordinates.shape[1])
            model_kwargs["coordinates"] = torch.nn.functional.pad(coordinates, (seen, 0), value=float("nan"))
        return super()._prefill(self._patch_token_ids(input_ids), generation_config, model_kwargs, is_first_iteration)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,  # `generate` takes embeddings only where this argument is spelled out
        coordinates=None,
        **kwargs,
    ):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        token_ids = model_inputs.get("input_ids")
        if coordinates is None:
            return model_inputs
        if token_ids is None:
            raise ValueError("coordinates go with input_ids: embeddings given as inputs_embeds already say where things are.")
        # Positions belong to prompt tokens. These inputs are the tokens [end - length, end) of the sequence: all of it,
        # a chunk of a long prompt, what a cache has not seen yet, or the one token of a decode step, which has none.
        length = token_ids.shape[1]
        if attention_mask is not None and attention_mask.ndim == 2:
            end = attention_mask.shape[1]
        else:
            end = length + (past_key_values.get_seq_length() if past_key_values is not None else 0)
        if end - length >= coordinates.shape[1]:
            return model_inputs
        missing = max(0, end - coordinates.shape[1])
        coordinates = torch.nn.functional.pad(coordinates, (0, missing), value=float("nan"))
        model_inputs["coordinates"] = coordinates[:, end - length : end]
        return model_inputs
