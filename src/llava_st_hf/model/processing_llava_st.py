# SPDX-License-Identifier: Apache-2.0
"""Processor class for LLaVA-ST: converts messages and media to model inputs, and generated ids to spans and bounding boxes."""

import math
import re
from inspect import signature

import torch
from transformers import PreTrainedConfig
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.video_utils import VideoInput

from .answer_grammar_llava_st import AnswerGrammarMixin
from .batch_feature_llava_st import LlavaSTBatchFeature, MediaText
from .checks_llava_st import check_pixels
from .configuration_llava_st import SPECIAL_TOKENS, VISUAL_TOKENS, LlavaSTConfig
from .control_tokens_llava_st import SANITIZED_MARK, UNMARKED, check_messages, control_token_pattern
from .coordinates_llava_st import (
    AXES,
    AXIS_OF_NAME,
    COORDINATE_TOKEN,
    TOKEN_NAMES,
    WIDTH_INPUT_TOKEN,
    bin_to_position,
    coordinate_token,
    position_to_bin,
)
from .grounding_llava_st import MediaInfo, parse_answer
from .image_processing_llava_st import LlavaSTImageProcessor, LlavaSTImageProcessorKwargs, original_size
from .inline_coordinates_llava_st import INLINE_COORDINATE, check_order, read_coordinate
from .inline_spelling_llava_st import check_spelling
from .messages_llava_st import CHAT_TEMPLATE, CONVERTS_COORDINATES, prepare_conversation
from .model_card_llava_st import LlavaSTPushToHubMixin
from .original_checkpoint_llava_st import ORIGINAL_MODEL_TYPE
from .renamed_arguments_llava_st import warn_renamed
from .scores_llava_st import score_answer
from .tokenizer_llava_st import make_coordinate_tokens_ordinary
from .video_frames_llava_st import flatten_videos
from .video_processing_llava_st import LlavaSTVideoProcessor, LlavaSTVideoProcessorKwargs


_SPECIAL_TOKEN = re.compile(f"{UNMARKED}(?:{'|'.join(map(re.escape, SPECIAL_TOKENS.values()))})")
_ANSWER = re.compile(rf"{UNMARKED}<\|im_start\|>assistant\n(.*?)(?:{UNMARKED}<\|im_end\|>|\Z)", re.DOTALL)
# Whether this version of transformers can encode control tokens of messages as plain text; earlier ones ignore the argument.
_CAN_SANITIZE = "sanitize_control_tokens" in signature(ProcessorMixin.apply_chat_template).parameters
# Arguments of models, which `pipeline` passes to processors, too. A tokenizer keeps them and then cannot be saved as JSON.
_MODEL_ARGUMENTS = ("dtype", "quantization_config")


class LlavaSTProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: LlavaSTImageProcessorKwargs
    videos_kwargs: LlavaSTVideoProcessorKwargs
    _defaults = {"text_kwargs": {"padding_side": "left"}}  # generation continues at the right


class LlavaSTProcessor(AnswerGrammarMixin, LlavaSTPushToHubMixin, ProcessorMixin):
    r"""
    Wraps image processor, video processor and tokenizer.

    Text may contain exact coordinates anywhere: `<t0.409>`, `<h0.442>`, `<w0.352>` as fractions of the clip, the height and the
    width, `<t1.8s>` in seconds and `<w320px>` in pixels of the image or video before it. Boxes are `[<w><h><w><h>]`, spans
    `{<t><t>}`. Each becomes the token of its nearest bin, and its exact value is in `coordinate_values`.

    Args:
        image_processor (`LlavaSTImageProcessor`), tokenizer (`PreTrainedTokenizerBase`), video_processor (`LlavaSTVideoProcessor`):
            The tokenizer determines the number of coordinate bins. Its coordinate tokens become ordinary added tokens, in place: decoding
            with `skip_special_tokens=True` keeps them. In tokenizers of the original code they are special tokens.
        patch_size (`int`, *optional*, defaults to 14):
            Patch size of the vision encoder, in pixels.
        packer_spatial_stride, packer_temporal_stride, fast_spatial_stride (`int`, *optional*, defaults to 3, 5, 3):
            As in [`LlavaSTConfig`].
        use_downsample_image (`bool`, *optional*, defaults to `False`):
            As in [`LlavaSTConfig`].
        ignore_prompt_x_coordinates (`bool`, *optional*, defaults to `False`):
            As in [`LlavaSTConfig`]: outside assistant messages, a width is written as `<WIDTH-INPUT>`.
        chat_template (`str`, *optional*):
            Jinja template; ChatML with `{% generation %}` marks by default.
    """

    valid_processor_kwargs = LlavaSTProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        patch_size: int = 14,
        packer_spatial_stride: int = 3,
        packer_temporal_stride: int = 5,
        fast_spatial_stride: int = 3,
        use_downsample_image: bool = False,
        ignore_prompt_x_coordinates: bool = False,
        chat_template=None,
        **kwargs,
    ):
        self.patch_size = patch_size
        self.packer_spatial_stride = packer_spatial_stride
        self.packer_temporal_stride = packer_temporal_stride
        self.fast_spatial_stride = fast_spatial_stride
        self.use_downsample_image = use_downsample_image
        self.ignore_prompt_x_coordinates = ignore_prompt_x_coordinates
        self.image_token, self.video_token = "<image>", "<video>"
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template or CHAT_TEMPLATE)

        make_coordinate_tokens_ordinary(tokenizer)
        added = tokenizer.get_added_vocab()
        missing = [token for token in VISUAL_TOKENS.values() if token not in added]
        if missing:
            raise ValueError(f"The tokenizer has no {', '.join(missing)}. Use the tokenizer of a LLaVA-ST model.")
        self.image_token_id = added[VISUAL_TOKENS["image_token_id"]]
        self.video_token_id = added[VISUAL_TOKENS["video_token_id"]]
        self.image_token_ids = [added[token] for field, token in VISUAL_TOKENS.items() if field.startswith("image")]
        self.video_token_ids = [added[token] for field, token in VISUAL_TOKENS.items() if "video" in field]
        names = [match["name"] for match in map(COORDINATE_TOKEN.fullmatch, added) if match]
        counts = {axis: names.count(TOKEN_NAMES[axis]) for axis in AXES}
        if counts["height"] != counts["width"]:
            raise ValueError(f"The tokenizer has {counts['height']} height and {counts['width']} width tokens; the numbers must be equal.")
        self.num_temporal_bins, self.num_spatial_bins = counts["temporal"], counts["height"]
        coordinates = {coordinate_token(axis, i) for axis in AXES for i in range(counts[axis])}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control_tokens = control_token_pattern(special - {self.image_token, self.video_token})
        self._coordinate_ids = {added[token] for token in coordinates}
        if self.num_temporal_bins:
            self._coordinate_ids.add(added[WIDTH_INPUT_TOKEN])

    # Loading

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        processor_dict, unused_kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        released = cls._released_config(pretrained_model_name_or_path, **kwargs)
        if released is not None:
            processor_dict["ignore_prompt_x_coordinates"] = released.ignore_prompt_x_coordinates
            processor_dict["use_downsample_image"] = released.use_downsample_image
            processor_dict["chat_template"] = CHAT_TEMPLATE
        return processor_dict, unused_kwargs

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        for name in _MODEL_ARGUMENTS:
            kwargs.pop(name, None)
        if cls._released_config(pretrained_model_name_or_path, **kwargs) is None:
            return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        # A checkpoint of the original layout has a tokenizer only; image sizes and normalization are constants of the original code.
        kwargs.pop("subfolder", None)
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", pretrained_model_name_or_path, subfolder="", **kwargs)
        return [LlavaSTImageProcessor(), tokenizer, LlavaSTVideoProcessor()]

    @staticmethod
    def _released_config(pretrained_model_name_or_path, **kwargs) -> LlavaSTConfig | None:
        """The configuration of a checkpoint in the original layout, else None."""
        hub = {name: kwargs[name] for name in ("cache_dir", "token", "revision", "local_files_only", "force_download") if name in kwargs}
        try:
            raw, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub)
        except OSError:
            return None  # no config.json, as in a folder that a processor was saved to
        if raw.get("model_type") != ORIGINAL_MODEL_TYPE:
            return None
        return LlavaSTConfig.from_pretrained(pretrained_model_name_or_path, **hub)

    # Media

    def _num_stream_tokens(self, num_frames: int) -> tuple[int, int]:
        """Number of tokens of the fast and of the slow stream of a video."""
        size = self.video_processor.size
        rows, columns = (size[side] // self.patch_size // self.packer_spatial_stride for side in ("height", "width"))
        fast = num_frames * (rows // self.fast_spatial_stride) * (columns // self.fast_spatial_stride)
        return fast, math.ceil(num_frames / self.packer_temporal_stride) * rows * columns

    def _num_image_tokens(self) -> int:
        scale = self.patch_size * (self.packer_spatial_stride if self.use_downsample_image else 1)
        return (self.image_processor.size["height"] // scale) * (self.image_processor.size["width"] // scale)

    @staticmethod
    def _stream_text(kind: str, count: int) -> str:
        """`count` tokens: start marker, patches, end marker, in the order of the original LLaVA-ST code."""
        start, end = VISUAL_TOKENS[f"{kind}_start_token_id"], VISUAL_TOKENS[f"{kind}_end_token_id"]
        patch = VISUAL_TOKENS["image_token_id" if kind == "image" else "video_token_id"]
        return start + patch * (count - 2) + end if count > 1 else patch * count

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self._stream_text("image", self._num_image_tokens())

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        fast, slow = self._num_stream_tokens(len(video_inputs["pixel_values_videos"][video_idx]))
        return self._stream_text("video", fast) + self._stream_text("slow_video", slow)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Same as in transformers, but videos become a flat list without entries for samples that have none."""
        if images is not None:
            options = {**kwargs.get("common_kwargs", {}), **kwargs.get("images_kwargs", {}), **kwargs}
            images = self.image_processor.fetch_images(images, options.get("download_limits"))
        images, text, videos, audio = super().prepare_inputs_layout(images=images, text=text, videos=videos, audio=audio, **kwargs)
        if isinstance(videos, (list, tuple)):
            videos = [video for video in videos if not isinstance(video, (list, tuple)) or len(video)]
        return images, text, None if videos is None or (isinstance(videos, list) and not videos) else flatten_videos(videos), audio

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Raises an error for calls without inputs, and for numbers of media that differ from their placeholders in the text."""
        if audio is not None:
            raise ValueError("`audio` is not supported; LLaVA-ST takes images, videos and text.")
        if images is None and text is None and videos is None:
            raise ValueError(f"You need to provide at least one input to call {type(self).__name__}: images, text or videos.")
        if text is None:
            return
        if not all(isinstance(sample, str) for sample in text):
            raise ValueError(f"`text` must be a string or a list of strings, got {text!r:.200}.")
        if any(SANITIZED_MARK in sample for sample in text):  # not those that transformers writes: they are not in `text` here
            raise ValueError("`text` contains the character U+F0000, which transformers uses to mark control tokens. Remove it.")
        given = {"image": 0 if images is None else len(make_flat_list_of_images(images)), "video": len(videos or ())}
        for kind, token in (("image", self.image_token), ("video", self.video_token)):
            found = sum(sample.count(token) for sample in text)
            if found != given[kind]:
                raise ValueError(
                    f"The total number of {token} tokens in the prompts should be the same as the number of {kind}s passed: "
                    f"there are {found} {token} and {given[kind]} {kind}s."
                )

    def _process_images(self, images, **kwargs):
        sizes = [original_size(image) for image in make_flat_list_of_images(images)]
        processed, replacements = super()._process_images(images, **kwargs)
        check_pixels("image", processed["pixel_values"], self.image_processor.size)
        media = [MediaInfo("image", width=width, height=height) for height, width in sizes]
        return processed, [MediaText(text, m) for text, m in zip(replacements, media, strict=True)]

    def _process_videos(self, videos, **kwargs):
        kwargs["return_metadata"] = True
        processed = self.video_processor(videos, **kwargs)
        check_pixels("video", processed["pixel_values_videos"], self.video_processor.size)
        replacements = []
        for index, metadata in enumerate(processed["video_metadata"]):
            media = metadata.media(*metadata.clip)
            replacements.append(MediaText(self.replace_video_token(processed, index), media))
        return processed, replacements

    # Text

    def get_text_with_replacements(self, text, images_replacements=(), videos_replacements=(), audio_replacements=()):
        """Replaces media and coordinates by tokens. The returned offsets contain the text of each coordinate before that."""
        media = {self.image_token: iter(images_replacements), self.video_token: iter(videos_replacements)}
        pattern = re.compile(
            f"{UNMARKED}(?:(?P<media>{re.escape(self.image_token)}|{re.escape(self.video_token)})|(?P<inline>{INLINE_COORDINATE.pattern})"
            f"|(?P<literal>{COORDINATE_TOKEN.pattern}))"
        )
        texts, offsets = [], []
        for sample in text:
            if not sample:
                raise ValueError("The prompt is empty. Give a text.")
            if (found := _SPECIAL_TOKEN.search(sample)) is not None:
                raise ValueError(
                    f"The text contains the special token {found[0]!r}. Write {self.image_token} or {self.video_token} for media, and "
                    "coordinates as <t0.409>, <h0.442>, <w0.352>."
                )
            check_spelling(sample)
            answers = [match.span(1) for match in _ANSWER.finditer(sample)]
            pieces, sample_offsets, sample_media, cursor, length = [], [], [], 0, 0
            values: dict[int, tuple[float, None]] = {}  # fractions, at the first character of each inline coordinate
            for match in pattern.finditer(sample):
                start, end = match.span()
                in_answer = any(a <= start < b for a, b in answers)
                kind, position = "coordinate", None
                if match["media"]:
                    kind = "image" if match[0] == self.image_token else "video"
                    replacement = next(media[match[0]], None)
                    if replacement is None:
                        raise ValueError(f"The text has more {match[0]} than {kind}s were passed.")
                    sample_media.append(replacement.media)
                else:
                    axis, position = self._read(match, sample_media)
                    if match["inline"]:
                        values[start] = (position, None)
                    replacement = self._coordinate_text(axis, position, in_answer)
                    if match["literal"]:
                        position = None  # a bin, exactly
                pieces += [sample[cursor:start], replacement]
                new_start = length + start - cursor
                length = new_start + len(replacement)
                cursor = end
                sample_offsets.append(
                    {
                        "type": kind,
                        "span": (start, end),
                        "new_span": (new_start, length),
                        "text": match[0],
                        "replacement": str(replacement),
                        "position": position,
                        "media": sample_media[-1] if kind != "coordinate" else None,
                    }
                )
            check_order(sample, values)
            texts.append("".join([*pieces, sample[cursor:]]))
            offsets.append(sample_offsets)
        return texts, offsets

    def _read(self, match: re.Match, sample_media: list[MediaInfo]) -> tuple[str, float]:
        """Converts a coordinate, inline or as a token, to its axis and position."""
        if not self.num_temporal_bins:
            raise ValueError(f"The text contains the coordinate {match[0]!r}, but this tokenizer has no coordinate tokens (stage 1).")
        if match["literal"]:
            axis = AXIS_OF_NAME[match["name"]]
            num_bins = self._num_bins(axis)
            if int(match["bin"]) >= num_bins:
                raise ValueError(f"{match[0]!r} is not a token of this model, which has {num_bins} {axis} bins.")
            return axis, bin_to_position(int(match["bin"]), num_bins)
        return read_coordinate(match, sample_media[-1].position if sample_media else None)

    def _num_bins(self, axis: str) -> int:
        return self.num_temporal_bins if axis == "temporal" else self.num_spatial_bins

    def _coordinate_text(self, axis: str, position: float, in_answer: bool) -> str:
        if axis == "width" and self.ignore_prompt_x_coordinates and not in_answer:
            return WIDTH_INPUT_TOKEN
        return coordinate_token(axis, position_to_bin(position, self._num_bins(axis)))

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        videos: VideoInput | None = None,
        **kwargs: Unpack[LlavaSTProcessorKwargs],
    ) -> LlavaSTBatchFeature:
        """
        Converts text and media to model inputs.

        Args:
            images, videos: media in the order of their `<image>` and `<video>` in the text, flat or one list per sample.
            text (`str` or `list[str]`): prompts, rendered by the chat template or written by hand.
            kwargs: of the tokenizer, the image processor and the video processor (such as `clips`, `num_frames`, `fps`).

        Returns:
            [`LlavaSTBatchFeature`] with `input_ids`, `attention_mask`, `pixel_values`, `pixel_values_videos` as far as there
            are such, `coordinate_values` (batch_size, sequence_length) where the text has exact values, and the attribute `media`.

        Raises:
            ValueError, OSError: naming what is wrong with text, media or a coordinate, before anything is decoded twice; and videos with
            unequal numbers of frames where tensors are asked for.
        """
        keep_offsets = kwargs.pop("return_text_replacement_offsets", False)
        # Tensors are made at the end, when `coordinate_values` are there too; callers may ask for them at any of three places.
        return_tensors = kwargs.pop("return_tensors", None)
        for group in ("text_kwargs", "common_kwargs"):
            if group in kwargs:
                kwargs[group] = dict(kwargs[group])
                return_tensors = kwargs[group].pop("return_tensors", None) or return_tensors
        data = super().__call__(images=images, text=text, videos=videos, return_text_replacement_offsets=True, **kwargs)
        offsets = data.pop("text_replacement_offsets", [])
        media = [[entry["media"] for entry in sample if entry["media"] is not None] for sample in offsets]
        if "input_ids" in data and any(entry["position"] is not None for sample in offsets for entry in sample):
            data["coordinate_values"] = [
                self._coordinates(list(ids), [entry["position"] for entry in sample if entry["type"] == "coordinate"])
                for ids, sample in zip(data["input_ids"], offsets, strict=True)
            ]
        if keep_offsets:
            data["text_replacement_offsets"] = offsets
        frames = [len(pixels) for pixels in data.get("pixel_values_videos", ())]
        if return_tensors is not None and len(set(frames)) > 1:
            counts = " and ".join(map(str, frames))
            raise ValueError(f"The videos of a batch must have equal numbers of frames, got {counts}. Set num_frames.")
        return LlavaSTBatchFeature(
            dict(data),
            tensor_type=return_tensors,
            skip_tensor_conversion=self.skip_tensor_conversion,
            media_info=media,
            media_token_ids=[*self.image_token_ids, *self.video_token_ids],
            coordinate_token_ids=sorted(self._coordinate_ids),
        )

    def _coordinates(self, input_ids: list[int], positions: list[float | None]) -> list[float]:
        """Exact positions at the indices of their coordinate tokens; NaN elsewhere."""
        coordinates = [math.nan] * len(input_ids)
        places = [index for index, token_id in enumerate(input_ids) if token_id in self._coordinate_ids]
        if len(places) > len(positions):
            raise ValueError(f"The text has {len(positions)} coordinates, but its token ids have {len(places)}.")
        # Truncation takes tokens from one end; positions are dropped from the same.
        if self.tokenizer.truncation_side == "left":
            positions = positions[len(positions) - len(places) :]
        for index, position in zip(places, positions):  # noqa: B905
            coordinates[index] = math.nan if position is None else position
        return coordinates

    def _check_special_mm_tokens(self, text, text_inputs, modalities):
        """Raises an error if truncation removed media tokens."""
        for ids, sample in zip(text_inputs["input_ids"], text, strict=True):
            ids = list(ids)
            for modality, token_ids in (("image", self.image_token_ids), ("video", self.video_token_ids)):
                tokens = "|".join(token for field, token in VISUAL_TOKENS.items() if modality in field)
                expected, found = len(re.findall(f"{UNMARKED}(?:{tokens})", sample)), sum(map(ids.count, token_ids))
                if expected != found:
                    raise ValueError(
                        f"Truncation left {found} of {expected} {modality} tokens. Raise max_length above {len(ids)}, "
                        "or turn truncation off."
                    )

    def apply_chat_template(self, conversation, chat_template=None, **kwargs):
        """
        Same as `ProcessorMixin.apply_chat_template`, plus the content types `span`, `time`, `box` and clip arguments for `video`:

        - `{"type": "video", "path": …}` with a clip, `"clip": [first, last]` in frames (both included) or `"start"`, `"end"` in seconds;
          with the number of sampled frames, `"nframes"` or, for a file, `"fps"`; with the times of a list of frames, `"fps"` in frames
          per second or `"timestamps"` in seconds;
        - `{"type": "span", "start": 1.8, "end": 2.5}`, `{"type": "time", "time": 1.8}` in seconds from the start of the file;
        - `{"type": "box", "box": [x1, y1, x2, y2]}` in pixels of the original image or frame.

        Spans, times and boxes refer to the image or video before them. Keys whose value is None count as absent. Control tokens such as
        `<|im_end|>` in a message raise a `ValueError`; with `sanitize_control_tokens=True` (transformers ≥ 5.23) they become plain text.
        """
        conversation, options = prepare_conversation(conversation)
        if not (_CAN_SANITIZE and kwargs.get("sanitize_control_tokens")):
            check_messages(conversation, self._control_tokens)
        processor_kwargs = dict(kwargs.get("processor_kwargs") or {})
        for name in options:
            if name in {*kwargs, *processor_kwargs, *processor_kwargs.get("videos_kwargs", {})}:
                raise ValueError(f"`{name}` is given as an argument and by the keys of a video item. Give one of them, not both.")
        if options:
            kwargs["processor_kwargs"] = {**processor_kwargs, **options}
        if CONVERTS_COORDINATES in str(self.chat_template if chat_template is None else chat_template):  # not in templates of others
            kwargs[CONVERTS_COORDINATES] = True
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    # Answers

    def post_process_grounding(
        self,
        generated_ids,
        inputs: LlavaSTBatchFeature | None = None,
        media_info: list[list[MediaInfo]] | None = None,
        media: list[list[MediaInfo]] | None = None,
        coordinate_logits: torch.Tensor | None = None,
        **question,
    ) -> list[dict]:
        """
        Parses generated answers into spans and bounding boxes in seconds and pixels.

        Args:
            generated_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Output of `generate`; with `inputs`, the prompt is removed.
            inputs ([`LlavaSTBatchFeature`], *optional*):
                Output of the processor for the questions.
            media_info (`list[list[MediaInfo]]`, *optional*):
                `inputs.media_info`, if `generated_ids` contains answers only. Give either this or `inputs`.
            media (`list[list[MediaInfo]]`, *optional*):
                Former name of `media_info`.
            coordinate_logits (`torch.Tensor` of shape `(batch_size, num_new_tokens, num_coordinates)`, *optional*):
                Output of `generate` with `output_coordinate_scores=True`, for results with refined values, bins and scores.
            question:
                `span`, `start`, `box` of the prompt, as fractions, and `score_calibration`; see `parse_answer`.

        Returns:
            One dictionary per answer: see `parse_answer`.

        Raises:
            ValueError: if the numbers of answers, prompts and entries of `media_info` differ, or `generated_ids` does not start with
            the prompts.
        """
        if media is not None:
            warn_renamed("The argument media", "media_info", stacklevel=3)
            media_info = media
        generated_ids = torch.atleast_2d(torch.as_tensor(generated_ids))
        if inputs is not None:
            prompt = torch.as_tensor(inputs["input_ids"])
            if len(prompt) != len(generated_ids):
                raise ValueError(f"generated_ids has {len(generated_ids)} sequences, but `inputs` has {len(prompt)} prompts.")
            if not torch.equal(generated_ids[:, : prompt.shape[1]].cpu(), prompt.cpu()):
                raise ValueError("generated_ids does not begin with the prompts. For answers only, pass media_info=inputs.media_info.")
            generated_ids, media_info = generated_ids[:, prompt.shape[1] :], inputs.media_info
        if media_info is None or len(media_info) != len(generated_ids):
            number = None if media_info is None else len(media_info)
            raise ValueError(f"media_info must have one entry for each of the {len(generated_ids)} answers, got {number}.")
        if coordinate_logits is not None and len(coordinate_logits) != len(generated_ids):
            raise ValueError(f"coordinate_logits has {len(coordinate_logits)} rows for {len(generated_ids)} answers.")
        results = []
        for number, (ids, sample) in enumerate(zip(generated_ids, media_info, strict=True)):
            scored = None if coordinate_logits is None else score_answer(self, ids, coordinate_logits[number])
            text, bins = self.decode_answer(ids), (self.num_temporal_bins, self.num_spatial_bins)
            results.append(parse_answer(text, sample[-1] if sample else None, *bins, coordinates=scored, **question))
        return results

    def decode_answer(self, ids) -> str:
        """Decodes an answer without added tokens other than coordinates, such as `<|im_end|>`, and without white space at its ends."""
        return self._decode_without_control_tokens(ids).strip()

    def _decode_without_control_tokens(self, ids, **kwargs) -> str:
        coordinates = self._coordinate_ids
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        ids = [i for i in torch.as_tensor(ids).tolist() if i in coordinates or i not in special]
        return self.tokenizer.decode(ids, skip_special_tokens=False, **kwargs)

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens=True, **kwargs):
        """
        Decodes prompts and answers, by default without added tokens other than coordinates.

        White space is kept: pipelines decode the prompt alone and the prompt with its answer, and remove the one from the other.
        """
        if not skip_special_tokens:
            return self.tokenizer.decode(generated_outputs, skip_special_tokens=False, **kwargs)
        return [self._decode_without_control_tokens(ids, **kwargs) for ids in torch.atleast_2d(torch.as_tensor(generated_outputs))]

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, **kwargs):
        """Numbers of placeholder tokens for media of given sizes, (height, width) and (frames, height, width)."""
        data = {}
        if image_sizes is not None:
            data["num_image_tokens"] = [self._num_image_tokens()] * len(image_sizes)
            data["num_image_patches"] = [1] * len(image_sizes)
        if video_sizes is not None:
            data["num_video_tokens"] = [sum(self._num_stream_tokens(frames)) for frames, _, _ in video_sizes]
        return MultiModalData(**data)


__all__ = ["LlavaSTProcessor"]
