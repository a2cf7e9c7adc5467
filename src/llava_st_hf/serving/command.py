# SPDX-License-Identifier: Apache-2.0
"""`llava-st serve`: checks of checkpoint, vLLM and address, then vLLM's server with a check of its first answer."""

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from ..checkpoints.fingerprint import read_fingerprint
from ..model.compatibility_llava_st import check_model_matches_processor
from ..model.configuration_llava_st import LlavaSTConfig
from ..model.processing_llava_st import LlavaSTProcessor
from .arguments import CONNECTOR, ServerOptions, vllm_arguments
from .checks import check_address, check_chat_template, check_folder, check_vllm, is_loopback
from .startup_check import REPORT, WITHOUT_FINGERPRINT
from .upload_limit import LIMIT


logger = logging.get_logger(__name__)


def serve(
    checkpoint: str,
    options: ServerOptions,
    max_upload: int = 256,
    without_fingerprint: bool = False,
    dry_run: bool = False,
    flags: Sequence[str] = (),
) -> None:
    """
    Serves a checkpoint with vLLM until it is interrupted.

    Args:
        checkpoint: folder of a complete model in this package's layout, or its id on the Hugging Face Hub.
        options: of the server.
        max_upload: largest request in MiB.
        without_fingerprint: whether a checkpoint without a fingerprint, whose answers cannot be checked, is served.
        dry_run: print the command line of vLLM, and end.
        flags: further flags of vLLM.

    Raises:
        ImportError: if vLLM is not installed in a supported version.
        ValueError: for a checkpoint that cannot be served, wrong options, and if the answer of the server to the checkpoint's question
            differs from that of the checkpoint.
        OSError: for a missing folder, and an address that cannot be used.
    """
    if options.media_folder is not None and not os.path.isdir(options.media_folder):
        raise NotADirectoryError(f"--media-folder {options.media_folder} is not a folder.")
    folder = check_folder(checkpoint)
    config, processor = LlavaSTConfig.from_pretrained(folder), LlavaSTProcessor.from_pretrained(folder)
    check_model_matches_processor(config, processor)
    if not _has_flag(flags, "chat-template"):
        check_chat_template(checkpoint, processor)
    arguments = vllm_arguments(checkpoint, folder, config, processor, options, flags)
    if read_fingerprint(folder) is None and not without_fingerprint:
        raise ValueError(
            f"{checkpoint} has no fingerprint, so that the answers of the server cannot be checked. Write it with `llava-st fingerprint "
            f"{checkpoint}`, or serve without the check (--without-fingerprint)."
        )
    environment = {
        "VLLM_MEDIA_CONNECTOR": CONNECTOR,
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": os.environ.get("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0"),  # to hosts that are not allowed
        "VLLM_NO_USAGE_STATS": os.environ.get("VLLM_NO_USAGE_STATS", "1"),
        "VLLM_WORKER_MULTIPROC_METHOD": os.environ.get("VLLM_WORKER_MULTIPROC_METHOD", "spawn"),  # as the program `vllm` does
        LIMIT: str(max_upload * 2**20),
        WITHOUT_FINGERPRINT: str(int(without_fingerprint)),
    }
    if dry_run:
        print(*(f"{name}={value}" for name, value in environment.items()), shlex.join(["vllm", "serve", *arguments]))
        return
    check_vllm()
    check_address(options.host, options.port)
    if not is_loopback(options.host):
        logger.warning(
            "The server is available to all who can reach port %d of this computer%s",
            options.port,
            "." if _has_flag(flags, "api-key") or os.environ.get("VLLM_API_KEY") else ", without a key (`-- --api-key KEY`).",
        )
    _run(arguments, environment)


def _has_flag(flags: Sequence[str], name: str) -> bool:
    return any(flag.replace("_", "-").partition("=")[0] == f"--{name}" for flag in flags)


def _run(arguments: list[str], environment: dict[str, str]) -> None:
    """Runs `vllm serve` in this process, and raises an error if it has refused to serve or its engine has ended."""
    with tempfile.TemporaryDirectory(prefix="llava-st-serve-") as folder:
        report = Path(folder, "report.txt")
        os.environ |= {**environment, REPORT: str(report)}
        try:
            _vllm_serve(arguments)
        # Of uvicorn, whose status after a failed startup is 3; of vLLM, where this was one of several processes (--api-server-count).
        except (SystemExit, RuntimeError):
            if not report.exists():
                raise
        if report.exists():
            raise ValueError(report.read_text(encoding="utf-8").splitlines()[0])


def _vllm_serve(arguments: list[str]) -> None:
    """The subcommand `vllm serve`. The program `vllm` itself does not run with vLLM's package for CPUs, whose name differs."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    command, parser = ServeSubcommand(), FlexibleArgumentParser(prog="vllm")
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    parsed = parser.parse_args(["serve", *arguments])
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise ValueError("VLLM_USE_RUST_FRONTEND is set: vLLM's frontend in Rust runs no check of the answers. Unset it.")
    configure_logging_from_args(parsed)
    command.validate(parsed)
    sys.stdout.flush()
    command.cmd(parsed)


__all__ = ["serve"]
