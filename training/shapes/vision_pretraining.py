# SPDX-License-Identifier: Apache-2.0
"""
The vision encoder of the small model of shapes, which stands in for SigLIP.

The paper's is trained on pictures with captions from the web; ours on frames of the training split with what is at each patch: shape,
colours and size of the thing there, what it does, and where its four edges are. Linear layers read these from the very features that the
projector will read, and are thrown away. From then on the encoder is frozen, as in the paper.
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
VIDEOS_TO_SEE, FRAMES_PER_VIDEO = 3000, 6
# A size between the two words, as a thing has while it grows: the encoder learns it as a third.
BETWEEN_SIZES = (SIZES["small"][1] + 0.01, SIZES["large"][0] - 0.01)
# What a thing does; directions of a movement are told apart by two numbers.
DEEDS = ("", "moves", "is hit", *(kind for kind in KINDS if not kind.startswith("moves")))
# What a patch is told apart by: ground or one of the shapes, of a thing's own colours, of the sizes with the one between, of the colours
# that it has now, and of what it does.
WORDS = {
    "shape": 1 + len(SHAPES),
    "colour": 1 + len(COLOURS),
    "size": 2 + len(SIZES),
    "colour_now": 1 + len(COLOURS),
    "deed": len(DEEDS),
}


def patch_truth(scene: Scene, moment: float) -> torch.Tensor:
    """(patches, 15) at each patch of a frame: numbers of the five words in `WORDS` (0 for ground; a size between small and large is the
    third); how far the left, top, right and bottom edge of the thing there are from the patch's middle, and where they are, as shares of
    the frame; and `(x, y)` of the direction that it moves in."""
    truth = torch.zeros(GRID, GRID, len(WORDS) + 10)
    middle = (torch.arange(GRID) + 0.5) / GRID
    for number, thing in enumerate(scene.things):  # later ones are nearer, and cover earlier ones
        state = scene.state(number, moment)
        if not state.visible and state.deed != "disappears":  # what disappears leaves its outline
            continue
        x1, y1, x2, y2 = (value / length for value, length in zip(state.box, (scene.width, scene.height) * 2, strict=True))
        share = state.side / min(scene.width, scene.height)
        size = 3 if BETWEEN_SIZES[0] < share < BETWEEN_SIZES[1] else 1 + (share >= BETWEEN_SIZES[1])
        inside = ((middle > y1) & (middle < y2))[:, None] & ((middle > x1) & (middle < x2))[None]  # (rows, columns)
        own, now = (1 + list(COLOURS).index(colour) for colour in (thing.colour, state.colour))
        deed = DEEDS.index("moves" if state.deed.startswith("moves") else state.deed)
        words = torch.tensor([1 + SHAPES.index(thing.shape), own, size, now, deed])
        columns, rows = middle[None].expand(GRID, GRID), middle[:, None].expand(GRID, GRID)
        edges = torch.stack((columns - x1, rows - y1, x2 - columns, y2 - rows), dim=-1)  # (rows, columns, 4)
        box = torch.tensor([x1, y1, x2, y2]).expand(GRID, GRID, 4)
        moves = torch.tensor(state.moves).expand(GRID, GRID, 2)
        found = torch.cat((words.expand(GRID, GRID, len(WORDS)), edges, box, moves), dim=-1)
        truth = torch.where(inside[..., None], found, truth)
    return truth.flatten(0, 1)


@dataclass(frozen=True)
class FrameReader:
    """Reads frames of one file of the training split, as the processor gives them, with their truth: from a video some, from a picture
    the one."""

    processor: llava_st_hf.LlavaSTProcessor

    def __call__(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """`(frames, 3, height, width)` pixels from 0 to 255, and `(frames, patches, 15)` as `patch_truth` gives it."""
        torch.set_num_threads(1)
        number, is_video = int(path.stem.split("-")[1]), path.suffix == ".mp4"
        scene = make_scene(scene_seed("train", number), is_video)
        if is_video:
            videos = self.processor.video_processor([str(path)], return_metadata=True, return_tensors="pt")
            chosen = np.random.default_rng(number).choice(NUM_FRAMES, FRAMES_PER_VIDEO, replace=False)
            pixels = videos["pixel_values_videos"][0][torch.from_numpy(chosen)]
            moments = [videos["video_metadata"][0].frames_indices[place] / scene.fps for place in chosen]
        else:
            pixels, moments = self.processor.image_processor(str(path), return_tensors="pt")["pixel_values"], [0.0]
        truth = torch.stack([patch_truth(scene, moment) for moment in moments])
        return ((pixels + 1) * 127.5).round().to(torch.uint8).numpy(), truth.half().numpy()


def read_frames(media: Path, processor: llava_st_hf.LlavaSTProcessor, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """All frames that the encoder is trained on, none of easy scenes; or those of the first `count` videos and of as many pictures.
    Returns (frames, 3, height, width) pixels from 0 to 255, and (frames, patches, 15) as `patch_truth` gives it."""
    paths = [*sorted(media.glob("train-*.mp4"))[: count or VIDEOS_TO_SEE], *sorted(media.glob("train-*.jpg"))[:count]]
    with ProcessPoolExecutor() as pool:
        read = list(pool.map(FrameReader(processor), paths, chunksize=20))
    pixels, truth = (torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*read, strict=True))
    return pixels, truth


def vision_loss(readings: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """
    Args:
        readings: (patches, sum(WORDS.values()) + 10), what the linear layers read.
        truth: (patches, 15) as `patch_truth` gives it.
    """
    *words, edges, moves = readings.split([*WORDS.values(), 8, 2], dim=-1)
    loss, right = torch.zeros(()), []
    thing = truth[:, 0] > 0
    # Ground is most of a picture, and soon seen.
    weight = torch.where(thing, 1.0, 0.3)
    for column, logits in enumerate(words):
        target = truth[:, column].long()
        loss = loss + (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
        right.append((logits.argmax(-1) == target)[thing].float().mean())
    error = (edges - truth[:, len(WORDS) : len(WORDS) + 8])[thing].abs()  # (patches of things, 8)
    # A small error matters as much as a large one does for an IoU: no squares.
    loss = loss + 20 * error.mean() + 2 * (moves - truth[:, -2:])[thing].abs().mean()
    return loss, {**dict(zip(WORDS, (value.item() for value in right), strict=True)), "edge_error": error.mean().item()}


def train_vision(model, frames: tuple[torch.Tensor, torch.Tensor], steps: int, batch: int = 48, learning_rate: float = 4e-3) -> list[dict]:
    """Trains the vision tower in place; returns the log."""
    tower, (pixels, truth) = model.model.vision_tower, frames
    hidden = tower.config.hidden_size
    reader = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, sum(WORDS.values()) + 10))
    matrices = [weight for weight in tower.encoder.parameters() if weight.ndim == 2]
    others = [*tower.embeddings.parameters(), *(weight for weight in tower.encoder.parameters() if weight.ndim < 2)]
    groups = [{"params": matrices, "muon": True}, {"params": [*others, *reader.parameters()]}]
    optimizer = MuonAdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    log, start = [], time.monotonic()
    tower.train()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(pixels), (batch,))
        features = tower(pixels[chosen].float() / 127.5 - 1).last_hidden_state  # (frames, patches, hidden)
        loss, seen = vision_loss(reader(features).flatten(0, 1), truth[chosen].float().flatten(0, 1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*matrices, *others, *reader.parameters()], 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            log.append({"step": step, "loss": loss.item(), **seen, "seconds": round(time.monotonic() - start, 1)})
            print(json.dumps({name: round(value, 4) for name, value in log[-1].items()}), flush=True)
    tower.eval()
    return log
