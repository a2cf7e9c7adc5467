# SPDX-License-Identifier: Apache-2.0
"""What the small model of shapes begins with: training/shapes/start.py, initialization.py and vision_pretraining.py."""

import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training/shapes"))

import initialization
import vision_pretraining

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.shapes.files import write_training_data
from llava_st_hf.shapes.scenes import COLOURS, SHAPES, SIZES, Event, Scene, Thing, make_scene, scene_seed
from modeling_tests.shapes_start import write_stage2


@pytest.fixture(scope="module")
def stage2(tmp_path_factory) -> Path:
    return write_stage2(tmp_path_factory.mktemp("shapes"))


def test_coordinate_rows_begin_in_order(stage2):
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32)
    first, bins = model.config.coordinate_start_token_id, model.config.num_temporal_bins
    for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        for axis in matrix[first : first + 3 * bins].unflatten(0, (3, bins)):
            near, further, far = (torch.cdist(axis, axis).diagonal(bins_apart) for bins_apart in (1, 5, 20))
            assert near.max() < 0.5 * further.min() and further.max() < far.min()


def seen_patches(*things: tuple[str, str, str, str, tuple[float, ...]]) -> torch.Tensor:
    """(things + 1, width) what is told of patches: ground, then of each thing `(shape, colour, size, deed, box)`."""
    truth = torch.zeros(len(things) + 1, 15)
    for row, (shape, colour, size, deed, box) in zip(truth[1:], things, strict=True):
        number = 1 + list(COLOURS).index(colour)
        deed, direction = ("moves", deed.removeprefix("moves ")) if deed.startswith("moves ") else (deed, "")
        row[:5] = torch.tensor([1 + SHAPES.index(shape), number, 1 + list(SIZES).index(size), number, vision_pretraining.DEEDS.index(deed)])
        row[9:13] = torch.tensor(box)
        row[13:] = torch.tensor({"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "": (0, 0)}[direction])
    return initialization.told(truth)


def test_features_begin_with_the_words_for_what_is_seen_and_ground_has_none():
    words = initialization.directions().words
    ground, circle, cross = seen_patches(
        ("circle", "red", "large", "moves up", (0.1, 0.2, 0.5, 0.6)), ("cross", "white", "small", "", (0.7, 0.7, 0.9, 0.9))
    )

    def named(features: torch.Tensor) -> set[str]:
        return {word for word, share in zip(initialization.SEEN, features @ words.T / initialization.WIDTH, strict=True) if share > 0.5}

    assert named(ground) == set()
    assert named(circle) == {"circle", "red", "large", "moves", "up"}
    assert named(cross) == {"cross", "white", "small"}


@pytest.mark.parametrize(
    ("question", "place"),
    [("What is the top edge of the circle?", 1), ("What colour is the cross?", 2), ("When is it that the square grows?", 3)],
)
def test_attention_begins_by_finding_what_words_mean(stage2, question, place):
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32, attn_implementation="eager")
    tokenizer = LlavaSTProcessor.from_pretrained(stage2).tokenizer
    # The world's words as single tokens, as the trained tokenizer has them.
    pieces = question.removesuffix("?").split()
    rows = model.get_input_embeddings().weight
    others = rows[tokenizer("?").input_ids]
    known = initialization.directions().words
    asked = torch.cat([known[[initialization.SEEN.index(word)]] if word in initialization.SEEN else others for word in pieces])
    picture = seen_patches(
        ("circle", "red", "large", "", (0.1, 0.2, 0.5, 0.6)),
        ("cross", "white", "small", "shakes", (0.7, 0.7, 0.9, 0.9)),
        ("square", "white", "large", "grows", (0.5, 0.1, 0.9, 0.4)),
    )
    embeddings = torch.cat((others.expand(10, -1), picture, others.expand(4, -1), asked, others.expand(8, -1)))[None]
    with torch.no_grad():
        attention = model.model.language_model(inputs_embeds=embeddings, output_attentions=True).attentions
    found = attention[1][0, 1:3, -1, 10:14].mean(0)  # of both heads that look for words
    assert found.argmax() == place and found[place] > 0.4, found


def test_attention_begins_by_copying_words_and_edges(stage2):
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32)
    known = initialization.directions()
    attention = model.model.language_model.layers[1].self_attn
    for head, copied in ((1, known.words), (2, known.sides), (3, known.slow(initialization.COPIED_WAVES))):
        part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
        there_and_back = copied @ attention.v_proj.weight[part].T @ attention.o_proj.weight[:, part].T
        assert (torch.cosine_similarity(there_and_back, copied) > 0.8).all()


def test_the_slow_stream_begins_as_less_of_a_picture(stage2):
    packer = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32).model.packer
    picture = initialization.directions().picture[0]
    with torch.no_grad():
        told = packer.slow.output_proj(packer.slow.out_proj.bias) @ picture / initialization.WIDTH
    assert -initialization.SLOW_STREAM < told < -0.6 * initialization.SLOW_STREAM  # output_proj reaches 128 of 160 directions


def test_tokenizer_model_and_processor_fit(stage2):
    processor = LlavaSTProcessor.from_pretrained(stage2)
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32)
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    picture = torch.zeros(3, 60, 80, dtype=torch.uint8)
    message = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]}
    inputs = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.isin(inputs["input_ids"], torch.tensor(processor.image_token_ids)).sum() == 36
    assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize(
    ("event", "named", "direction"),
    [
        (Event(0, "turns", 1, 3, colour="blue"), ("turns", "blue"), (0, 0)),
        (Event(0, "disappears", 1, 3), ("disappears", "red"), (0, 0)),  # its outline stays
        (Event(0, "moves up", 1, 3, dy=-0.001), ("moves", "red"), (0, -1)),
        (Event(1, "hits", 1, 3, dx=-9, other=0), ("is hit", "red"), (0, 0)),
    ],
)
def test_the_encoder_is_told_what_is_at_each_patch(event, named, direction):
    things = (Thing("square", "red", "small", 24, 48, 20), Thing("circle", "green", "large", 72, 48, 32))
    scene = Scene(96, 96, 10, 41, things, (event,), (0.0, 0.0), 0)
    truth = vision_pretraining.patch_truth(scene, 2.0)  # (patches, 15)
    assert truth.shape == (vision_pretraining.GRID**2, 15)
    here = truth.unflatten(0, (vision_pretraining.GRID, vision_pretraining.GRID))[6, 2]  # its middle is at (20, 52)
    colours = ["", *COLOURS]
    deed, now = named
    expected = [2, colours.index("red"), 1, colours.index(now), vision_pretraining.DEEDS.index(deed)]
    assert here[:5].tolist() == expected
    assert torch.allclose(here[5:13] * 96, torch.tensor([20 - 14.0, 52 - 38, 34 - 20, 58 - 52, 14, 38, 34, 58]), atol=0.01)
    assert here[13:].tolist() == list(direction)
    assert not truth[0].any()  # ground


@pytest.fixture(scope="module")
def frames(stage2, tmp_path_factory) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the first video and picture of three."""
    folder = tmp_path_factory.mktemp("frames")
    write_training_data(folder, num_videos=2, num_images=2, num_easy_videos=1, num_easy_images=1, num_frames=vision_pretraining.NUM_FRAMES)
    return vision_pretraining.read_frames(folder / "media", LlavaSTProcessor.from_pretrained(stage2), count=1)


def test_frames_come_with_what_is_at_each_patch(frames):
    pixels, truth = frames
    assert (
        pixels.shape == (vision_pretraining.FRAMES_PER_VIDEO + 1, 3, vision_pretraining.IMAGE_SIZE, vision_pretraining.IMAGE_SIZE)
        and pixels.dtype == torch.uint8
    )
    assert truth.shape == (vision_pretraining.FRAMES_PER_VIDEO + 1, vision_pretraining.GRID**2, 15)
    picture = make_scene(scene_seed("train", 0), is_video=False)
    torch.testing.assert_close(truth[-1].float(), vision_pretraining.patch_truth(picture, 0.0), atol=1e-3, rtol=0)


def test_the_projector_learns_to_tell_what_is_at_a_patch(stage2, frames):
    torch.manual_seed(0)
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32)
    others = {name: weight.clone() for name, weight in model.named_parameters() if "multi_modal_projector" not in name}
    assert initialization.pretrain_projector(model, frames, steps=2, batch=256) > 0.9
    assert initialization.pretrain_projector(model, frames, steps=60, batch=256) < 0.6
    assert all(torch.equal(weight, others[name]) for name, weight in model.named_parameters() if name in others)
