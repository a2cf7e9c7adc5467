# SPDX-License-Identifier: Apache-2.0
"""Conversations about a medium that is at hand already, as model inputs: many questions, one decoding."""

from .batch_feature_llava_st import MediaText
from .grounding_llava_st import MediaInfo
from .processing_llava_st import LlavaSTProcessor


class CachedMediaProcessor(LlavaSTProcessor):
    """A processor for conversations about one medium that was processed before: it opens no file, and gives no pixels."""

    medium: MediaText

    @classmethod
    def after(cls, processor: LlavaSTProcessor, media: MediaInfo, tokens: str) -> "CachedMediaProcessor":
        """
        Args:
            processor: whose tokenizer, template and coordinates are to be used.
            media: what it said of the medium.
            tokens: to be written for the medium: all that the processor writes, or one where the rest is at hand already.
        """
        known = cls.__new__(cls)
        known.__dict__.update(processor.__dict__)  # parts are shared: nothing is loaded or copied
        known.medium = MediaText(tokens, media)
        return known

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        return images, [text] if isinstance(text, str) else text, videos, audio

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Media are as many as were counted before; `get_text_with_replacements` refuses a text that names more."""

    def _process_images(self, images, **kwargs):
        return {}, self._once_each(images)

    def _process_videos(self, videos, **kwargs):
        return {}, self._once_each(videos)

    def _once_each(self, media: list) -> list[MediaText]:
        """The medium once for each conversation; those of several come as a list of lists."""
        return [self.medium] * (len(media) if isinstance(media[0], list) else 1)
