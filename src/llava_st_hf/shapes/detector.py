# SPDX-License-Identifier: Apache-2.0
"""Object detector for the Shapes dataset: segmentation by colour, and comparison with the four shapes. It sees pixels only, and makes
errors: faded copies of an object, occluded objects and objects that change their colour."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from ..refinement.detectors import DetectionRefiner
from ..refinement.masks import encode_mask, mask_box
from ..refinement.tracks import Detections
from .scenes import COLOURS, SHAPES, SIZES, shape_mask


# Largest distances in RGB between the pixels of a detection and the colour: each gives its own detections. Shades, noise and compression
# change colours by up to the last one, and the faded copies behind a moving object are often nearer.
_COLOUR_DISTANCES = (35.0, 50.0, 70.0)
_MIN_PIXELS = 12  # of a detection
_OTHER_SIZE = 0.5  # factor of the score of an object whose size is not the one asked for
_SIZE_LIMIT = (SIZES["small"][1] + SIZES["large"][0]) / 2


class ShapeDetector(DetectionRefiner):
    """
    Detects the coloured shapes of the Shapes dataset that fit a text such as "the large red circle", with masks.

    The first noun phrase of a text counts: "the red circle hits the blue square" looks for a red circle. `score` is the IoU of the
    segmented pixels with the shape in their box, halved for an object of the other size.

    Args:
        text, batch_size, linking: see `DetectionRefiner`.
    """

    def detect(self, images: Sequence[PIL.Image.Image], text: str) -> list[Detections]:
        colour, shape, size = described_object(text)
        pixels = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images])  # (num_images, height, width, 3)
        palette = np.array(list(COLOURS.values()), np.float32)  # (num_colours, 3)
        distances = np.linalg.norm(pixels[:, None] - palette[None, :, None, None], axis=-1)  # (num_images, num_colours, height, width)
        nearest = distances.argmin(axis=1)
        wanted = [number for number, name in enumerate(COLOURS) if colour in (None, name)]
        within = [(number, limit) for number in wanted for limit in _COLOUR_DISTANCES]
        masks = np.stack([(nearest == number) & (distances[:, number] < limit) for number, limit in within], axis=1)
        labels = connected_regions(torch.from_numpy(masks)).numpy()  # (num_images, num_masks, height, width)
        return [self._of_image(regions, shape, size) for regions in labels]

    def _of_image(self, regions: np.ndarray, shape: str | None, size: str | None) -> Detections:
        boxes, scores, masks = [], [], []
        for plane in regions:  # of one colour and distance
            for label, count in zip(*np.unique(plane[plane > 0], return_counts=True), strict=True):
                mask = plane == label
                box = mask_box(mask)
                if count < _MIN_PIXELS or box is None:
                    continue
                fit = max(_iou(mask, shape_mask(name, box, mask.shape)) for name in SHAPES if shape in (None, name))
                side = max(box[2] - box[0], box[3] - box[1]) / min(mask.shape)
                is_size = size is None or (side > _SIZE_LIMIT) == (size == "large")
                boxes.append(box)
                scores.append(fit * (1.0 if is_size else _OTHER_SIZE))
                masks.append(encode_mask(mask))
        return Detections(np.array(boxes), np.array(scores), tuple(masks))


def described_object(text: str) -> tuple[str | None, str | None, str | None]:
    """Colour, shape and size of the first noun phrase of a text; None for what it does not name."""
    found: dict[str, str | None] = dict.fromkeys(("colour", "shape", "size"))
    for word in "".join(letter if letter.isalpha() else " " for letter in text.lower()).split():
        for name, words in (("colour", COLOURS), ("size", SIZES), ("shape", SHAPES)):
            if word in words:
                found[name] = word
        if word in (*SHAPES, "object"):
            break
    return found["colour"], found["shape"], found["size"]


def connected_regions(masks: torch.Tensor) -> torch.Tensor:
    """
    Numbers the connected regions of masks, with diagonal neighbours.

    Args:
        masks: (batch_size, channels, height, width) booleans; the channels are independent.

    Returns:
        int64 of the same shape: 0 outside, a different positive number in each region of a mask inside.
    """
    inside = masks.float()
    height, width = masks.shape[-2:]
    labels = torch.arange(1, height * width + 1, dtype=torch.float32).reshape(height, width) * inside
    while True:
        spread = F.max_pool2d(labels, 3, stride=1, padding=1) * inside
        if torch.equal(spread, labels):
            return labels.long()
        labels = spread


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 0.0


__all__ = ["ShapeDetector"]
