# SPDX-License-Identifier: Apache-2.0
"""LLaVA-ST model configuration."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen2Config, SiglipVisionConfig
from transformers.configuration_utils import SubConfigSpec

from .coordinates_llava_st import DEFAULT_NUM_BINS, MAX_BINS, MIN_BINS, PLACEHOLDER_TOKENS, CoordinateVocabulary
from .original_checkpoint_llava_st import ORIGINAL_MODEL_TYPE, translate_config


# The tokens that a picture or a video occupies, in the order in which the released tokenizer holds them.
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


@strict
class LlavaSTConfig(PreTrainedConfig):
    r"""
    Configuration of [`LlavaSTModel`] and [`LlavaSTForConditionalGeneration`]. The defaults are those of the released
    LLaVA-ST-Qwen2-7B (arXiv:2501.08282).

    The vocabulary is one: `text_config.vocab_size` counts the base tokens, the eight visual and six placeholder tokens and
    the coordinate tokens, which are the last rows of both embedding matrices. Token ids that are not given are derived from
    that layout, and stay what they are when the embeddings are resized later.

    Args:
        vision_config (`dict` or `SiglipVisionConfig`, *optional*):
            The vision encoder. The default is so400m/14 at 384 pixels without its last layer and without head.
        text_config (`dict` or `Qwen2Config`, *optional*):
            The language model. The default is Qwen2-7B.
        projector_hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation between the projector's two layers.
        packer_hidden_size (`int`, *optional*, defaults to 1024):
            Width of the attention in the Spatial-Temporal Packer.
        packer_num_attention_heads (`int`, *optional*, defaults to 8):
            Attention heads in each packer.
        packer_spatial_stride (`int`, *optional*, defaults to 3):
            Patches per side of the window that the spatial packer turns into one cell (27×27 patches → 9×9 cells).
        packer_temporal_stride (`int`, *optional*, defaults to 5):
            Frames that the slow packer turns into one (100 frames → 20).
        fast_spatial_stride (`int`, *optional*, defaults to 3):
            Cells per side that the fast packer turns into one (9×9 → 3×3 per frame).
        num_temporal_bins (`int`, *optional*, defaults to 100):
            Coordinate tokens of the time axis.
        num_spatial_bins (`int`, *optional*, defaults to 100):
            Coordinate tokens of the height axis, and of the width axis.
        use_coordinate_tokens (`bool`, *optional*, defaults to `True`):
            Whether the model has coordinate tokens and adds their embeddings to visual features (Language-Aligned
            Positional Embedding). A stage-1 model has none.
        use_downsample_image (`bool`, *optional*, defaults to `False`):
            Whether an image, too, goes through the spatial packer (81 tokens in place of 729).
        ignore_prompt_x_coordinates (`bool`, *optional*, defaults to `False`):
            Compatibility with the released weights: the exact position beside a `<WIDTH-INPUT>` token is ignored and the
            token keeps its own embedding. Set by the conversion of released checkpoints; leave it off in new models.
        disable_fast_stream (`bool`, *optional*, defaults to `False`):
            Compatibility with the released weights: at the positions of the fast stream stand the plain embeddings of the
            tokens there, and the fast packer is not run. Set by the conversion; leave it off in new models.
        image_token_id, image_start_token_id, image_end_token_id (`int`, *optional*):
            `<im_patch>` and the two markers around an image's patches. Features stand at the markers as well.
        video_token_id, video_start_token_id, video_end_token_id, slow_video_start_token_id, slow_video_end_token_id (`int`, *optional*):
            `<vid_patch>` and the markers around a video's fast and slow stream. Features stand at the markers as well.
        temporal_input_token_id, height_input_token_id, width_input_token_id (`int`, *optional*):
            The released program's placeholders for coordinates in prompts.
        temporal_output_token_id, height_output_token_id, width_output_token_id (`int`, *optional*):
            The same for coordinates in answers.
        coordinate_start_token_id (`int`, *optional*):
            Id of `<TEMP-000>`; time, height and width bins follow one another from there.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of fresh packer and projector weights.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether logit rows are the input embeddings.

    Raises:
        ValueError: at construction, where sizes or ids contradict one another. Ids beyond the vocabulary are refused when
            a model is built (`check_vocabulary`).
    """

    model_type = "llava_st"
    keys_to_ignore_at_inference = [
        "past_key_values",
        "hidden_states",
        "attentions",
        "token_losses",
        "bin_errors",
        "image_hidden_states",
        "video_hidden_states",
    ]
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=SiglipVisionConfig,
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
            config_class=Qwen2Config,
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

    # Names of version 0.1, in the config.json of folders that were saved then.
    attribute_map: ClassVar[dict[str, str]] = {
        "use_lape": "use_coordinate_tokens",
        "plain_width_prompts": "ignore_prompt_x_coordinates",
        "drop_fast_features": "disable_fast_stream",
        "packer_spatial_scale": "packer_spatial_stride",
        "packer_temporal_scale": "packer_temporal_stride",
        "packer_fast_scale": "fast_spatial_stride",
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
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
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.vision_config.vision_use_head = False  # nothing reads the pooled output
        num_coordinates = self.num_temporal_bins + 2 * self.num_spatial_bins if self.use_coordinate_tokens else 0
        # Layout: … base tokens, the special tokens, the coordinates. The end of it is the end of the vocabulary, except
        # in a configuration whose embeddings were resized, which has all ids written down.
        if self.use_coordinate_tokens and self.coordinate_start_token_id is None:
            self.coordinate_start_token_id = self.text_config.vocab_size - num_coordinates
        if not self.use_coordinate_tokens:
            self.coordinate_start_token_id = None
        first = self.coordinate_start_token_id if self.use_coordinate_tokens else self.text_config.vocab_size
        for token_id, field in enumerate(SPECIAL_TOKENS, start=first - len(SPECIAL_TOKENS)):
            if getattr(self, field) is None:
                setattr(self, field, token_id)
        # `@strict` calls these as well, after __init__, but raises an error of its own that is no ValueError.
        self.validate_architecture()
        self.validate_token_ids()

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls._read(config_dict, str(pretrained_model_name_or_path)), kwargs

    @staticmethod
    def _read(config_dict: dict, name_or_path: str) -> dict:
        """A parsed config.json in our words: translated where it is a released one, refused where it is another model's."""
        model_type = config_dict.get("model_type", LlavaSTConfig.model_type)
        if model_type == ORIGINAL_MODEL_TYPE:
            return translate_config(config_dict, name_or_path=name_or_path)
        if model_type != LlavaSTConfig.model_type:
            raise ValueError(
                f"{name_or_path or 'The configuration'} holds a model of type {model_type!r}, not a LLaVA-ST model "
                f"({LlavaSTConfig.model_type!r}, or {ORIGINAL_MODEL_TYPE!r} as released)."
            )
        return config_dict

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers; a released LLaVA-ST configuration is translated, and keyword arguments take part in validation.

        Raises:
            ValueError: where the dictionary describes another kind of model.
        """
        config_dict = dict(cls._read(config_dict, str(kwargs.get("name_or_path") or "")))
        for name in cls.__dataclass_fields__.keys() & kwargs.keys() - {"dtype"}:
            value, current = kwargs.pop(name), config_dict.get(name)
            config_dict[name] = {**current, **value} if isinstance(current, dict) and isinstance(value, dict) else value
        return super(LlavaSTConfig, LlavaSTConfig).from_dict(config_dict, **kwargs)

    def validate_architecture(self):
        """Refuses sizes that do not fit one another. Part of `@strict` validation."""
        image_size, patch_size = self.vision_config.image_size, self.vision_config.patch_size
        if not isinstance(image_size, int) or not isinstance(patch_size, int):
            raise ValueError(
                f"vision_config must describe square images and patches, got image_size={image_size}, patch_size={patch_size}."
            )
        for name in (
            "packer_hidden_size",
            "packer_num_attention_heads",
            "packer_spatial_stride",
            "packer_temporal_stride",
            "fast_spatial_stride",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.packer_hidden_size % self.packer_num_attention_heads:
            raise ValueError(
                f"packer_hidden_size={self.packer_hidden_size} is no multiple of "
                f"packer_num_attention_heads={self.packer_num_attention_heads}."
            )
        if not 1 <= patch_size <= image_size:
            raise ValueError(f"vision_config has patches of {patch_size} pixels in images of {image_size}.")
        if self.grid_size % self.packer_spatial_stride:
            raise ValueError(
                f"packer_spatial_stride={self.packer_spatial_stride} does not divide the vision grid of {self.grid_size}×{self.grid_size} "
                f"patches (image_size={image_size}, patch_size={patch_size})."
            )
        if self.packed_grid_size % self.fast_spatial_stride:
            raise ValueError(
                f"fast_spatial_stride={self.fast_spatial_stride} does not divide the packed grid of "
                f"{self.packed_grid_size}×{self.packed_grid_size} cells."
            )
        for name in ("num_temporal_bins", "num_spatial_bins"):
            if not MIN_BINS <= getattr(self, name) <= MAX_BINS:
                raise ValueError(f"{name} must be from {MIN_BINS} to {MAX_BINS}, got {getattr(self, name)}.")

    def validate_token_ids(self):
        """Refuses token ids that overlap one another or do not fit below the coordinates. Part of `@strict` validation."""
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
        """Checks that a vocabulary holds every token that the model reads by id. Models check it when they are built: a
        configuration by itself may be on its way to other sizes.

        Args:
            vocab_size: rows of the embedding matrices, by default those of `text_config`.

        Raises:
            ValueError: naming the first id beyond the vocabulary.
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
        """Patches per side that the vision encoder sees (27)."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def packed_grid_size(self) -> int:
        """Cells per side after the spatial packer (9); the slow stream's grid."""
        return self.grid_size // self.packer_spatial_stride

    @property
    def fast_grid_size(self) -> int:
        """Cells per side of the fast stream (3)."""
        return self.packed_grid_size // self.fast_spatial_stride

    @property
    def coordinates(self) -> CoordinateVocabulary:
        """The coordinate vocabulary; only where `use_coordinate_tokens`."""
        return CoordinateVocabulary(
            start_token_id=self.coordinate_start_token_id,
            num_temporal_bins=self.num_temporal_bins,
            num_spatial_bins=self.num_spatial_bins,
            placeholder_token_ids=tuple(getattr(self, field) for field in PLACEHOLDER_FIELDS),
        )

    def media_token_ids(self, kind: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """`(openings, patches, closings)`: ids at whose positions features of `kind` ("image" or "video") stand."""
        if kind == "image":
            return (self.image_start_token_id,), (self.image_token_id,), (self.image_end_token_id,)
        openings = (self.video_start_token_id, self.slow_video_start_token_id)
        closings = (self.video_end_token_id, self.slow_video_end_token_id)
        return openings, (self.video_token_id,), closings


class LlavaSTOriginalConfig(LlavaSTConfig):
    """What `AutoConfig` finds for a released folder. Reads to a [`LlavaSTConfig`]; there are no instances of this class."""

    model_type = ORIGINAL_MODEL_TYPE


__all__ = ["LlavaSTConfig"]
