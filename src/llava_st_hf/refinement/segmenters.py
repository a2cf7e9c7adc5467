# SPDX-License-Identifier: Apache-2.0
"""Refinement by video segmentation models: SAM 2, EdgeTAM and the SAM 3 tracker from boxes of the answer, SAM 3 from its text."""

from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import torch

from ..model.checks_llava_st import is_integer
from ..model.results_llava_st import Box
from .detectors import DetectionRefiner
from .masks import encode_mask, mask_box
from .targets import Target
from .tracks import Detections, Linking, pairwise_iou


# Frames that are read again in reverse order are held in blocks of this many bytes; a single frame may exceed it.
REVERSED_BYTES = 64 * 2**20
_OBJECT = 1  # id of the only object of a session


class VideoSegmenter:
    """
    Follows an object from boxes of the answer, forwards and backwards, by a video segmentation model of transformers; boxes are those
    around its masks. Their scores are the model's probability that the object is visible.

    Args:
        model: `Sam2VideoModel`, `EdgeTamVideoModel` or `Sam3TrackerVideoModel`.
        processor: its processor, `Sam2VideoProcessor` or `Sam3TrackerVideoProcessor`.
        prompts: number of boxes of the answer that the model starts from: 1 for the one with the highest score, or the middle one where
            boxes have no scores; more for one in each of that many equal parts of the answer, which corrects the model where it drifts.
        min_agreement: masks whose IoU with the box of the answer is below this are of another object: the track is lost in these frames.

    Raises:
        ValueError: for an argument that is not valid.
    """

    def __init__(self, model, processor, *, prompts: int = 1, min_agreement: float = 0.3):
        if not is_integer(prompts) or prompts < 1:
            raise ValueError(f"prompts must be a whole number of at least 1, got {prompts!r}.")
        self.model, self.processor, self.prompts = model.eval(), processor, prompts
        self.linking = Linking(min_agreement=min_agreement)

    def locate(self, target: Target) -> dict[int, Box]:
        """See `Refiner.locate`. An answer without boxes is not refined, which adds a note."""
        start, prompts = choose_prompts(target.answer_boxes, self.prompts)
        if start is None:
            target.notes.append("No object was followed: the answer has no box to start from.")
            return {}
        place = list(target.frames).index(start)
        found = dict(self._follow(target, target.frames[place:], prompts, target.read(target.frames[place:])))
        if place:
            backwards = list(target.frames[place::-1])
            found |= dict(self._follow(target, backwards, prompts, read_reversed(target, backwards)))
        return {frame: found[frame] for frame in sorted(found) if self._agrees(found[frame], target.answer_boxes.get(frame))}

    def _agrees(self, box: Box, answer: Box | None) -> bool:
        if answer is None:
            return True
        return bool(pairwise_iou(np.array([box.xyxy]), np.array([answer.xyxy]))[0, 0] >= self.linking.min_agreement)

    @torch.inference_mode()
    def _follow(
        self, target: Target, frames: Sequence[int], prompts: dict[int, Box], pixels: Iterator[np.ndarray]
    ) -> Iterator[tuple[int, Box]]:
        """Yields `(frame, box)` where the object is visible, in the given order of frames, which begin at a prompt. A session's time is
        the order in which it is given frames, so that backwards is another video."""
        session = new_session(self.model, self.processor)
        size = (target.height, target.width)
        for time, (frame, image) in enumerate(zip(frames, pixels, strict=True)):
            if frame in prompts:
                self.processor.add_inputs_to_inference_session(
                    inference_session=session,
                    frame_idx=time,
                    obj_ids=_OBJECT,
                    input_boxes=[[list(prompts[frame].clipped(target.width, target.height).xyxy)]],
                    original_size=size,
                )
            output = self.model(inference_session=session, frame=session_frame(self.model, self.processor, image), frame_idx=time)
            forget(session, self.model.config, time)
            visible = output.object_score_logits.flatten()[0].float()
            if visible <= 0:
                continue
            (masks,) = self.processor.post_process_masks([output.pred_masks.float()], original_sizes=[size])  # (1, 1, height, width)
            mask = masks.flatten(0, -3)[0].cpu().numpy()
            if (box := mask_box(mask)) is not None:
                yield frame, Box(*box, frame=frame, score=round(float(visible.sigmoid()), 4), mask=encode_mask(mask))


class TextSegmenter(DetectionRefiner):
    """
    Locates an object by a video segmentation model of transformers with text prompts: it segments and follows all objects that fit the
    text, and those that agree with the answer are chosen (`choose_track`).

    Args:
        model: `Sam3VideoModel`.
        processor: `Sam3VideoProcessor`.
        text, linking: see `DetectionRefiner`. SAM 3 reads short noun phrases of up to 32 tokens.
    """

    def __init__(self, model, processor, *, text: str | None = None, linking: Linking | None = None):
        super().__init__(text=text, linking=linking)
        self.model, self.processor = model.eval(), processor

    @torch.inference_mode()
    def detections(self, target: Target, text: str) -> Iterator[tuple[int, Detections]]:
        session = new_session(self.model, self.processor)
        self.processor.add_text_prompt(inference_session=session, text=self._cut(text, target))
        size = [target.height, target.width]
        for time, (frame, image) in enumerate(zip(target.frames, target.read(target.frames), strict=True)):
            output = self.model(inference_session=session, frame=session_frame(self.model, self.processor, image), frame_idx=time)
            forget(session, self.model.config.tracker_config, time)
            found = self.processor.postprocess_outputs(session, output, original_sizes=[size])
            masks = found["masks"].cpu().numpy()  # (objects, height, width)
            boxes = [mask_box(mask) for mask in masks]
            seen = [place for place, box in enumerate(boxes) if box is not None]
            scores = found["scores"].float().cpu().numpy()[seen]
            yield frame, Detections(np.array([boxes[place] for place in seen]), scores, tuple(encode_mask(masks[place]) for place in seen))

    def _cut(self, text: str, target: Target) -> str:
        tokenizer, limit = self.processor.tokenizer, self.model.config.detector_config.text_config.max_position_embeddings
        if len(tokenizer(text).input_ids) <= limit:
            return text
        cut = tokenizer.decode(tokenizer(text, truncation=True, max_length=limit).input_ids, skip_special_tokens=True).strip()
        target.notes.append(f"The segmenter reads {limit} tokens: it looked for {cut!r}.")
        return cut


def new_session(model, processor):
    """An inference session to which frames are given one by one."""
    return processor.init_video_session(inference_device=model.device, dtype=model.dtype)


def session_frame(model, processor, pixels: np.ndarray) -> torch.Tensor:
    """(3, height, width) input of the model for a frame (height, width, 3) uint8."""
    inputs = processor(images=PIL.Image.fromarray(pixels), return_tensors="pt")
    return inputs["pixel_values"][0].to(model.device, model.dtype)


def forget(session, config, time: int) -> None:
    """Deletes what later frames do not use, so that memory does not grow with the video: pixels of the frame, and features of frames before
    those that the memory attention reads. Outputs of frames with prompts are kept."""
    session.processed_frames[time] = torch.empty(0)  # not deleted: SAM 3 counts the frames
    oldest = time - max(config.num_maskmem, config.max_object_pointers_in_encoder)
    for outputs in session.output_dict_per_obj.values():
        tracked = outputs["non_cond_frame_outputs"]
        for past in [past for past in tracked if past <= oldest]:
            del tracked[past]


def choose_prompts(answer_boxes: dict[int, Box], count: int) -> tuple[int | None, dict[int, Box]]:
    """
    Chooses the boxes of an answer that a segmenter starts from.

    Args:
        answer_boxes: `{frame: box}`. Interpolated ones are only used if there are no others.
        count: number of boxes, at least 1; fewer if the answer has fewer.

    Returns:
        `(start, prompts)`: the frame of the box with the highest score (the middle one without scores), and `{frame: box}` with it, one
        from each of `count` equal parts.
    """
    own = {frame: box for frame, box in answer_boxes.items() if not box.interpolated} or answer_boxes
    frames = sorted(frame for frame, box in own.items() if box.area > 0)
    if not frames:
        return None, {}
    parts = [part.tolist() for part in np.array_split(frames, min(count, len(frames)))]
    best = [max(part, key=lambda frame: (_score(own[frame]), -abs(part.index(frame) - (len(part) - 1) / 2))) for part in parts]
    middle = (len(best) - 1) / 2
    start = max(best, key=lambda frame: (_score(own[frame]), -abs(best.index(frame) - middle)))
    return start, {frame: own[frame] for frame in best}


def _score(box: Box) -> float:
    return -1.0 if box.score is None else box.score


def read_reversed(target: Target, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields frames, given as descending indices, in blocks that are read forwards."""
    step = max(1, REVERSED_BYTES // (3 * target.width * target.height))
    for first in range(0, len(frames), step):
        yield from reversed(list(target.read(frames[first : first + step][::-1])))


__all__ = ["TextSegmenter", "VideoSegmenter"]
