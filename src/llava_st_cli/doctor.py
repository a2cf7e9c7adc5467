# SPDX-License-Identifier: Apache-2.0
"""`llava-st doctor`: what is installed, what works, and what a model needs on this computer.

A package that cannot be imported is a finding and not the end of the report, so every part imports what it examines.
"""

import os
import platform
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

from .terminal import one_line, to_json


_DISTRIBUTION = "llava-st-hf"
_DEVELOPMENT = {"lint", "test", "mutation"}  # extras that users do not need
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """
    Result of one check.

    Args:
        part: section of the report.
        name: what was examined.
        status: "missing" is an optional package or device that is not there, "warning" a model that does not fit; only "error" makes the
            exit status 1.
        detail: value, or reason.
    """

    part: str
    name: str
    status: Literal["ok", "missing", "warning", "error"]
    detail: str


def run_doctor(args: Namespace) -> int:
    """Prints the report, and returns 1 if something essential does not work."""
    findings = []
    for finding in examine(args.checkpoint):
        findings.append(finding)
        if not args.json:
            if len(findings) == 1 or findings[-2].part != finding.part:
                print(f"{finding.part}:")
            print(f"  {finding.status:8} {one_line(finding.name):28} {one_line(finding.detail)}", flush=True)
    failed = [finding.name for finding in findings if finding.status == "error"]
    if args.json:
        print(to_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(f"Does not work: {', '.join(map(one_line, failed))}." if failed else "Everything that is required works.")
    return 1 if failed else 0


def examine(checkpoint: str | None) -> Iterator[Finding]:
    """Yields the findings of all parts."""
    yield Finding("System", "Python", "ok", f"{platform.python_version()}, {platform.platform()}")
    yield from _requirements()
    # Before the video readers, as in the package: decord2 3.4 brings a BLAS library that PyTorch crashes with if it is loaded first.
    devices = list(_part("Devices", "PyTorch", _torch))
    yield from devices
    yield from _part("Video", "PyAV", _video)
    if any(finding.status == "error" for finding in devices):
        return
    yield from _part("Attention", "attention", _attention)
    yield from _part("Memory", "memory", lambda: _memory(checkpoint))


def _part(part: str, name: str, check: Callable[[], Iterator[tuple[str, str, str]]]) -> Iterator[Finding]:
    """Findings of a check; an exception that ends it is an error."""
    try:
        for found in check():
            yield Finding(part, *found)  # type: ignore[arg-type]
    except Exception as error:  # any exception of a broken installation is a result of the check
        yield Finding(part, name, "error", f"{type(error).__name__}: {error}")


# Packages


def _requirements() -> Iterator[Finding]:
    """The package, its requirements and its extras, by the metadata of the installation."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in requires(_DISTRIBUTION) or []]
    except PackageNotFoundError:
        yield Finding("Packages", _DISTRIBUTION, "error", "not installed: pip install llava-st-hf")
        return
    yield Finding("Packages", _DISTRIBUTION, "ok", version(_DISTRIBUTION))
    extras: dict[str, list] = {}
    for requirement in declared:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        if extra is not None:
            extras.setdefault(extra[1], []).append(requirement)
            continue
        problem = _problem(requirement)
        yield Finding("Packages", requirement.name, "error" if problem else "ok", problem or version(requirement.name))
    for extra, of_extra in sorted(extras.items()):
        if extra in _DEVELOPMENT:
            continue
        problems = [f"{name} {problem}" for name, problem in _problems_of_extra(of_extra, extras)]
        detail = f"{', '.join(problems)}: pip install '{_DISTRIBUTION}[{extra}]'" if problems else "complete"
        yield Finding("Extras", f"[{extra}]", "missing" if problems else "ok", detail)


def _problems_of_extra(requirements: list, extras: dict[str, list]) -> Iterator[tuple[str, str]]:
    for requirement in requirements:
        if requirement.name == _DISTRIBUTION:  # an extra that contains others
            for extra in sorted(requirement.extras):
                yield from _problems_of_extra(extras.get(extra, []), extras)
        elif problem := _problem(requirement):
            yield requirement.name, problem


def _problem(requirement) -> str | None:
    """What is wrong with the installed version of a requirement; None if nothing is."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return f"is not installed (needs {requirement.specifier or 'any version'})"
    return None if requirement.specifier.contains(installed, prereleases=True) else f"{installed} is not {requirement.specifier}"


# Video


def _video() -> Iterator[tuple[str, str, str]]:
    import io

    import av
    import numpy as np

    libraries = ", ".join(f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavformat", "libavcodec"))
    yield "video reader", "ok", f"pyav {av.__version__} (default), {libraries}"
    try:
        decord = import_module("decord")
        yield "video reader", "ok", f"decord {decord.__version__} (--video-backend decord)"
    except ImportError as error:
        yield "video reader", "error", f"decord cannot be imported: {error}"
    encoded = io.BytesIO()
    try:
        with av.open(encoded, "w", format="mp4") as file:
            stream = file.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for value in (0, 80, 160):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), format="rgb24")))
            file.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:  # ValueError: an encoder that this build does not have
        yield "libx264", "missing", f"no H.264 encoder ({error}): annotated videos cannot be written"
        return
    encoded.seek(0)
    with av.open(encoded) as file:
        means = [float(frame.to_ndarray(format="rgb24").mean()) for frame in file.decode(video=0)]
    right = len(means) == 3 and all(abs(mean - value) < 4 for mean, value in zip(means, (0, 80, 160), strict=True))
    yield "libx264", "ok" if right else "error", "three frames written and read" if right else f"frames read with means {means}"


# Devices


def _torch() -> Iterator[tuple[str, str, str]]:
    import torch

    yield "PyTorch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}, {torch.get_num_threads()} threads"
    yield from _products("cpu", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield from _products(f"cuda:{index}", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")
    if torch.cuda.device_count() == 0:
        yield "GPU", "missing", "PyTorch finds no CUDA device: the model runs on the CPU"
    if torch.backends.mps.is_available():
        yield from _products("mps", "Apple GPU")


def _products(device: str, description: str) -> Iterator[tuple[str, str, str]]:
    """Computes a small matrix product on a device, in float32 and bfloat16, and compares it with float64 on the CPU."""
    import torch

    left, right = (torch.linspace(-1, 1, 64 * 64, dtype=torch.float64).reshape(64, 64).sin().roll(shift, 0) for shift in (0, 7))
    expected = left @ right
    results = []
    for dtype, tolerance in ((torch.float32, 1e-2), (torch.bfloat16, 1e-1)):  # float32 may be TF32 on a GPU
        product = (left.to(device, dtype) @ right.to(device, dtype)).to("cpu", torch.float64)
        error = float((product - expected).abs().max() / expected.abs().max())
        results.append(f"{str(dtype).removeprefix('torch.')} differs by {error:.0e}")
        if not error < tolerance:
            yield device, "error", f"{description}: the matrix product in {results[-1]} from float64"
            return
    yield device, "ok", f"{description}; matrix products: {', '.join(results)}"


# Attention


def _attention() -> Iterator[tuple[str, str, str]]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 8, 16, generator=generator) for _ in range(3))
    expected = ((query @ key.mT) / 4).softmax(-1) @ value
    found = scaled_dot_product_attention(query.to(device), key.to(device), value.to(device)).cpu()
    difference = float((found - expected).abs().max())
    yield "eager", "ok", "always available"
    yield "sdpa", "ok" if difference < 1e-2 else "error", f"the default; differs from eager by {difference:.0e} on {device}"
    yield _optional("flex_attention", is_torch_flex_attn_available(), "not supported by this PyTorch")
    yield _optional("flash_attention_2", is_flash_attn_2_available(), "needs a GPU and pip install 'llava-st-hf[flash]'")


def _optional(name: str, available: bool, reason: str) -> tuple[str, str, str]:
    return (name, "ok", f"attn_implementation={name!r}") if available else (name, "missing", reason)


# Memory


def _memory(checkpoint: str | None) -> Iterator[tuple[str, str, str]]:
    import psutil
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from llava_st_hf.commands.memory import inference_memory
    from llava_st_hf.model.configuration_llava_st import LlavaSTConfig

    memory = psutil.virtual_memory()
    yield "main memory", "ok", f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    existing = HF_HUB_CACHE
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    disk = shutil.disk_usage(existing)
    yield "disk", "ok", f"{disk.free / _GIB:.1f} of {disk.total / _GIB:.1f} GiB free for downloads ({HF_HUB_CACHE})"
    if torch.cuda.is_available():
        place, free = "GPU", max(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    else:
        place, free = "main", memory.available
    if checkpoint is None:
        yield _need("LLaVA-ST-Qwen2-7B", inference_memory(LlavaSTConfig(), torch.bfloat16), torch.bfloat16, place, free, "warning")
        return
    config = LlavaSTConfig.from_pretrained(checkpoint)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    yield _need(checkpoint, inference_memory(config, dtype), dtype, place, free, "error")


def _need(name: str, need: dict[str, int], dtype, place: str, free: int, too_large: str) -> tuple[str, str, str]:
    parts = {"weights": "weights", "activations": "activations", "kv_cache": "KV cache"}
    amounts = ", ".join(f"{label} {need[part] / _GIB:.1f}" for part, label in parts.items())
    detail = (
        f"{need['parameters'] / 1e6:,.1f} million parameters in {str(dtype).removeprefix('torch.')}; computed need for a video of 100 "
        f"frames: {need['total'] / _GIB:.1f} GiB ({amounts}); "
    )
    if need["total"] <= free:
        return name, "ok", f"{detail}fits into {free / _GIB:.1f} GiB of free {place} memory"
    return name, too_large, f"{detail}does not fit into {free / _GIB:.1f} GiB of free {place} memory"
