# SPDX-License-Identifier: Apache-2.0
"""TRL's own trainers and commands, with the data collators that TRL chooses: batches, losses, and errors."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset, Image, load_dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from llava_st_hf import trl as trl_scripts
from llava_st_hf.data import fill_videos, load_mixture
from llava_st_hf.model import trl_inputs_llava_st
from llava_st_hf.training import LlavaSTPreferenceCollator, prepare_model_for_training
from modeling_tests.corpora import write_media
from modeling_tests.processors import model_for, tiny_processor


OPTIONS = {
    "max_steps": 1,
    "per_device_train_batch_size": 3,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "max_length": None,
    "disable_tqdm": True,
    "seed": 1,
}
BOX = "[<w0.1><h0.25><w0.333><h0.7777>]"
LORA = LoraConfig(target_modules=r".*language_model\.layers\..*\.q_proj", init_lora_weights=False)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, str]:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture
def processor():
    return tiny_processor()


def sft(folder, dataset, processor, model=None, **options) -> SFTTrainer:
    peft_config = options.pop("peft_config", None)
    collator = options.pop("data_collator", None)
    args = SFTConfig(output_dir=str(folder / "run"), **{**OPTIONS, **options})
    model = model_for(processor) if model is None else model
    return SFTTrainer(model, args, collator, dataset, processing_class=processor, peft_config=peft_config)


def mixture(folder, media):
    """Rows of `load_mixture` about a video, an image and without either."""
    rows = [
        {"video": Path(media["video"]).name, "messages": turns("When is <t0.31>?", "{<t0.123><t0.456>}")},
        {"image": Path(media["image"]).name, "messages": turns("Where?", BOX)},
        {"messages": turns("Say something.", "Something.")},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mixture.yaml").write_text(
        f"datasets:\n  - {{json_path: rows.jsonl, data_folder: {Path(media['image']).parent}, format: jsonl}}\n"
    )
    return load_mixture(folder / "mixture.yaml", cache_dir=str(folder / "cache"))


def turns(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def only_batch(trainer) -> dict:
    [batch] = trainer.get_train_dataloader()
    return batch


def own_loss(model, batch, processor) -> float:
    """The mean cross-entropy of all tokens but those of media, from the logits of the model's own forward."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    fresh = model_for(processor) if model is None else model
    with torch.no_grad():
        logits = fresh(**inputs).logits[:, :-1]
    labels = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
    labels = labels.masked_fill(torch.isin(labels, torch.tensor([*processor.image_token_ids, *processor.video_token_ids])), -100)
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


@contextmanager
def warnings_of(logger) -> Iterator[list[str]]:
    """Messages of a logger of transformers, which are not propagated."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    logger.warning_once.cache_clear()
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def first_loss(trainer) -> float:
    trainer.train()
    return trainer.state.log_history[0]["loss"]


# ============================================================ SFT


@pytest.mark.parametrize("peft_config", [None, LORA])
def test_sft_trainer_rows_of_load_mixture_have_the_loss_of_all_tokens_but_those_of_media(tmp_path, media, processor, peft_config):
    trainer = sft(tmp_path, mixture(tmp_path, media), processor, peft_config=peft_config)
    batch = only_batch(trainer)
    assert batch["pixel_values"].shape[0] == batch["pixel_values_videos"].shape[0] == 1
    assert int((~batch["coordinate_values"].isnan()).sum()) == 7
    expected = own_loss(trainer.model, batch, processor)
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-5)


def test_sft_trainer_assistant_only_loss_learns_the_answers(tmp_path, media, processor):
    trainer = sft(tmp_path, mixture(tmp_path, media), processor, assistant_only_loss=True)
    batch = only_batch(trainer)
    learned = [processor.tokenizer.decode(ids[labels != -100]) for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)]
    answers = [processor.tokenizer.decode(processor(text=answer)["input_ids"][0]) for answer in ("{<t0.123><t0.456>}", BOX, "Something.")]
    assert sorted(learned) == sorted(f"{answer}<|im_end|>" for answer in answers)


def test_sft_trainer_with_a_collator_that_labels_all_tokens_learns_no_media_tokens(tmp_path, media, processor):
    """A collator's labels are counted before the model masks them: the sum of the losses is right, and is divided by that number, with a
    warning."""

    def collate(rows):
        batch = processor.apply_chat_template([row["messages"] for row in rows], tokenize=True, return_dict=True, return_tensors="pt")
        return {**batch, "labels": batch["input_ids"].clone()}

    dataset = mixture(tmp_path, media).select([1])
    trainer = sft(tmp_path, dataset, processor, data_collator=collate, remove_unused_columns=False)
    batch = only_batch(trainer)
    learned = (batch["labels"] != -100).sum() - torch.isin(batch["labels"], torch.tensor(processor.image_token_ids)).sum()
    expected = own_loss(None, batch, processor) * float(learned - 1) / float(batch["labels"].numel() - 1)
    with warnings_of(trl_inputs_llava_st.logger) as warnings:
        assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)
        assert [text for text in warnings if "labels image or video tokens" in text]
        warnings.clear()
        sft(tmp_path, dataset, processor).train()
    assert not warnings


@pytest.mark.parametrize("content", ["string", "items"])
def test_sft_trainer_accepts_columns_of_images_and_videos(tmp_path, media, processor, content):
    def question(kind: str, text: str):
        return text if content == "string" else [{"type": kind}, {"type": "text", "text": text}]

    def answer(text: str):
        return text if content == "string" else [{"type": "text", "text": text}]

    def rows(kind: str, name: str, source) -> list[dict]:
        messages = [{"role": "user", "content": question(kind, "Where?")}, {"role": "assistant", "content": answer(BOX)}]
        return [{name: [source], "messages": messages}] * 2

    images = Dataset.from_list(rows("image", "images", media["image"])).cast_column("images", [Image()])
    videos = fill_videos(Dataset.from_list(rows("video", "videos", media["video"])))
    for dataset, name in ((images, "pixel_values"), (videos, "pixel_values_videos")):
        trainer = sft(tmp_path, dataset, processor)
        batch = only_batch(trainer)
        assert len(batch[name]) == 2
        assert first_loss(trainer) == pytest.approx(own_loss(None, batch, processor), rel=1e-5)


def test_sft_trainer_max_length_that_cuts_media_tokens_raises_an_error_with_the_numbers(tmp_path, media, processor):
    rows = mixture(tmp_path, media).select([1])
    count = processor._num_image_tokens()
    with pytest.raises(ValueError, match=rf"Truncation left \d+ of {count} image tokens. Raise max_length above 60"):
        sft(tmp_path, rows, processor, max_length=60).train()
    row = {"images": [media["image"]], "prompt": turns("Where?", "")[:1], "completion": turns("", BOX)[1:]}
    with pytest.raises(ValueError, match=rf"images give {count} features, but the text has \d+ image tokens.*max_length"):
        sft(tmp_path, Dataset.from_list([row]), processor, max_length=60).train()


def test_sft_trainer_prompt_and_completion_keep_the_exact_coordinates_of_prompts(tmp_path, media, processor):
    rows = [
        {"images": [media["image"]], "prompt": turns(question, "")[:1], "completion": turns("", BOX)[1:]}
        for question in ("Where?", "What is right of <w0.123> and below <h0.777>, and larger?", "What is below <h0.987>?")
    ]
    trainer = sft(tmp_path, Dataset.from_list(rows), processor, shuffle_dataset=False)
    batch = only_batch(trainer)
    coordinates = [[round(value, 3) for value in row[~row.isnan()].tolist()] for row in batch["coordinate_values"]]
    assert sorted(coordinates) == [[], [0.123, 0.777], [0.987]]
    vocabulary = model_for(processor).config.coordinates
    for row, values in zip(batch["input_ids"], batch["coordinate_values"], strict=True):
        places = (~values.isnan()).nonzero().flatten()
        lower, upper, _ = vocabulary.between_tokens(row[places], values[places])
        assert bool(((row[places] == lower) | (row[places] == upper)).all())
    assert bool((batch["labels"] != -100).any(1).all())
    trainer.train()


def test_sft_trainer_rows_with_videos_without_column_images_raise_an_error(tmp_path, media, processor):
    rows = mixture(tmp_path, media).select([0]).remove_columns("images")
    with pytest.raises(ValueError, match=r"video tokens, but no videos are given.*column `images`"):
        sft(tmp_path, rows, processor).train()


def test_sft_trainer_trains_coordinate_embeddings_and_lora(tmp_path, media, processor):
    model = prepare_model_for_training(model_for(processor), ["coordinate_embeddings", "lora"], lora_r=2)
    before = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    sft(tmp_path, mixture(tmp_path, media), processor, model=model, learning_rate=0.01).train()
    unchanged = [name for name, value in model.named_parameters() if name in before and torch.equal(value, before[name])]
    assert before and all("lora_A" in name for name in unchanged)  # whose gradient is zero in the first step


# ============================================================ DPO


def preference(number: int, item: dict, **columns) -> dict:
    question = [{**item}, {"type": "text", "text": f"Where is it after <w0.12{number}>?"}]
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": BOX}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": f"I do not see it{number * '.'}"}]}],
        **columns,
    }


def dpo(folder, rows, processor, collator=None, **options) -> DPOTrainer:
    args = DPOConfig(output_dir=str(folder / "run"), **{**OPTIONS, "per_device_train_batch_size": 2, **options})
    model, reference = model_for(processor), model_for(processor)
    return DPOTrainer(model, reference, args, collator, Dataset.from_list(rows), processing_class=processor)


def test_dpo_trainer_with_images_has_the_log_probabilities_of_the_model(tmp_path, media, processor):
    trainer = dpo(tmp_path, [preference(number, {"type": "image"}, images=[media["image"]]) for number in (1, 2)], processor)
    batch = only_batch(trainer)
    assert sorted(round(value, 3) for value in batch["coordinate_values"][~batch["coordinate_values"].isnan()].tolist()) == [
        0.121, 0.121, 0.122, 0.122,
    ]  # fmt: skip
    expected = answer_log_probabilities(batch, processor)
    trainer.train()
    [entry, _] = trainer.state.log_history
    for name, values in (("chosen", expected[:2]), ("rejected", expected[2:])):
        assert entry[f"logps/{name}"] == pytest.approx(float(values.mean()), rel=1e-4)


def answer_log_probabilities(batch: dict, processor) -> torch.Tensor:
    """(sequences,) sum of the log-probabilities of each answer, from the logits of the model's own forward."""
    inputs = {name: value for name, value in batch.items() if name != "completion_mask"}
    with torch.no_grad():
        scores = model_for(processor)(**inputs).logits[:, :-1].log_softmax(-1)
    of_token = scores.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (of_token * batch["completion_mask"][:, 1:]).sum(-1)


def test_dpo_trainer_with_videos_in_messages_learns_the_answers(tmp_path, media, processor, monkeypatch):
    item = {"type": "video", "path": media["video"]}
    collator = LlavaSTPreferenceCollator(processor)
    trainer = dpo(
        tmp_path, [preference(number, item, images=[]) for number in (1, 2)], processor, collator, learning_rate=0.01, max_steps=3
    )
    batch = only_batch(trainer)
    assert batch["pixel_values_videos"].shape[0] == 4 and torch.equal(*batch["pixel_values_videos"].split(2))
    texts = [processor.tokenizer.decode(ids[mask == 1]) for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    box = processor.tokenizer.decode(processor(text=BOX)["input_ids"][0])
    assert sorted(texts) == sorted([f"{box}<|im_end|>"] * 2 + [f"I do not see it{number * '.'}<|im_end|>" for number in (1, 2)])
    assert int((~batch["coordinate_values"].isnan()).sum()) == 4  # of the prompts
    for number in range(2):  # the tokens of a conversation that is processed alone
        text = trainer.train_dataset[number]
        ids = processor.apply_chat_template([*text["prompt"], *text["chosen"]], tokenize=True, return_dict=True)["input_ids"][0]
        assert any(row[mask == 1].tolist() == ids for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True))
    trainer.train()
    accuracies = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert accuracies[0] == 0 and accuracies[-1] > 0


def test_preference_collator_earlier_answers_of_the_prompt_are_not_completions(processor):
    row = {
        "prompt": [*turns("Hello.", "Hi."), *turns("Where?", "")[:1]],
        "chosen": turns("", "There.")[1:],
        "rejected": turns("", "No.")[1:],
    }
    batch = LlavaSTPreferenceCollator(processor)([row])
    texts = [processor.tokenizer.decode(ids[mask == 1]) for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    assert texts == ["There.<|im_end|>", "No.<|im_end|>"]


def test_preference_collator_invalid_row_raises_an_error_that_names_it(media, processor):
    item = {"type": "video", "path": media["video"]}
    collator = LlavaSTPreferenceCollator(processor, max_length=60)
    with pytest.raises(ValueError, match=r"row 'a': it has \d+ tokens, more than max_length=60"):
        collator([preference(1, item, id="a")])
    with pytest.raises(ValueError, match="row 0: chosen, rejected must be lists of chat messages"):
        collator([{"prompt": turns("Where?", "")[:1], "chosen": "There", "rejected": "No"}])
    with pytest.raises(ValueError, match=r"row 0: chosen must be one assistant message, got .* \['user', 'assistant'\]"):
        collator([{**preference(1, item), "chosen": turns("Where?", "There.")}])


# ============================================================ Commands


def test_trl_script_grpo_rewards_completions_about_images_and_videos(tmp_path, media, processor):
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = [
        {"prompt": turns("Where is it?", "")[:1], "image": media["image"], "solution": BOX},
        {"prompt": turns("When is it?", "")[:1], "videos": [media["video"]], "solution": "{<t0.2s><t0.6s>}"},
        {"prompt": [{"role": "user", "content": [{"type": "video", "path": media["video"]}]}], "solution": "{<t0.2s><t0.6s>}"},
    ]
    for number, row in enumerate(rows):
        dataset = Dataset.from_list([row, row])
        dataset = dataset.cast_column("image", Image()) if "image" in row else dataset
        dataset.to_parquet(tmp_path / f"rows{number}" / "train.parquet")
        recipe = {name: value for name, value in OPTIONS.items() if name not in ("max_length", "per_device_train_batch_size")} | {
            "model_name_or_path": str(tmp_path / "model"),
            "dataset_name": str(tmp_path / f"rows{number}"),
            "output_dir": str(tmp_path / f"run{number}"),
            "reward_funcs": ["llava_st_hf.training.rewards.tiou_siou_reward", "modeling_tests.test_training_grpo.parity_reward"],
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 12,
            "dtype": "float32",
            "learning_rate": 0.1,
            "save_strategy": "steps",
            "save_steps": 1,
        }
        (tmp_path / "grpo.yaml").write_text(json.dumps(recipe))
        trl_scripts.main(["grpo", "--config", str(tmp_path / "grpo.yaml")])
        assert trl.GRPOTrainer.__module__.startswith("trl.")
        [entry] = json.loads((tmp_path / f"run{number}/checkpoint-1/trainer_state.json").read_text())["log_history"]
        assert 0 <= entry["rewards/tiou_siou_reward/mean"] < 1 and entry["reward_std"] > 0
        trained = AutoModelForImageTextToText.from_pretrained(tmp_path / f"run{number}")
        assert not torch.equal(trained.lm_head.weight, model_for(processor).lm_head.weight)


def test_trl_scripts_train_a_saved_model_on_stored_rows(tmp_path, media, processor):
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    mixture(tmp_path, media).to_parquet(tmp_path / "sft" / "train.parquet")
    pairs = [preference(number, {"type": "image"}, images=[media["image"]]) for number in (1, 2)]
    Dataset.from_list(pairs).to_parquet(tmp_path / "dpo" / "train.parquet")
    assert len(load_dataset(str(tmp_path / "sft"), split="train")) == 3
    options = {"model_name_or_path": "model", "learning_rate": 0.1, "per_device_train_batch_size": 2, "dtype": "float32"}
    for script in ("sft", "dpo"):
        recipe = {**OPTIONS, **options, "dataset_name": str(tmp_path / script), "output_dir": str(tmp_path / f"{script}-run")}
        recipe["model_name_or_path"] = str(tmp_path / "model")
        (tmp_path / f"{script}.yaml").write_text(json.dumps(recipe))
        trl_scripts.main([script, "--config", str(tmp_path / f"{script}.yaml")])
        trained = AutoModelForImageTextToText.from_pretrained(tmp_path / f"{script}-run")
        assert not torch.equal(trained.lm_head.weight, model_for(processor).lm_head.weight)


@pytest.mark.parametrize("arguments", [[], ["ppo"]])
def test_trl_scripts_unknown_script_raises_an_error_with_the_names(arguments):
    with pytest.raises(SystemExit, match="must be one of sft, dpo, grpo, got"):
        trl_scripts.main(arguments)


# ============================================================ Columns of videos


def test_fill_videos_moves_videos_into_the_messages(media):
    text = {"type": "text", "text": "Which?"}
    prompt = [{"role": "user", "content": [{"type": "video"}, {"type": "image"}, {"type": "video"}, text]}]
    row = {"prompt": prompt, "chosen": turns("", "A.")[1:], "videos": ["a.mp4", "b.mp4"], "images": ["c.png"]}
    [filled] = fill_videos(Dataset.from_list([row]))
    items = [{name: value for name, value in item.items() if value is not None} for item in filled["prompt"][0]["content"]]
    assert items == [{"type": "video", "path": "a.mp4"}, {"type": "image"}, {"type": "video", "path": "b.mp4"}, text]
    assert filled["images"] == ["c.png"] and filled["chosen"] == row["chosen"] and "videos" not in filled


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}], "videos": ["a", "b"]},
            "2 videos, but its messages have 1 video items",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}], "videos": []},
            r"more video items .* than the row has videos \(0\)",
        ),
        ({"messages": turns("a", "b"), "videos": [3]}, "must be a path or URL, got 3"),
        ({"messages": turns("a", "b")}, "columns messages; it must have videos, and messages or prompt"),
    ],
)
def test_fill_videos_that_do_not_fit_raise_an_error(row, message):
    with pytest.raises(ValueError, match=message):
        fill_videos(Dataset.from_list([row]))
