# SPDX-License-Identifier: Apache-2.0
"""KV cache in which each row of a batch has its own write positions.

Rows of a batch accept different numbers of drafted tokens in a pass. The next tokens are written behind the accepted ones, over the keys
and values of rejected tokens, so nothing is cropped or copied. Columns that hold no token of a row are excluded by the attention mask.
"""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, StaticLayer


class SlotLayer(CacheLayerMixin):
    """
    Keys and values of one decoder layer.

    Args:
        keys, values (`torch.Tensor` of shape `(batch_size, num_heads, length, head_dim)`):
            Those of the prompt, which are copied. A layer with a sliding window may have fewer columns than the prompt; they are its last.
        length (`int`):
            Number of columns of the prompt, left padding included.
        capacity (`int`):
            Number of columns to allocate.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int, capacity: int):
        super().__init__()
        self.device, self.dtype, self.is_initialized = keys.device, keys.dtype, True
        self.keys, self.values = (self._allocate(states, length, capacity) for states in (keys, values))
        self.columns = torch.empty(0, 0, dtype=torch.long)
        self.length = length

    @staticmethod
    def _allocate(states: torch.Tensor, length: int, capacity: int) -> torch.Tensor:
        batch, heads, kept, dim = states.shape
        allocated = states.new_zeros(batch, heads, capacity, dim)
        kept = min(kept, length)
        allocated[:, :, length - kept : length] = states[:, :, :length][:, :, -kept:]
        return allocated

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Does nothing: the layer is made with the keys and values of the prompt."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Writes keys and values of `(batch_size, num_heads, num_tokens, head_dim)` to the columns that `SlotCache.write_to` was given.

        Returns:
            Keys and values of the first `length` columns.
        """
        columns = self.columns[:, None, :, None]  # (batch, 1, tokens, 1)
        self.keys.scatter_(2, columns.expand_as(key_states), key_states)
        self.values.scatter_(2, columns.expand_as(value_states), value_states)
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class SlotCache(Cache):
    """
    KV cache of a decode loop.

    Args:
        prefilled (`Cache`):
            Cache of the prompt. Its layers are copied one by one.
        length (`int`):
            Number of columns of the prompt, left padding included.
        capacity (`int`):
            Number of columns: of the prompt, of all tokens to generate, and of the tokens of one pass.
        release (`bool`):
            Whether to free the keys and values of each layer of `prefilled` when they are copied.
    """

    def __init__(self, prefilled: Cache, length: int, capacity: int, release: bool):
        layers = []
        for layer in prefilled.layers:
            layers.append(SlotLayer(layer.keys, layer.values, length, capacity))
            if release:
                layer.keys = layer.values = None
        super().__init__(layers=layers)

    def write_to(self, columns: torch.Tensor, length: int) -> None:
        """
        Sets where the next tokens are written and how many columns attention reads.

        Args:
            columns (`torch.LongTensor` of shape `(batch_size, num_tokens)`):
                Column of each token of the next pass.
            length (`int`):
                Number of columns that the next pass reads, from the first on.
        """
        on_device = {columns.device: columns}  # a device_map may place layers on several devices
        for layer in self.layers:
            if layer.device not in on_device:
                on_device[layer.device] = columns.to(layer.device)
            layer.columns, layer.length = on_device[layer.device], length

    def copy_to(self, cache: Cache, length: int) -> None:
        """
        Writes keys and values of the first columns to another cache, as `generate` leaves them there.

        Args:
            cache (`Cache`):
                Dynamic or static cache without sliding windows.
            length (`int`):
                Number of columns.
        """
        for layer, target in zip(self.layers, cache.layers, strict=True):
            keys, values = layer.keys[:, :, :length], layer.values[:, :, :length]
            if isinstance(target, StaticLayer):
                target.keys[:, :, :length], target.values[:, :, :length] = keys, values
                target.cumulative_length.fill_(length)
            else:
                target.keys, target.values = keys.clone(), values.clone()
