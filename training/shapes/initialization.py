# SPDX-License-Identifier: Apache-2.0
"""
What projector and decoder of the small model of shapes begin with.

The paper's decoder is Qwen2-7B: it has words, and heads that look things up. Its encoder is SigLIP, whose features were learned together
with texts. Ours are small and fresh, so words and places are given directions, features begin by telling in words what is seen, and
attention begins by looking words up. All of it is trained from there on.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from vision_pretraining import DEEDS, WORDS

import llava_st_hf
from llava_st_hf.checkpoints.conversion import add_coordinate_tokens, add_coordinate_tokens_to_processor
from llava_st_hf.model.coordinates_llava_st import DEFAULT_NUM_BINS
from llava_st_hf.shapes.scenes import COLOURS, SHAPES, SIZES


WIDTH = 160  # of the decoder; its weights begin as large as suits that: those of Qwen2 are 0.02, for thousands
WAVES, COPIED_WAVES = 8, 3  # that coordinate rows are made of, and how many of them attention copies
# Words for what is seen at a patch.
SEEN = (*SHAPES, *COLOURS, *SIZES, "moves", "left", "right", "up", "down", *DEEDS[3:])
# How attention begins. In the first layer words are gathered from around, in so many layers after it they are looked up:
LOOKING = 2
COPYING, GATHERING = 1.0, 8.0  # how much of what is looked at is copied, and how much of what is gathered,
NEARNESS, LIKENESS, PICTURES = 2.2, 1.5, 14.0  # how much it counts to be near, to have words in common, to be of a picture or not,
ELSE = 0.3  # and how much what stands there at random.
# What features begin with, beside their places: words, edges, and being of a picture, more so where a thing is;
TOLD_WORDS, TOLD_SIDES, TOLD_GROUND, TOLD_THING = 1.5, 0.7, 0.32, 1.5
SLOW_STREAM = 0.25  # by how much the slow stream is less of a picture.


# ============================================================ Words and attention


@dataclass(frozen=True)
class Directions:
    """
    What the vectors that the decoder reads are made of, as it begins: directions at right angles, of length √width.

    Args:
        waves: (3 axes, 2 · WAVES - 1, width) of coordinates: cosines of frequency 0 to `WAVES - 1`, then sines from 1 on. Axes are time,
            height and width.
        sides: (4 sides · 2 · COPIED_WAVES, width) of the edges of a thing: of each side cosines, then sines.
        picture: (1, width) of all that is of a picture or video.
        words: (words, width) of `SEEN`.
        others: (rest, width) of all other words.
    """

    waves: torch.Tensor
    sides: torch.Tensor
    picture: torch.Tensor
    words: torch.Tensor
    others: torch.Tensor

    def slow(self, count: int, axes: slice = slice(None)) -> torch.Tensor:
        """(axes · 2 · count, width) waves of frequency 1 to `count`."""
        return self.waves[axes, [*range(1, count + 1), *range(WAVES, WAVES + count)]].flatten(0, 1)


def directions() -> Directions:
    """Always the same: what features tell is what words say."""
    frame = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)))[0] * WIDTH**0.5
    sizes = [3 * (2 * WAVES - 1), 8 * COPIED_WAVES, 1, len(SEEN)]
    waves, *others = frame.split([*sizes, WIDTH - sum(sizes)])
    return Directions(waves.unflatten(0, (3, -1)), *others)


@torch.no_grad()
def init_word_embeddings(model: llava_st_hf.LlavaSTForConditionalGeneration, tokenizer: Qwen2Tokenizer) -> None:
    """Has words for what is seen begin as directions of their own, other words at random; output rows as input rows made small."""
    known = directions()
    rows = model.get_input_embeddings().weight
    rows.copy_(torch.randn(len(rows), len(known.others)) @ known.others * len(known.others) ** -0.5)
    for word, direction in zip(SEEN, known.words, strict=True):
        rows[tokenizer(f" {word}").input_ids] = direction
    model.get_output_embeddings().weight.copy_(rows * WIDTH**-0.5)


@torch.no_grad()
def init_attention_heads(model: llava_st_hf.LlavaSTForConditionalGeneration) -> None:
    """
    Has heads begin with what those of a pretrained decoder do, beside what they read at random.

    In the first layer one gathers the words that stand shortly before and one the places. In the next ones two look for what is seen
    that has these words, at these times: of it one copies the words, the other edges and times; a third copies the places that stand
    shortly before, and a fourth the words of what is at the same place.
    """
    known = directions()
    times, places = known.slow(4, slice(0, 1)), known.slow(COPIED_WAVES)
    words, edges = torch.cat((known.words, times)), torch.cat((known.sides, times))
    # Head → what it matches, None for what stands shortly before, and what it copies.
    first, later = {0: (None, words), 3: (None, places)}, {1: (words, words), 2: (words, edges), 3: (None, places), 4: (places, words)}
    for number, layer in enumerate(model.model.language_model.layers[: 1 + LOOKING]):
        for head, (matched, copied) in (later if number else first).items():
            _make_head(layer.self_attn, head, matched, copied, COPYING if number else GATHERING)
        layer.mlp.down_proj.weight *= ELSE
    packer = model.model.packer
    for part in (packer.spatial, packer.fast, packer.slow):
        part.output_proj.weight *= ELSE
    # Of the two streams of a video, that with every frame is looked at first.
    packer.slow.out_proj.bias.copy_(-SLOW_STREAM * torch.linalg.pinv(packer.slow.output_proj.weight) @ known.picture[0])


def _make_head(attention: Qwen2Attention, head: int, matched: torch.Tensor | None, copied: torch.Tensor, strength: float) -> None:
    """
    Writes a head that looks at tokens of a picture that have directions in common with the one that looks, or where `matched` is None at
    tokens of text that stand shortly before; and that copies what it sees of some directions.

    Args:
        matched, copied: (directions, width)
    """
    size = attention.head_dim
    query, key, value = (part.weight.view(-1, size, WIDTH)[head] for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    query_bias, key_bias = (part.bias.view(-1, size)[head] for part in (attention.q_proj, attention.k_proj))
    query *= ELSE
    key *= ELSE
    # Rotary embeddings turn the first pairs of values much by the distance between two tokens, and the last hardly at all.
    pairs = torch.stack((torch.arange(size // 2), torch.arange(size // 2, size)), dim=1)
    near, likeness, of_picture = pairs[3:7].flatten(), pairs[7:-1].flatten(), pairs[-1]
    if matched is None:
        query_bias[near] = key_bias[near] = NEARNESS
    else:
        mixed = torch.linalg.qr(torch.randn(len(matched), len(likeness)))[0].T @ matched * WIDTH**-0.5  # (values, width)
        query[likeness] = key[likeness] = LIKENESS * mixed
    query[of_picture] = key[of_picture] = 0.0
    query_bias[of_picture[0]] = PICTURES if matched is not None else -PICTURES
    key[of_picture[0]] = directions().picture[0] * WIDTH**-0.5
    value[: len(copied)] = copied * WIDTH**-0.5
    attention.o_proj.weight.view(WIDTH, -1, size)[:, head, : len(copied)] = strength * copied.T * WIDTH**-0.5


@torch.no_grad()
def init_coordinate_embeddings(before: Path, after: Path) -> None:
    """
    Writes the model of stage 1 with coordinate tokens, as stage 2 begins with.

    The paper's rows begin as noise, and 700,000 samples teach them that bin 41 lies between 40 and 42. Here they begin as slow waves
    along their axis, output rows as input rows made small: what a small run would spend most of its time on.
    """
    torch.manual_seed(0)
    model = llava_st_hf.LlavaSTForConditionalGeneration.from_pretrained(before, dtype=torch.float32)
    add_coordinate_tokens(model, DEFAULT_NUM_BINS, DEFAULT_NUM_BINS)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    phases = torch.linspace(0, 1, DEFAULT_NUM_BINS)[:, None] * math.pi * torch.arange(WAVES)  # (bins, waves)
    codes = torch.cat((phases.cos(), phases[:, 1:].sin()), dim=1)
    first = model.config.coordinate_start_token_id
    for axis, waves in enumerate(directions().waves):
        start = first + axis * DEFAULT_NUM_BINS
        rows = codes @ waves
        rows -= rows.mean(0)
        rows /= rows.std()
        inputs[start : start + DEFAULT_NUM_BINS] = rows
        outputs[start : start + DEFAULT_NUM_BINS] = rows * WIDTH**-0.5
    processor = add_coordinate_tokens_to_processor(model, llava_st_hf.LlavaSTProcessor.from_pretrained(before))
    model.save_pretrained(after)
    processor.save_pretrained(after)


# ============================================================ Projector


def told(truth: torch.Tensor) -> torch.Tensor:
    """
    (patches, width) what is at patches as the decoder reads it: the sum of the rows of the words for it, where its four edges are as slow
    waves along directions of their own, and that it is of a picture.

    Args:
        truth: (patches, 15) as `vision_pretraining.patch_truth` gives it.
    """
    known, columns = directions(), dict(zip(WORDS, truth.T.long(), strict=False))
    thing, deed, moves = columns["shape"] > 0, columns["deed"], truth[:, -2:]
    seen = torch.zeros(len(truth), len(SEEN))
    for name, words in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("size", tuple(SIZES)), ("deed", DEEDS[1:])):
        for number, word in enumerate(words, start=1):
            if word in SEEN:  # there is no single word for being hit
                seen[:, SEEN.index(word)] = (columns[name] == number).float()
    for number, colour in enumerate(COLOURS, start=1):
        seen[(deed == DEEDS.index("turns")) & (columns["colour_now"] == number), SEEN.index(colour)] = 1.0
    for axis, words in enumerate((("left", "right"), ("up", "down"))):
        for sign, word in zip((-1, 1), words, strict=True):
            seen[:, SEEN.index(word)] = ((deed == DEEDS.index("moves")) & (sign * moves[:, axis] > 0.7)).float()
    box = truth[:, len(WORDS) + 4 : len(WORDS) + 8]
    phases = box[..., None] * math.pi * torch.arange(1, COPIED_WAVES + 1)  # (patches, sides, waves)
    codes = torch.cat((phases.cos(), phases.sin()), dim=-1).flatten(1) * thing[:, None]
    of_picture = TOLD_GROUND + (TOLD_THING * thing)[:, None]
    return TOLD_WORDS * seen @ known.words + TOLD_SIDES * codes @ known.sides + of_picture * known.picture


def pretrain_projector(
    model: llava_st_hf.LlavaSTForConditionalGeneration, frames: tuple[torch.Tensor, torch.Tensor], steps: int = 1500, batch: int = 1024
) -> float:
    """
    Has the projector begin by telling in the decoder's own words what the encoder sees, as SigLIP has learned to from texts.

    Args:
        frames: as `vision_pretraining.read_frames` gives them.
        steps: each on `batch` patches.

    Returns:
        The share of what should be told that is missing at the end: 0 where all is told, 1 where nothing is.
    """
    projector, (pixels, truth) = model.model.multi_modal_projector, frames
    with torch.no_grad():
        seen = [model.model.vision_tower(part.float() / 127.5 - 1).last_hidden_state for part in pixels.split(64)]
        features = torch.cat(seen).flatten(0, 1)  # (frames · patches, hidden)
        truth = truth.float().flatten(0, 1)
        target = told(truth)
        # Features of the encoder differ a thousandfold in size.
        projector.linear_1.weight /= features.std(0)
        projector.linear_1.bias.copy_(-projector.linear_1.weight @ features.mean(0))
    weight = torch.where(truth[:, :1] > 0, 1.0, 0.3)  # ground is most of a picture
    optimizer = torch.optim.AdamW(projector.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(features), (batch,))
        loss = ((projector(features[chosen]) - target[chosen]).square() * weight[chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return ((projector(features) - target).square().sum() / target.square().sum()).item()
