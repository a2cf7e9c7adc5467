# SPDX-License-Identifier: Apache-2.0
"""Measures the samples per second of the data loader for each CPU core, and the time of its parts.

    python examples/benchmarks/loader.py                     # 640x360, 30 seconds each; more with --width, --height, --seconds

Needs `av` with libx264. It encodes a few videos, makes rows of them as `load_mixture` does, and passes them through `LlavaSTDataCollator`
in a torch `DataLoader`. torch has one thread in each process.

- The parts are the CPU time of one sample in the main process: reading frames (measured by reading them once more, opening included),
  resizing, normalizing, and the rest (chat template, tokens, labels, conversion of the pixels, padding).
- `vs decode` is the time of a sample divided by the time of reading the same frames alone; 1 means that the rest is free or hidden.
- Every frame read is counted: the script stops if one sample reads a frame twice.
- Samples per core are computed from the CPU time: decoders have their own threads, so one process may use several cores.
"""

import argparse
import math
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from datasets import Dataset
from preprocessing import best_times, write_video
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from llava_st_hf import LlavaSTImageProcessor, LlavaSTProcessor, LlavaSTVideoProcessor
from llava_st_hf.data.rows import FEATURES, Medium, conversation_row
from llava_st_hf.model import video_processing_llava_st
from llava_st_hf.model.configuration_llava_st import SPECIAL_TOKENS
from llava_st_hf.model.tokenizer_llava_st import add_coordinate_tokens_to_tokenizer
from llava_st_hf.model.video_decoding_llava_st import VideoFileReader, open_video_file
from llava_st_hf.model.video_processing_llava_st import sample_frame_indices
from llava_st_hf.training import LlavaSTDataCollator


QUESTION = "When does the dog catch the ball, and where is it then? Give the span and the box in each frame, please."
ANSWER = "{<t0.1234><t0.5678>}: " + ", ".join(f"<t{k / 20}>[<w0.1234><h0.25><w0.{50 + k}><h0.7777>]" for k in range(12))


def make_processor() -> LlavaSTProcessor:
    """Returns a processor with the published sizes. Its tokenizer has a token for each byte, so text is longer than with Qwen2's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    by_byte = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    by_byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=by_byte, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPECIAL_TOKENS.values()], special_tokens=True)
    add_coordinate_tokens_to_tokenizer(tokenizer, 100, 100)
    return LlavaSTProcessor(LlavaSTImageProcessor(), tokenizer, LlavaSTVideoProcessor())


def make_dataset(paths: list[Path], samples: int) -> Dataset:
    rows = []
    for number in range(samples):
        medium = Medium("video", str(paths[number % len(paths)]))
        rows.append(conversation_row(str(number), "stvg", "made", medium, [("user", QUESTION), ("assistant", ANSWER)]))
    return Dataset.from_list(rows, features=FEATURES)


@contextmanager
def count_frames():
    """Yields a list to which the index of every frame that is read is appended."""
    given: list[int] = []

    def counting(chunks):
        def counted(reader, indices):
            position = 0
            for frames in chunks(reader, indices):
                given.extend(indices[position : position + len(frames)])
                position += len(frames)
                yield frames

        return counted

    with mock.patch.object(VideoFileReader, "chunks", counting(VideoFileReader.chunks)):
        yield given


@contextmanager
def time_parts():
    """Yields a dictionary in which CPU seconds of resizing and normalizing are summed, over all threads."""
    seconds = {"resize": 0.0, "normalise": 0.0}

    def timed(function, part):
        def call(*args, **kwargs):
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[part] += time.thread_time() - start

        return call

    module = video_processing_llava_st
    with (
        mock.patch.object(module, "resize_pixels", timed(module.resize_pixels, "resize")),
        mock.patch.object(module, "normalize_pixels", timed(module.normalize_pixels, "normalise")),
    ):
        yield seconds


def read_frames(path: Path, num_frames: int) -> int:
    """Decodes the frames that training samples, without further processing."""
    reader = open_video_file(str(path))
    indices = sample_frame_indices(0, reader.metadata.total_num_frames - 1, num_frames)
    return sum(len(frames) for frames in reader.chunks(sorted(set(indices))))


def check_frames(collator: LlavaSTDataCollator, rows: Dataset) -> int:
    """Returns the number of frames read for one sample.

    Raises:
        AssertionError: if a frame was read twice.
    """
    with count_frames() as given:
        collator([rows[0]])
    assert len(given) == len(set(given)), f"{len(given) - len(set(given))} of {len(given)} frames were read twice for one sample"
    return len(given)


def split_of_a_sample(collator: LlavaSTDataCollator, rows: Dataset, repeats: int) -> dict[str, float]:
    """Returns CPU seconds of the parts of one sample, of the best run."""
    best: dict[str, float] = {}
    number = collator.processor.video_processor.num_frames
    path = rows[0]["messages"][0]["content"][0]["path"]
    for _ in range(repeats):
        start = time.process_time()
        read_frames(path, number)
        read = time.process_time() - start
        with time_parts() as seconds:
            start = time.process_time()
            collator([rows[0]])
            whole = time.process_time() - start
        run = {"whole": whole, **seconds, "read": read}
        if not best or run["whole"] < best["whole"]:
            best = run
    best["rest"] = best["whole"] - best["read"] - best["resize"] - best["normalise"]
    return best


def loader_seconds(collator: LlavaSTDataCollator, rows: Dataset, workers: int, batch_size: int) -> float:
    """Returns the seconds of one pass over all rows, without the start of the workers."""
    loader = DataLoader(rows, batch_size=batch_size, collate_fn=collator, num_workers=workers, persistent_workers=workers > 0)
    for _ in range(2):  # workers start in the first pass
        start = time.perf_counter()
        for _ in loader:
            pass
        seconds = time.perf_counter() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--seconds", type=int, default=30, help="length of the encoded videos, at 25 frames per second")
    parser.add_argument("--samples", type=int, default=12, help="samples of one pass of the loader")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples-per-second", type=float, default=1.0, help="what a GPU trains on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.multiprocessing.set_sharing_strategy("file_system")

    processor = make_processor()
    collator = LlavaSTDataCollator(processor, pixel_dtype=torch.bfloat16)
    frames = processor.video_processor.num_frames
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.mp4" for number in range(4)]
        for path in paths:
            write_video(path, args.width, args.height, args.seconds * 25)
        rows = make_dataset(paths, args.samples)
        tokens = collator([rows[0]])["input_ids"].shape[1]
        print(f"torch {torch.__version__}, 1 thread per process; {args.width}x{args.height}, {args.seconds} s, {tokens} tokens a sample")
        print(f"frames read for a sample: {check_frames(collator, rows)} of {args.seconds * 25}, none twice")

        parts = split_of_a_sample(collator, rows, args.repeats)
        print("\nCPU time of one sample")
        for part, name in (("read", "reading frames"), ("resize", "resizing"), ("normalise", "normalising"), ("rest", "text and the rest")):
            print(f"  {name:18s} {parts[part]:7.3f} s {parts[part] / parts['whole']:7.1%}")
        sample, decode = best_times(lambda: collator([rows[0]]), lambda: read_frames(paths[0], frames), repeats=args.repeats)
        print(f"  whole {sample:.3f} s, reading alone {decode:.3f} s by the clock: {sample / decode:.2f}x vs decode")

        print("\nworkers   samples/s   vs decode")
        for workers in (0, 1, 2):
            seconds = min(loader_seconds(collator, rows, workers, 2) for _ in range(args.repeats))
            print(f"{workers:7d} {args.samples / seconds:11.2f} {seconds / args.samples / decode:10.2f}x", flush=True)
        cores = args.samples_per_second * parts["whole"]
        print(f"\nA core gives {1 / parts['whole']:.2f} samples/s")
        print(f"A GPU that trains on {args.samples_per_second:g} samples/s needs {cores:.2f} cores: {math.ceil(cores)} workers")


if __name__ == "__main__":
    main()
