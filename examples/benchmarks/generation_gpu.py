# SPDX-License-Identifier: Apache-2.0
"""Measures generation at the published sizes on one GPU, each part against what the card allows, in under five minutes.

    python examples/benchmarks/generation_gpu.py           # one GPU with 40 GB: random weights of 7B in bfloat16, nothing is downloaded
    python examples/benchmarks/generation_gpu.py --tiny    # small sizes on any machine, to try the program

A video of 100 frames (2,520 tokens), 2,600 prompt tokens, an answer of 440 tokens. The rates of matrix products and of memory reads that
the parts are compared with are measured first, on the same card.

**Drafts are simulated.** Random weights do not write tubelets, so none of their drafts would be accepted. All computation of a pass is
done (drafts, decoder, head, choice of tokens, verification), but the number of accepted drafts is replayed from `ACCEPTED`: tokens per
pass with 23 drafts on the demo model and on the model for 60 frames, as `generation.py --accepted` prints them. Seconds with drafts are
therefore those of a model whose drafts are accepted as often; rows "computed" have the seconds for other numbers of tokens per pass.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration, LlavaSTVideoProcessor
from llava_st_hf.model import decode_loop_llava_st, drafts_llava_st
from llava_st_hf.model.vision_llava_st import encode_frames


# Tokens per pass, 23 drafts: `python examples/benchmarks/generation.py --sixty runs/sixty/model --accepted`, 2026-11-26.
ACCEPTED = {
    name: tuple(map(int, counts.split()))
    for name, counts in {
        "demo model": "2 1 10 2 7 7 7 7 7 7 1 1",
        "demo model, 20 boxes": "2 8 2 2 7 1 7 4 2 7 19 2 14 7 7 7 1 14 6 17 4 9",
        "60 frames": "2 1 11 7 5 2 7 7 7 1 13 7 17 4 7 7 7 7 7 7 7 1 7 7 7 13 7 7 7 7 1 6 14 7 7 7 19 2 24 7 7 4 9 1",
    }.items()
}
BATCH = 8
TINY = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 126,
        "patch_size": 14,
    },
    "text_config": {
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "packer_hidden_size": 64,
}
_SOURCE_SIZE = (360, 640)  # height and width of the video


class Card:
    """The device, its clock, and its limits: FLOP/s of bfloat16 matrix products and bytes/s of memory reads."""

    def __init__(self, device: str, tiny: bool):
        self.device, self.is_cuda = device, device == "cuda"
        self.name = torch.cuda.get_device_name() if self.is_cuda else "CPU"
        size, rows = (256, 4096) if tiny else (8192, 262144)
        one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        self.flops = 2 * size**3 / self.seconds(lambda: one @ other, 20)
        weights, vector = (torch.randn(*shape, device=device, dtype=torch.bfloat16) for shape in ((rows, size), (size,)))
        self.bandwidth = weights.numel() * 2 / self.seconds(lambda: weights @ vector, 20)

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable, repeats: int = 5, warm_up: int = 2) -> float:
        """Median of the seconds of a call."""
        times = []
        for number in range(warm_up + repeats):
            self.synchronize()
            start = time.perf_counter()
            call()
            self.synchronize()
            if number >= warm_up:
                times.append(time.perf_counter() - start)
        return statistics.median(times)

    def reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Largest allocated memory in GB (1e9 bytes) since `reset_peak`; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.is_cuda else 0.0


class Table:
    """Prints measurements and collects them for the summary. `has_targets`: compare them with the targets of the published sizes."""

    def __init__(self, has_targets: bool):
        self.has_targets = has_targets
        self.values: dict[str, float] = {}
        self.limits: dict[str, float] = {}
        self.missed: list[str] = []

    def add(self, name: str, value: float, unit: str, limit: float | None = None, least: float | None = None, most: float | None = None):
        """
        Prints one measurement.

        Args:
            name: of the part.
            value: measured.
            unit: of value and limit.
            limit: seconds that the card allows.
            least: target of limit / value.
            most: target of value.
        """
        self.values[name] = round(value, 5)
        cells = [name, f"{value:.4g} {unit}", "", "", ""]
        met = None
        if limit is not None:
            self.limits[name] = limit
            cells[2:4] = [f"{limit:.4g} {unit}", f"{limit / value:.0%}"]
            self.values[f"{name}, share of the limit"] = round(limit / value, 4)
        if not self.has_targets:
            least = most = None
        if least is not None and limit is not None:
            cells[4], met = f"≥ {least:.0%}", limit / value >= least
        if most is not None:
            cells[4], met = f"≤ {most:g} {unit}", value <= most
        if met is not None:
            cells[4] += ", met" if met else ", MISSED"
            self.missed += [] if met else [name]
        print(f"| {' | '.join(cells)} |", flush=True)


# ============================================================ Model and inputs


class Setup:
    """Model with random weights and inputs of the published sizes."""

    def __init__(self, card: Card, tiny: bool, compile: bool):
        self.card, self.fast = card, {"compile": True} if compile else {}
        self.frames, self.prompt_tokens, self.answer_tokens = (10, 80, 44) if tiny else (100, 2600, 440)
        config = LlavaSTConfig(**TINY) if tiny else LlavaSTConfig()
        with torch.device(card.device):
            model = LlavaSTForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
        self.model, self.config = model.eval(), config
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0  # no token ends an answer
        generator = np.random.default_rng(0)
        self.video = generator.integers(0, 256, (self.frames, *_SOURCE_SIZE, 3), dtype=np.uint8)
        size = config.vision_config.image_size
        self.processor = LlavaSTVideoProcessor(size={"height": size, "width": size}, num_frames=self.frames)

    def pixels(self) -> torch.Tensor:
        """(1, frames, 3, image_size, image_size) of one video, on the device."""
        values = self.processor(self.video, return_tensors="pt", do_sample_frames=False)["pixel_values_videos"]
        return values.to(self.card.device, torch.bfloat16)

    def inputs(self, batch_size: int) -> dict:
        """Model inputs: text, the video, text."""
        config = self.config
        fast, slow = self.frames * config.fast_grid_size**2, -(-self.frames // config.packer_temporal_stride) * config.packed_grid_size**2
        video = [config.video_start_token_id, *[config.video_token_id] * (fast - 2), config.video_end_token_id]
        video += [config.slow_video_start_token_id, *[config.video_token_id] * (slow - 2), config.slow_video_end_token_id]
        text = max(2, self.prompt_tokens - len(video))
        row = torch.tensor([*range(100, 100 + text // 2), *video, *range(200, 200 + text - text // 2)])
        ids = row.repeat(batch_size, 1).to(self.card.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": self.pixels().repeat(batch_size, 1, 1, 1, 1),
        }

    def template(self) -> list[int]:
        """Token ids of a tubelet with three boxes; random weights have no tokenizer, so other tokens are arbitrary ones."""
        vocabulary = self.config.coordinates
        time_id, height, width = (vocabulary.token_ids(axis).start + 50 for axis in ("temporal", "height", "width"))
        return [50, 51, time_id, time_id, 52, 53, 54, 55, 56, 57, *[time_id, 58, width, height, width, height, 59] * 3]

    def generate(self, inputs: dict, tokens: int, **options) -> torch.Tensor:
        """Generates exactly `tokens` tokens."""
        if options.get("speculative"):
            options["draft_templates"] = [self.template()] * len(inputs["input_ids"])
        return self.model.generate(**inputs, do_sample=False, max_new_tokens=tokens, **options)


@contextmanager
def replayed(accepted: tuple[int, ...], device: str) -> Iterator[None]:
    """
    Makes the decode loop accept as many drafts as were recorded, in place of comparing drafts with chosen tokens.

    Args:
        accepted: tokens of each pass, repeated. Rows of a batch start at different places.
        device: of the model.
    """
    schedule = torch.tensor(accepted, device=device)
    passes = torch.zeros((), dtype=torch.long, device=device)
    draft = drafts_llava_st.DraftHistory.draft

    def matches(decoding, drafts: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        equal = (drafts == chosen).long()
        if drafts.shape[1] == 0:
            return equal
        rows = torch.arange(drafts.shape[0], device=device)[:, None]
        tokens = schedule[(passes + rows * 7) % len(schedule)]
        passes.add_(1)
        return torch.where(torch.arange(drafts.shape[1], device=device) < tokens - 1, 1, 0 * equal)

    def existing(history, *args) -> torch.Tensor:
        return draft(history, *args).clamp(min=0)  # an accepted draft is a token

    with (
        mock.patch.object(decode_loop_llava_st._Decoding, "_matches", matches),
        mock.patch.object(drafts_llava_st.DraftHistory, "draft", existing),
    ):
        yield


# ============================================================ Parts


def counted_flops(call: Callable) -> int:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def measure_vision(setup: Setup, table: Table, note: str, least: float | None) -> None:
    """Measures vision encoder, projector, LAPE and packer as they are now; `least`: target of their share of the limit."""
    card, model = setup.card, setup.model.model
    pixels = setup.pixels()

    def tower():
        return encode_frames(model.vision_tower, model.multi_modal_projector, pixels[0], setup.config.vision_config)

    embeddings = setup.model.get_coordinate_output_embeddings()
    limit = counted_flops(tower) / card.flops if not note else table.limits["vision tower"]
    seconds = card.seconds(lambda: model.get_video_features(pixels, coordinate_output_embeddings=embeddings))
    table.add(f"vision tower{note}", card.seconds(tower), "s", limit, least=least)
    table.add(f"vision, projector, LAPE, packer{note}", seconds, "s", limit)


def measure_prefill(setup: Setup, table: Table) -> None:
    model, hidden = setup.model, setup.config.get_text_config().hidden_size
    embeds = torch.randn(1, setup.prompt_tokens, hidden, device=setup.card.device, dtype=torch.bfloat16)

    def prefill():
        states = model.model.language_model(inputs_embeds=embeds, use_cache=True).last_hidden_state
        return model.lm_head(states[:, -1:])

    table.add("prefill of the decoder", setup.card.seconds(prefill), "s", counted_flops(prefill) / setup.card.flops, least=0.75)


def decoder_bytes(setup: Setup) -> float:
    """Bytes that a decode step reads: weights of decoder and head, and the keys and values of the prompt and half of the answer."""
    text = setup.config.get_text_config()
    modules = (setup.model.model.language_model.layers, setup.model.lm_head)
    weights = sum(weight.numel() for module in modules for weight in module.parameters())
    head_dim = text.hidden_size // text.num_attention_heads
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * (setup.prompt_tokens + setup.answer_tokens / 2)
    return 2 * (weights + cached)


def measure_passes(setup: Setup, table: Table) -> None:
    """Measures one pass: an answer without what comes before its second token, divided by the number of passes."""
    card, inputs, tokens = setup.card, setup.inputs(1), setup.answer_tokens
    limit = decoder_bytes(setup) / card.bandwidth
    first = card.seconds(lambda: setup.generate(inputs, 1))
    table.add("question to first token", first, "s")
    few = tokens // 10
    eager = (card.seconds(lambda: setup.generate(inputs, few), 2, 1) - first) / (few - 1)
    table.add("decode step of transformers, eager", eager, "s", limit)
    start = time.perf_counter()
    setup.generate(inputs, tokens, **setup.fast)
    card.synchronize()
    table.add("first call with compile=True", time.perf_counter() - start, "s")
    first = card.seconds(lambda: setup.generate(inputs, 1))  # the layers of the vision encoder are compiled now
    seconds = card.seconds(lambda: setup.generate(inputs, tokens, **setup.fast), 3, 1)
    table.add("decode step, 1 token", (seconds - first) / (tokens - 1), "s", limit, least=0.6)
    with replayed((1,), card.device):
        seconds = card.seconds(lambda: setup.generate(inputs, tokens, speculative=True, **setup.fast), 2, 1)
    table.add("decode pass, 24 tokens", (seconds - first) / (tokens - 1), "s", limit)


def measure_answers(setup: Setup, table: Table, batch_size: int, alone: dict[str, float]) -> dict[str, float]:
    """
    Measures question to answer, from pixels on the device.

    Args:
        batch_size: number of questions about as many videos.
        alone: seconds of a batch of one, by the name of the row; empty for such a batch.

    Returns:
        Seconds by the name of the row.
    """
    card, tokens, inputs, found = setup.card, setup.answer_tokens, setup.inputs(batch_size), {}
    repeats = 3 if batch_size == 1 else 1
    card.reset_peak()

    def add(name: str, most: float, **options) -> None:
        seconds = card.seconds(lambda: setup.generate(inputs, tokens, **setup.fast, **options), repeats, 1)
        found[name] = seconds
        table.add(f"{tokens} tokens, batch {batch_size}, {name}", seconds, "s", most=1.5 * alone[name] if alone else most)

    add("no drafts", 2.5)
    for source, accepted in ACCEPTED.items():
        with replayed(accepted, card.device):
            add(f"drafts as on: {source} ({statistics.mean(accepted):.1f} tokens per pass)", 1.2, speculative=True)
    table.add(f"peak memory, batch {batch_size}", card.peak_gb(), "GB", most=None if alone else 18)
    return found


def num_passes(accepted: tuple[int, ...], tokens: int) -> int:
    """Passes of an answer: the first token comes from the prompt."""
    done, passes = 1, 0
    while done < tokens:
        done, passes = done + accepted[passes % len(accepted)], passes + 1
    return passes


def add_other_acceptance(setup: Setup, table: Table, seconds: dict[str, float]) -> None:
    """Adds the seconds of an answer for other numbers of tokens per pass: a fixed part, and one that is proportional to the passes."""
    per_pass, tokens = table.values["decode pass, 24 tokens"], setup.answer_tokens
    drafted = [value for name, value in seconds.items() if name != "no drafts"]
    fixed = statistics.mean(
        value - per_pass * num_passes(accepted, tokens) for value, accepted in zip(drafted, ACCEPTED.values(), strict=True)
    )
    for count in (2, 3, 4, 6, 8):
        table.add(f"{tokens} tokens, batch 1, computed for {count} tokens per pass", fixed + per_pass * (tokens - 1) / count, "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, also without a GPU")
    parser.add_argument("--no-compile", action="store_true", help="without compile=True: eager vision encoder and decoder")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        raise SystemExit("The published sizes need a GPU with 40 GB of memory, and torch sees none. Add --tiny to try the program.")
    start = time.perf_counter()
    torch.manual_seed(0)
    with torch.inference_mode():
        card = Card(device, args.tiny)
        print(f"{card.name}, torch {torch.__version__}: {card.flops / 1e12:.3g} TFLOP/s in bfloat16 products of 8192, ", end="")
        print(f"{card.bandwidth / 1e12:.3g} TB/s of reads; numbers of accepted drafts are replayed")
        setup, table = Setup(card, args.tiny, not args.no_compile), Table(not args.tiny)
        print("| part | measured | limit | share | target |\n|---|---|---|---|---|")
        table.add("frames to pixels", card.seconds(setup.pixels, 3), "s")
        measure_vision(setup, table, "", None if setup.fast else 0.55)
        measure_prefill(setup, table)
        measure_passes(setup, table)
        if setup.fast:
            measure_vision(setup, table, ", layers compiled", 0.55)
        alone = measure_answers(setup, table, 1, {})
        add_other_acceptance(setup, table, alone)
        print(f"| {time.perf_counter() - start:.0f} s so far | | | | |")
        measure_answers(setup, table, BATCH, alone)
    total = time.perf_counter() - start
    print(f"{total:.0f} s in total; missed: {', '.join(table.missed) or 'none'}")
    limits = {"tflops": round(card.flops / 1e12, 1), "read_tbps": round(card.bandwidth / 1e12, 3)}
    print(json.dumps({"card": card.name, "torch": torch.__version__, **limits, "seconds": round(total), **table.values}))


if __name__ == "__main__":
    main()
