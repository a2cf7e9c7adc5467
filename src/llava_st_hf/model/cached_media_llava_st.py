# SPDX-License-Identifier: Apache-2.0
"""Processor for several prompts about one image or video that has been processed already."""

from .batch_feature_llava_st import MediaText
from .media_info_llava_st import MediaInfo
from .processing_llava_st import LlavaSTProcessor


class CachedMediaProcessor(LlavaSTProcessor):
    """Processor for conversations about one image or video that has been processed already. It reuses the tokens, opens no file and
    returns no pixel values."""

    medium: MediaText

    @classmethod
    def from_processor(cls, processor: LlavaSTProcessor, media: MediaInfo, tokens: str) -> "CachedMediaProcessor":
        """
        Makes such a processor from the one that processed the image or video.

        Args:
            processor ([`LlavaSTProcessor`]):
                Its tokenizer, chat template and coordinate tokens are used, not copied.
            media ([`MediaInfo`]):
                Metadata that `processor` returned for the image or video.
            tokens (`str`):
                Tokens to write for it: all that `processor` writes, or a single one as a placeholder.
        """
        cached = cls.__new__(cls)
        cached.__dict__.update(processor.__dict__)
        cached.medium = MediaText(tokens, media)
        return cached

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        return images, [text] if isinstance(text, str) else text, videos, audio

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Does nothing: `get_text_with_replacements` refuses a text with more media than there are."""

    def _process_images(self, images, **kwargs):
        return {}, self._once_each(images)

    def _process_videos(self, videos, **kwargs):
        return {}, self._once_each(videos)

    def _once_each(self, media: list) -> list[MediaText]:
        """Returns the tokens once per conversation; media of several conversations are a list of lists."""
        return [self.medium] * (len(media) if isinstance(media[0], list) else 1)
