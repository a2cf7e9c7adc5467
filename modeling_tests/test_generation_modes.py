# SPDX-License-Identifier: Apache-2.0
"""Modes of generation of transformers with images, videos and exact coordinates: continuous batching, caches, assisted decoding,
compilation, export, tensor parallelism, and the pipelines of multimodal models."""

import copy

import pytest
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, ContinuousBatchingConfig, GenerationConfig, pipeline
from transformers.utils import is_hqq_available, is_optimum_quanto_available

from llava_st_hf import LlavaSTForConditionalGeneration
from llava_st_hf.model.cache_name_llava_st import CACHE_NAME
from modeling_tests.factories import mixed_batch, single_prompts, tiny_model
from modeling_tests.processors import PICTURE, model_for, tiny_processor


NEW = 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
CONTINUOUS = {
    "generation_config": GenerationConfig(**GREEDY, eos_token_id=-1, pad_token_id=0),
    "warmup": False,
}


def continuous_config(max_batch_tokens: int) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=max_batch_tokens, use_cuda_graph=False)


@pytest.fixture(scope="module")
def answers(model):
    return model.generate(**mixed_batch(model.config), **GREEDY)[:, -NEW:].tolist()


@pytest.mark.parametrize("form", ["a batch", "single prompts"])
def test_generate_batch_equals_generate(model, batch, answers, form):
    """A batch of 64 tokens splits the prompts, the longest of which has 166 tokens."""
    embeddings = model.get_input_embeddings()
    prompts = batch if form == "a batch" else single_prompts(model.config)
    outputs = list(model.generate_batch(prompts, **CONTINUOUS, continuous_batching_config=continuous_config(64)).values())
    assert [output.error for output in outputs] == [None] * 4
    assert [output.generated_tokens for output in outputs] == answers
    for output, single in zip(outputs, single_prompts(model.config), strict=True):
        assert output.prompt_ids == single["input_ids"][0].tolist()
    assert model.get_input_embeddings() is embeddings


def test_generate_batch_of_token_lists_equals_generate(model, answers):
    prompts = [[40, 41, 42, 43], [10, 11, 12]]
    outputs = model.generate_batch(prompts, **CONTINUOUS, continuous_batching_config=continuous_config(64)).values()
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.generated_tokens == model.generate(torch.tensor([prompt]), **GREEDY)[0, -NEW:].tolist()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda prompt: prompt["input_ids"][0].tolist(), {}, "tokens of images without pixel_values"),
        (lambda prompt: {**prompt, "pixels": 1}, {}, "got pixels, too"),
        (lambda prompt: {"attention_mask": prompt["attention_mask"]}, {}, "needs input_ids, got the keys 'attention_mask'"),
        (lambda prompt: prompt, {"persistent_manager": True}, "persistent_manager=True is for prompts of text alone"),
    ],
)
def test_generate_batch_with_incomplete_input_raises(model, change, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate_batch([change(single_prompts(model.config)[0])], **CONTINUOUS, **options)


@pytest.mark.parametrize("implementation", ["static", "offloaded", "offloaded_static", "quantized"])
def test_generate_with_each_cache_equals_the_default(model, batch, answers, implementation):
    options = {}
    if implementation == "quantized":
        if not (is_optimum_quanto_available() or is_hqq_available()):
            pytest.skip("needs optimum-quanto or hqq")
        backend = "quanto" if is_optimum_quanto_available() else "hqq"
        options["cache_config"] = {"backend": backend, "nbits": 4, "residual_length": 4096}  # the prompt is quantized, new tokens are not
    elif implementation.startswith("offloaded") and not torch.cuda.is_available():
        pytest.skip("an offloaded cache needs a GPU")
    sequences = model.generate(**batch, **GREEDY, cache_implementation=implementation, disable_compile=True, **options)
    assert sequences[:, -NEW:].tolist() == answers


@pytest.mark.parametrize("mode", ["assistant_model", "prompt_lookup_num_tokens"])
def test_generate_assisted_equals_greedy(model, answers, mode):
    """Assisted decoding takes one prompt at a time. The assistant sees the images and videos, too."""
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        assistant.lm_head.weight.add_(0.02 * torch.randn(assistant.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)))
    option = {"assistant_model": assistant} if mode == "assistant_model" else {"prompt_lookup_num_tokens": 3}
    for single, answer in zip(single_prompts(model.config), answers, strict=True):
        assert model.generate(**single, **GREEDY, **option)[0, -NEW:].tolist() == answer


@torch.no_grad()
def test_decode_step_compiled_by_inductor_equals_eager():
    """Inductor compiles the decode step only, since the code of a prompt with a video takes minutes to compile on two cores; for that one
    `test_modeling_llava_st.py` has a test without code generation."""
    model = tiny_model(text_config={"num_hidden_layers": 1})
    prompt = single_prompts(model.config)[2]  # with a video
    step = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.ones(1, prompt["input_ids"].shape[1] + 1, dtype=torch.long)}
    torch.compiler.reset()
    compiled = torch.compile(model.forward, fullgraph=True)
    ours, wanted = (call(**step, **{CACHE_NAME: model(**prompt)[CACHE_NAME]}).logits for call in (compiled, model.forward))
    torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_forward_exported_equals_eager(model):
    batch = single_prompts(model.config)[2]  # with a video
    exported = torch.export.export(model, (), {**batch, "use_cache": False}, strict=False)
    torch.testing.assert_close(exported.module()(**batch, use_cache=False).logits, model(**batch).logits, atol=2e-5, rtol=1e-4)


def test_parallel_plans_name_modules_of_the_model(model):
    """Decoder, packer and head are in the plan of tensor parallelism; the plan of pipeline parallelism has the decoder and the head."""
    names = {name for name, _ in model.named_modules()}
    numbered = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}
    assert set(model.tp_plan) <= numbered and set(model.pp_plan) <= numbered
    assert {name.split(".")[1] for name in model.tp_plan if "." in name} == {"packer", "language_model"}
    assert "lm_head" in model.tp_plan and "lm_head" in model.pp_plan


def test_auto_model_for_multimodal_lm_loads_the_generation_model(model, batch, answers, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, LlavaSTForConditionalGeneration)
    assert loaded.generate(**batch, **GREEDY)[:, -NEW:].tolist() == answers


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_pipeline_of_transformers_returns_the_answer_alone(task):
    processor = tiny_processor()
    model = model_for(processor)
    chat = [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(PICTURE)}, {"type": "text", "text": "Where?"}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    ids = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    (row,) = pipeline(task, model=model, processor=processor)(text=chat, return_full_text=False, **GREEDY)
    assert row["generated_text"] == processor.post_process_image_text_to_text(ids)[0]
    assert row["generated_text"].strip() == processor.decode_answer(ids)
