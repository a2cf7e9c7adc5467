# SPDX-License-Identifier: Apache-2.0
"""Reading of the images and videos that requests name: errors of the request get a status of 4xx, where vLLM's own reader gives 500."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import aiohttp
import PIL.Image
import requests
from vllm.exceptions import VLLMError, VLLMUnprocessableEntityError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

from .arguments import CONNECTOR, NO_DOMAIN


# A host that cannot be reached or does not answer, `file://` without a folder of media, data URLs that are not base64, and images with too
# many pixels.
_REQUEST_ERRORS = (
    OSError,
    aiohttp.ClientError,
    asyncio.TimeoutError,
    requests.RequestException,
    RuntimeError,
    NotImplementedError,
    PIL.Image.DecompressionBombError,
)


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
class RequestMediaConnector(MediaConnector):
    """Reader of `data:`, `http(s):` and `file:` URLs. vLLM calls one of the two methods for each image and video of a request."""

    def load_from_url(self, url: str, media_io: Any, **kwargs) -> Any:
        self._check_domain(url)
        try:
            return super().load_from_url(url, media_io, **kwargs)
        except VLLMError:
            raise
        except _REQUEST_ERRORS as error:
            raise _unreadable(url, error) from error

    async def load_from_url_async(self, url: str, media_io: Any, **kwargs) -> Any:
        self._check_domain(url)
        try:
            answer: Awaitable = super().load_from_url_async(url, media_io, **kwargs)
            return await answer
        except VLLMError:
            raise
        except _REQUEST_ERRORS as error:
            raise _unreadable(url, error) from error

    def _check_domain(self, url: str) -> None:
        if self.allowed_media_domains == [NO_DOMAIN] and url[:4].lower() == "http":
            raise VLLMUnprocessableEntityError(
                "This server downloads no media. Send the file as a data: URL, or start the server with --media-domain HOST.",
                parameter="url",
            )


def _unreadable(url: str, error: Exception) -> VLLMUnprocessableEntityError:
    name = "the data: URL" if url[:5].lower() == "data:" else url.split("?")[0][:200]  # a query may contain a secret
    reason = str(error) or type(error).__name__
    return VLLMUnprocessableEntityError(f"The image or video of {name} cannot be read: {reason}", parameter="url")
