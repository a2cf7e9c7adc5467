# SPDX-License-Identifier: Apache-2.0
"""
Hand-designed initialization of the demo model's embeddings, projector and attention heads.

LLaVA-ST starts from pretrained parts: Qwen2-7B has word embeddings and attention heads that match and copy tokens, and SigLIP's features
were trained together with text. The demo model has 3 million weights and no pretrained parts. So words, box edges and coordinates get
orthogonal directions in embedding space, the projector is pretrained to output the directions of what is at a patch, and some attention
heads are initialized to match and copy these directions. All of it is trained afterwards.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from vision_pretraining import ACTIONS, ATTRIBUTES

import llava_st_hf
from llava_st_hf.checkpoints.conversion import add_coordinate_tokens, add_coordinate_tokens_to_processor
from llava_st_hf.model.coordinates_llava_st import DEFAULT_NUM_BINS
from llava_st_hf.shapes.scenes import COLOURS, SHAPES, SIZES


WIDTH = 160  # hidden size of the decoder. Weights have a standard deviation of 1/√WIDTH; the 0.02 of Qwen2 suits thousands of dimensions.
# Coordinate embeddings are sums of cosines and sines of the position, of frequency 0 to NUM_FREQUENCIES - 1. Attention heads copy the
# frequencies 1 to NUM_COPIED_FREQUENCIES.
NUM_FREQUENCIES, NUM_COPIED_FREQUENCIES = 8, 3
# Words for the attributes of an object.
OBJECT_WORDS = (*SHAPES, *COLOURS, *SIZES, "moves", "left", "right", "up", "down", *ACTIONS[3:])
# Attention: the first layer gathers the words of the preceding tokens, and the next MATCHING_LAYERS layers match them with visual tokens.
MATCHING_LAYERS = 2
COPY_SCALE, GATHER_SCALE = 1.0, 8.0  # output scale of the copying heads, and of the gathering heads
PROXIMITY_BIAS, MATCH_SCALE, IMAGE_BIAS = 2.2, 1.5, 14.0  # of queries and keys: near tokens, common words, visual or text tokens
RANDOM_SCALE = 0.3  # factor on the randomly initialized part of the heads and on the outputs of MLPs and packers
# Scales of the projector's target: word embeddings, box edges, the is-image direction, and more of the last on objects.
TARGET_WORD_SCALE, TARGET_EDGE_SCALE, TARGET_IMAGE_SCALE, TARGET_OBJECT_SCALE = 1.5, 0.7, 0.32, 1.5
SLOW_STREAM_OFFSET = 0.25  # subtracted from the slow stream along the is-image direction


# ============================================================ Directions


@dataclass(frozen=True)
class Directions:
    """
    Orthogonal directions of length √WIDTH in the embedding space.

    Args:
        coordinates: (3 axes, 2 · NUM_FREQUENCIES - 1, WIDTH): cosines of frequency 0 to `NUM_FREQUENCIES - 1`, then sines from 1 on. The
            axes are time, height and width.
        edges: (4 edges · 2 · NUM_COPIED_FREQUENCIES, WIDTH) for the edges of an object's box: for each edge cosines, then sines.
        is_image: (1, WIDTH) of all visual tokens.
        words: (words, WIDTH) of `OBJECT_WORDS`.
        others: (rest, WIDTH) of all other words.
    """

    coordinates: torch.Tensor
    edges: torch.Tensor
    is_image: torch.Tensor
    words: torch.Tensor
    others: torch.Tensor

    def low_frequencies(self, count: int, axes: slice = slice(None)) -> torch.Tensor:
        """Returns the (axes · 2 · count, WIDTH) coordinate directions of frequency 1 to `count`."""
        frequencies = [*range(1, count + 1), *range(NUM_FREQUENCIES, NUM_FREQUENCIES + count)]
        return self.coordinates[axes, frequencies].flatten(0, 1)


def directions() -> Directions:
    """Returns the same directions on every call, so that projector, embeddings and attention heads fit together."""
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)))[0] * WIDTH**0.5
    sizes = [3 * (2 * NUM_FREQUENCIES - 1), 8 * NUM_COPIED_FREQUENCIES, 1, len(OBJECT_WORDS)]
    coordinates, *others = basis.split([*sizes, WIDTH - sum(sizes)])
    return Directions(coordinates.unflatten(0, (3, -1)), *others)


# ============================================================ Word embeddings and attention


@torch.no_grad()
def init_word_embeddings(model: llava_st_hf.LlavaSTForConditionalGeneration, tokenizer: Qwen2Tokenizer) -> None:
    """Initializes the embeddings: each of `OBJECT_WORDS` to its direction, other tokens to random mixtures of `Directions.others`. Output
    embeddings are input embeddings / √WIDTH."""
    basis = directions()
    embeddings = model.get_input_embeddings().weight
    embeddings.copy_(torch.randn(len(embeddings), len(basis.others)) @ basis.others * len(basis.others) ** -0.5)
    for word, direction in zip(OBJECT_WORDS, basis.words, strict=True):
        embeddings[tokenizer(f" {word}").input_ids] = direction
    model.get_output_embeddings().weight.copy_(embeddings * WIDTH**-0.5)


@torch.no_grad()
def init_attention_heads(model: llava_st_hf.LlavaSTForConditionalGeneration) -> None:
    """
    Initializes attention heads of the first layers to gather, match and copy directions; scales down the rest of these layers.

    First layer: head 0 gathers words and head 3 coordinates of the preceding text tokens. Next `MATCHING_LAYERS` layers: heads 1 and 2
    attend to visual tokens with the same words and times and copy their words, and their edges and times; head 3 copies the coordinates
    of the preceding tokens; head 4 attends to visual tokens at the same coordinates and copies their words.
    """
    basis = directions()
    times, coordinates = basis.low_frequencies(4, slice(0, 1)), basis.low_frequencies(NUM_COPIED_FREQUENCIES)
    words, edges = torch.cat((basis.words, times)), torch.cat((basis.edges, times))
    # Head → directions that it matches (None: it attends to the preceding tokens), and directions that it copies.
    first = {0: (None, words), 3: (None, coordinates)}
    later = {1: (words, words), 2: (words, edges), 3: (None, coordinates), 4: (coordinates, words)}
    for index, layer in enumerate(model.model.language_model.layers[: 1 + MATCHING_LAYERS]):
        for head, (matched, copied) in (later if index else first).items():
            _init_head(layer.self_attn, head, matched, copied, COPY_SCALE if index else GATHER_SCALE)
        layer.mlp.down_proj.weight *= RANDOM_SCALE
    packer = model.model.packer
    for part in (packer.spatial, packer.fast, packer.slow):
        part.output_proj.weight *= RANDOM_SCALE
    # The heads match the is-image direction, so this makes them attend to the fast stream, which has every frame, before the slow one.
    packer.slow.out_proj.bias.copy_(-SLOW_STREAM_OFFSET * torch.linalg.pinv(packer.slow.output_proj.weight) @ basis.is_image[0])


def _init_head(attention: Qwen2Attention, head: int, matched: torch.Tensor | None, copied: torch.Tensor, scale: float) -> None:
    """
    Initializes one attention head in place.

    Args:
        attention: the layer's attention.
        head: index of the head.
        matched: (directions, WIDTH); the head attends to visual tokens that share these directions with the query token. `None`: it
            attends to the text tokens shortly before.
        copied: (directions, WIDTH) that the head copies from the tokens it attends to.
        scale: of the copy.
    """
    size = attention.head_dim
    query, key, value = (part.weight.view(-1, size, WIDTH)[head] for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    query_bias, key_bias = (part.bias.view(-1, size)[head] for part in (attention.q_proj, attention.k_proj))
    query *= RANDOM_SCALE
    key *= RANDOM_SCALE
    # Rotary embeddings rotate the first pairs of dimensions fast with the distance between two tokens, and the last ones hardly at all:
    # the former can measure proximity, the latter content.
    pairs = torch.stack((torch.arange(size // 2), torch.arange(size // 2, size)), dim=1)  # (size / 2, 2)
    proximity, content, visual = pairs[3:7].flatten(), pairs[7:-1].flatten(), pairs[-1]
    if matched is None:
        query_bias[proximity] = key_bias[proximity] = PROXIMITY_BIAS
    else:
        mixed = torch.linalg.qr(torch.randn(len(matched), len(content)))[0].T @ matched * WIDTH**-0.5  # (content dimensions, WIDTH)
        query[content] = key[content] = MATCH_SCALE * mixed
    query[visual] = key[visual] = 0.0
    query_bias[visual[0]] = IMAGE_BIAS if matched is not None else -IMAGE_BIAS
    key[visual[0]] = directions().is_image[0] * WIDTH**-0.5
    value[: len(copied)] = copied * WIDTH**-0.5
    attention.o_proj.weight.view(WIDTH, -1, size)[:, head, : len(copied)] = scale * copied.T * WIDTH**-0.5


# ============================================================ Coordinate embeddings


@torch.no_grad()
def init_coordinate_embeddings(before: Path, after: Path) -> None:
    """
    Adds the coordinate tokens to the model of stage 1 in the folder `before`, and writes the model of stage 2 to `after`.

    In the paper, coordinate embeddings are initialized with noise, and 700,000 samples teach the model that bin 41 lies between 40 and 42.
    Here they are sums of low-frequency cosines and sines of the position, so that neighbouring bins have similar embeddings from the
    start; output embeddings are input embeddings / √WIDTH.
    """
    torch.manual_seed(0)
    model = llava_st_hf.LlavaSTForConditionalGeneration.from_pretrained(before, dtype=torch.float32)
    add_coordinate_tokens(model, DEFAULT_NUM_BINS, DEFAULT_NUM_BINS)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    phases = torch.linspace(0, 1, DEFAULT_NUM_BINS)[:, None] * math.pi * torch.arange(NUM_FREQUENCIES)  # (bins, frequencies)
    codes = torch.cat((phases.cos(), phases[:, 1:].sin()), dim=1)  # (bins, 2 · frequencies - 1)
    first = model.config.coordinate_start_token_id
    for axis, axis_directions in enumerate(directions().coordinates):
        start = first + axis * DEFAULT_NUM_BINS
        embeddings = codes @ axis_directions  # (bins, WIDTH)
        embeddings -= embeddings.mean(0)
        embeddings /= embeddings.std()
        inputs[start : start + DEFAULT_NUM_BINS] = embeddings
        outputs[start : start + DEFAULT_NUM_BINS] = embeddings * WIDTH**-0.5
    processor = add_coordinate_tokens_to_processor(model, llava_st_hf.LlavaSTProcessor.from_pretrained(before))
    model.save_pretrained(after)
    processor.save_pretrained(after)


# ============================================================ Projector


def projector_targets(labels: torch.Tensor) -> torch.Tensor:
    """
    Returns the target features of projector pretraining: for each patch the sum of the word embeddings of the object there, its box edges
    as cosines and sines along the edge directions, and the is-image direction.

    Args:
        labels: (patches, 15) of `vision_pretraining.patch_labels`.

    Returns:
        (patches, WIDTH)
    """
    basis, columns = directions(), dict(zip(ATTRIBUTES, labels.T.long(), strict=False))
    on_object, action, direction = columns["shape"] > 0, columns["action"], labels[:, -2:]
    has_word = torch.zeros(len(labels), len(OBJECT_WORDS))
    for name, words in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("size", tuple(SIZES)), ("action", ACTIONS[1:])):
        for index, word in enumerate(words, start=1):
            if word in OBJECT_WORDS:  # "is hit" is two words
                has_word[:, OBJECT_WORDS.index(word)] = (columns[name] == index).float()
    for index, colour in enumerate(COLOURS, start=1):
        has_word[(action == ACTIONS.index("turns")) & (columns["colour_now"] == index), OBJECT_WORDS.index(colour)] = 1.0
    for axis, words in enumerate((("left", "right"), ("up", "down"))):
        for sign, word in zip((-1, 1), words, strict=True):
            has_word[:, OBJECT_WORDS.index(word)] = ((action == ACTIONS.index("moves")) & (sign * direction[:, axis] > 0.7)).float()
    box = labels[:, len(ATTRIBUTES) + 4 : len(ATTRIBUTES) + 8]  # (patches, 4)
    phases = box[..., None] * math.pi * torch.arange(1, NUM_COPIED_FREQUENCIES + 1)  # (patches, 4, frequencies)
    codes = torch.cat((phases.cos(), phases.sin()), dim=-1).flatten(1) * on_object[:, None]
    image_scale = TARGET_IMAGE_SCALE + (TARGET_OBJECT_SCALE * on_object)[:, None]
    return TARGET_WORD_SCALE * has_word @ basis.words + TARGET_EDGE_SCALE * codes @ basis.edges + image_scale * basis.is_image


def pretrain_projector(
    model: llava_st_hf.LlavaSTForConditionalGeneration, frames: tuple[torch.Tensor, torch.Tensor], steps: int = 1500, batch: int = 1024
) -> float:
    """
    Trains the projector in place to output `projector_targets` for the features of the vision encoder.

    Args:
        model: its vision tower is trained already (`vision_pretraining.train_vision`).
        frames: `(pixels, labels)` of `vision_pretraining.load_frames`.
        steps: number of steps.
        batch: patches in each step.

    Returns:
        The remaining squared error as a share of the squared target: 0 for a perfect projector, 1 for one that outputs zeros.
    """
    projector, (pixels, labels) = model.model.multi_modal_projector, frames
    with torch.no_grad():
        encoded = [model.model.vision_tower(part.float() / 127.5 - 1).last_hidden_state for part in pixels.split(64)]
        features = torch.cat(encoded).flatten(0, 1)  # (frames · patches, hidden)
        labels = labels.float().flatten(0, 1)
        target = projector_targets(labels)  # (frames · patches, WIDTH)
        # The scales of the encoder's features differ by a factor of a thousand: normalize them in the first layer.
        projector.linear_1.weight /= features.std(0)
        projector.linear_1.bias.copy_(-projector.linear_1.weight @ features.mean(0))
    weight = torch.where(labels[:, :1] > 0, 1.0, 0.3)  # most patches are background
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
