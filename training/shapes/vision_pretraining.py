# SPDX-License-Identifier: Apache-2.0
"""
Supervised pretraining of the demo model's vision encoder on frames of the Shapes dataset.

LLaVA-ST starts from SigLIP, which was pretrained on images with captions. The demo model's encoder is trained on frames of the training
split with labels for each patch: shape, colours and size of the object there, its action, and its four box edges. Linear layers predict
these labels from the features that the projector reads; they are discarded afterwards, and the encoder is frozen, as in the paper.
"""

import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import llava_st_hf
from llava_st_hf.shapes.scenes import COLOURS, KINDS, SHAPES, SIZES, Scene, make_scene, scene_seed
from llava_st_hf.training.muon import MuonAdamW


NUM_FRAMES, IMAGE_SIZE, PATCH_SIZE = 20, 96, 8
GRID = IMAGE_SIZE // PATCH_SIZE
NUM_TRAINING_VIDEOS, FRAMES_PER_VIDEO = 3000, 6
# Sizes between "small" and "large", as a share of the shorter side: an object has one while it grows. They are a class of their own.
BETWEEN_SIZES = (SIZES["small"][1] + 0.01, SIZES["large"][0] - 0.01)
# Classes of what an object does. The direction of "moves" is predicted separately, as a vector.
ACTIONS = ("", "moves", "is hit", *(kind for kind in KINDS if not kind.startswith("moves")))
# Attribute of a patch → number of classes. Class 0 is the background. "colour" is the object's own colour, "colour_now" the present one.
ATTRIBUTES = {
    "shape": 1 + len(SHAPES),
    "colour": 1 + len(COLOURS),
    "size": 2 + len(SIZES),
    "colour_now": 1 + len(COLOURS),
    "action": len(ACTIONS),
}


# ============================================================ Labels


def patch_labels(scene: Scene, seconds: float) -> torch.Tensor:
    """
    Returns the labels of each patch of one frame.

    Args:
        scene: a scene of the Shapes dataset.
        seconds: the frame's time.

    Returns:
        (GRID², 15), zero for the background. Columns 0–4 are class indices in the order of `ATTRIBUTES` (a size between small and large is
        class 3). Columns 5–8 are the distances from the patch centre to the left, top, right and bottom edge of the object, and columns
        9–12 the positions of these edges, as fractions of the frame. Columns 13–14 are the unit vector `(x, y)` of the object's movement.
    """
    labels = torch.zeros(GRID, GRID, len(ATTRIBUTES) + 10)
    centre = (torch.arange(GRID) + 0.5) / GRID
    for index, thing in enumerate(scene.things):  # later objects are nearer, and cover earlier ones
        state = scene.state(index, seconds)
        if not state.visible and state.deed != "disappears":  # an object that disappears is drawn as an outline
            continue
        x1, y1, x2, y2 = (value / length for value, length in zip(state.box, (scene.width, scene.height) * 2, strict=True))
        share = state.side / min(scene.width, scene.height)
        size = 3 if BETWEEN_SIZES[0] < share < BETWEEN_SIZES[1] else 1 + (share >= BETWEEN_SIZES[1])
        inside = ((centre > y1) & (centre < y2))[:, None] & ((centre > x1) & (centre < x2))[None]  # (rows, columns)
        own, now = (1 + list(COLOURS).index(colour) for colour in (thing.colour, state.colour))
        action = ACTIONS.index("moves" if state.deed.startswith("moves") else state.deed)
        classes = torch.tensor([1 + SHAPES.index(thing.shape), own, size, now, action])
        columns, rows = centre[None].expand(GRID, GRID), centre[:, None].expand(GRID, GRID)
        distances = torch.stack((columns - x1, rows - y1, x2 - columns, y2 - rows), dim=-1)  # (rows, columns, 4)
        box = torch.tensor([x1, y1, x2, y2]).expand(GRID, GRID, 4)
        direction = torch.tensor(state.moves).expand(GRID, GRID, 2)
        of_object = torch.cat((classes.expand(GRID, GRID, len(ATTRIBUTES)), distances, box, direction), dim=-1)
        labels = torch.where(inside[..., None], of_object, labels)
    return labels.flatten(0, 1)  # (GRID², 15)


# ============================================================ Frames


@dataclass(frozen=True)
class FrameLoader:
    """Loads frames of one file of the training split with their labels: `FRAMES_PER_VIDEO` random frames of a video, or an image."""

    processor: llava_st_hf.LlavaSTProcessor

    def __call__(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Returns `(pixels, labels)`: (frames, 3, height, width) from 0 to 255, and (frames, patches, 15) of `patch_labels`."""
        torch.set_num_threads(1)
        number, is_video = int(path.stem.split("-")[1]), path.suffix == ".mp4"
        scene = make_scene(scene_seed("train", number), is_video)
        if is_video:
            videos = self.processor.video_processor([str(path)], return_metadata=True, return_tensors="pt")
            chosen = np.random.default_rng(number).choice(NUM_FRAMES, FRAMES_PER_VIDEO, replace=False)
            pixels = videos["pixel_values_videos"][0][torch.from_numpy(chosen)]
            times = [videos["video_metadata"][0].frames_indices[index] / scene.fps for index in chosen]
        else:
            pixels, times = self.processor.image_processor(str(path), return_tensors="pt")["pixel_values"], [0.0]
        labels = torch.stack([patch_labels(scene, seconds) for seconds in times])
        return ((pixels + 1) * 127.5).round().to(torch.uint8).numpy(), labels.half().numpy()


def load_frames(media: Path, processor: llava_st_hf.LlavaSTProcessor, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Loads the frames that the encoder is trained on. Easy scenes are not among them.

    Args:
        media: folder of videos and images that `write_training_data` wrote.
        processor: gives frames at the model's resolution.
        count: number of videos, and of images; by default `NUM_TRAINING_VIDEOS` videos and all images.

    Returns:
        `(pixels, labels)`: (frames, 3, height, width) from 0 to 255, and (frames, patches, 15) of `patch_labels`.
    """
    paths = [*sorted(media.glob("train-*.mp4"))[: count or NUM_TRAINING_VIDEOS], *sorted(media.glob("train-*.jpg"))[:count]]
    with ProcessPoolExecutor() as pool:
        loaded = list(pool.map(FrameLoader(processor), paths, chunksize=20))
    pixels, labels = (torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*loaded, strict=True))
    return pixels, labels


# ============================================================ Training


def vision_loss(outputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """
    Computes the loss of the linear layers' predictions.

    Args:
        outputs: (patches, sum(ATTRIBUTES.values()) + 10), logits of each attribute, then predictions of columns 5–14 of the labels.
        labels: (patches, 15) of `patch_labels`.

    Returns:
        The loss, and metrics over the patches on an object: the accuracy of each attribute, and the mean absolute error of edges.
    """
    *logits_by_attribute, edges, direction = outputs.split([*ATTRIBUTES.values(), 8, 2], dim=-1)
    loss, accuracies = torch.zeros(()), []
    on_object = labels[:, 0] > 0
    # Most patches are background and easy to classify, so they have a lower weight.
    weight = torch.where(on_object, 1.0, 0.3)
    for column, logits in enumerate(logits_by_attribute):
        target = labels[:, column].long()
        loss = loss + (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
        accuracies.append((logits.argmax(-1) == target)[on_object].float().mean())
    error = (edges - labels[:, len(ATTRIBUTES) : len(ATTRIBUTES) + 8])[on_object].abs()  # (patches on objects, 8)
    # Absolute and not squared errors: small errors matter for the IoU of small objects.
    loss = loss + 20 * error.mean() + 2 * (direction - labels[:, -2:])[on_object].abs().mean()
    metrics = dict(zip(ATTRIBUTES, (value.item() for value in accuracies), strict=True))
    return loss, {**metrics, "edge_error": error.mean().item()}


def train_vision(model, frames: tuple[torch.Tensor, torch.Tensor], steps: int, batch: int = 48, learning_rate: float = 4e-3) -> list[dict]:
    """Trains the vision tower of `model` in place on batches of `frames` (as `load_frames` returns them); returns the log, one dictionary
    for every 50 steps."""
    tower, (pixels, labels) = model.model.vision_tower, frames
    hidden = tower.config.hidden_size
    probe = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, sum(ATTRIBUTES.values()) + 10))
    matrices = [weight for weight in tower.encoder.parameters() if weight.ndim == 2]
    others = [*tower.embeddings.parameters(), *(weight for weight in tower.encoder.parameters() if weight.ndim < 2)]
    groups = [{"params": matrices, "muon": True}, {"params": [*others, *probe.parameters()]}]
    optimizer = MuonAdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    log, start = [], time.monotonic()
    tower.train()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(pixels), (batch,))
        features = tower(pixels[chosen].float() / 127.5 - 1).last_hidden_state  # (batch, patches, hidden)
        loss, metrics = vision_loss(probe(features).flatten(0, 1), labels[chosen].float().flatten(0, 1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*matrices, *others, *probe.parameters()], 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            log.append({"step": step, "loss": loss.item(), **metrics, "seconds": round(time.monotonic() - start, 1)})
            print(json.dumps({name: round(value, 4) for name, value in log[-1].items()}), flush=True)
    tower.eval()
    return log
