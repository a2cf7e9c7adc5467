# SPDX-License-Identifier: Apache-2.0
"""PyTorch LLaVA-ST model: Language-Aligned Positional Embedding, Spatial-Temporal Packer, and a Qwen2 decoder whose
vocabulary holds the coordinates (LLaVA-ST, arXiv:2501.08282)."""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, torch_compilable_check
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .configuration_llava_st import LlavaSTConfig
from .generation_llava_st import LlavaSTGenerationMixin
from .lape_llava_st import add_positions, blend_coordinates, propagate
from .loss_llava_st import supervised_cross_entropy
from .outputs_llava_st import LlavaSTCausalLMOutputWithPast, LlavaSTModelOutputWithPast, keep_positions
from .packer_llava_st import LlavaSTSpatialTemporalPacker, LlavaSTWindowPacker
from .vision_llava_st import encode_frames, world_size


class LlavaSTMultiModalProjector(nn.Module):
    def __init__(self, config: LlavaSTConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(image_features)))


class LlavaSTPreTrainedModel(PreTrainedModel):
    config: LlavaSTConfig
    config_class = LlavaSTConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlavaSTWindowPacker"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # SigLIP's post-norm, pooling head and 27th layer, where a checkpoint brings them: features are taken before.
    _keys_to_ignore_on_load_unexpected = [r"vision_tower\..*(post_layernorm|head)\.", r"vision_tower\..*position_ids"]

    @torch.no_grad()
    def initialize_weights(self):
        # `_init_weights` is no place for it: outside transformers itself it is called only for modules that have
        # parameters of their own, so neither for a packer nor for a model.
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
                self._init_coordinate_rows(module)

    def _init_coordinate_rows(self, module: "LlavaSTPreTrainedModel"):
        """Large beside an ordinary row, so that LAPE is heard from the first step. Leaves loaded matrices alone."""
        coordinates = self.config.coordinates
        rows = slice(coordinates.start_token_id, coordinates.end_token_id)
        head, embeddings = module.lm_head, module.get_input_embeddings()
        if isinstance(module, LlavaSTModel) and not getattr(embeddings.weight, "_is_hf_initialized", False):
            init.normal_(embeddings.weight[rows])
        if self.config.tie_word_embeddings:
            head = embeddings  # a tied matrix serves as logit rows above all
        if head is not None and not getattr(head.weight, "_is_hf_initialized", False):
            bound = head.weight.shape[1] ** -0.5
            init.uniform_(head.weight[rows], -bound, bound)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """As in transformers. Coordinate and special tokens keep their ids, so the matrices never end before them.

        Raises:
            ValueError: where `new_num_tokens` would cut one of them off.
        """
        if new_num_tokens is not None:
            self.config.check_vocabulary(new_num_tokens)
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)


class LlavaSTModel(LlavaSTPreTrainedModel):
    """
    SigLIP, projector, LAPE, packer and decoder, without language modeling head.

    LAPE reads the input *and* the output rows of the coordinate tokens. Inside [`LlavaSTForConditionalGeneration`] the
    latter are those of its `lm_head`; a model of this class by itself holds an `lm_head` of its own for them, loaded from
    the same key of a checkpoint.
    """

    def __init__(self, config: LlavaSTConfig, head_owner: "LlavaSTForConditionalGeneration | None" = None):
        super().__init__(config)
        config.check_vocabulary()
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.vision_tower.post_layernorm = nn.Identity()  # the projector was trained on un-normalised features
        self.multi_modal_projector = LlavaSTMultiModalProjector(config)
        self.packer = LlavaSTSpatialTemporalPacker(config)
        self.language_model = AutoModel.from_config(config.text_config)
        # Kept out of nn.Module's registry: a reference, not a child. Deep copies and PEFT's replacing of `lm_head` are
        # followed, as they would not be by a second reference to the head itself.
        self.__dict__["_head_owner"] = head_owner
        self.lm_head = None
        if head_owner is None and config.use_coordinate_tokens and not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def _output_rows(self) -> torch.Tensor:
        """(num_coordinates, hidden_size), the logit rows of the coordinate tokens."""
        head = self.lm_head if self._head_owner is None else self._head_owner.get_output_embeddings()
        coordinates = self.config.coordinates
        rows = slice(coordinates.start_token_id, coordinates.end_token_id)
        weight = head.weight  # read once: an adapter may put it together at each reading
        if weight.is_meta:  # offloaded by a device_map: only the hooks can bring it
            from accelerate.utils import align_module_device

            with align_module_device(head):
                return head.weight[rows].clone()
        return weight[rows]

    def _trains(self) -> bool:
        """Whether Neighbouring Token Propagation is on: it alters gradients alone."""
        return self.training and torch.is_grad_enabled()

    def _table_ids(self, device: torch.device) -> torch.Tensor:
        """Tokens whose embeddings build visual features: coordinates, then the markers of the fast stream."""
        markers = [self.config.video_start_token_id, self.config.video_token_id, self.config.video_end_token_id]
        markers = torch.tensor(markers, device=device)
        if not self.config.use_coordinate_tokens:
            return markers
        coordinates = self.config.coordinates
        return torch.cat((torch.arange(coordinates.start_token_id, coordinates.end_token_id, device=device), markers))

    def embed_inputs(self, input_ids: torch.LongTensor, coordinates: torch.FloatTensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Embeds tokens, blending neighbouring bins where an exact position is given.

        Args:
            input_ids: (batch_size, sequence_length)
            coordinates: same shape, fractions in [0, 1] or NaN, or None.

        Returns:
            `(inputs_embeds, token_table)`: (batch_size, sequence_length, hidden_size), and the rows of `_table_ids`.
        """
        # One lookup for tokens and table: each lookup costs a gradient of the size of the whole matrix.
        ids = torch.cat((input_ids.flatten(), self._table_ids(input_ids.device)))
        embeds, table = self.get_input_embeddings()(ids).split([input_ids.numel(), len(ids) - input_ids.numel()])
        embeds = embeds.view(*input_ids.shape, -1)  # (batch, sequence, hidden)
        if not self.config.use_coordinate_tokens or (coordinates is None and not self._trains()):
            return embeds, table
        vocabulary = self.config.coordinates
        rows = table[: len(vocabulary)]
        if self._trains():
            rows = propagate(rows, vocabulary.sizes())
        if coordinates is not None and self.config.ignore_prompt_x_coordinates:
            coordinates = coordinates.masked_fill(input_ids == self.config.width_input_token_id, float("nan"))
        return blend_coordinates(input_ids, embeds, coordinates, rows, vocabulary), table

    def _add_positions(self, features: torch.Tensor, token_table: torch.Tensor | None) -> torch.Tensor:
        """
        Language-Aligned Positional Embedding (LLaVA-ST, section 3.2).

        Args:
            features: (videos, frames, rows, columns, hidden_size)
            token_table: rows of `_table_ids`, where already looked up.
        """
        if not self.config.use_coordinate_tokens:
            return features
        if token_table is None:
            token_table = self.get_input_embeddings()(self._table_ids(features.device))
        vocabulary = self.config.coordinates
        rows = token_table[: len(vocabulary)]
        if not self.config.tie_word_embeddings:
            rows = (rows + self._output_rows().to(rows.device)) / 2
        if self._trains():
            rows = propagate(rows, vocabulary.sizes())
        return add_positions(features, rows, vocabulary.sizes())

    def _check_pixels(self, name: str, pixels: torch.Tensor, ndim: int):
        size = self.config.vision_config.image_size
        if pixels.ndim != ndim or pixels.shape[-3:] != (3, size, size):
            expected = ("num_videos, num_frames" if ndim == 5 else "num_images") + f", 3, {size}, {size}"
            raise ValueError(f"{name} has shape {tuple(pixels.shape)}, but this model takes ({expected}).")

    def _patch_features(
        self, pixel_values: torch.Tensor, in_step: bool = False, **kwargs
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """(frames, 3, height, width) pixels → the encoder's output and (frames, rows, columns, hidden_size) features"""
        grid = self.config.grid_size
        vision_outputs, features = encode_frames(self.vision_tower, self.multi_modal_projector, pixel_values, in_step, **kwargs)
        return vision_outputs, features.view(-1, grid, grid, features.shape[-1])

    @merge_with_config_defaults
    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.FloatTensor, token_table: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Features of images as they enter the decoder.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, image_size, image_size)`):
                Normalised pixels.
            token_table (`torch.FloatTensor`, *optional*):
                Second output of `embed_inputs`, to save a lookup.

        Returns:
            `BaseModelOutputWithPooling` whose `pooler_output` is `(num_images, num_image_tokens, hidden_size)`: 729 tokens,
            or 81 with `use_downsample_image`.
        """
        self._check_pixels("pixel_values", pixel_values, 4)
        vision_outputs, features = self._patch_features(pixel_values, **kwargs)
        vision_outputs.pooler_output = self._image_tokens(features, token_table)
        return vision_outputs

    def _image_tokens(self, features: torch.Tensor, token_table: torch.Tensor | None) -> torch.Tensor:
        """(images, rows, columns, hidden_size) patch features → (images, tokens, hidden_size)"""
        features = self._add_positions(features[:, None], token_table)  # (images, 1, rows, columns, hidden)
        if self.config.use_downsample_image:
            features = self.packer.spatial(features)
        return features.flatten(1, 3)

    @merge_with_config_defaults
    @can_return_tuple
    def get_video_features(
        self, pixel_values_videos: torch.FloatTensor, token_table: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Features of videos as they enter the decoder.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(num_videos, num_frames, 3, image_size, image_size)`):
                Normalised pixels.
            token_table (`torch.FloatTensor`, *optional*):
                Second output of `embed_inputs`, to save a lookup.

        Returns:
            `BaseModelOutputWithPooling` whose `pooler_output` is `(num_videos, num_video_tokens, hidden_size)`: of each video
            the fast stream, frame by frame, then the slow one (900 + 1620 tokens for 100 frames). With
            `disable_fast_stream` the plain embeddings of the tokens there stand in place of the fast stream.
            `last_hidden_state` is the encoder's, `(num_videos, num_frames, num_patches, vision_hidden_size)`.
        """
        self._check_pixels("pixel_values_videos", pixel_values_videos, 5)
        videos, frames = pixel_values_videos.shape[:2]
        vision_outputs, features = self._patch_features(pixel_values_videos.flatten(0, 1), **kwargs)
        features = features.unflatten(0, (videos, frames))  # (videos, frames, rows, columns, hidden)
        vision_outputs.last_hidden_state = vision_outputs.last_hidden_state.unflatten(0, (videos, frames))
        vision_outputs.pooler_output = self._video_tokens(features, token_table)
        return vision_outputs

    def _video_tokens(self, features: torch.Tensor, token_table: torch.Tensor | None) -> torch.Tensor:
        """(videos, frames, rows, columns, hidden_size) patch features → (videos, tokens, hidden_size), the fast stream first"""
        videos, frames = features.shape[:2]
        features = self._add_positions(features, token_table)
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

    def _encode_in_step(
        self,
        pixel_values: torch.FloatTensor | None,
        pixel_values_videos: torch.FloatTensor | None,
        inputs_embeds: torch.Tensor,
        token_table: torch.Tensor | None,
    ) -> tuple[dict[str, BaseModelOutputWithPooling], torch.Tensor]:
        """
        Features of a batch in a training step that several processes make together, each with media of its own kinds.

        Every process runs every part of the model once, those without a video on a short blank one that adds nothing: so each
        weight has a gradient everywhere, and weights sharded over processes are gathered by all at the same time.

        Returns:
            `(mm_encoder_outputs, inputs_embeds)`
        """
        size = self.config.vision_config.image_size
        blank = pixel_values_videos is None
        if blank:
            shape = (1, self.config.packer_temporal_stride, 3, size, size)
            pixel_values_videos = inputs_embeds.new_zeros(shape)
        self._check_pixels("pixel_values_videos", pixel_values_videos, 5)
        videos, num_images = pixel_values_videos.shape[:2], 0
        frames = pixel_values_videos.flatten(0, 1)
        if pixel_values is not None:
            self._check_pixels("pixel_values", pixel_values, 4)
            num_images = len(pixel_values)
            frames = torch.cat((pixel_values, frames.to(pixel_values.dtype)))  # (images + videos·frames, 3, height, width)
        _, features = self._patch_features(frames, in_step=True)  # (images + videos·frames, rows, columns, hidden)
        encoded = {}
        if num_images:
            encoded["image"] = BaseModelOutputWithPooling(pooler_output=self._image_tokens(features[:num_images], token_table))
        video_tokens = self._video_tokens(features[num_images:].unflatten(0, videos), token_table)
        if blank:
            inputs_embeds = inputs_embeds + 0 * video_tokens.sum().to(inputs_embeds.dtype)
        else:
            encoded["video"] = BaseModelOutputWithPooling(pooler_output=video_tokens)
        return encoded, inputs_embeds

    def get_placeholder_mask(
        self, kind: str, input_ids: torch.LongTensor | None, inputs_embeds: torch.FloatTensor | None = None
    ) -> torch.BoolTensor:
        """
        Where features stand: at the patch tokens and at the markers around them. A marker without patches beside it is
        text, such as one that the model itself wrote.

        Args:
            kind: "image" or "video".
            input_ids: (batch_size, sequence_length), or None: then tokens are found by their embeddings.
            inputs_embeds: (batch_size, sequence_length, hidden_size); read only without `input_ids`.

        Returns:
            (batch_size, sequence_length), True at the positions of features.
        """

        def positions_of(token_ids: tuple[int, ...]) -> torch.BoolTensor:
            if input_ids is not None:
                masks = [input_ids == token_id for token_id in token_ids]
            else:
                rows = self.get_input_embeddings()(torch.tensor(token_ids, device=inputs_embeds.device))
                masks = [(inputs_embeds == row).all(-1) for row in rows.to(inputs_embeds.device)]
            return torch.stack(masks).any(0)

        openings, patches, closings = map(positions_of, self.config.media_token_ids(kind))
        before_content = nn.functional.pad(patches | closings, (0, 1))[:, 1:]
        after_content = nn.functional.pad(patches | openings, (1, 0))[:, :-1]
        return patches | (openings & before_content) | (closings & after_content)

    def _insert(self, kind, features, input_ids, inputs_embeds):
        """Puts features where their tokens stand; returns the embeddings and the flat features."""
        features = torch.cat([item.flatten(0, -2) for item in features])  # (tokens, hidden)
        features = features.to(inputs_embeds.device, inputs_embeds.dtype)
        mask = self.get_placeholder_mask(kind, input_ids, inputs_embeds)
        torch_compilable_check(
            mask.sum() == features.shape[0],
            lambda: f"The {kind}s give {features.shape[0]} features, but the text has {int(mask.sum())} {kind} tokens for them.",
        )
        return inputs_embeds.masked_scatter(mask[..., None], features), features

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        coordinates: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        in_step: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaSTModelOutputWithPast:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, image_size, image_size)`, *optional*):
                All images of the batch, in the order of their tokens.
            pixel_values_videos (`torch.FloatTensor` of shape `(num_videos, num_frames, 3, image_size, image_size)`, *optional*):
                All videos of the batch, in the order of their tokens.
            coordinates (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The exact position (fraction in [0, 1]) of each coordinate token, NaN at every other token. Goes with `input_ids`.
            in_step (`bool`, *optional*):
                Whether all processes of a run make this call at the same time, as in a training step. Each then runs every part of
                the model, whatever media it has. By default so in training, where there are several processes.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if coordinates is not None and input_ids is None:
            raise ValueError("coordinates go with input_ids: embeddings given as inputs_embeds already say where things are.")
        if coordinates is not None and coordinates.shape != input_ids.shape:
            raise ValueError(f"coordinates have shape {tuple(coordinates.shape)}, and input_ids {tuple(input_ids.shape)}.")
        mm_encoder_outputs = dict(mm_encoder_outputs or {})
        has_media = pixel_values is not None or pixel_values_videos is not None

        token_table = None
        if inputs_embeds is None:
            if coordinates is None and not has_media and not self._trains():
                inputs_embeds = self.get_input_embeddings()(input_ids)  # a decode step: what stock Qwen2 does
            else:
                inputs_embeds, token_table = self.embed_inputs(input_ids, coordinates)

        if in_step is None:
            in_step = self._trains() and world_size() > 1
        if in_step and not mm_encoder_outputs:
            mm_encoder_outputs, inputs_embeds = self._encode_in_step(pixel_values, pixel_values_videos, inputs_embeds, token_table)
        else:
            if pixel_values is not None:
                mm_encoder_outputs["image"] = self.get_image_features(pixel_values, token_table=token_table, return_dict=True)
            if pixel_values_videos is not None:
                mm_encoder_outputs["video"] = self.get_video_features(pixel_values_videos, token_table=token_table, return_dict=True)
        media_features = {"image": None, "video": None}
        for kind in media_features:
            if mm_encoder_outputs.get(kind) is not None:
                inputs_embeds, media_features[kind] = self._insert(kind, mm_encoder_outputs[kind].pooler_output, input_ids, inputs_embeds)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            # Trained embeddings may be kept in float32 beside a decoder in half precision.
            inputs_embeds=inputs_embeds.to(self.language_model.norm.weight.dtype),
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return LlavaSTModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=media_features["image"],
            video_hidden_states=media_features["video"],
        )


class LlavaSTForConditionalGeneration(LlavaSTPreTrainedModel, LlavaSTGenerationMixin):
    """LLaVA-ST: reads images, videos and text with coordinates, writes text with coordinates."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: LlavaSTConfig):
        super().__init__(config)
        self.model = LlavaSTModel(config, head_owner=self)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        r"""Features of images as they enter the decoder: see [`LlavaSTModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_video_features(
        self, pixel_values_videos: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        r"""Features of videos as they enter the decoder: see [`LlavaSTModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    def _loss(
        self,
        hidden_states: torch.Tensor,
        labels: torch.LongTensor | None,
        shift_labels: torch.LongTensor | None,
        coordinates: torch.FloatTensor | None,
        shift_coordinates: torch.FloatTensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(loss, token_losses, bin_errors)`; see `supervised_cross_entropy`."""
        if shift_labels is None:
            hidden_states, shift_labels = hidden_states[:, :-1], labels[:, 1:]  # each position predicts the next token
            shift_coordinates = None if coordinates is None else coordinates[:, 1:]
        loss, token_losses, bin_errors = supervised_cross_entropy(
            hidden_states,
            self.get_output_embeddings(),
            self.config.text_config.vocab_size,
            shift_labels,
            shift_coordinates,
            vocabulary=self.config.coordinates if self.config.use_coordinate_tokens else None,
            propagate=self.model._trains(),
        )
        if num_items_in_batch is None:
            num_items_in_batch = token_losses.numel()
        # Nothing supervised is a loss of 0: a division by 0 would put NaN into every weight.
        return loss / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1), token_losses, bin_errors

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        coordinates: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaSTCausalLMOutputWithPast:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, image_size, image_size)`, *optional*):
                All images of the batch, in the order of their tokens.
            pixel_values_videos (`torch.FloatTensor` of shape `(num_videos, num_frames, 3, image_size, image_size)`, *optional*):
                All videos of the batch, in the order of their tokens.
            coordinates (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The exact position (fraction in [0, 1]) of each coordinate token, NaN at every other token. Where the token is
                supervised too, its target is two-hot between the neighbouring bins.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Ids to predict, -100 where nothing is supervised.
            skip_logits (`bool`, *optional*):
                Whether to leave out the logits where `labels` are given. The loss does not need them; by default they are
                left out in training mode.
            shift_labels, shift_coordinates (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                For each position the id to predict there, and that target's exact position. They replace `labels`, and
                `coordinates` as far as targets go, where a sequence is cut into shards that do not see their next token.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Divisor of the summed loss, for gradient accumulation; by default the number of supervised tokens.
        """
        # Not in the signature: transformers' Trainer takes every argument called labels for one that a batch must have.
        shift_labels, shift_coordinates = kwargs.pop("shift_labels", None), kwargs.pop("shift_coordinates", None)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            coordinates=coordinates,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state

        loss = token_losses = bin_errors = logits = None
        if labels is not None or shift_labels is not None:
            loss, token_losses, bin_errors = self._loss(
                hidden_states, labels, shift_labels, coordinates, shift_coordinates, num_items_in_batch
            )
        if skip_logits is None:
            skip_logits = self.training and loss is not None
        if not skip_logits:
            logits = self.lm_head(keep_positions(hidden_states, logits_to_keep))

        return LlavaSTCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            token_losses=token_losses,
            bin_errors=bin_errors,
            image_hidden_states=outputs.image_hidden_states,
            video_hidden_states=outputs.video_hidden_states,
        )


__all__ = ["LlavaSTForConditionalGeneration", "LlavaSTModel", "LlavaSTPreTrainedModel"]
