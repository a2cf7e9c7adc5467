# SPDX-License-Identifier: Apache-2.0
"""Variants of training/shapes/ablations.py: each changes its component and no other."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training/shapes"))

import ablations

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTModel
from llava_st_hf.data import load_mixture
from llava_st_hf.model.packer_llava_st import LlavaSTWindowPacker
from llava_st_hf.shapes import files as shapes_files
from llava_st_hf.shapes.files import write_training_data
from modeling_tests.shapes_start import write_stage2


@pytest.fixture
def change(monkeypatch):
    """Returns `ablations.change`, which is undone at the end of the test."""
    for owner, name in ((LlavaSTModel, "_add_positions"), (LlavaSTModel, "_trains"), (LlavaSTWindowPacker, "forward")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(LlavaSTForConditionalGeneration, "_loss", LlavaSTForConditionalGeneration._loss)
    return ablations.change


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LlavaSTForConditionalGeneration:
    return LlavaSTForConditionalGeneration.from_pretrained(write_stage2(tmp_path_factory.mktemp("ablations")), dtype=torch.float32)


def pixels_of(model, *shape: int) -> torch.Tensor:
    size = model.config.vision_config.image_size
    return torch.randn(*shape, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_no_lape_makes_image_features_independent_of_coordinate_embeddings(model, change):
    image = pixels_of(model, 1)
    embeddings = model.get_input_embeddings().weight[model.config.coordinate_start_token_id :][:300]

    def depends_on_embeddings() -> bool:
        with torch.no_grad():
            before = model.get_image_features(image).pooler_output
            original = embeddings.clone()
            embeddings.mul_(2)
            after = model.get_image_features(image).pooler_output
            embeddings.copy_(original)
        return not torch.equal(before, after)

    assert depends_on_embeddings()
    for variant in ("average_pooling", "hard_targets", "one_stage"):
        change(variant)
        assert depends_on_embeddings(), variant
    change("no_lape")
    assert not depends_on_embeddings()


def test_average_pooling_averages_windows_to_the_shape_of_the_packer(model, change):
    windows = model.model.packer.fast  # (1, 4, 4)
    grid, hidden = model.config.grid_size, model.config.text_config.hidden_size
    features = torch.randn(2, 3, grid, grid, hidden, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        packed = windows(features)
    change("average_pooling")
    averaged = windows(features)
    assert averaged.shape == packed.shape
    assert not torch.allclose(averaged, packed, atol=1e-3)
    _, height, width = windows.window
    torch.testing.assert_close(averaged[1, 2, 0, 1], features[1, 2, :height, width : 2 * width].mean((0, 1)))


def test_hard_targets_gives_the_loss_of_the_nearest_bin_without_propagation(model, change):
    first = model.config.coordinate_start_token_id
    token = first + 40
    ids = torch.tensor([[5, 6, 7, token]])
    labels = torch.tensor([[-100, -100, -100, token]])
    coordinates = torch.full(ids.shape, float("nan"))
    coordinates[0, 3] = 40.4 / (model.config.num_temporal_bins - 1)  # between two bins

    def loss(positions: torch.Tensor | None) -> float:
        with torch.no_grad():
            return model(input_ids=ids, labels=labels, coordinate_values=positions).loss.item()

    model.train()
    try:
        nearest = loss(None)
        assert loss(coordinates) != pytest.approx(nearest, abs=1e-4)
        change("hard_targets")
        assert loss(coordinates) == pytest.approx(nearest, abs=1e-6)
        assert not model.model._trains()
    finally:
        model.eval()


def test_one_stage_mixture_has_the_number_of_questions_of_all_stages(tmp_path, monkeypatch):
    for write in ("write_video", "write_image"):  # the mixture is made of annotations; it does not read the media
        monkeypatch.setattr(shapes_files, write, lambda scene, path: Path(path).touch())
    write_training_data(tmp_path, num_videos=6, num_images=20, num_easy_videos=10, num_easy_images=20, num_frames=20)
    monkeypatch.setattr(ablations, "PARTS", {"stage2_words": 2, "stage2_edges": 1, "stage3": 1})
    steps = ablations.write_joint_mixture(tmp_path, tmp_path / "joint.yaml")
    questions = {}
    for row in load_mixture(tmp_path / "joint.yaml"):
        questions.setdefault(row["task"], []).append(row)
    # 8 of the 20 images of stage2_words with 10 questions each, and 4 of the 10 images and 10 videos of stage2_edges, 2 of them images
    # with 4 such questions and 8 about edges.
    assert len(questions["vqa"]) == 8 * 10 + 2 * 4
    assert len(questions["edge"]) == 2 * 8
    asked = {Path(row["messages"][0]["content"][0]["path"]).name for row in questions["middle"]}
    assert sum(name.startswith("easy-") for name in asked) == 2
    assert {"rec", "reg", "dgc"} <= set(questions)
    assert steps == 3  # one epoch in batches of 4: these images and videos with all their questions, and 4 of stage 3
    entries = yaml.safe_load((tmp_path / "joint.yaml").read_text())["datasets"]
    assert len(entries) == len({entry["json_path"] for entry in entries})


def test_print_table_and_print_errors_give_mean_and_deviation_over_seeds(tmp_path, capsys):
    for seed, value in enumerate((0.2, 0.4)):
        run = tmp_path / f"ablations/no_lape-{seed}"
        (run / "stage2_edges").mkdir(parents=True)
        scale = dict.fromkeys(ablations.measure.PERCENT_METRICS, 100)
        metrics = {task: {key: value * scale.get(key, 1)} for task, key in ablations.METRICS.items()}
        (run / "metrics.json").write_text(json.dumps(metrics))
        history = [{"step": step, "time_bin_error": step / 10 + seed} for step in range(18, 181, 18)]
        (run / "stage2_edges/trainer_state.json").write_text(json.dumps({"log_history": [*history, {"step": 180}]}))
    ablations.print_table(tmp_path)
    ablations.print_errors(tmp_path, "time_bin_error")
    printed = capsys.readouterr().out
    assert "| no_lape | 2 | " + " | ".join(["0.300 ± 0.141"] * 6) + " |" in printed
    assert "| full | 0 |" in printed
    assert "| step 36 | step 72 | step 108 | step 144 | step 180 |" in printed
    assert "| no_lape | 4.1 ± 0.7 | 7.7 ± 0.7 | 11.3 ± 0.7 | 14.9 ± 0.7 | 18.5 ± 0.7 |" in printed
