# SPDX-License-Identifier: Apache-2.0
"""LLaVA-ST for lmms-eval, as its model `llava_st`.

lmms-eval finds `manifests` by the entry point group `lmms_eval.models`; the tasks of the folder `TASKS` go to its `--include_path`. Answers
keep their coordinate tokens. This module can be imported without lmms-eval, the model cannot be made.
"""

import json
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from tqdm.auto import tqdm

from ...evaluation.runner import EvaluationSettings
from ...model.batch_feature_llava_st import join_samples
from ...model.media_files_llava_st import MEDIA_ERRORS
from ...model.modeling_llava_st import LlavaSTForConditionalGeneration
from ...model.processing_llava_st import LlavaSTProcessor


try:
    from lmms_eval.api.model import lmms as _Base
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "lmms_eval":
        raise
    _Base = None


TASKS = str(Path(__file__).parent / "tasks")
# Ends an answer that is no whole one, where the task asks for it by the generation setting `mark_cut_off`: lmms-eval hands nothing but
# the text from a model to a task.
CUT_OFF = "<cut off>"
_MAX_NEW_TOKENS = EvaluationSettings.max_new_tokens
_BATCHES_AHEAD = 2

Chat = list[dict[str, Any]]


def manifests():
    """What lmms-eval registers: the model by its name, and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="llava_st", chat_class_path=f"{__name__}.LlavaST")]


class LlavaST(_Base or object):
    """
    The model as lmms-eval drives it.

    Args (the `--model_args` of lmms-eval, but for what it has options of its own for):
        pretrained: folder or hub id of a checkpoint.
        device: such as "cuda:1"; by default the accelerator of this process. Under `accelerate launch` each process has its own.
        batch_size: questions answered together.
        dtype: of the weights, such as "bfloat16"; "auto" for that of the checkpoint.
        attn_implementation: as in transformers.
        max_batch_size: not used; lmms-eval passes it to all models.

    Raises:
        ValueError: where `batch_size` is no number from 1 on.
        ImportError: without lmms-eval.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str = 1,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        max_batch_size: int | None = None,
    ):
        if _Base is None:
            raise ImportError("This is a model for lmms-eval, which is not installed (pip install lmms-eval).")
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a number of questions, at least 1.")
        self.batch_size = int(batch_size)
        # The slowest process may be late by more than the ten minutes that others would wait.
        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if device is None or self._world_size > 1 else torch.device(device)
        self.processor = LlavaSTProcessor.from_pretrained(pretrained)
        options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        self.model = LlavaSTForConditionalGeneration.from_pretrained(pretrained, dtype=dtype, **options).eval().to(self.device)

    def generate_until(self, requests) -> list[str]:
        """An answer to each request, in their order; empty where a medium cannot be read, with a warning."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(number)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="llava_st", unit="question") as bar:
            for numbers in groups.values():
                settings = requests[numbers[0]].args[2]
                chats = [self._chat(requests[number]) for number in numbers]
                given = answer_chats(chats, settings, self.model, self.processor, self.batch_size)
                for number, answer in zip(numbers, given, strict=True):
                    answers[number] = answer
                    self.cache_hook.add_partial("generate_until", (requests[number].args[0], settings), answer)
                    bar.update()
        return answers

    def _chat(self, request) -> Callable[[], Chat]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        return lambda: doc_to_messages(self.task_dict[task][split][doc_id])

    def loglikelihood(self, requests):
        raise NotImplementedError("llava_st generates answers; it gives no likelihoods of given ones.")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("llava_st answers single questions; it holds no conversations.")


def answer_chats(
    chats: Sequence[Callable[[], Chat]],
    settings: dict,
    model: LlavaSTForConditionalGeneration,
    processor: LlavaSTProcessor,
    batch_size: int,
) -> Iterator[str]:
    """
    Answers to chats in lmms-eval's form, in their order; the media of the next batches are decoded meanwhile.

    Args:
        chats: each makes a chat, when it is its turn: a chat may hold pictures.
        settings: lmms-eval's generation settings. Known are `max_new_tokens`, `temperature` (0 or none is greedy), `do_sample` (where it
            is false, greedy too), `top_p`, `top_k`, `num_beams`, `until` (strings that an answer ends before) and `mark_cut_off` (see
            `CUT_OFF`).
        model, processor: in evaluation mode, on its device.
        batch_size: chats answered together.
    """
    options, stops = _options(settings), settings.get("until") or ()
    stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
    end = processor.tokenizer.eos_token_id
    for samples in _batches(chats, processor, model.dtype, batch_size):
        readable = [sample for sample in samples if sample is not None]
        generated: Iterator[torch.Tensor] = iter(())
        if readable:
            inputs = join_samples(readable, processor.tokenizer.pad_token_id, "left")
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            with torch.inference_mode():
                generated = iter(model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].cpu())
        for sample in samples:
            if sample is None:
                yield ""
                continue
            ids = next(generated)
            whole = processor.decode_answer(ids)
            answer = whole[: min((whole.find(stop) for stop in stops if stop in whole), default=None)]
            is_cut_off = len(answer) == len(whole) and not bool((ids == end).any())
            yield answer + CUT_OFF if is_cut_off and settings.get("mark_cut_off") else answer


def _options(settings: dict) -> dict:
    """lmms-eval's settings as those of `generate`. Tasks set others, which mean something to other models only."""
    options = {"max_new_tokens": int(settings.get("max_new_tokens") or _MAX_NEW_TOKENS)}
    sampling = ("temperature", "top_p", "top_k")
    options["do_sample"] = settings.get("do_sample") is not False and (settings.get("temperature") or 0) > 0
    names = ("num_beams", *sampling) if options["do_sample"] else ("num_beams",)
    return options | {name: settings[name] for name in names if settings.get(name) is not None}


def _batches(chats: Sequence[Callable[[], Chat]], processor: LlavaSTProcessor, dtype: torch.dtype, batch_size: int) -> Iterator[list]:
    """Model inputs of each batch, one sample at a time; None for one whose media cannot be read."""

    def encode(makers: Sequence[Callable[[], Chat]]) -> list[dict | None]:
        return [_encoded(make(), processor, dtype) for make in makers]

    # One thread is enough: decoders have threads of their own.
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[Future] = deque()
        for start in range(0, len(chats), batch_size):
            waiting.append(pool.submit(encode, chats[start : start + batch_size]))
            if len(waiting) > _BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _encoded(chat: Chat, processor: LlavaSTProcessor, dtype: torch.dtype) -> dict | None:
    messages = [{"role": message["role"], "content": [_item(part) for part in message["content"]]} for message in chat]
    try:
        encoded = processor.apply_chat_template(
            [messages], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
    except MEDIA_ERRORS as error:
        warnings.warn(f"A question is left without an answer: {error}", stacklevel=2)
        return None
    pixels = ("pixel_values", "pixel_values_videos")
    return {name: tensor.to(dtype) if name in pixels else tensor for name, tensor in encoded.items()}


def _item(part: dict) -> dict:
    """
    A content item of lmms-eval as one of ours.

    A video's `clip` is that of this package's own tasks: first and last frame. Others tell seconds, beside the address of the video or
    together with it.
    """
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "video"):
        raise ValueError(f"llava_st looks at images and videos; the task shows it {kind!r}.")
    medium, times = part["url"], {"start": part.get("start_time"), "end": part.get("end_time")}
    if isinstance(medium, dict):
        times = {"start": medium.get("video_start"), "end": medium.get("video_end")}
        medium = next((medium[key] for key in ("url", "path", "video") if medium.get(key) is not None), None)
    if kind == "image":
        return {"type": "image", "image": medium}
    clip = {"clip": list(part["clip"])} if part.get("clip") else {name: time for name, time in times.items() if time is not None}
    return {"type": "video", "video": medium, **clip}
