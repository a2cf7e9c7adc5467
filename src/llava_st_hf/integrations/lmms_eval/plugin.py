# SPDX-License-Identifier: Apache-2.0
"""The model `llava_st` of lmms-eval.

lmms-eval finds `manifests` by the entry point group `lmms_eval.models`; pass the folder `TASKS` to its `--include_path`. Answers keep
their coordinate tokens. This module can be imported without lmms-eval, but `LlavaST` cannot be created.
"""

import json
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from tqdm.auto import tqdm

from ...evaluation.runner import EvaluationSettings
from ...model.batch_feature_llava_st import join_samples
from ...model.compatibility_llava_st import check_model_matches_processor
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
# Appended to an answer that was cut off, if the task sets `mark_cut_off` in its generation settings: lmms-eval passes only the text from
# a model to a task.
CUT_OFF = "<cut off>"
_MAX_NEW_TOKENS = EvaluationSettings.max_new_tokens
_BATCHES_AHEAD = 2

Chat = list[dict[str, Any]]


def manifests():
    """Returns what lmms-eval registers: the name of the model and the path of its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="llava_st", chat_class_path=f"{__name__}.LlavaST")]


class LlavaST(_Base or object):
    """
    LLaVA-ST with the interface of lmms-eval.

    Args (`--model_args` of lmms-eval; `--device` and `--batch_size` are separate options):
        pretrained: folder or hub id of a checkpoint.
        device: such as "cuda:1"; by default the accelerator of this process. Under `accelerate launch` each process has its own.
        batch_size: number of questions answered together.
        dtype: of the weights, such as "bfloat16"; "auto" for that of the checkpoint.
        attn_implementation: as in transformers.
        max_batch_size: ignored; lmms-eval passes it to all models.

    Raises:
        ValueError: if `batch_size` is not an integer of at least 1, or model and processor do not belong together.
        ImportError: without lmms-eval.
        SystemExit: with a version of filelock that lmms-eval cannot use.
    """

    is_simple = False
    # Frames that the model of this process samples of a clip. The tasks need it to place ground-truth boxes, and lmms-eval passes
    # nothing but answers from a model to a task.
    num_frames: int | None = None

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
            raise ImportError("LlavaST is a model for lmms-eval, which is not installed (pip install lmms-eval).")
        if find_spec("filelock._api") is None:
            # Not an Exception: lmms-eval catches all of these, and would end without results and with exit status 0.
            raise SystemExit(
                f"llava_st: lmms-eval 0.7.3 needs a module that filelock {version('filelock')} does not have. Install filelock 3: "
                "pip install filelock==3.20.3"
            )
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size!r} must be an integer of at least 1.")
        self.batch_size = int(batch_size)
        # The default timeout of ten minutes is too short if one process takes much longer than the others.
        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if device is None or self._world_size > 1 else torch.device(device)
        self.processor = LlavaSTProcessor.from_pretrained(pretrained)
        LlavaST.num_frames = self.processor.video_processor.num_frames
        options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        self.model = LlavaSTForConditionalGeneration.from_pretrained(pretrained, dtype=dtype, **options).eval().to(self.device)
        check_model_matches_processor(self.model.config, self.processor)

    def generate_until(self, requests) -> list[str]:
        """Returns an answer to each request, in their order; empty, with a warning, if an image or video cannot be read."""
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
        raise NotImplementedError("llava_st generates answers and does not compute likelihoods. Choose tasks with generated answers.")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("llava_st answers single questions only. Choose tasks without several rounds.")


def answer_chats(
    chats: Sequence[Callable[[], Chat]],
    settings: dict,
    model: LlavaSTForConditionalGeneration,
    processor: LlavaSTProcessor,
    batch_size: int,
) -> Iterator[str]:
    """
    Yields answers to chats in lmms-eval's format, in their order; images and videos of the next batches are decoded meanwhile.

    Args:
        chats: functions that return a chat. They are called batch by batch, since a chat may contain decoded images.
        settings: lmms-eval's generation settings. Supported are `max_new_tokens`, `temperature` (0 or None: greedy), `do_sample` (False:
            greedy), `top_p`, `top_k`, `num_beams`, `until` (stop strings, excluded from the answer) and `mark_cut_off` (see `CUT_OFF`).
        model, processor: in evaluation mode, on its device.
        batch_size: number of chats answered together.
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
    """Converts lmms-eval's settings to arguments of `generate`. Other settings of a task are for other models and ignored."""
    options = {"max_new_tokens": int(settings.get("max_new_tokens") or _MAX_NEW_TOKENS)}
    sampling = ("temperature", "top_p", "top_k")
    options["do_sample"] = settings.get("do_sample") is not False and (settings.get("temperature") or 0) > 0
    names = ("num_beams", *sampling) if options["do_sample"] else ("num_beams",)
    return options | {name: settings[name] for name in names if settings.get(name) is not None}


def _batches(chats: Sequence[Callable[[], Chat]], processor: LlavaSTProcessor, dtype: torch.dtype, batch_size: int) -> Iterator[list]:
    """Yields the model inputs of each batch, as a list of samples; None for one whose image or video cannot be read."""

    def encode(makers: Sequence[Callable[[], Chat]]) -> list[dict | None]:
        return [_encoded(make(), processor, dtype) for make in makers]

    # One thread is enough, since decoders are multi-threaded.
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
        warnings.warn(f"A question gets an empty answer: {error}", stacklevel=2)
        return None
    pixels = ("pixel_values", "pixel_values_videos")
    return {name: tensor.to(dtype) if name in pixels else tensor for name, tensor in encoded.items()}


def _item(part: dict) -> dict:
    """
    Converts a content item of lmms-eval to one of the chat template.

    The `clip` of a video, first and last frame, is set by this package's tasks. Others give seconds, next to the path of the video or
    together with it.
    """
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "video"):
        raise ValueError(f"llava_st supports text, images and videos, but the task contains {kind!r}.")
    source, times = part["url"], {"start": part.get("start_time"), "end": part.get("end_time")}
    if isinstance(source, dict):
        times = {"start": source.get("video_start"), "end": source.get("video_end")}
        source = next((source[key] for key in ("url", "path", "video") if source.get(key) is not None), None)
    if kind == "image":
        return {"type": "image", "image": source}
    clip = {"clip": list(part["clip"])} if part.get("clip") else {name: time for name, time in times.items() if time is not None}
    return {"type": "video", "video": source, **clip}
