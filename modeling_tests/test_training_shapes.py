# SPDX-License-Identifier: Apache-2.0
"""Programs of training/shapes/: initialization of the demo model, and the comparison of two models."""

import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training/shapes"))

import initialization
import vision_pretraining
from compare import compare

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.evaluation import GroundingResult, Prediction
from llava_st_hf.evaluation.predictions import append_predictions
from llava_st_hf.model.grounding_llava_st import MediaInfo
from llava_st_hf.shapes.files import write_training_data
from llava_st_hf.shapes.scenes import COLOURS, SHAPES, SIZES, Event, Scene, Thing, make_scene, scene_seed
from modeling_tests.shapes_start import write_stage2


@pytest.fixture(scope="module")
def stage2(tmp_path_factory) -> Path:
    return write_stage2(tmp_path_factory.mktemp("shapes"))


def test_init_coordinate_embeddings_gives_similar_embeddings_to_near_bins(stage2):
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32)
    first, bins = model.config.coordinate_start_token_id, model.config.num_temporal_bins
    for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        for axis in matrix[first : first + 3 * bins].unflatten(0, (3, bins)):
            apart_1, apart_5, apart_20 = (torch.cdist(axis, axis).diagonal(bins) for bins in (1, 5, 20))
            assert apart_1.max() < 0.5 * apart_5.min() and apart_5.max() < apart_20.min()


def targets_of(*objects: tuple[str, str, str, str, tuple[float, ...]]) -> torch.Tensor:
    """(objects + 1, width) projector targets of a background patch and of a patch on each object `(shape, colour, size, action, box)`."""
    labels = torch.zeros(len(objects) + 1, 15)
    for row, (shape, colour, size, action, box) in zip(labels[1:], objects, strict=True):
        number = 1 + list(COLOURS).index(colour)
        action, direction = ("moves", action.removeprefix("moves ")) if action.startswith("moves ") else (action, "")
        index = vision_pretraining.ACTIONS.index(action)
        row[:5] = torch.tensor([1 + SHAPES.index(shape), number, 1 + list(SIZES).index(size), number, index])
        row[9:13] = torch.tensor(box)
        row[13:] = torch.tensor({"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "": (0, 0)}[direction])
    return initialization.projector_targets(labels)


def test_projector_targets_contain_the_words_of_objects_and_none_for_background():
    words = initialization.directions().words
    background, circle, cross = targets_of(
        ("circle", "red", "large", "moves up", (0.1, 0.2, 0.5, 0.6)), ("cross", "white", "small", "", (0.7, 0.7, 0.9, 0.9))
    )

    def words_in(features: torch.Tensor) -> set[str]:
        scores = features @ words.T / initialization.WIDTH
        return {word for word, score in zip(initialization.OBJECT_WORDS, scores, strict=True) if score > 0.5}

    assert words_in(background) == set()
    assert words_in(circle) == {"circle", "red", "large", "moves", "up"}
    assert words_in(cross) == {"cross", "white", "small"}


@pytest.mark.parametrize(
    ("question", "patch"),
    [("What is the top edge of the circle?", 1), ("What colour is the cross?", 2), ("When is it that the square grows?", 3)],
)
def test_init_attention_heads_attend_to_the_object_that_the_question_names(stage2, question, patch):
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32, attn_implementation="eager")
    tokenizer = LlavaSTProcessor.from_pretrained(stage2).tokenizer
    # One token per word, as in the trained tokenizer.
    question_words = question.removesuffix("?").split()
    others = model.get_input_embeddings().weight[tokenizer("?").input_ids]
    directions = dict(zip(initialization.OBJECT_WORDS, initialization.directions().words.split(1), strict=True))
    asked = torch.cat([directions.get(word, others) for word in question_words])
    image = targets_of(
        ("circle", "red", "large", "", (0.1, 0.2, 0.5, 0.6)),
        ("cross", "white", "small", "shakes", (0.7, 0.7, 0.9, 0.9)),
        ("square", "white", "large", "grows", (0.5, 0.1, 0.9, 0.4)),
    )
    embeddings = torch.cat((others.expand(10, -1), image, others.expand(4, -1), asked, others.expand(8, -1)))[None]
    with torch.no_grad():
        attention = model.model.language_model(inputs_embeds=embeddings, output_attentions=True).attentions
    weights = attention[1][0, 1:3, -1, 10:14].mean(0)  # (4 patches), mean of the two heads that match words
    assert weights.argmax() == patch and weights[patch] > 0.4, weights


def test_init_attention_heads_copy_words_edges_and_coordinates(stage2):
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32)
    basis = initialization.directions()
    attention = model.model.language_model.layers[1].self_attn
    for head, copied in ((1, basis.words), (2, basis.edges), (3, basis.low_frequencies(initialization.NUM_COPIED_FREQUENCIES))):
        part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
        output = copied @ attention.v_proj.weight[part].T @ attention.o_proj.weight[:, part].T
        assert (torch.cosine_similarity(output, copied) > 0.8).all()


def test_init_attention_heads_offset_the_slow_stream_along_the_is_image_direction(stage2):
    packer = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32).model.packer
    is_image = initialization.directions().is_image[0]
    with torch.no_grad():
        offset = packer.slow.output_proj(packer.slow.out_proj.bias) @ is_image / initialization.WIDTH
    # Not exactly: output_proj has rank 128, and there are 160 directions.
    assert -initialization.SLOW_STREAM_OFFSET < offset < -0.6 * initialization.SLOW_STREAM_OFFSET


def test_start_model_and_processor_agree_on_vocabulary_and_visual_tokens(stage2):
    processor = LlavaSTProcessor.from_pretrained(stage2)
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32)
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "?"}]}
    inputs = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.isin(inputs["input_ids"], torch.tensor(processor.image_token_ids)).sum() == 36
    assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize(
    ("event", "expected", "direction"),
    [
        (Event(0, "turns", 1, 3, colour="blue"), ("turns", "blue"), (0, 0)),
        (Event(0, "disappears", 1, 3), ("disappears", "red"), (0, 0)),  # it is drawn as an outline
        (Event(0, "moves up", 1, 3, dy=-0.001), ("moves", "red"), (0, -1)),
        (Event(1, "hits", 1, 3, dx=-9, other=0), ("is hit", "red"), (0, 0)),
    ],
)
def test_patch_labels_of_an_event_have_action_colour_edges_and_direction(event, expected, direction):
    things = (Thing("square", "red", "small", 24, 48, 20), Thing("circle", "green", "large", 72, 48, 32))
    scene = Scene(96, 96, 10, 41, things, (event,), (0.0, 0.0), 0)
    labels = vision_pretraining.patch_labels(scene, 2.0)
    assert labels.shape == (vision_pretraining.GRID**2, 15)
    label = labels.unflatten(0, (vision_pretraining.GRID, vision_pretraining.GRID))[6, 2]  # of the patch centred at (20, 52)
    colours = ["", *COLOURS]
    action, colour_now = expected
    classes = [2, colours.index("red"), 1, colours.index(colour_now), vision_pretraining.ACTIONS.index(action)]
    assert label[:5].tolist() == classes
    assert torch.allclose(label[5:13] * 96, torch.tensor([20 - 14.0, 52 - 38, 34 - 20, 58 - 52, 14, 38, 34, 58]), atol=0.01)
    assert label[13:].tolist() == list(direction)
    assert not labels[0].any()  # background


@pytest.fixture(scope="module")
def frames(stage2, tmp_path_factory) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames and labels of the first video and the first image of a small training split."""
    folder = tmp_path_factory.mktemp("frames")
    write_training_data(folder, num_videos=2, num_images=2, num_easy_videos=1, num_easy_images=1, num_frames=vision_pretraining.NUM_FRAMES)
    return vision_pretraining.load_frames(folder / "media", LlavaSTProcessor.from_pretrained(stage2), count=1)


def test_load_frames_returns_pixels_with_the_labels_of_the_same_scene(frames):
    pixels, labels = frames
    count, size = vision_pretraining.FRAMES_PER_VIDEO + 1, vision_pretraining.IMAGE_SIZE
    assert pixels.shape == (count, 3, size, size) and pixels.dtype == torch.uint8
    assert labels.shape == (count, vision_pretraining.GRID**2, 15)
    image = make_scene(scene_seed("train", 0), is_video=False)
    torch.testing.assert_close(labels[-1].float(), vision_pretraining.patch_labels(image, 0.0), atol=1e-3, rtol=0)


def test_pretrain_projector_reduces_the_error_and_changes_no_other_weight(stage2, frames):
    torch.manual_seed(0)
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32)
    others = {name: weight.clone() for name, weight in model.named_parameters() if "multi_modal_projector" not in name}
    assert initialization.pretrain_projector(model, frames, steps=2, batch=256) > 0.9
    assert initialization.pretrain_projector(model, frames, steps=60, batch=256) < 0.6
    assert all(torch.equal(weight, others[name]) for name, weight in model.named_parameters() if name in others)


def test_compare_prints_paired_differences_of_the_metrics(tmp_path):
    film = MediaInfo("video", 100, 100, fps=10.0, last_frame=10).to_dict()
    for folder, ends in (("before", (0.5, 0.5)), ("after", (1.0, 0.5))):
        (tmp_path / folder).mkdir()
        rows = [
            Prediction(id=f"q{number}", benchmark="b", task="tvg", prompt="", media=film, truth=GroundingResult(span=(0.0, 1.0)),
                       answer="", prediction=GroundingResult(span=(0.0, end)), num_frames=20)
            for number, end in enumerate(ends)
        ]  # fmt: skip
        order = rows if folder == "before" else rows[::-1]  # predictions are paired by id
        append_predictions(tmp_path / folder / "predictions.jsonl", order)
    [(name, values)] = compare("tvg", tmp_path / "before", tmp_path / "after").items()
    assert name == "miou" and values == (0.5, 0.75, 0.0, 0.5, 2)
    (tmp_path / "after/predictions.jsonl").unlink()
    append_predictions(tmp_path / "after/predictions.jsonl", order[:1])
    with pytest.raises(ValueError, match=r"different questions \(2 and 1\)"):
        compare("tvg", tmp_path / "before", tmp_path / "after")
