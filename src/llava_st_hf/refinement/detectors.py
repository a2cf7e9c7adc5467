# SPDX-License-Identifier: Apache-2.0
"""Refinement by object detectors with text queries: Grounding DINO, MM Grounding DINO, OWL-ViT, OWLv2, OmDet-Turbo, or a detector of one's
own."""

from collections.abc import Iterator, Sequence

import PIL.Image
import torch

from ..model.checks_llava_st import is_finite_number, is_integer
from ..model.results_llava_st import Box
from .targets import Target
from .tracks import Detections, Linking, choose_track, within_frame


class DetectionRefiner:
    """
    Locates an object by detecting it in every frame and choosing one detection per frame (`choose_track`). Base class: a subclass
    implements `detect`.

    Args:
        text: what to look for, in place of the caption or question: a detector finds "the woman in red" better than "Where does the woman
            in red walk, and when?".
        batch_size: frames per call of `detect`.
        linking: weights of the choice.

    Raises:
        ValueError: for an argument that is not valid.
    """

    def __init__(self, *, text: str | None = None, batch_size: int = 4, linking: Linking | None = None):
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise ValueError(f"text must be a string that is not blank, or None; got {text!r}.")
        if not is_integer(batch_size) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        self.text, self.batch_size, self.linking = text, batch_size, linking or Linking()

    def detect(self, images: Sequence[PIL.Image.Image], text: str) -> list[Detections]:
        """
        Detects objects that fit a description.

        Args:
            images: frames of one size.
            text: description of the object.

        Returns:
            The detections in each frame, in its pixels.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement detect(images, text).")

    def query(self, target: Target) -> str:
        """The text that is looked for; empty if there is none."""
        return target.text if self.text is None else self.text

    def detections(self, target: Target, text: str) -> Iterator[tuple[int, Detections]]:
        """Yields the detections of each frame of a target, in order, while its frames are read."""
        images: list[PIL.Image.Image] = []
        done = 0
        for number, pixels in enumerate(target.read(target.frames), start=1):
            images.append(PIL.Image.fromarray(pixels))
            if len(images) == self.batch_size or number == len(target.frames):
                found = self.detect(images, text)
                if len(found) != len(images):
                    raise ValueError(f"{type(self).__name__}.detect must return one entry per image: {len(images)}, got {len(found)}.")
                yield from zip(target.frames[done:number], found, strict=True)
                images, done = [], number

    def locate(self, target: Target) -> dict[int, Box]:
        """See `Refiner.locate`. Without boxes in the answer, the scores of the detector and the overlap between frames decide."""
        text = self.query(target)
        if not text:
            target.notes.append("Nothing was detected: there is neither a caption nor a text of the question to look for.")
            return {}
        found = {frame: within_frame(one, target.width, target.height) for frame, one in self.detections(target, text)}
        return choose_track(found, target.answer_boxes, self.linking)


class ObjectDetector(DetectionRefiner):
    """
    Locates an object by an object detector of transformers with text queries.

    Args:
        model: of a class of `AutoModelForZeroShotObjectDetection`: Grounding DINO, MM Grounding DINO, OWL-ViT, OWLv2 or OmDet-Turbo.
        processor: its processor.
        threshold: lowest score of a detection, in [0, 1). Low, because the boxes of the answer exclude most false detections.
        text, batch_size, linking: see `DetectionRefiner`.
    """

    def __init__(self, model, processor, *, threshold: float = 0.1, **options):
        super().__init__(**options)
        if not is_finite_number(threshold) or not 0 <= threshold < 1:
            raise ValueError(f"threshold must be a number from 0 to below 1, got {threshold!r}.")
        self.model, self.processor, self.threshold = model.eval(), processor, threshold

    def query(self, target: Target) -> str:
        """The text that is looked for, in the form of a class name: without full stops, which separate class names for Grounding DINO, and
        cut to the number of tokens that the detector reads. A cut adds a note."""
        text = " ".join(super().query(target).replace(".", " ").split())
        tokenizer, limit = self.processor.tokenizer, max_tokens(self.model.config, self.processor.tokenizer)
        if len(tokenizer(text).input_ids) <= limit:
            return text
        ids = tokenizer(text, truncation=True, max_length=limit).input_ids
        cut = tokenizer.decode(ids, skip_special_tokens=True).strip()
        target.notes.append(f"The detector reads {limit} tokens: it looked for {cut!r}.")
        return cut

    @torch.inference_mode()
    def detect(self, images: Sequence[PIL.Image.Image], text: str) -> list[Detections]:
        queries = [[text]] * len(images)
        inputs = self.processor(images=list(images), text=queries, return_tensors="pt").to(self.model.device, self.model.dtype)
        outputs = self.model(**inputs)
        results = self.processor.post_process_grounded_object_detection(
            outputs,
            threshold=self.threshold,
            target_sizes=[(image.height, image.width) for image in images],
            text_labels=queries,
        )
        return [Detections(*(result[name].float().cpu().numpy() for name in ("boxes", "scores"))) for result in results]


def max_tokens(config, tokenizer) -> int:
    """Tokens of a text query that a detector reads, with the special tokens."""
    if config.model_type in ("owlvit", "owlv2"):
        return config.text_config.max_position_embeddings
    if config.model_type in ("grounding-dino", "mm-grounding-dino"):
        return config.max_text_len - 1  # the processor adds a full stop
    return tokenizer.model_max_length


__all__ = ["DetectionRefiner", "ObjectDetector"]
