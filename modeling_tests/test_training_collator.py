# SPDX-License-Identifier: Apache-2.0
"""`LlavaSTDataCollator`: padding, labels of both schemes, exact coordinates, and samples that cannot be used."""

import pytest
import torch

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.training import LlavaSTDataCollator, LlavaSTTrainingConfig, make_labels
from modeling_tests.corpora import mixed_rows, row, write_media
from modeling_tests.media import write_cut
from modeling_tests.one_training import make_trainer
from modeling_tests.processors import tiny_processor
from modeling_tests.reference import ORIGINAL_CHECKPOINT, case_inputs, cases, config_overrides, expected, strided


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return mixed_rows(write_media(tmp_path_factory.mktemp("media")), 6)


def learned_text(processor, labels: torch.Tensor) -> str:
    return processor.tokenizer.decode(labels[labels != -100])


def test_collator_mixed_batch_is_padded_on_the_right(processor, rows):
    batch = LlavaSTDataCollator(processor)(rows)
    assert batch["pixel_values"].shape == (2, 3, 126, 126)
    assert batch["pixel_values_videos"].shape == (2, 10, 3, 126, 126)
    assert batch["tasks"] == ["tvg", "rec", "conversation"] * 2
    assert batch["skipped"] == []
    for name in ("input_ids", "labels", "attention_mask", "coordinate_values"):
        assert batch[name].shape == batch["input_ids"].shape
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["attention_mask"].diff(dim=1) <= 0).all()
    assert (batch["labels"][padding] == -100).all()
    assert batch["coordinate_values"][padding].isnan().all()


def test_collator_batch_rows_equal_single_samples(processor, rows):
    collate = LlavaSTDataCollator(processor)
    batch = collate(rows)
    for number, sample in enumerate(rows):
        alone, length = collate([sample]), int(batch["attention_mask"][number].sum())
        for name in ("input_ids", "labels", "coordinate_values"):
            if name in alone:
                torch.testing.assert_close(batch[name][number, :length], alone[name][0], equal_nan=True)


def test_collator_loss_covers_only_assistant_replies_and_their_end_token(processor, rows):
    batch = LlavaSTDataCollator(processor)([rows[2], rows[1]])
    assert learned_text(processor, batch["labels"][0]) == "Something." * 3 + "<|im_end|>"
    answer = learned_text(processor, batch["labels"][1])
    assert answer == "[<WIDTH-008><HEIGHT-025><WIDTH-016><HEIGHT-077>]<|im_end|>"
    positions = batch["coordinate_values"][1][batch["labels"][1] != -100]
    torch.testing.assert_close(positions[1:5], torch.tensor([1 / 12, 0.25, 1 / 6, 0.7777]))


def test_collator_loss_on_original_adds_headers_and_the_marks_of_all_turns(processor, rows):
    batch = LlavaSTDataCollator(processor, loss_on="original")([rows[2]])
    turns = ["<|im_start|>\n<|im_end|>\n"] * 2 + ["<|im_start|>assistant\nSomething.Something.Something.<|im_end|>\n"]
    assert learned_text(processor, batch["labels"][0]) == "".join(turns)


def test_collator_loss_covers_all_assistant_turns(processor):
    sample = row(0, "text", None, "One?", "First.", "conversation")
    sample["messages"] += row(0, "text", None, "Two?", "Second.", "conversation")["messages"]
    batch = LlavaSTDataCollator(processor)([sample])
    assert learned_text(processor, batch["labels"][0]) == "First.<|im_end|>Second.<|im_end|>"


def test_collator_pixel_dtype_bfloat16_casts_pixels_only(processor, rows):
    batch = LlavaSTDataCollator(processor, pixel_dtype=torch.bfloat16)(rows[:2])
    exact = LlavaSTDataCollator(processor)(rows[:2])
    assert batch["pixel_values_videos"].dtype == batch["pixel_values"].dtype == torch.bfloat16
    assert batch["coordinate_values"].dtype == torch.float32
    torch.testing.assert_close(batch["pixel_values"], exact["pixel_values"].bfloat16())


BROKEN = {
    "a file that is not there": (lambda media: row(7, "video", media["video"] + ".gone", "When?", "{<t0.1><t0.2>}", "tvg"), "gone"),
    "an empty file": (lambda media: row(7, "video", media["empty"], "When?", "{<t0.1><t0.2>}", "tvg"), "empty.mp4"),
    "a reversed span": (lambda media: row(7, "video", media["video"], "When?", "{<t0.9><t0.2>}", "tvg"), "ends before"),
    "a box outside": (lambda media: row(7, "image", media["image"], "Where?", "[<w1.5><h0><w1.7><h1>]", "rec"), "<w1.5>"),
    "no answer": (lambda media: {**(r := row(7, "text", None, "Hm?", "x", "chat")), "messages": r["messages"][:1]}, "no assistant message"),
}


@pytest.mark.parametrize("make, message", BROKEN.values(), ids=BROKEN)
def test_collator_unusable_sample_raises_or_is_skipped_and_reported(processor, tmp_path, make, message):
    media = write_media(tmp_path)
    (tmp_path / "empty.mp4").touch()
    broken = make({**media, "empty": str(tmp_path / "empty.mp4")})
    good = mixed_rows(media, 3)
    with pytest.raises(ValueError, match="Sample '7' of made") as caught:
        LlavaSTDataCollator(processor)([good[0], broken])
    assert message in str(caught.value)
    batch = LlavaSTDataCollator(processor, on_error="skip")([good[0], broken, good[2]])
    assert batch["tasks"] == ["tvg", "conversation"]
    assert len(batch["skipped"]) == 1 and message in batch["skipped"][0]


def test_collator_truncated_video_raises_unless_allow_truncated(processor, tmp_path):
    cut = row(7, "video", str(write_cut(tmp_path / "cut.mkv")), "When?", "{<t0.1><t0.2>}", "tvg")
    group = {"conversations": [cut["messages"]] * 2, "ids": ["7", "8"], "tasks": ["tvg"] * 2, "source": "made"}
    for sample in (cut, group):
        with pytest.raises(ValueError, match=r"'7'.*cut short"):
            LlavaSTDataCollator(processor)([sample])
        batch = LlavaSTDataCollator(processor, processor_kwargs={"allow_truncated": True})([sample])
        assert not batch["skipped"] and len(batch["pixel_values_videos"]) == 1


def test_trainer_passes_video_backend_and_allow_truncated_to_the_collator(tmp_path):
    assert make_trainer(tmp_path / "default").data_collator.processor_kwargs == {"video_backend": "pyav", "allow_truncated": False}
    trainer = make_trainer(tmp_path / "given", video_backend="decord", allow_truncated=True)
    assert trainer.data_collator.processor_kwargs == {"video_backend": "decord", "allow_truncated": True}
    with pytest.raises(ValueError, match="video_backend must be one of"):
        LlavaSTTrainingConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, video_backend="opencv")


def test_collator_batch_of_unusable_samples_has_no_tokens_in_the_loss(processor):
    batch = LlavaSTDataCollator(processor, on_error="skip")([row(1, "video", "gone.mp4", "When?", "now", "tvg")])
    assert (batch["labels"] == -100).all() and len(batch["skipped"]) == 1
    assert batch["input_ids"].shape == (1, 2)


def test_collator_sample_longer_than_max_length_raises(processor, rows):
    length = LlavaSTDataCollator(processor)(rows[:1])["input_ids"].shape[1]
    assert LlavaSTDataCollator(processor, max_length=length)(rows[:1])["input_ids"].shape == (1, length)
    with pytest.raises(ValueError, match=rf"it has {length} tokens, more than max_length={length - 1}"):
        LlavaSTDataCollator(processor, max_length=length - 1)(rows[:1])


@pytest.mark.parametrize(
    "kinds", [("text",), ("image",), ("video",), ("video", "image", "text"), ()], ids=lambda kinds: "+".join(kinds) or "broken"
)
def test_collator_blank_media_adds_masked_media_of_each_missing_kind(processor, rows, kinds):
    """Includes a batch in which no sample can be used."""
    samples = [sample for sample in rows if sample["modality"] in kinds] or [row(1, "video", "gone.mp4", "When?", "now", "tvg")]
    plain, filled = (LlavaSTDataCollator(processor, on_error="skip", blank_media=blank)(samples) for blank in (False, True))
    assert not {"image_mask", "video_mask"} & plain.keys()
    for kind, name, shape in (("image", "pixel_values", (1, 3, 126, 126)), ("video", "pixel_values_videos", (1, 1, 3, 126, 126))):
        if kind in kinds:
            assert torch.equal(filled[name], plain[name]) and f"{kind}_mask" not in filled
        else:
            assert filled[name].shape == shape and not filled[name].any() and filled[f"{kind}_mask"].tolist() == [False]
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(filled[name], plain[name])


def test_trainer_with_several_processes_sets_blank_media(tmp_path, monkeypatch):
    assert not make_trainer(tmp_path / "one").data_collator.blank_media
    monkeypatch.setattr(LlavaSTTrainingConfig, "world_size", 2)
    assert make_trainer(tmp_path / "two").data_collator.blank_media


@pytest.mark.parametrize("option, message", [({"on_error": "ignore"}, "ignore"), ({"loss_on": "all"}, "all")])
def test_collator_unknown_setting_raises_at_construction(processor, option, message):
    with pytest.raises(ValueError, match=message):
        LlavaSTDataCollator(processor, **option)


@pytest.mark.parametrize("case", cases("training"), ids=lambda case: case["key"])
def test_collator_batch_gives_ids_labels_loss_and_gradients_of_the_original_code(case, tmp_path, monkeypatch):
    media = write_media(tmp_path)
    (human, gpt) = (turn["value"] for turn in case["conversations"])
    question = human.removeprefix("<video>\n").removeprefix("<image>\n")
    sample = row(0, case["modality"], media[case["modality"]], question, gpt, "any")
    processor = LlavaSTProcessor.from_pretrained(ORIGINAL_CHECKPOINT)
    model = LlavaSTForConditionalGeneration.from_pretrained(ORIGINAL_CHECKPOINT, **config_overrides()).train()
    model.model.vision_tower.requires_grad_(False)
    batch = LlavaSTDataCollator(processor, loss_on="original")([sample])

    key, config = case["key"], model.config
    recorded = case_inputs(case, config)
    labels = expected()[f"{key}.labels"].long()
    torch.testing.assert_close(batch["labels"][0] == -100, labels == -100)
    ordinary = recorded["coordinate_values"][0].isnan()  # where the reference has a placeholder, our ids have the nearest bin
    torch.testing.assert_close(batch["input_ids"][0][ordinary], recorded["input_ids"][0][ordinary])
    torch.testing.assert_close(batch["labels"][0][ordinary], labels[ordinary])
    positions = batch.get("coordinate_values", torch.full(ordinary.shape, float("nan"))[None])
    torch.testing.assert_close(positions, recorded["coordinate_values"], equal_nan=True)

    for name in ("pixel_values", "pixel_values_videos"):
        if name in batch:
            batch[name] = recorded[name]
    del batch["tasks"], batch["skipped"]
    loss = model(**batch).loss
    torch.testing.assert_close(loss, torch.tensor(case["loss"]), atol=1e-5, rtol=0)
    loss.backward()
    vocabulary = config.coordinates
    for use, weight in (("input", model.get_input_embeddings().weight), ("output", model.lm_head.weight)):
        rows = weight.grad[vocabulary.start_token_id : vocabulary.end_token_id].split(vocabulary.sizes())
        for axis, gradient in zip(("temporal", "spatial_height", "spatial_width"), rows, strict=True):
            want = expected()[f"{key}.grad.{axis}_{use}_embeddings_stride11"]
            assert (strided(gradient) - want).norm() <= 1e-4 * want.norm(), (axis, use)


def test_make_labels_single_sequence_keeps_its_shape(processor):
    ids = torch.tensor([3, 4, 5])
    assert make_labels(ids, torch.tensor([0, 1, 0]), processor.tokenizer).tolist() == [-100, 4, -100]
