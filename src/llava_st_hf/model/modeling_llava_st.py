# SPDX-License-Identifier: Apache-2.0
"""PyTorch LLaVA-ST model: Language-Aligned Positional Embedding, Spatial-Temporal Packer, and a text decoder with coordinate tokens in
its vocabulary (LLaVA-ST, arXiv:2501.08282)."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.quantization_config import QuantizationConfigMixin

from .backbones_llava_st import UNUSED_ENCODER_WEIGHTS, check_embeddings, remove_unused_modules
from .cache_name_llava_st import CACHE_NAMES, accept_cache_names
from .compatibility_llava_st import check_not_served_without_plugin
from .configuration_llava_st import LlavaSTConfig
from .generation_llava_st import LlavaSTGenerationMixin
from .lape_llava_st import add_positions, interpolate_coordinates, propagate
from .loss_llava_st import supervised_cross_entropy
from .model_card_llava_st import LlavaSTPushToHubMixin
from .outputs_llava_st import LlavaSTCausalLMOutputWithPast, LlavaSTModelOutputWithPast, keep_positions
from .packer_llava_st import TENSOR_PARALLEL_PLAN, LlavaSTSpatialTemporalPacker, LlavaSTWindowPacker
from .placeholders_llava_st import check_no_placeholders, find_placeholders, insert_features
from .quantization_llava_st import check_four_bit_layers, leave_in_floating_point
from .renamed_arguments_llava_st import accept_renamed_arguments
from .trl_inputs_llava_st import LlavaSTReplacedForwardMixin, mask_counted_labels, mask_media_labels
from .vision_llava_st import encode_frames


if TYPE_CHECKING:  # Not executed. With a model, transformers saves and downloads the files that its file imports anywhere, and theirs.
    from .pipeline_llava_st import VideoGroundingPipeline  # noqa: F401
    from .processing_llava_st import LlavaSTProcessor  # noqa: F401


class LlavaSTMultiModalProjector(nn.Module):
    def __init__(self, config: LlavaSTConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(image_features)))


class LlavaSTPreTrainedModel(LlavaSTPushToHubMixin, PreTrainedModel):
    config: LlavaSTConfig
    config_class = LlavaSTConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlavaSTWindowPacker"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _keys_to_ignore_on_load_unexpected = [UNUSED_ENCODER_WEIGHTS]

    @classmethod
    def from_pretrained(cls, *args, quantization_config: QuantizationConfigMixin | dict | None = None, **kwargs):
        """Same as in transformers, except for the modules that a `quantization_config` quantizes: see `leave_in_floating_point`."""
        if quantization_config is not None:
            kwargs["quantization_config"] = leave_in_floating_point(quantization_config)
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        if getattr(model, "is_loaded_in_4bit", False):
            check_four_bit_layers(model)
        return loaded

    @torch.no_grad()
    def initialize_weights(self):
        # Not in `_init_weights`, which transformers calls only for modules with parameters of their own where the class is not one of
        # its own; a packer and a model have none.
        fresh = [
            module
            for module in self.modules()
            if isinstance(module, (LlavaSTWindowPacker, LlavaSTPreTrainedModel)) and not getattr(module, "_is_hf_initialized", False)
        ]
        super().initialize_weights()
        for module in fresh:
            if isinstance(module, LlavaSTWindowPacker):
                module.initialize_weights(self.config.initializer_range)
            elif self.config.use_coordinate_tokens:
                self._init_coordinate_embeddings(module)

    def _init_coordinate_embeddings(self, module: "LlavaSTPreTrainedModel"):
        """Initializes the coordinate embeddings with a larger standard deviation than ordinary tokens, so that LAPE has an effect from
        the first step. Skips matrices loaded from a checkpoint."""
        coordinates = self.config.coordinates
        rows = slice(coordinates.start_token_id, coordinates.end_token_id)
        embeddings, head = module.get_input_embeddings(), module.get_output_embeddings()
        if isinstance(module, LlavaSTModel) and not getattr(embeddings.weight, "_is_hf_initialized", False):
            init.normal_(embeddings.weight[rows])
        if self.config.tie_word_embeddings:
            head = embeddings  # the range of output embeddings suits both uses of a tied matrix
        if head is not None and not getattr(head.weight, "_is_hf_initialized", False):
            bound = head.weight.shape[1] ** -0.5
            init.uniform_(head.weight[rows], -bound, bound)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """Same as in transformers. Coordinate and special tokens keep their ids, so the matrices must include them.

        Raises:
            ValueError: If a vocabulary of `new_num_tokens` does not include one of these tokens.
        """
        if new_num_tokens is not None:
            self.config.check_vocabulary(new_num_tokens)
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)


class LlavaSTModel(LlavaSTPreTrainedModel):
    """
    LLaVA-ST without language modeling head: vision encoder, projector, LAPE, packer and decoder.

    LAPE adds the mean of the input and the output embeddings of the coordinate tokens. With untied embeddings the latter are rows of the
    language modeling head, which this model does not have: every call with images or videos takes them as the argument
    `coordinate_output_embeddings`. [`LlavaSTForConditionalGeneration`] passes those of its head. Other owners of a head (a server, for
    example) pass `lm_head.weight[coordinates.start_token_id : coordinates.end_token_id]`, where `coordinates` is `config.coordinates`.

    Args:
        config ([`LlavaSTConfig`]):
            Configuration of the model.
    """

    # The plan of the decoder is part of its configuration.
    _tp_plan = {
        f"packer.{packer}.{layer}": style for packer in ("spatial", "slow", "fast") for layer, style in TENSOR_PARALLEL_PLAN.items()
    }
    # A checkpoint of the whole model contains the head.
    _keys_to_ignore_on_load_unexpected = [*LlavaSTPreTrainedModel._keys_to_ignore_on_load_unexpected, r"^lm_head\."]

    def __init__(self, config: LlavaSTConfig):
        check_not_served_without_plugin(config)
        super().__init__(config)
        config.check_vocabulary()
        self.vision_tower = AutoModel.from_config(config.vision_config)
        remove_unused_modules(self.vision_tower, use_final_norm=config.vision_use_final_norm)
        self.multi_modal_projector = LlavaSTMultiModalProjector(config)
        self.packer = LlavaSTSpatialTemporalPacker(config)
        self.language_model = AutoModel.from_config(config.text_config)
        check_embeddings(self.language_model)
        self.post_init()

    def _trains(self) -> bool:
        """Whether Neighbouring Token Propagation is on: it changes gradients only."""
        return self.training and torch.is_grad_enabled()

    def _table_ids(self, device: torch.device) -> torch.Tensor:
        """Ids of the tokens whose embeddings are parts of visual features: coordinate tokens, then the markers of the fast stream."""
        markers = [self.config.video_start_token_id, self.config.video_token_id, self.config.video_end_token_id]
        # Filled on the device: a copy from the host would wait for it.
        markers = torch.cat([torch.full((1,), token_id, device=device) for token_id in markers])
        if not self.config.use_coordinate_tokens:
            return markers
        coordinates = self.config.coordinates
        return torch.cat((torch.arange(coordinates.start_token_id, coordinates.end_token_id, device=device), markers))

    def embed_inputs(
        self, input_ids: torch.LongTensor, coordinate_values: torch.FloatTensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Embeds tokens; a coordinate with an exact value is interpolated between the embeddings of the two nearest bins.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Token ids.
            coordinate_values (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Fractions in [0, 1], NaN where a token has no exact value.

        Returns:
            `tuple(torch.FloatTensor, torch.FloatTensor)`: `inputs_embeds` of shape `(batch_size, sequence_length, hidden_size)`, and the
            `token_table` that `get_image_features` and `get_video_features` take.
        """
        # One lookup for tokens and table: the gradient of each lookup has the size of the whole matrix.
        ids = torch.cat((input_ids.flatten(), self._table_ids(input_ids.device)))
        embeds, table = self.get_input_embeddings()(ids).split([input_ids.numel(), len(ids) - input_ids.numel()])
        embeds = embeds.view(*input_ids.shape, -1)  # (batch, sequence, hidden)
        if not self.config.use_coordinate_tokens or (coordinate_values is None and not self._trains()):
            return embeds, table
        vocabulary = self.config.coordinates
        coordinate_embeddings = table[: len(vocabulary)]  # (coordinates, hidden)
        if self._trains():
            coordinate_embeddings = propagate(coordinate_embeddings, vocabulary.sizes())
        if coordinate_values is not None and self.config.ignore_prompt_x_coordinates:
            coordinate_values = coordinate_values.masked_fill(input_ids == self.config.width_input_token_id, float("nan"))
        return interpolate_coordinates(input_ids, embeds, coordinate_values, coordinate_embeddings, vocabulary), table

    def _add_positions(
        self, features: torch.Tensor, token_table: torch.Tensor | None, coordinate_output_embeddings: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Adds the Language-Aligned Positional Embedding (LLaVA-ST, section 3.2).

        Args:
            features (`torch.FloatTensor` of shape `(num_videos, num_frames, num_rows, num_columns, hidden_size)`):
                Patch features.
            token_table (`torch.FloatTensor` of shape `(num_table_tokens, hidden_size)`, *optional*):
                Embeddings of `_table_ids`, if they have been computed.
            coordinate_output_embeddings (`torch.FloatTensor` of shape `(num_coordinates, hidden_size)`, *optional*):
                See [`LlavaSTModel.get_image_features`].
        """
        if not self.config.use_coordinate_tokens:
            return features
        if token_table is None:
            token_table = self.get_input_embeddings()(self._table_ids(features.device))
        vocabulary = self.config.coordinates
        embeddings = token_table[: len(vocabulary)]  # (coordinates, hidden)
        if not self.config.tie_word_embeddings:
            if coordinate_output_embeddings is None:
                raise ValueError(
                    "coordinate_output_embeddings is missing: visual features contain the output embeddings of the coordinate tokens, and "
                    "the model without head does not have them. Pass "
                    f"lm_head.weight[{vocabulary.start_token_id}:{vocabulary.end_token_id}] of the head, or call "
                    "LlavaSTForConditionalGeneration, which passes those of its own."
                )
            if coordinate_output_embeddings.shape != embeddings.shape:
                raise ValueError(
                    f"coordinate_output_embeddings must have the shape {tuple(embeddings.shape)} (num_coordinates, hidden_size), got "
                    f"{tuple(coordinate_output_embeddings.shape)}."
                )
            embeddings = (embeddings + coordinate_output_embeddings.to(embeddings.device)) / 2
        if self._trains():
            embeddings = propagate(embeddings, vocabulary.sizes())
        return add_positions(features, embeddings, vocabulary.sizes())

    def _check_pixels(self, name: str, pixels: torch.Tensor, ndim: int):
        size = self.config.vision_config.image_size
        if pixels.ndim != ndim or pixels.shape[-3:] != (3, size, size):
            expected = ("num_videos, num_frames" if ndim == 5 else "num_images") + f", 3, {size}, {size}"
            raise ValueError(f"{name} has shape {tuple(pixels.shape)}, but this model takes ({expected}).")

    def _patch_features(
        self, pixel_values: torch.Tensor, vision_chunk_size: int | None = None, **kwargs
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """(frames, 3, height, width) pixels → the encoder's output and (frames, rows, columns, hidden_size) features"""
        if vision_chunk_size is None:
            vision_chunk_size = self.config.vision_chunk_size
        elif vision_chunk_size < 1:
            raise ValueError(f"vision_chunk_size must be at least 1, got {vision_chunk_size}.")
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None and getattr(self.config, name):
                kwargs[name] = getattr(self.config, name)
        grid = self.config.grid_size
        vision_outputs, features = encode_frames(
            self.vision_tower, self.multi_modal_projector, pixel_values, self.config.vision_config, vision_chunk_size, **kwargs
        )
        return vision_outputs, features.view(-1, grid, grid, features.shape[-1])

    @merge_with_config_defaults
    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        token_table: torch.Tensor | None = None,
        coordinate_output_embeddings: torch.FloatTensor | None = None,
        vision_chunk_size: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Computes the features of images that replace their tokens in the decoder's input.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, image_size, image_size)`):
                Normalized pixels.
            token_table (`torch.FloatTensor`, *optional*):
                Second output of `embed_inputs`, which saves a lookup.
            coordinate_output_embeddings (`torch.FloatTensor` of shape `(num_coordinates, hidden_size)`, *optional*):
                Output embeddings of the coordinate tokens. Required unless `tie_word_embeddings` is set or the model has no coordinate
                tokens; not read then.
            vision_chunk_size (`int`, *optional*, defaults to `config.vision_chunk_size`):
                Images per pass of the vision encoder.

        Returns:
            `BaseModelOutputWithPooling` whose `pooler_output` is of shape `(num_images, num_image_tokens, hidden_size)`: 729 tokens per
            image, or 81 with `use_downsample_image`. `last_hidden_state` is the encoder's.

        Raises:
            ValueError: If pixels or `coordinate_output_embeddings` do not have these shapes, or the latter are missing.
        """
        self._check_pixels("pixel_values", pixel_values, 4)
        vision_outputs, features = self._patch_features(pixel_values, vision_chunk_size, **kwargs)
        features = self._add_positions(features[:, None], token_table, coordinate_output_embeddings)  # (images, 1, rows, columns, hidden)
        if self.config.use_downsample_image:
            features = self.packer.spatial(features)
        vision_outputs.pooler_output = features.flatten(1, 3)  # (images, tokens, hidden)
        return vision_outputs

    @merge_with_config_defaults
    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor,
        token_table: torch.Tensor | None = None,
        coordinate_output_embeddings: torch.FloatTensor | None = None,
        vision_chunk_size: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Computes the features of videos that replace their tokens in the decoder's input.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(num_videos, num_frames, 3, image_size, image_size)`):
                Normalized pixels.
            token_table (`torch.FloatTensor`, *optional*):
                Second output of `embed_inputs`, which saves a lookup.
            coordinate_output_embeddings (`torch.FloatTensor` of shape `(num_coordinates, hidden_size)`, *optional*):
                Output embeddings of the coordinate tokens. Required unless `tie_word_embeddings` is set or the model has no coordinate
                tokens; not read then.
            vision_chunk_size (`int`, *optional*, defaults to `config.vision_chunk_size`):
                Frames per pass of the vision encoder, counted through all videos.

        Returns:
            `BaseModelOutputWithPooling` whose `pooler_output` is of shape `(num_videos, num_video_tokens, hidden_size)`: for each video
            the fast stream, frame by frame, then the slow stream (900 + 1620 tokens for 100 frames). With `disable_fast_stream` the fast
            stream consists of the embeddings of the tokens at its positions. `last_hidden_state` is the encoder's, of shape
            `(num_videos, num_frames, num_tokens, vision_hidden_size)` with class and register tokens before the patches.

        Raises:
            ValueError: If pixels or `coordinate_output_embeddings` do not have these shapes, or the latter are missing.
        """
        self._check_pixels("pixel_values_videos", pixel_values_videos, 5)
        videos, frames = pixel_values_videos.shape[:2]
        vision_outputs, features = self._patch_features(pixel_values_videos.flatten(0, 1), vision_chunk_size, **kwargs)
        features = features.unflatten(0, (videos, frames))  # (videos, frames, rows, columns, hidden)
        vision_outputs.last_hidden_state = vision_outputs.last_hidden_state.unflatten(0, (videos, frames))
        features = self._add_positions(features, token_table, coordinate_output_embeddings)
        vision_outputs.pooler_output = self._video_tokens(features, token_table)
        return vision_outputs

    def _video_tokens(self, features: torch.Tensor, token_table: torch.Tensor | None) -> torch.Tensor:
        """(videos, frames, rows, columns, hidden_size) features with positions → (videos, tokens, hidden_size), the fast stream first"""
        videos, frames = features.shape[:2]
        fast, slow = self.packer(features, use_fast=not self.config.disable_fast_stream)
        slow = slow.flatten(1, 3)  # (videos, ⌈frames/5⌉·81, hidden)
        if fast is None:
            if token_table is None:
                token_table = self.get_input_embeddings()(self._table_ids(slow.device))
            start, patch, end = token_table[-3:, None].to(slow.device, slow.dtype)
            num_fast = frames * self.config.fast_grid_size**2
            if num_fast > 1:
                patch = torch.cat((start, patch.expand(num_fast - 2, -1), end))
            fast = patch.expand(videos, num_fast, -1)
        else:
            fast = fast.flatten(1, 3)  # (videos, frames·9, hidden)
        return torch.cat((fast, slow), dim=1)  # (videos, tokens, hidden)

    def get_placeholder_mask(
        self, kind: str, input_ids: torch.LongTensor | None, inputs_embeds: torch.FloatTensor | None = None
    ) -> torch.BoolTensor:
        """
        Finds the positions that visual features replace: see `find_placeholders`.

        Args:
            kind (`str`):
                `"image"` or `"video"`.
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Token ids. If None, tokens are found by their embeddings.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Read only without `input_ids`.

        Returns:
            `torch.BoolTensor` of shape `(batch_size, sequence_length)`, True at these positions.
        """
        return find_placeholders(self.config.media_token_ids(kind), input_ids, inputs_embeds, self.get_input_embeddings())

    @accept_renamed_arguments
    @accept_cache_names
    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        coordinate_values: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_mask: torch.BoolTensor | None = None,
        video_mask: torch.BoolTensor | None = None,
        coordinate_output_embeddings: torch.FloatTensor | None = None,
        vision_chunk_size: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaSTModelOutputWithPast:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, image_size, image_size)`, *optional*):
                All images of the batch, in the order of their tokens.
            pixel_values_videos (`torch.FloatTensor` of shape `(num_videos, num_frames, 3, image_size, image_size)`, *optional*):
                All videos of the batch, in the order of their tokens.
            coordinate_values (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Exact value (fraction in [0, 1]) of each coordinate token, NaN at every other token. Only with `input_ids`.
            image_mask (`torch.BoolTensor` of shape `(num_images,)`, *optional*):
                False for a padding image, which has no tokens in `input_ids`. Its features are computed and not used, so that processes
                that train together run the same modules and have a gradient for the same weights. By default no image is padding.
            video_mask (`torch.BoolTensor` of shape `(num_videos,)`, *optional*):
                The same for videos.
            coordinate_output_embeddings (`torch.FloatTensor` of shape `(num_coordinates, hidden_size)`, *optional*):
                Output embeddings of the coordinate tokens. Required with images or videos, unless `tie_word_embeddings` is set or the
                model has no coordinate tokens.
            vision_chunk_size (`int`, *optional*, defaults to `config.vision_chunk_size`):
                Frames per pass of the vision encoder.
            cache (`Cache`, *optional*):
                Keys and values of the decoder's attention; also accepted as `past_key_values`, its name before transformers 5.24.
        """
        # The cache is not in the signature: it is passed to the decoder under the name that the decoder takes.
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if coordinate_values is not None and input_ids is None:
            raise ValueError("coordinate_values go with input_ids: inputs_embeds contain the coordinates already. Leave one of them out.")
        if coordinate_values is not None and coordinate_values.shape != input_ids.shape:
            raise ValueError(
                f"coordinate_values and input_ids must have one shape, got {tuple(coordinate_values.shape)} and {tuple(input_ids.shape)}."
            )
        encoder_outputs = dict(mm_encoder_outputs or {})
        has_media = pixel_values is not None or pixel_values_videos is not None

        token_table = None
        if inputs_embeds is None:
            if coordinate_values is None and not has_media and not self._trains():
                inputs_embeds = self.get_input_embeddings()(input_ids)  # a decode step: the operations of the decoder
            else:
                inputs_embeds, token_table = self.embed_inputs(input_ids, coordinate_values)

        options = {
            "token_table": token_table,
            "coordinate_output_embeddings": coordinate_output_embeddings,
            "vision_chunk_size": vision_chunk_size,
            "output_hidden_states": kwargs.get("output_hidden_states"),
            "output_attentions": kwargs.get("output_attentions"),
            "return_dict": True,
        }
        if pixel_values is not None:
            encoder_outputs["image"] = self.get_image_features(pixel_values, **options)
        if pixel_values_videos is not None:
            encoder_outputs["video"] = self.get_video_features(pixel_values_videos, **options)
        media_features = {"image": None, "video": None}
        kept_outputs = {}
        for kind, media_mask in (("image", image_mask), ("video", video_mask)):
            encoder_output = encoder_outputs.pop(kind, None)  # its hidden states are freed before the decoder runs
            if encoder_output is not None:
                placeholder_mask = self.get_placeholder_mask(kind, input_ids, inputs_embeds)
                inputs_embeds, media_features[kind] = insert_features(
                    kind, encoder_output.pooler_output, media_mask, placeholder_mask, inputs_embeds
                )
                if encoder_output.hidden_states is not None or encoder_output.attentions is not None:  # on request only
                    kept_outputs[f"{kind}_outputs"] = encoder_output
            elif media_mask is not None:
                raise ValueError(f"{kind}_mask is given without {kind}s. Pass the pixels that it refers to.")
            elif self._trains():
                check_no_placeholders(kind, self.get_placeholder_mask(kind, input_ids, inputs_embeds))

        del encoder_output
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            # Trained embeddings may be kept in float32 with a decoder in half precision.
            inputs_embeds=inputs_embeds.to(self.language_model.norm.weight.dtype),
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return LlavaSTModelOutputWithPast(
            **outputs,
            image_hidden_states=media_features["image"],
            video_hidden_states=media_features["video"],
            **kept_outputs,
        )


class LlavaSTForConditionalGeneration(LlavaSTReplacedForwardMixin, LlavaSTPreTrainedModel, LlavaSTGenerationMixin):
    """
    LLaVA-ST with language modeling head: takes images, videos and text with coordinates, generates text with coordinates.

    Args:
        config ([`LlavaSTConfig`]):
            Configuration of the model.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: LlavaSTConfig):
        super().__init__(config)
        self.model = LlavaSTModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_coordinate_output_embeddings(self) -> torch.Tensor | None:
        """
        Returns the rows of the language modeling head that belong to coordinate tokens, which the base model takes as
        `coordinate_output_embeddings`.

        Returns:
            `torch.FloatTensor` of shape `(num_coordinates, hidden_size)`, or None where the base model does not need them: with tied
            embeddings and without coordinate tokens.

        Raises:
            ValueError: If the weight of the head is quantized to integers.
        """
        if self.config.tie_word_embeddings or not self.config.use_coordinate_tokens:
            return None
        head, coordinates = self.get_output_embeddings(), self.config.coordinates
        rows = slice(coordinates.start_token_id, coordinates.end_token_id)
        weight = head.weight  # read once: an adapter may compute it at each access
        if weight.is_meta:  # offloaded by a device_map, whose hooks load it
            from accelerate.utils import align_module_device

            with align_module_device(head):
                return head.weight[rows].clone()
        if not weight.is_floating_point():
            raise ValueError(
                f"lm_head has a weight of type {weight.dtype}: visual features contain rows of it, which a quantized weight does not have. "
                "Exclude lm_head from quantization."
            )
        if isinstance(weight, DTensor):  # tensor parallelism: each process has a part of the rows
            return weight[rows].full_tensor()
        return weight[rows]

    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        r"""Computes the features of images that replace their tokens in the decoder's input: see [`LlavaSTModel.get_image_features`]."""
        kwargs.setdefault("coordinate_output_embeddings", self.get_coordinate_output_embeddings())
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_video_features(
        self, pixel_values_videos: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        r"""Computes the features of videos that replace their tokens in the decoder's input: see [`LlavaSTModel.get_video_features`]."""
        kwargs.setdefault("coordinate_output_embeddings", self.get_coordinate_output_embeddings())
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    def _loss(
        self,
        hidden_states: torch.Tensor,
        labels: torch.LongTensor | None,
        shift_labels: torch.LongTensor | None,
        coordinate_values: torch.FloatTensor | None,
        shift_coordinate_values: torch.FloatTensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(loss, token_losses, bin_errors)`; see `supervised_cross_entropy`."""
        if shift_labels is None:
            hidden_states, shift_labels = hidden_states[:, :-1], labels[:, 1:]  # each position predicts the next token
            shift_coordinate_values = None if coordinate_values is None else coordinate_values[:, 1:]
        mask = mask_media_labels if num_items_in_batch is None else mask_counted_labels
        shift_labels = mask(shift_labels, self.config.all_media_token_ids)
        loss, token_losses, bin_errors = supervised_cross_entropy(
            hidden_states,
            self.get_output_embeddings(),
            self.config.text_config.vocab_size,
            shift_labels,
            shift_coordinate_values,
            vocabulary=self.config.coordinates if self.config.use_coordinate_tokens else None,
            propagate=self.model._trains(),
        )
        if num_items_in_batch is None:
            num_items_in_batch = token_losses.numel()
        # A batch without supervised tokens has the loss 0: a division by 0 would make every weight NaN.
        return loss / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1), token_losses, bin_errors

    @accept_renamed_arguments
    @accept_cache_names
    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        coordinate_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_mask: torch.BoolTensor | None = None,
        video_mask: torch.BoolTensor | None = None,
        vision_chunk_size: int | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        coordinate_targets: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaSTCausalLMOutputWithPast:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, image_size, image_size)`, *optional*):
                All images of the batch, in the order of their tokens.
            pixel_values_videos (`torch.FloatTensor` of shape `(num_videos, num_frames, 3, image_size, image_size)`, *optional*):
                All videos of the batch, in the order of their tokens.
            coordinate_values (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Exact value (fraction in [0, 1]) of each coordinate token, NaN at every other token. Where the token is supervised too,
                its target is two-hot between the neighbouring bins.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Ids to predict, -100 where nothing is supervised. Tokens of images and videos are never supervised.
            image_mask (`torch.BoolTensor` of shape `(num_images,)`, *optional*):
                False for a padding image, which has no tokens in `input_ids`: see [`LlavaSTModel.forward`].
            video_mask (`torch.BoolTensor` of shape `(num_videos,)`, *optional*):
                The same for videos.
            vision_chunk_size (`int`, *optional*, defaults to `config.vision_chunk_size`):
                Frames per pass of the vision encoder.
            skip_logits (`bool`, *optional*):
                Whether to leave out the logits where `labels` are given. The loss does not need them; by default they are left out in
                training mode.
            coordinate_targets (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Exact value of each supervised coordinate token, NaN where the target is its bin, in place of `coordinate_values`.
                Then `coordinate_values` are inputs only.
            shift_labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                For each position the id to predict at it, in place of `labels`: for sequences cut into shards that do not contain their
                next token.
            shift_coordinate_values (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Exact values of `shift_labels`, in place of `coordinate_targets`.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Divisor of the summed loss, for gradient accumulation; by default the number of supervised tokens.
            cache (`Cache`, *optional*):
                Keys and values of the decoder's attention; also accepted as `past_key_values`, its name before transformers 5.24.
        """
        # Not in the signature: transformers' Trainer requires every argument with "label" in its name in every batch.
        shift_labels, shift_coordinate_values = kwargs.pop("shift_labels", None), kwargs.pop("shift_coordinate_values", None)
        has_media = pixel_values is not None or pixel_values_videos is not None
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            coordinate_values=coordinate_values,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            image_mask=image_mask,
            video_mask=video_mask,
            coordinate_output_embeddings=self.get_coordinate_output_embeddings() if has_media else None,
            vision_chunk_size=vision_chunk_size,
            return_dict=True,
            **kwargs,
        )
        decoder_outputs = dict(outputs)
        hidden_states = decoder_outputs.pop("last_hidden_state")

        loss = token_losses = bin_errors = logits = None
        if labels is not None or shift_labels is not None:
            loss, token_losses, bin_errors = self._loss(
                hidden_states,
                labels,
                shift_labels,
                coordinate_values if coordinate_targets is None else coordinate_targets,
                shift_coordinate_values,
                num_items_in_batch,
            )
        if skip_logits is None:
            skip_logits = self.training and loss is not None
        if not skip_logits:
            logits = self.lm_head(keep_positions(hidden_states, logits_to_keep))

        return LlavaSTCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            token_losses=token_losses,
            bin_errors=bin_errors,
            **decoder_outputs,
        )


__all__ = ["LlavaSTForConditionalGeneration", "LlavaSTModel", "LlavaSTPreTrainedModel"]
