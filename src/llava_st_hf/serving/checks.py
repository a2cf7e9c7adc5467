# SPDX-License-Identifier: Apache-2.0
"""Checks before a server is started: the folder of the checkpoint, the installed vLLM, the address."""

import importlib.util
import ipaddress
import os
import re
import socket

from transformers import PreTrainedConfig

from ..model.configuration_llava_st import LlavaSTConfig
from ..model.messages_llava_st import CONVERTS_COORDINATES
from ..model.original_checkpoint_llava_st import ORIGINAL_MODEL_TYPE
from ..model.processing_llava_st import LlavaSTProcessor


INSTALL = "pip install 'llava-st-hf[serve]'"
# First version that is supported, and first version that has not been tried (docs/serving.md has the table).
LOWEST_VLLM, UNTRIED_VLLM = (0, 32), (0, 34)


def check_folder(checkpoint: str) -> str:
    """
    Checks that a server can read a checkpoint. No weights are read.

    Args:
        checkpoint: folder of a model in this package's layout, or its id on the Hugging Face Hub, which is downloaded.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for an adapter, for a checkpoint in the original layout, and for another model; the message names the command that
            makes a folder that can be served.
    """
    if os.path.isfile(os.path.join(checkpoint, "adapter_config.json")):
        raise ValueError(
            f"{checkpoint} is a LoRA adapter, and only a complete model can be served. Merge it first: "
            f"`llava-st merge-lora {checkpoint} {checkpoint.rstrip(os.sep)}-merged`."
        )
    is_folder = os.path.isdir(checkpoint)
    if not is_folder and (os.path.exists(checkpoint) or not re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint)):
        raise FileNotFoundError(f"{checkpoint} is not a folder.")
    if is_folder and not os.path.isfile(os.path.join(checkpoint, "config.json")):
        raise FileNotFoundError(f"{checkpoint} has no config.json; give the folder of a LLaVA-ST model.")
    model_type = PreTrainedConfig.get_config_dict(checkpoint)[0].get("model_type")
    if model_type == ORIGINAL_MODEL_TYPE:
        raise ValueError(
            f"{checkpoint} has the layout of the original code, which vLLM cannot read. Convert it first: "
            f"`llava-st convert {checkpoint} FOLDER`, then `llava-st serve FOLDER`."
        )
    if model_type != LlavaSTConfig.model_type:
        raise ValueError(f"{checkpoint} holds a model of type {model_type!r}, not a LLaVA-ST model ({LlavaSTConfig.model_type!r}).")
    if is_folder:
        return checkpoint
    from huggingface_hub import snapshot_download

    return snapshot_download(checkpoint)


def check_chat_template(checkpoint: str, processor: LlavaSTProcessor) -> None:
    """
    Raises:
        ValueError: for a chat template that passes the letters of coordinates such as `<t1.8s>` to the model, as the one in checkpoints of
            earlier versions does, instead of refusing them.
    """
    if CONVERTS_COORDINATES not in str(processor.chat_template):
        raise ValueError(
            f"The chat template of {checkpoint} does not refuse coordinates such as <t1.8s>, which a server does not convert. Save the "
            'template of this version (docs/serving.md, "Chat template"), or give one of your own with `-- --chat-template FILE`.'
        )


def check_vllm() -> None:
    """
    Raises:
        ImportError: if vLLM is not installed, or in a version for which the plug-in has not been tried.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(f"`llava-st serve` needs vLLM: {INSTALL}.")
    from vllm.version import __version__ as version

    check_vllm_version(version)


def check_vllm_version(version: str) -> None:
    """Raises an ImportError for a version of vLLM outside of the supported range."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if not LOWEST_VLLM <= numbers < UNTRIED_VLLM:
        lowest, untried = (".".join(map(str, numbers)) for numbers in (LOWEST_VLLM, UNTRIED_VLLM))
        raise ImportError(
            f"vLLM {version} is installed. This version of llava-st-hf supports vLLM {lowest} and later versions before {untried}; "
            f"with others answers may be wrong without an error. Install one of them: {INSTALL}."
        )


def check_address(host: str, port: int) -> None:
    """
    Raises:
        ValueError: for a port that is no TCP port.
        OSError: if the address cannot be used, for example because another program uses the port.
    """
    if not 0 < port < 65536:
        raise ValueError(f"--port {port} must be a number from 1 to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: the address cannot be used: {error}. Choose another port or host.") from error


def is_loopback(host: str) -> bool:
    """Whether only programs on this computer can connect to `host`, an address or a name."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)
