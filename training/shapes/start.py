# SPDX-License-Identifier: Apache-2.0
"""
What the small model of shapes's stage 1 begins with: a tokenizer of the world's words, random weights, and a vision encoder that has been
taught to see.

    python training/shapes/start.py runs/shapes/data runs/shapes/start

The encoder stands in for SigLIP. The paper's is trained on pictures with captions from the web; ours on frames of the training split
with what is at each patch: shape, colours and size of the thing there, what it does, and where its four edges are. Linear layers read
these from the very features that the projector will read, and are thrown away. From then on the encoder is frozen, as in the paper.
"""

import argparse
import json
import math
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2Tokenizer

import llava_st_hf
from llava_st_hf.configuration_llava_st import SPECIAL_TOKENS
from llava_st_hf.conversion_llava_st import add_coordinate_rows, processor_for
from llava_st_hf.coordinates import DEFAULT_NUM_BINS, INLINE_COORDINATE
from llava_st_hf.data.shapes import COLOURS, KINDS, SHAPES, SIZES, Scene, make_scene, scene_seed
from llava_st_hf.tasks import TASKS
from llava_st_hf.training.muon import MuonAdamW


NUM_FRAMES, IMAGE_SIZE, PATCH_SIZE = 20, 96, 8
SPATIAL_SCALE, TEMPORAL_SCALE, FAST_SCALE = 2, 10, 2
GRID = IMAGE_SIZE // PATCH_SIZE
WIDTH = 160  # of the decoder; its weights begin as large as suits that: those of Qwen2 are 0.02, for thousands
WAVES, COPIED_WAVES = 8, 3  # that coordinate rows are made of, and that attention copies from the first step on
VIDEOS_TO_SEE, FRAMES_PER_VIDEO = 3000, 6
TEXTS = ("stage2_images", "stage2_videos", "stage3_images", "stage3_videos")  # that the tokenizer learns its words from
VOCABULARY = 640  # bytes, pieces of words and words, before the special tokens
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


# ============================================================ Tokenizer


def build_tokenizer(annotations: list[Path]) -> Qwen2Tokenizer:
    """Qwen2's way of cutting text, with pieces learned from the world's questions and answers."""
    texts = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 2000 + [task.prompt for task in TASKS.values()] * 2000
    for path in annotations:
        with path.open(encoding="utf-8") as lines:
            for _, line in zip(range(30000), lines, strict=False):
                row = json.loads(line)
                found = [row.get("text", ""), *(item["text"] for item in row.get("objects", ()))]
                found += [message["content"] for message in row.get("messages", ())]
                texts += [piece for text in found for piece in INLINE_COORDINATE.sub("\0", text).split("\0")]
    texts += [" During {", "}. Object bounding box: ", ":[", "].", "]", "Ends in ", ", "] * 2000
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, VOCABULARY)
    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*chat[1:], *SPECIAL_TOKENS.values()]})
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


# ============================================================ Model


def build_model(tokenizer: Qwen2Tokenizer, seed: int = 0) -> llava_st_hf.LlavaSTForConditionalGeneration:
    """A stage-1 model of 3 million weights: no coordinate tokens yet."""
    torch.manual_seed(seed)
    config = llava_st_hf.LlavaSTConfig(
        use_lape=False,
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "initializer_range": WIDTH**-0.5,
            "intermediate_size": 448,
            "num_hidden_layers": 6,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        packer_hidden_size=128,
        initializer_range=WIDTH**-0.5,
        packer_num_attention_heads=4,
        packer_spatial_scale=SPATIAL_SCALE,
        packer_temporal_scale=TEMPORAL_SCALE,
        packer_fast_scale=FAST_SCALE,
        use_downsample_image=True,
    )
    model = llava_st_hf.LlavaSTForConditionalGeneration(config)
    let_attention_copy_places(model)
    return model


def build_processor(tokenizer: Qwen2Tokenizer) -> llava_st_hf.LlavaSTProcessor:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return llava_st_hf.LlavaSTProcessor(
        image_processor=llava_st_hf.LlavaSTImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=llava_st_hf.LlavaSTVideoProcessor(size=size, num_frames=NUM_FRAMES),
        patch_size=PATCH_SIZE,
        packer_spatial_scale=SPATIAL_SCALE,
        packer_temporal_scale=TEMPORAL_SCALE,
        packer_fast_scale=FAST_SCALE,
        use_downsample_image=True,
    )


# ============================================================ Coordinate rows


def wave_directions() -> torch.Tensor:
    """(3, waves, width) along which the rows of the three axes are written: cosines of frequency 0 to `WAVES - 1`, then sines from 1 on."""
    return torch.randn(3, 2 * WAVES - 1, WIDTH, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def let_attention_copy_places(model: llava_st_hf.LlavaSTForConditionalGeneration, strength: float = 0.5) -> None:
    """
    Has every attention head begin by copying the places of what it looks at, beside what it reads at random.

    A pretrained decoder has heads that copy. Here a place would have to be carried through two layers, from a patch to the word that
    means it and from there to the answer, and neither learns to before the other does. The slowest waves of the three axes take 18 of
    a head's 32 values.
    """
    slow = wave_directions()[:, [*range(1, COPIED_WAVES + 1), *range(WAVES, WAVES + COPIED_WAVES)]].flatten(0, 1)  # (axes · waves, width)
    basis = torch.linalg.qr(slow.T)[0].T  # the same, of length 1 and at right angles
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        for first in range(0, WIDTH, attention.head_dim):
            copied = slice(first, first + len(basis))
            attention.v_proj.weight[copied], attention.v_proj.bias[copied] = basis, 0.0
            attention.o_proj.weight[:, copied] = strength * basis.T


@torch.no_grad()
def give_rows(before: Path, after: Path) -> None:
    """
    Writes the model of stage 1 with coordinate tokens, as stage 2 begins with.

    The paper's rows begin as noise, and 700,000 samples teach them that bin 41 lies between 40 and 42. Here they begin as slow waves
    along their axis, output rows as input rows made small: what a small run would spend most of its time on.
    """
    torch.manual_seed(0)
    model = llava_st_hf.LlavaSTForConditionalGeneration.from_pretrained(before, dtype=torch.float32)
    add_coordinate_rows(model, DEFAULT_NUM_BINS, DEFAULT_NUM_BINS)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    phases = torch.linspace(0, 1, DEFAULT_NUM_BINS)[:, None] * math.pi * torch.arange(WAVES)  # (bins, waves)
    codes = torch.cat((phases.cos(), phases[:, 1:].sin()), dim=1)
    first = model.config.coordinate_start_token_id
    for axis, directions in enumerate(wave_directions()):
        start = first + axis * DEFAULT_NUM_BINS
        rows = codes @ directions
        rows -= rows.mean(0)
        rows /= rows.std()
        inputs[start : start + DEFAULT_NUM_BINS] = rows
        outputs[start : start + DEFAULT_NUM_BINS] = rows * inputs.shape[1] ** -0.5
    processor = processor_for(model, llava_st_hf.LlavaSTProcessor.from_pretrained(before))
    model.save_pretrained(after)
    processor.save_pretrained(after)


# ============================================================ Vision encoder


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
    """All frames that the encoder is trained on, none of easy scenes; or those of the first `count` videos and pictures."""
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


@torch.no_grad()
def fit_projector(model: llava_st_hf.LlavaSTForConditionalGeneration, pixels: torch.Tensor) -> None:
    """Has the projector begin on features of mean 0 and deviation 1: those of the encoder differ a thousandfold in size."""
    features = model.model.vision_tower(pixels.float() / 127.5 - 1).last_hidden_state.flatten(0, 1)  # (frames · patches, hidden)
    linear = model.model.multi_modal_projector.linear_1
    linear.weight /= features.std(0)
    linear.bias.copy_(-linear.weight @ features.mean(0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=re.sub(r"\s+", " ", __doc__.split("\n\n")[0]))
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = build_tokenizer([arguments.data / f"{name}.jsonl" for name in TEXTS])
    processor = build_processor(tokenizer)
    model = build_model(tokenizer, arguments.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(tokenizer)} tokens", flush=True)
    media, weights = arguments.data / "media", arguments.output / "vision_tower.safetensors"
    if not weights.is_file():  # else an earlier run has trained it
        torch.manual_seed(arguments.seed)
        log = train_vision(model, read_frames(media, processor), arguments.steps)
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "vision_log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
        save_file(model.model.vision_tower.state_dict(), weights)
    model.model.vision_tower.load_state_dict(load_file(weights))
    fit_projector(model, read_frames(media, processor, 40)[0])
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
