# SPDX-License-Identifier: Apache-2.0
"""What the small model of shapes begins with: training/shapes/start.py."""

import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training/shapes"))

import start

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.data.shapes import Event, Scene, Thing
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


def test_attention_begins_by_copying_places_and_reads_the_rest_at_random(stage2):
    model = LlavaSTForConditionalGeneration.from_pretrained(stage2, dtype=torch.float32)
    slow = start.wave_directions()[:, [1, 2, 3, 8, 9, 10]].flatten(0, 1)  # cosines and sines of frequency 1 to 3
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        heads = start.WIDTH // attention.head_dim
        copied = (slow @ attention.v_proj.weight.T) @ attention.o_proj.weight.T
        # Each head adds half of it; the values at random add noise.
        alike = torch.cosine_similarity(copied, slow)
        assert (alike > 0.8).all()
        assert (copied.norm(dim=-1) > 0.4 * heads * slow.norm(dim=-1)).all()
        other = torch.randn(50, start.WIDTH)
        basis = torch.linalg.qr(slow.T)[0]
        other = other - other @ basis @ basis.T
        there_and_back = (other @ attention.v_proj.weight.T) @ attention.o_proj.weight.T
        assert torch.cosine_similarity(there_and_back, other).abs().mean() < 0.3


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
    truth = start.patch_truth(scene, 2.0)  # (patches, 15)
    assert truth.shape == (start.GRID**2, 15)
    here = truth.unflatten(0, (start.GRID, start.GRID))[6, 2]  # its middle is at (20, 52)
    colours = ["", *start.COLOURS]
    deed, now = named
    expected = [2, colours.index("red"), 1, colours.index(now), start.DEEDS.index(deed)]
    assert here[:5].tolist() == expected
    assert torch.allclose(here[5:13] * 96, torch.tensor([20 - 14.0, 52 - 38, 34 - 20, 58 - 52, 14, 38, 34, 58]), atol=0.01)
    assert here[13:].tolist() == list(direction)
    assert not truth[0].any()  # ground
