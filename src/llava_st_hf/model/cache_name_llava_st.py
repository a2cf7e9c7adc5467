# SPDX-License-Identifier: Apache-2.0
"""The name of the KV cache in arguments and outputs: `past_key_values` before transformers 5.24, `cache` since then."""

import functools
from collections.abc import Callable

from transformers.cache_utils import Cache
from transformers.generation.utils import ALL_CACHE_NAMES


CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = ALL_CACHE_NAMES[0]  # the one that the decoder and `generate` of the installed version take and return


def accept_cache_names(method: Callable) -> Callable:
    """Decorates a method so that it takes the KV cache under both names: a decoder ignores the name of another version without an error.

    Raises:
        ValueError: If a cache is given under both names.
    """

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        given = [name for name in CACHE_NAMES if kwargs.get(name) is not None]
        if len(given) > 1:
            raise ValueError("The KV cache is given twice, as cache and as past_key_values. Pass one of them.")
        # Continuous batching passes its paged cache, which is no `Cache`, as `cache` in all versions.
        if given and isinstance(kwargs[given[0]], Cache):
            kwargs[CACHE_NAME] = kwargs.pop(given[0])
        kwargs = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES or value is not None}
        return method(self, *args, **kwargs)

    return wrapper
