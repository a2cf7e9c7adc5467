# SPDX-License-Identifier: Apache-2.0
"""LLaVA-ST model configuration."""

import copy
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .backbones_llava_st import (
    DEFAULT_DECODER,
    DEFAULT_ENCODER,
    VISION_ENCODERS,
    check_decoder_config,
    check_decoder_type,
    check_encoder_type,
    mlp_size,
    set_image_size,
    sub_config_type,
    without_backbone_settings,
)
from .cache_name_llava_st import CACHE_NAMES
from .coordinates_llava_st import DEFAULT_NUM_BINS, MAX_BINS, MIN_BINS, PLACEHOLDER_TOKENS, CoordinateVocabulary
from .model_card_llava_st import LlavaSTPushToHubMixin
from .original_checkpoint_llava_st import ORIGINAL_MODEL_TYPE, translate_config


# Tokens at the positions of an image or a video, in the order of the original tokenizer.
VISUAL_TOKENS = {
    "image_start_token_id": "<im_start>",
    "image_end_token_id": "<im_end>",
    "image_token_id": "<im_patch>",
    "video_start_token_id": "<vid_start>",
    "video_end_token_id": "<vid_end>",
    "video_token_id": "<vid_patch>",
    "slow_video_start_token_id": "<slow_vid_start>",
    "slow_video_end_token_id": "<slow_vid_end>",
}
PLACEHOLDER_FIELDS = (
    "temporal_input_token_id",
    "temporal_output_token_id",
    "height_input_token_id",
    "height_output_token_id",
    "width_input_token_id",
    "width_output_token_id",
)
# All special tokens of the model in vocabulary order: configuration field → token.
SPECIAL_TOKENS = {**VISUAL_TOKENS, **dict(zip(PLACEHOLDER_FIELDS, PLACEHOLDER_TOKENS, strict=True))}
# Fields that must be at least 1.
_SIZES = ("packer_hidden_size", "packer_num_attention_heads", "packer_spatial_stride", "packer_temporal_stride", "fast_spatial_stride")
_LAYER_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")
_TEXT_SIZES = ("vocab_size", *_LAYER_SIZES, "intermediate_size", "num_key_value_heads", "max_position_embeddings")
_VISION_SIZES = (*_LAYER_SIZES, "image_size", "patch_size")
# Auto class → class of the code that is saved with a checkpoint, as transformers reads it in config.json.
AUTO_MAP = {
    "AutoConfig": "configuration_llava_st.LlavaSTConfig",
    "AutoModel": "modeling_llava_st.LlavaSTModel",
    "AutoModelForImageTextToText": "modeling_llava_st.LlavaSTForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_llava_st.LlavaSTForConditionalGeneration",
    "AutoProcessor": "processing_llava_st.LlavaSTProcessor",
    "AutoImageProcessor": "image_processing_llava_st.LlavaSTImageProcessor",
    "AutoVideoProcessor": "video_processing_llava_st.LlavaSTVideoProcessor",
}
# The same for `transformers.pipeline`: task → class, auto class of its model, and kind of its inputs.
CUSTOM_PIPELINES = {
    "video-grounding": {
        "impl": "pipeline_llava_st.VideoGroundingPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
}


def _num_key_value_heads(text: PreTrainedConfig) -> int:
    heads = getattr(text, "num_key_value_heads", None)
    return text.num_attention_heads if heads is None else heads


@strict
class LlavaSTConfig(LlavaSTPushToHubMixin, PreTrainedConfig):
    r"""
    Configuration of [`LlavaSTModel`] and [`LlavaSTForConditionalGeneration`]. The defaults are those of the released
    LLaVA-ST-Qwen2-7B (arXiv:2501.08282).

    Text, special and coordinate tokens share one vocabulary of size `text_config.vocab_size`: the base tokens, eight visual and six
    placeholder tokens, and the coordinate tokens, which are the last rows of both embedding matrices. Token ids that are not given are
    derived from this layout, and do not change when the embeddings are resized later.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            The vision encoder: SigLIP, or another `model_type` of `VISION_ENCODERS`. Features are the outputs of its `num_hidden_layers`
            layers. The default is SigLIP so400m/14 at 384 pixels without its last layer and without head.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            The language model: Qwen2, or a decoder of another `model_type` with embeddings, layers and final norm as in Llama. The
            default is Qwen2-7B.
        vision_use_final_norm (`bool`, *optional*, defaults to `False`):
            Whether the norm after the encoder's last layer is applied to features. LLaVA-ST takes features before it.
        projector_hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation between the projector's two layers.
        packer_hidden_size (`int`, *optional*, defaults to 1024):
            Width of the attention in the Spatial-Temporal Packer.
        packer_num_attention_heads (`int`, *optional*, defaults to 8):
            Attention heads in each packer.
        packer_spatial_stride (`int`, *optional*, defaults to 3):
            Patches per side of a window of the spatial packer (27×27 patches per frame → 9×9 features).
        packer_temporal_stride (`int`, *optional*, defaults to 5):
            Frames of a window of the slow packer (100 frames → 20).
        fast_spatial_stride (`int`, *optional*, defaults to 3):
            Features per side of a window of the fast packer (9×9 per frame → 3×3).
        num_temporal_bins (`int`, *optional*, defaults to 100):
            Coordinate tokens of the time axis.
        num_spatial_bins (`int`, *optional*, defaults to 100):
            Coordinate tokens of the height axis, and of the width axis.
        use_coordinate_tokens (`bool`, *optional*, defaults to `True`):
            Whether the model has coordinate tokens and adds their embeddings to visual features (Language-Aligned
            Positional Embedding). A stage-1 model has none.
        use_downsample_image (`bool`, *optional*, defaults to `False`):
            Whether the spatial packer is applied to images as well (81 tokens instead of 729).
        vision_chunk_size (`int`, *optional*, defaults to 100):
            Largest number of frames per pass of the vision encoder, None for all at once. It bounds the temporary memory of the pass (of
            so400m about 26 MB per frame in bfloat16) and does not change the result.
        ignore_prompt_x_coordinates (`bool`, *optional*, defaults to `False`):
            Compatibility with the released weights: the exact value of a `<WIDTH-INPUT>` token is ignored, so that the model cannot
            see x-coordinates in the prompt. Set by the conversion of original checkpoints; leave it off in new models.
        disable_fast_stream (`bool`, *optional*, defaults to `False`):
            Compatibility with the released weights: the fast packer is not run, and its tokens keep their own embeddings. Set by the
            conversion of original checkpoints; leave it off in new models.
        image_token_id, image_start_token_id, image_end_token_id (`int`, *optional*):
            `<im_patch>` and the two markers around an image's patches. Features replace the embeddings at the markers as well (as in the
            original code).
        video_token_id, video_start_token_id, video_end_token_id, slow_video_start_token_id, slow_video_end_token_id (`int`, *optional*):
            `<vid_patch>` and the markers around a video's fast and slow stream. Features replace the embeddings at the markers as well.
        temporal_input_token_id, height_input_token_id, width_input_token_id (`int`, *optional*):
            Placeholders of the original code for coordinates in prompts.
        temporal_output_token_id, height_output_token_id, width_output_token_id (`int`, *optional*):
            The same for coordinates in answers.
        coordinate_start_token_id (`int`, *optional*):
            Id of `<TEMP-000>`; time, height and width bins follow one another from there.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation for the initialization of packer and projector weights.
        tie_word_embeddings (`bool`, *optional*, defaults to `text_config.tie_word_embeddings`):
            Whether input and output embeddings are one matrix.

    Raises:
        ValueError: At construction, if a size or id is not valid or sizes do not fit each other. Ids outside the vocabulary are refused
            when a model is built (`check_vocabulary`).
    """

    model_type = "llava_st"
    keys_to_ignore_at_inference = [
        *CACHE_NAMES,
        "hidden_states",
        "attentions",
        "token_losses",
        "bin_errors",
        "image_hidden_states",
        "video_hidden_states",
        "image_outputs",
        "video_outputs",
    ]
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type=DEFAULT_ENCODER,
            init_kwargs={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 26,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
                "vision_use_head": False,
            },
        ),
        "text_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type=DEFAULT_DECODER,
            init_kwargs={
                "vocab_size": 151960,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            },
        ),
    }

    # Names of version 0.1, in the config.json of checkpoints saved by it.
    attribute_map: ClassVar[dict[str, str]] = {
        "use_lape": "use_coordinate_tokens",
        "plain_width_prompts": "ignore_prompt_x_coordinates",
        "drop_fast_features": "disable_fast_stream",
        "packer_spatial_scale": "packer_spatial_stride",
        "packer_temporal_scale": "packer_temporal_stride",
        "packer_fast_scale": "fast_spatial_stride",
    }

    # Set by the plug-in for vLLM on the configuration of a model that it builds. Not saved.
    served_by_plugin: ClassVar[bool] = False

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_use_final_norm: bool = False
    projector_hidden_act: str = "gelu"
    packer_hidden_size: int = 1024
    packer_num_attention_heads: int = 8
    packer_spatial_stride: int = 3
    packer_temporal_stride: int = 5
    fast_spatial_stride: int = 3
    num_temporal_bins: int = DEFAULT_NUM_BINS
    num_spatial_bins: int = DEFAULT_NUM_BINS
    use_coordinate_tokens: bool = True
    use_downsample_image: bool = False
    vision_chunk_size: int | None = 100
    ignore_prompt_x_coordinates: bool = False
    disable_fast_stream: bool = False
    image_start_token_id: int | None = None
    image_end_token_id: int | None = None
    image_token_id: int | None = None
    video_start_token_id: int | None = None
    video_end_token_id: int | None = None
    video_token_id: int | None = None
    slow_video_start_token_id: int | None = None
    slow_video_end_token_id: int | None = None
    temporal_input_token_id: int | None = None
    temporal_output_token_id: int | None = None
    height_input_token_id: int | None = None
    height_output_token_id: int | None = None
    width_input_token_id: int | None = None
    width_output_token_id: int | None = None
    coordinate_start_token_id: int | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        self._check_model_types()
        if isinstance(self.vision_config, dict):
            self.vision_config = without_backbone_settings(self.vision_config)
        kwargs.pop("custom_pipelines", None)  # a property, below
        kwargs["auto_map"] = {**AUTO_MAP, **(kwargs.get("auto_map") or {})}
        super().__post_init__(**kwargs)
        check_decoder_config(self.text_config)
        if self.vision_config.model_type.startswith("siglip"):
            self.vision_config.vision_use_head = False  # the pooled output is not used
        set_image_size(self.vision_config)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        num_coordinates = self.num_temporal_bins + 2 * self.num_spatial_bins if self.use_coordinate_tokens else 0
        # Layout: base tokens, special tokens, coordinate tokens. The coordinate tokens are the last of the vocabulary, except in a
        # configuration whose embeddings have been resized, which contains all ids.
        if self.use_coordinate_tokens and self.coordinate_start_token_id is None:
            self.coordinate_start_token_id = self.text_config.vocab_size - num_coordinates
        if not self.use_coordinate_tokens:
            self.coordinate_start_token_id = None
        first = self.coordinate_start_token_id if self.use_coordinate_tokens else self.text_config.vocab_size
        for token_id, field in enumerate(SPECIAL_TOKENS, start=first - len(SPECIAL_TOKENS)):
            if getattr(self, field) is None:
                setattr(self, field, token_id)
        # `@strict` calls these as well, after __init__, but raises an error that is not a ValueError.
        self.validate_architecture()
        self.validate_token_ids()

    @property
    def custom_pipelines(self) -> dict[str, dict]:
        """Pipelines of the code that is saved with a checkpoint. Empty where the package is imported, whose pipeline is then in
        transformers' registry: `transformers.pipeline` prefers these, and refuses them without `trust_remote_code=True`."""
        from transformers.pipelines import PIPELINE_REGISTRY  # the pipelines are not needed to read a configuration

        registered = PIPELINE_REGISTRY.get_supported_tasks()
        return {task: copy.deepcopy(info) for task, info in CUSTOM_PIPELINES.items() if task not in registered}

    def to_dict(self) -> dict[str, Any]:
        """Same as in transformers, with `custom_pipelines`."""
        saved = {**super().to_dict(), "custom_pipelines": copy.deepcopy(CUSTOM_PIPELINES)}
        saved.pop("served_by_plugin", None)
        return saved

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls._read(config_dict, str(pretrained_model_name_or_path)), kwargs

    @staticmethod
    def _read(config_dict: dict, name_or_path: str) -> dict:
        """Returns a parsed config.json, translated if it is that of an original checkpoint.

        Raises:
            ValueError: If it is the configuration of another model.
        """
        model_type = config_dict.get("model_type", LlavaSTConfig.model_type)
        if model_type == ORIGINAL_MODEL_TYPE:
            return translate_config(config_dict, name_or_path=name_or_path)
        if model_type != LlavaSTConfig.model_type:
            raise ValueError(
                f"{name_or_path or 'The configuration'} holds a model of type {model_type!r}, not a LLaVA-ST model "
                f"({LlavaSTConfig.model_type!r}, or {ORIGINAL_MODEL_TYPE!r} for original checkpoints)."
            )
        return config_dict

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Same as in transformers, but a configuration of the original code is translated, and keyword arguments are validated.

        Raises:
            ValueError: If the dictionary is the configuration of another model.
        """
        config_dict = dict(cls._read(config_dict, str(kwargs.get("name_or_path") or "")))
        for name in cls.__dataclass_fields__.keys() & kwargs.keys() - {"dtype"}:
            value, current = kwargs.pop(name), config_dict.get(name)
            config_dict[name] = {**current, **value} if isinstance(current, dict) and isinstance(value, dict) else value
        return super(LlavaSTConfig, LlavaSTConfig).from_dict(config_dict, **kwargs)

    def _check_model_types(self):
        for value, default, check in (
            (self.text_config, DEFAULT_DECODER, check_decoder_type),
            (self.vision_config, DEFAULT_ENCODER, check_encoder_type),
        ):
            if value is not None:
                check(sub_config_type(value, default))

    def _check_sizes(self):
        text, vision = self.text_config, self.vision_config
        for prefix, config, names in (("", self, _SIZES), ("text_config.", text, _TEXT_SIZES), ("vision_config.", vision, _VISION_SIZES)):
            for name in names:
                value = getattr(config, name, None)
                if value is not None and value < 1:  # some decoders have no `num_key_value_heads`
                    raise ValueError(f"{prefix}{name} must be at least 1, got {value}.")
        if mlp_size(vision) < 1:
            raise ValueError(f"vision_config.intermediate_size must be at least 1, got {mlp_size(vision)}.")
        if self.vision_chunk_size is not None and self.vision_chunk_size < 1:
            raise ValueError(f"vision_chunk_size must be at least 1, or None for all frames at once, got {self.vision_chunk_size}.")
        if vision.num_channels != 3:
            raise ValueError(f"vision_config.num_channels must be 3 (RGB), got {vision.num_channels}.")
        for prefix, name, size, divisor_name, divisor in (
            ("", "packer_hidden_size", self.packer_hidden_size, "packer_num_attention_heads", self.packer_num_attention_heads),
            ("vision_config.", "hidden_size", vision.hidden_size, "num_attention_heads", vision.num_attention_heads),
            ("text_config.", "num_attention_heads", text.num_attention_heads, "num_key_value_heads", _num_key_value_heads(text)),
        ):
            if size % divisor:
                raise ValueError(f"{prefix}{name}={size} must be a multiple of {divisor_name}={divisor}.")

    def validate_architecture(self):
        """Refuses sizes that are not valid or do not fit each other. Part of `@strict` validation."""
        encoder = self.vision_config.model_type
        if self.vision_use_final_norm and VISION_ENCODERS[encoder].final_norm is None:
            raise ValueError(f"vision_use_final_norm=True, but {encoder!r} has no norm that applies to patches. Set it to False.")
        image_size, patch_size = self.vision_config.image_size, self.vision_config.patch_size
        if not isinstance(image_size, int) or not isinstance(patch_size, int):
            raise ValueError(
                f"vision_config must describe square images and patches, got image_size={image_size}, patch_size={patch_size}."
            )
        self._check_sizes()
        if patch_size > image_size:
            raise ValueError(f"vision_config.patch_size={patch_size} must not be larger than image_size={image_size}.")
        if self.grid_size % self.packer_spatial_stride:
            raise ValueError(
                f"packer_spatial_stride={self.packer_spatial_stride} does not divide the vision grid of {self.grid_size}×{self.grid_size} "
                f"patches (image_size={image_size}, patch_size={patch_size})."
            )
        if self.packed_grid_size % self.fast_spatial_stride:
            raise ValueError(
                f"fast_spatial_stride={self.fast_spatial_stride} does not divide the spatial packer's grid of "
                f"{self.packed_grid_size}×{self.packed_grid_size} features."
            )
        for name in ("num_temporal_bins", "num_spatial_bins"):
            if not MIN_BINS <= getattr(self, name) <= MAX_BINS:
                raise ValueError(f"{name} must be from {MIN_BINS} to {MAX_BINS}, got {getattr(self, name)}.")

    def validate_token_ids(self):
        """Refuses token ids that are equal, negative or among the coordinate tokens. Part of `@strict` validation."""
        super().validate_token_ids()
        ids = {"coordinate_start_token_id": self.coordinate_start_token_id} if self.use_coordinate_tokens else {}
        ids |= {field: getattr(self, field) for field in SPECIAL_TOKENS}
        for field, token_id in ids.items():
            if token_id < 0:
                needed = f"{len(SPECIAL_TOKENS)} special tokens"
                if self.use_coordinate_tokens:
                    needed += f" and {self.num_temporal_bins} + 2·{self.num_spatial_bins} coordinate tokens"
                raise ValueError(
                    f"{field}={token_id} lies outside the vocabulary of {self.text_config.vocab_size} tokens, which must hold {needed}."
                )
        owners: dict[int, str] = {}
        for field in SPECIAL_TOKENS:
            owner = owners.setdefault(ids[field], field)
            if owner != field:
                raise ValueError(f"{field} and {owner} are both {ids[field]}; every special token needs an id of its own.")
            if self.use_coordinate_tokens and self.coordinates.start_token_id <= ids[field] < self.coordinates.end_token_id:
                raise ValueError(
                    f"{field}={ids[field]} overlaps the coordinate tokens "
                    f"{self.coordinates.start_token_id}…{self.coordinates.end_token_id - 1}."
                )

    def check_vocabulary(self, vocab_size: int | None = None):
        """
        Checks that a vocabulary contains all special and coordinate tokens. Models check it when they are built, since a configuration
        may be changed after its construction.

        Args:
            vocab_size (`int`, *optional*, defaults to `text_config.vocab_size`):
                Rows of the embedding matrices.

        Raises:
            ValueError: If an id lies outside the vocabulary, naming the first one.
        """
        vocab_size = self.text_config.vocab_size if vocab_size is None else vocab_size
        if self.use_coordinate_tokens and self.coordinates.end_token_id > vocab_size:
            raise ValueError(
                f"The coordinate tokens {self.coordinates.start_token_id}…{self.coordinates.end_token_id - 1} "
                f"lie outside the vocabulary of {vocab_size} tokens."
            )
        for field in SPECIAL_TOKENS:
            if getattr(self, field) >= vocab_size:
                raise ValueError(f"{field}={getattr(self, field)} lies outside the vocabulary of {vocab_size} tokens.")

    @property
    def grid_size(self) -> int:
        """Patches per side of an image (27)."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def packed_grid_size(self) -> int:
        """Features per side after the spatial packer (9), and in the slow stream."""
        return self.grid_size // self.packer_spatial_stride

    @property
    def fast_grid_size(self) -> int:
        """Features per side in the fast stream (3)."""
        return self.packed_grid_size // self.fast_spatial_stride

    @property
    def coordinates(self) -> CoordinateVocabulary:
        """Coordinate vocabulary. Valid only with `use_coordinate_tokens`."""
        return CoordinateVocabulary(
            start_token_id=self.coordinate_start_token_id,
            num_temporal_bins=self.num_temporal_bins,
            num_spatial_bins=self.num_spatial_bins,
            placeholder_token_ids=tuple(getattr(self, field) for field in PLACEHOLDER_FIELDS),
        )

    @property
    def all_media_token_ids(self) -> list[int]:
        """Ids of all tokens that visual features replace."""
        return [token_id for kind in ("image", "video") for ids in self.media_token_ids(kind) for token_id in ids]

    def media_token_ids(self, kind: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """
        Lists the ids of the tokens that visual features replace.

        Args:
            kind (`str`):
                `"image"` or `"video"`.

        Returns:
            `tuple(tuple(int), tuple(int), tuple(int))`: ids of opening markers, of the patch token, and of closing markers.
        """
        if kind == "image":
            return (self.image_start_token_id,), (self.image_token_id,), (self.image_end_token_id,)
        openings = (self.video_start_token_id, self.slow_video_start_token_id)
        closings = (self.video_end_token_id, self.slow_video_end_token_id)
        return openings, (self.video_token_id,), closings


class LlavaSTOriginalConfig(LlavaSTConfig):
    """Class that `AutoConfig` finds for an original checkpoint. Its `from_pretrained` returns a [`LlavaSTConfig`]; the class has no
    instances."""

    model_type = ORIGINAL_MODEL_TYPE


__all__ = ["LlavaSTConfig"]
