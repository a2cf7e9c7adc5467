# SPDX-License-Identifier: Apache-2.0
"""Embeddings of exact coordinates, as vLLM's content parts `prompt_embeds`."""

import base64
import io
import json
import os
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open

from ..model.configuration_llava_st import LlavaSTConfig
from ..model.coordinates_llava_st import AXIS_OF_NAME, COORDINATE_TOKEN
from ..model.lape_llava_st import interpolate_coordinates


_EMBEDDINGS = "embed_tokens.weight"


class CoordinateRows:
    """
    The input embeddings of the coordinate tokens of a checkpoint, without the rest of it.

    Args:
        embeddings: (num_coordinates, hidden_size), in the order of the vocabulary.
        config: of the checkpoint.
    """

    def __init__(self, embeddings: torch.Tensor, config: LlavaSTConfig):
        self.embeddings, self.config = embeddings, config
        self.vocabulary = config.coordinates
        if len(embeddings) != len(self.vocabulary):
            raise ValueError(f"embeddings has {len(embeddings)} rows, but the checkpoint has {len(self.vocabulary)} coordinate tokens.")

    def __repr__(self) -> str:
        return f"CoordinateRows({len(self.embeddings)} rows of {self.embeddings.shape[1]} values, {self.embeddings.dtype})"

    @classmethod
    def from_checkpoint(cls, checkpoint: str | os.PathLike, dtype: torch.dtype | None = None, **hub) -> "CoordinateRows":
        """
        Reads the rows from the safetensors files of a checkpoint; no other weights are read.

        Args:
            checkpoint: folder, or repository of the Hub, of which the files with weights are downloaded.
            dtype: type of the weights on the server, in which the positions are interpolated; by default that of the file.
            hub: arguments of `snapshot_download`, such as `revision` and `token`.

        Raises:
            OSError, ValueError: naming the checkpoint if it has no such file or weights.
        """
        folder = Path(checkpoint)
        if not folder.is_dir():
            folder = Path(snapshot_download(os.fspath(checkpoint), allow_patterns=["*.json", "*.safetensors"], **hub))
        config = LlavaSTConfig.from_pretrained(folder)
        path, name = _find_embeddings(folder)
        with safe_open(path, framework="pt") as file:
            ids = config.coordinates
            rows = file.get_slice(name)[ids.start_token_id : ids.end_token_id]
        return cls(rows if dtype is None else rows.to(dtype), config)

    def has_embedding(self, token: str, position: float) -> bool:
        """Whether the embedding of a coordinate differs from that of a token: not at a bin, nor where the model ignores widths."""
        if COORDINATE_TOKEN.fullmatch(token) is None:
            return False  # <WIDTH-INPUT>
        lower, upper, _ = self.vocabulary.between_tokens(self._token_id(token), torch.tensor([position]))
        return bool(lower != upper)

    def embedding(self, token: str, position: float) -> torch.Tensor:
        """
        Embedding of an exact position, as the model computes it.

        Args:
            token: coordinate token of the nearest bin.
            position: fraction in [0, 1].

        Returns:
            (1, hidden_size).
        """
        ids = self._token_id(token)
        unused = torch.zeros(1, self.embeddings.shape[1], dtype=self.embeddings.dtype)
        values = torch.tensor([position])
        return interpolate_coordinates(ids, unused, values, self.embeddings, self.vocabulary)  # type: ignore[arg-type]

    def encode(self, token: str, position: float) -> str:
        """The embedding as `data` of a content part of type `prompt_embeds`: the base64 of a file of `torch.save`."""
        file = io.BytesIO()
        torch.save(self.embedding(token, position), file)
        return base64.b64encode(file.getvalue()).decode("ascii")

    def _token_id(self, token: str) -> torch.Tensor:
        match = COORDINATE_TOKEN.fullmatch(token)
        if match is None:
            raise ValueError(f"{token!r} is not a coordinate token.")
        return torch.tensor([self.vocabulary.token_ids(AXIS_OF_NAME[match["name"]])[int(match["bin"])]])


def _find_embeddings(folder: Path) -> tuple[Path, str]:
    """The file and the name of the input embeddings of a checkpoint."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    else:
        path = folder / "model.safetensors"
        if not path.is_file():
            raise OSError(f"{folder} has neither model.safetensors nor model.safetensors.index.json.")
        with safe_open(path, framework="pt") as file:
            files = dict.fromkeys(file.keys(), path.name)
    names = [name for name in files if name.endswith(_EMBEDDINGS)]
    if len(names) != 1:
        raise ValueError(f"{folder} must have one tensor whose name ends in {_EMBEDDINGS}, found {names}.")
    return folder / files[names[0]], names[0]
