# SPDX-License-Identifier: Apache-2.0
"""GRPO with images and videos in the prompts, and launch/grpo.py."""

import json
from dataclasses import fields
from functools import wraps
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, ModelConfig

from llava_st_hf.launch import grpo
from llava_st_hf.model.configuration_llava_st import SPECIAL_TOKENS
from llava_st_hf.model.grounding_llava_st import MediaInfo
from llava_st_hf.model.modeling_llava_st import LlavaSTModel
from llava_st_hf.training import LlavaSTGRPOTrainer, grpo_dataset, prepare_model_for_training
from llava_st_hf.training.rewards import format_reward, tiou_siou_reward
from modeling_tests.corpora import mixed_dataset, write_media
from modeling_tests.processors import model_for, tiny_processor


ROOT = Path(__file__).resolve().parents[1]
LENGTH = 12  # tokens of a completion
OPTIONS = {
    "per_device_train_batch_size": 8, "num_generations": 2, "max_completion_length": LENGTH, "max_steps": 1, "logging_steps": 1,
    "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True,
    "learning_rate": 0.1, "temperature": 1.3, "seed": 1,
}  # fmt: skip


def parity_reward(completions, completion_ids, **columns):
    """Reward that differs within a group of random completions."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def text_item(text):
    return {"type": "text", "text": text}


def mixed_prompts(media: dict[str, str]) -> list[dict]:
    """Rows with a video, an image, both, and text only; the first two have exact coordinates."""
    video, image = {"type": "video", "path": media["video"]}, {"type": "image", "path": media["image"]}
    contents = [
        [video, text_item("What happens in {<t0.123><t0.777>}?")],
        [image, text_item("What is in [<w0.1234><h0.2><w0.71><h0.9>]? Say it in a sentence.")],
        [image, video, text_item("Compare.")],
        [text_item("Hi.")],
    ]
    return [{"prompt": [{"role": "user", "content": content}], "solution": "{<t0.1><t0.5>}"} for content in contents]


def make_trainer(folder: Path, rows: list[dict], rewards=(parity_reward,), parts=("packer", "language_model"), **options):
    args = GRPOConfig(output_dir=str(folder / "run"), **{**OPTIONS, **options})
    processor = tiny_processor()
    torch.manual_seed(0)
    model = prepare_model_for_training(model_for(processor), list(parts), lora_r=2, lora_alpha=4, lora_dropout=0.0)
    return LlavaSTGRPOTrainer(model, list(rewards), args, Dataset.from_list(rows), processor)


def repeated(rows: list[dict], count: int) -> list[dict]:
    return [row for row in rows for _ in range(count)]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("media"))


def test_grpo_log_probs_of_completions_equal_those_of_their_generation(tmp_path, media, monkeypatch):
    trainer = make_trainer(tmp_path, mixed_prompts(media), rewards=[lambda completions, **columns: [1.0] * len(completions)])
    generate, sampled = trainer.model.generate, {}

    def record(**inputs):
        outputs = generate(**inputs, return_dict_in_generate=True, output_logits=True)
        sampled["logits"] = torch.stack(outputs.logits, dim=1)  # (completions, length, vocabulary), before temperature and suppression
        return outputs.sequences

    get_features, videos = LlavaSTModel.get_video_features, []

    @wraps(get_features)
    def count(self, pixel_values_videos, **kwargs):
        videos.append(len(pixel_values_videos))
        return get_features(self, pixel_values_videos, **kwargs)

    monkeypatch.setattr(LlavaSTModel, "get_video_features", count)
    monkeypatch.setattr(trainer.model, "generate", record)
    batch = trainer._generate_and_score_completions(repeated(mixed_prompts(media), 2))
    ids, mask = batch["completion_ids"], batch["completion_mask"].bool()
    logits = sampled["logits"] / OPTIONS["temperature"]
    forbidden = trainer.processing_class.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS.values()))
    logits[..., forbidden] = -torch.inf
    expected = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    whole = torch.cat([batch["prompt_ids"], ids], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    assert videos == [2]  # of two prompts, each with two completions
    for rows in (None, 3):  # in one forward pass, and in chunks
        log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(trainer.model, whole, attention, LENGTH, rows, True)
        torch.testing.assert_close(log_probs[mask], expected[mask], atol=2e-4, rtol=1e-4)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(entropies[mask], entropy[mask], atol=2e-4, rtol=1e-4)
    assert videos == [2, 2, 1, 1]  # the chunks have completions of the first and the third prompt
    assert not torch.isin(ids, torch.tensor(forbidden)).any()


def test_grpo_shuffled_minibatches_keep_the_media_of_their_prompts(tmp_path, media, monkeypatch):
    # Two steps per generation: completions are generated once, shuffled and split; log-probabilities then need the right pixels.
    trainer = make_trainer(tmp_path, mixed_prompts(media), per_device_train_batch_size=4, steps_per_generation=2, num_iterations=2)
    trainer.model.train()
    before = trainer._prepare_inputs(repeated(mixed_prompts(media), 2))
    assert len(before["encoded"]) == 4
    compute, computed = trainer._get_per_token_logps_and_entropies, []
    monkeypatch.setattr(
        trainer, "_get_per_token_logps_and_entropies", lambda *args, **kwargs: computed.append(compute(*args, **kwargs)) or computed[-1]
    )
    trainer.current_gradient_accumulation_steps = 1
    for batch in trainer._buffered_inputs:
        trainer._compute_loss(trainer.model, batch)
        log_probs = computed[-1][0]
        mask = batch["completion_mask"].bool()
        torch.testing.assert_close(log_probs[mask], batch["old_per_token_logps"][mask], atol=2e-4, rtol=1e-4)
        for prompt, prompt_mask, encoded in zip(batch["prompt_ids"], batch["prompt_mask"].bool(), batch["encoded"], strict=True):
            assert prompt[prompt_mask].tolist() == encoded["input_ids"][0].tolist()


@pytest.mark.parametrize("parts", [("packer", "language_model"), ("coordinate_embeddings", "lora")])
def test_grpo_trains_on_images_and_videos_and_rewards_get_their_sizes(tmp_path, media, parts):
    seen = {}

    def spy(completions, media_info, num_frames, num_bins, solution, **columns):
        seen.update(zip(map(str, solution), zip(media_info, num_frames, num_bins, strict=True), strict=True))
        assert "images" in columns  # the columns of the dataset stay
        return parity_reward(completions, **columns)

    photo = Image.open(media["image"]).convert("RGB")
    rows = [
        {"prompt": [{"role": "user", "content": "Where is it?"}], "images": [photo], "videos": None, "solution": "image"},
        {"prompt": [{"role": "user", "content": "When is it?"}], "images": None, "videos": [media["video"]], "solution": "video"},
    ]
    trainer = make_trainer(tmp_path, rows, rewards=[spy], parts=parts, max_steps=2, per_device_train_batch_size=4)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[0]["reward_std"] > 0 and trainer.state.log_history[0]["grad_norm"] > 0
    trained = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert trained and not [name for name in trained if "vision_tower" in name]
    assert seen["image"] == (MediaInfo("image", 64, 48), None, (100, 100))
    (film, frames, bins) = seen["video"]
    assert (film.kind, film.width, film.height, film.fps, frames, bins) == ("video", 64, 48, 10.0, 10, (100, 100))


def test_grpo_in_bfloat16_trains_weights_in_float32(tmp_path, media):
    args = GRPOConfig(output_dir=str(tmp_path / "run"), **{**OPTIONS, "bf16": True})
    processor = tiny_processor()
    model = prepare_model_for_training(model_for(processor).bfloat16(), ["packer"])
    trainer = LlavaSTGRPOTrainer(model, [parity_reward], args, Dataset.from_list(mixed_prompts(media)), processor)
    trainer.train()
    dtypes = {(parameter.requires_grad, parameter.dtype) for parameter in trainer.model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_grpo_rewards_of_a_mixture_are_computed_with_its_answers(tmp_path):
    dataset = grpo_dataset(mixed_dataset(tmp_path, 6), ["tvg", "rec"])
    assert dataset.column_names == ["id", "task", "prompt", "solution"] and set(dataset["task"]) == {"tvg", "rec"}
    assert dataset[0]["solution"] == "{<t0.0><t0.0>}." and dataset[0]["prompt"][-1]["role"] == "user"
    trainer = make_trainer(tmp_path, dataset.to_list(), rewards=[tiou_siou_reward, format_reward], per_device_train_batch_size=4)
    trainer.train()
    [entry, _] = trainer.state.log_history
    assert 0 <= entry["rewards/tiou_siou_reward/mean"] < 1 and entry["rewards/format_reward/mean"] == 0  # random text


def test_grpo_dataset_without_conversations_of_the_tasks_raises(tmp_path):
    with pytest.raises(ValueError, match="no conversation of the tasks stvg; it has conversation, rec, tvg"):
        grpo_dataset(mixed_dataset(tmp_path, 3), ["stvg"])


def test_grpo_columns_of_images_fill_the_items_of_a_prompt_in_order(tmp_path, media):
    seen = []

    def spy(completions, media_info, **columns):
        seen.extend((one.width, one.height) for one in media_info)
        return parity_reward(completions, **columns)

    trainer = make_trainer(tmp_path, mixed_prompts(media), rewards=[spy])
    photos = [Image.new("RGB", size) for size in ((20, 10), (30, 40))]
    prompt = [{"role": "user", "content": [{"type": "image"}, text_item("or"), {"type": "image", "image": None}, text_item("?")]}]
    trainer._generate_and_score_completions([{"prompt": prompt, "images": photos}] * 2)
    assert [(one.width, one.height) for one in trainer._encoded[0].media_info[0]] == [(20, 10), (30, 40)]
    assert trainer._encoded[0] is trainer._encoded[1]  # one group
    assert seen == [(30, 40)] * 2  # coordinates of answers refer to the last image
    with pytest.raises(ValueError, match="places for 2 images, but its row has 1"):
        trainer._generate_and_score_completions([{"prompt": prompt, "image": photos[0]}])
    with pytest.raises(ValueError, match="must be chat messages, not the text 'Where"):
        trainer._generate_and_score_completions([{"prompt": "Where is it?", "image": photos[0]}])


def test_grpo_with_fewer_prompts_than_a_step_needs_raises(tmp_path, media):
    """TRL leaves incomplete batches out: training would end at once without a step and without an error."""
    rows = mixed_prompts(media)
    with pytest.raises(ValueError, match=r"has 3 prompts, fewer than the 4 of a generation"):
        make_trainer(tmp_path, rows[:3])
    with pytest.raises(ValueError, match=r"has 4 prompts, fewer than the 8 of a generation"):
        make_trainer(tmp_path, rows, gradient_accumulation_steps=2)


def test_grpo_model_and_processor_of_different_checkpoints_raises(tmp_path, media):
    args = GRPOConfig(output_dir=str(tmp_path / "run"), **OPTIONS)
    with pytest.raises(ValueError, match=r"number of temporal bins is 50 in the model and 100 in the processor"):
        model = model_for(tiny_processor(num_temporal_bins=50))
        LlavaSTGRPOTrainer(model, [parity_reward], args, Dataset.from_list(mixed_prompts(media)), tiny_processor())


def test_grpo_with_vllm_raises(tmp_path, media):
    with pytest.raises(ValueError, match="use_vllm=True is not supported"):
        make_trainer(tmp_path, mixed_prompts(media), use_vllm=True)


# launch/grpo.py


@pytest.mark.parametrize("recipe", sorted((ROOT / "src/llava_st_hf/launch/recipes").glob("*grpo*.yaml")), ids=lambda path: path.name)
def test_grpo_recipes_have_valid_options(recipe):
    options = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    known = {field.name for config in (grpo.GRPOArguments, GRPOConfig, ModelConfig) for field in fields(config)}
    assert options.keys() <= known
    grpo.GRPOArguments(**{name: value for name, value in options.items() if name in {f.name for f in fields(grpo.GRPOArguments)}})
    assert len(options.get("reward_weights", options["reward_funcs"])) == len(options["reward_funcs"])


def test_grpo_arguments_unknown_reward_raises():
    with pytest.raises(ValueError, match=r"reward_funcs contains iou; it must list functions among format_reward, "):
        grpo.GRPOArguments(mixture="a.yaml", reward_funcs=["iou", "tiou_reward"])


def test_grpo_script_trains_saves_and_resumes(tmp_path):
    write_media(tmp_path)
    line = '{"video": "clip.mp4", "task": "tvg", "text": "a dog runs", "span": [0.2, 1.0]}\n'
    (tmp_path / "rows.jsonl").write_text(line * 3)
    (tmp_path / "mixture.yaml").write_text(f"datasets: [{{json_path: rows.jsonl, data_folder: {tmp_path}, format: jsonl}}]")
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    logs = []
    for steps in (1, 2):
        options = {**OPTIONS, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1, "max_steps": steps}
        training_args = GRPOConfig(output_dir=str(tmp_path / "run"), **options)
        arguments = grpo.GRPOArguments(mixture=str(tmp_path / "mixture.yaml"), tasks=["tvg"])
        grpo.main(arguments, training_args, ModelConfig(model_name_or_path=str(tmp_path / "model"), dtype="float32", lora_r=2))
        assert (tmp_path / "run" / "adapter_config.json").is_file()
        logs.append(json.loads((tmp_path / f"run/checkpoint-{steps}/trainer_state.json").read_text())["log_history"])
    assert logs[1][0] == logs[0][0] and "step_time" in logs[0][0]  # of the first start, with the time that it took
    card = (tmp_path / "run/README.md").read_text()  # not TRL's, which loads a language model
    assert "AutoProcessor, pipeline" in card and "- tiou" in card and "| rows | tvg |" in card
    with pytest.raises(ValueError, match="reward_funcs"):
        grpo.main(
            grpo.GRPOArguments(mixture=str(tmp_path / "mixture.yaml"), tasks=["tvg"], reward_funcs=["tiou_reward"]),
            GRPOConfig(output_dir=str(tmp_path / "run"), **options),
            ModelConfig(model_name_or_path=str(tmp_path / "model"), dtype="float32", lora_r=2),
        )
