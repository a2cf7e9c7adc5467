# SPDX-License-Identifier: Apache-2.0
"""Prefix sharing: conversations about one image or video in one sequence give the losses, gradients and metrics of separate ones."""

import json
import shutil
from itertools import count
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import ModelConfig

from llava_st_hf import LlavaSTVideoProcessor
from llava_st_hf.data import pack_by_video
from llava_st_hf.launch import sft
from llava_st_hf.model.batch_feature_llava_st import PADDING, SHARED
from llava_st_hf.training import (
    LlavaSTDataCollator,
    LlavaSTTrainer,
    LlavaSTTrainingConfig,
    prepare_model_for_training,
)
from llava_st_hf.training.prefix_packing import block_mask, packed_attention_mask
from modeling_tests.corpora import row, write_media
from modeling_tests.one_training import OPTIONS
from modeling_tests.processors import model_for, tiny_processor


# Lengths of a prefix and of the conversations after it.
ROWS = st.tuples(st.integers(0, 9), st.lists(st.integers(1, 40), min_size=1, max_size=9))
SYSTEM = {"role": "system", "content": [{**dict.fromkeys(("path", "clip", "start", "end")), "type": "text", "text": "Look."}]}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    """Returns three samples about a video, two about a clip of it, three about an image, and a text; coordinates in seconds and pixels."""
    media = write_media(tmp_path_factory.mktemp("media"))
    video, image = media["video"], media["image"]
    rows = [
        row(0, "video", video, "When does it begin?", "{<t0.123><t0.456>}.", "tvg"),
        row(1, "image", image, "Where is the dog?", "[<w0.1><h0.25><w0.3><h0.7777>]", "rec"),
        row(2, "video", video, "What is there at <t0.7s>, after <t0.31>?", "A ball that moves to the right.", "chat"),
        row(3, "text", None, "Say something.", "Something.", "chat"),
        row(4, "video", video, "When?", "From <t0.2s> to <t1.1s>", "tvg"),
        row(5, "image", image, "What is in [<w10px><h5px><w30px><h40px>]?", "A dog.", "chat"),
        row(6, "video", video, "When does it end?", "{<t0.5><t0.9>}.", "tvg"),
        row(7, "video", video, "What does it do?", "It ends.", "chat"),
        row(8, "image", image, "Where?", "[<w0.0><h0.0><w1.0><h1.0>]", "rec"),
    ]
    rows[2]["messages"] += row(2, "text", None, "And then, at <t0.9>?", "Nothing: <t0.95>.", "chat")["messages"]
    for number in (6, 7):
        rows[number]["messages"][0]["content"][0]["clip"] = [3, 12]
    for number in (1, 5, 8):
        rows[number]["messages"].insert(0, SYSTEM)
    return rows


@pytest.fixture(scope="module")
def grouped(rows):
    return list(pack_by_video(Dataset.from_list(rows), 8))


def summed(model, batches: list[dict]) -> tuple[float, dict[str, torch.Tensor]]:
    """Sums the token losses of batches and the gradients of all parameters."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name not in ("tasks", "skipped", "segment_ids")}
        if "segment_ids" in batch:
            inputs["attention_mask"] = packed_attention_mask(
                batch["segment_ids"], model.config.get_text_config()._attn_implementation, torch.float32
            )
        loss = model(**inputs, num_items_in_batch=1).loss
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


# Exactness


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kinds", [("video",), ("image",), ("video", "image", "text")], ids="+".join)
def test_prefix_packing_loss_and_gradients_equal_separate_conversations(processor, rows, grouped, kinds, attention):
    collate, model = LlavaSTDataCollator(processor), model_for(processor).train()
    alone = [collate([sample]) for sample in rows if sample["modality"] in kinds]
    together = collate([group for group in grouped if group["modality"] in kinds])
    loss, gradients = summed(model, alone)
    model.set_attn_implementation({"text_config": attention})
    grouped_loss, grouped_gradients = summed(model, [together])
    assert grouped_loss == pytest.approx(loss, rel=1e-6)
    assert grouped_gradients.keys() == gradients.keys() and len(gradients) > 50
    for name, gradient in gradients.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        # The same conversations as one padded batch, without prefix sharing, differ by 0.8e-5 from single ones.
        difference = float((grouped_gradients[name] - gradient).abs().max()) / scale
        assert difference < 3e-5, f"{name}: {difference}"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_trainer_step_with_prefix_packing_equals_separate_conversations(tmp_path, rows, grouped, attention):
    """Compares weights, losses of all tasks and bin errors after a step; batches have different shapes, gradients are accumulated."""
    logs, weights = [], []
    for name, data, options in (
        ("alone", rows, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}),
        ("grouped", grouped, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    ):
        trainer = trainer_of(tmp_path / name, data, attention, **options)
        trainer.train()
        logs.append(trainer.state.log_history[0])
        weights.append({name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad})
    for name in ("loss", "loss_tvg", "loss_rec", "loss_chat", "time_bin_error", "box_bin_error", "grad_norm"):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=1e-5), name
    assert logs[1]["num_tokens"] < logs[0]["num_tokens"] - 5 * 28
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=1e-5)


@settings(max_examples=60)
@given(st.lists(ROWS, min_size=1, max_size=3), st.integers(0, 3))
def test_block_mask_shows_each_token_the_prefix_and_its_conversation_up_to_itself(rows, padding):
    """Sequences with and without a prefix, of conversations of different lengths, with padding."""
    numbers = count()
    rows = [[SHARED] * shared + [number for length in lengths for number in [next(numbers)] * length] for shared, lengths in rows]
    length = max(map(len, rows)) + padding
    segment_ids = torch.tensor([row + [PADDING] * (length - len(row)) for row in rows])
    visible = block_mask(segment_ids)
    assert visible.shape == (len(rows), 1, length, length)
    for segments, seen in zip(segment_ids.tolist(), visible[:, 0].tolist(), strict=True):
        for query, own in enumerate(segments):
            allowed = (own,) if own == PADDING else (own, SHARED)
            assert seen[query] == [key <= query and segments[key] in allowed for key in range(length)]


def test_packed_attention_mask_is_boolean_for_sdpa_and_additive_for_eager():
    segment_ids = torch.tensor([[SHARED, 0, 0, 1, PADDING]])
    visible = block_mask(segment_ids)
    assert torch.equal(packed_attention_mask(segment_ids, "sdpa", torch.bfloat16), visible)
    added = packed_attention_mask(segment_ids, "eager", torch.bfloat16)
    assert added.dtype == torch.bfloat16 and torch.equal(added == 0, visible) and added.min() == torch.finfo(torch.bfloat16).min
    with pytest.raises(ValueError, match="flex_attention"):
        packed_attention_mask(segment_ids, "flex_attention", torch.bfloat16)


def trainer_of(folder, rows, attention="sdpa", **options) -> LlavaSTTrainer:
    args = LlavaSTTrainingConfig(output_dir=str(folder), **{**OPTIONS, "max_steps": 1, **options})
    processor = tiny_processor()
    model = model_for(processor)
    model.set_attn_implementation(attention)
    torch.manual_seed(0)
    return LlavaSTTrainer(
        prepare_model_for_training(model, args.trainable_modules, lora_r=2, lora_dropout=0.0), args, Dataset.from_list(rows), processor
    )


# Sequences


def test_collator_packed_sequence_is_the_prefix_and_the_suffix_of_each_conversation(processor, rows, grouped):
    collate = LlavaSTDataCollator(processor)
    batch = collate(grouped)
    assert batch["tasks"] == ["tvg", "chat", "tvg", "rec", "chat", "rec", "chat", "tvg", "chat"]
    assert [group["ids"] for group in grouped] == [["0", "2", "4"], ["1", "5", "8"], ["3"], ["6", "7"]]
    order = [int(id) for group in grouped for id in group["ids"]]
    for segment, number in enumerate(order):
        alone = collate([rows[number]])
        [own] = (batch["segment_ids"] == segment).any(1).nonzero().flatten().tolist()
        segments = batch["segment_ids"][own]
        places = (segments == segment) | (segments == SHARED)
        assert batch["position_ids"][own][places].tolist() == list(range(int(places.sum())))
        for name in ("input_ids", "labels", "coordinate_values"):
            if name in alone:
                torch.testing.assert_close(batch[name][own][places], alone[name][0], equal_nan=True)


def test_collator_groups_of_one_conversation_equal_ordinary_samples(processor, rows):
    collate = LlavaSTDataCollator(processor)
    single = list(pack_by_video(Dataset.from_list(rows), 1))
    batch, before = collate(single), collate(rows)
    assert batch.keys() == before.keys() and "segment_ids" not in batch
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(batch[name], value, equal_nan=True)


def test_collator_group_opens_its_image_or_video_once(processor, grouped, monkeypatch):
    opened = {"video": 0, "image": 0}

    def count(kind, original):
        def counted(*args, **kwargs):
            opened[kind] += 1
            return original(*args, **kwargs)

        return counted

    monkeypatch.setattr(LlavaSTVideoProcessor, "preprocess", count("video", LlavaSTVideoProcessor.preprocess))
    monkeypatch.setattr(PIL.Image, "open", count("image", PIL.Image.open))
    batch = LlavaSTDataCollator(processor)(grouped)
    assert opened == {"video": 2, "image": 1}
    assert len(batch["pixel_values_videos"]) == 2 and len(batch["pixel_values"]) == 1


# Invalid samples


def changed(group: dict, number: int, answer: str) -> dict:
    group = json.loads(json.dumps(group))
    group["conversations"][number][-1]["content"][0]["text"] = answer
    return group


def test_collator_invalid_conversation_in_a_group_skips_only_it(processor, rows, grouped):
    broken = changed(grouped[0], 0, "{<t0.9><t0.1>}.")
    with pytest.raises(ValueError, match=r"^Sample '0' of made: .* ends before"):
        LlavaSTDataCollator(processor)([broken])
    collate = LlavaSTDataCollator(processor, on_error="skip")
    batch = collate([broken])
    assert len(batch["skipped"]) == 1 and batch["skipped"][0].startswith("Sample '0' of made: ")
    without = collate([{**grouped[0], **{name: grouped[0][name][1:] for name in ("conversations", "ids", "tasks")}}])
    assert batch["tasks"] == without["tasks"] == ["chat", "tvg"]
    for name in ("input_ids", "labels", "position_ids", "segment_ids", "attention_mask"):
        assert torch.equal(batch[name], without[name])


def test_collator_conversation_with_another_prefix_raises(processor, grouped):
    broken = json.loads(json.dumps(grouped[1]))
    broken["conversations"][2][0]["content"][0]["text"] = "Listen."
    with pytest.raises(ValueError, match=r"^Sample '8' of made: its text before the image or video differs"):
        LlavaSTDataCollator(processor)([broken])


@pytest.mark.parametrize("what", ["missing", "long"])
def test_collator_missing_video_or_too_long_sequence_skips_the_group_once(processor, grouped, tmp_path, what):
    group, limit, message = json.loads(json.dumps(grouped[3])), None, "gone.mp4"
    if what == "missing":
        for conversation in group["conversations"]:
            conversation[0]["content"][0]["path"] = str(tmp_path / "gone.mp4")
    else:
        limit, message = 80, "more than max_length=80"
    collate = LlavaSTDataCollator(processor, on_error="skip", max_length=limit)
    batch = collate([group])
    [problem] = batch["skipped"]
    assert problem.startswith("The group of samples '6', '7' of made: ") and message in problem
    assert (batch["labels"] == -100).all() and batch["attention_mask"].ndim == 2


def test_prefix_packing_with_unsupported_option_raises_before_training(tmp_path, processor, grouped):
    with pytest.raises(ValueError, match="loss_on"):
        trainer_of(tmp_path, grouped, loss_on="original")
    with pytest.raises(ValueError, match="loss_on"):
        LlavaSTDataCollator(processor, loss_on="original")(grouped)
    with pytest.raises(ValueError, match="attn_implementation=flex_attention"):
        trainer_of(tmp_path, grouped, "flex_attention")
    with pytest.raises(ValueError, match="streaming"):
        sft.DataArguments("mixture.yaml", streaming=True, max_conversations_per_sequence=2)
    with pytest.raises(ValueError, match="at least 1"):
        sft.DataArguments("mixture.yaml", max_conversations_per_sequence=0)


# Complete runs


def test_sft_grouped_run_resumes_exactly_and_raises_with_another_group_size(tmp_path):
    media, model = write_media(tmp_path / "media"), tmp_path / "model"
    processor = tiny_processor()
    model_for(processor).save_pretrained(model)
    processor.save_pretrained(model)
    names = {"video": Path(media["video"]).name, "image": Path(media["image"]).name}
    questions = [{"task": "tvg", "video": names["video"], "text": f"thing {i}", "span": [0.1 * i, 1.5]} for i in range(7)]
    questions += [{"task": "rec", "image": names["image"], "text": f"dog {i}", "box": [i, 2, 30, 40]} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    mixture = {"datasets": [{"json_path": str(tmp_path / "rows.jsonl"), "data_folder": str(tmp_path / "media"), "format": "jsonl"}]}
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump(mixture))

    def run(folder: str, grouping: int = 3) -> list[dict]:
        options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-3}
        options["train_sampling_strategy"] = "group_by_length"
        args = LlavaSTTrainingConfig(output_dir=str(tmp_path / folder), **{**OPTIONS, **options})
        data = sft.DataArguments(str(tmp_path / "mixture.yaml"), max_conversations_per_sequence=grouping)
        sft.main(data, args, ModelConfig(str(model), dtype="float32", lora_r=2, lora_dropout=0.3))
        state = json.loads((tmp_path / folder / "trainer_state.json").read_text())
        return [{name: value for name, value in entry.items() if "second" not in name} for entry in state["log_history"] if "loss" in entry]

    log = run("whole")
    assert len(log) == 5 and "loss_tvg" in {name for entry in log for name in entry}
    (tmp_path / "again").mkdir()
    for name in ("checkpoint-2", "run.json", "base"):
        source = tmp_path / "whole" / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / "again" / name)
        elif source.exists():
            shutil.copy(source, tmp_path / "again" / name)
    assert run("again") == log
    weights = [(tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in ("whole", "again")]
    assert weights[0] == weights[1]
    with pytest.raises(ValueError, match="max_conversations_per_sequence was 3 and is 2"):
        run("again", grouping=2)
