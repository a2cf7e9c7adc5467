# SPDX-License-Identifier: Apache-2.0
"""Client of servers with OpenAI's API, such as vLLM: the questions of the pipeline, without a model in this process."""

from .connections import GroundingClient
from .exact import CoordinateRows
from .requests import AnswerContext, GroundingRequest, build_request
from .responses import RequestError, read_response


__all__ = ["AnswerContext", "CoordinateRows", "GroundingClient", "GroundingRequest", "RequestError", "build_request", "read_response"]
