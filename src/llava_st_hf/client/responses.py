# SPDX-License-Identifier: Apache-2.0
"""Bodies of chat completions → answers in seconds and pixels."""

from ..model.questions_llava_st import read_answer
from ..model.results_llava_st import Grounding
from .requests import AnswerContext, GroundingRequest


class RequestError(RuntimeError):
    """
    A request that the server did not answer as it should.

    Args:
        message: what happened, without secrets.
        status: HTTP status; None if there is none, as after a time-out.
        attempts: number of times that the request was sent.
        kind: "HTTP 400" or another status; "TimeoutError"; "ConnectError" for no connection, "ConnectionError" for one that was lost;
            "RequestError" for a response that is no answer to the request.
    """

    def __init__(self, message: str, status: int | None = None, attempts: int = 1, kind: str = "RequestError"):
        super().__init__(message)
        self.status, self.attempts, self.kind = status, attempts, kind

    def __reduce__(self):
        return type(self), (*self.args, self.status, self.attempts, self.kind)


def read_response(body: dict, context: GroundingRequest | AnswerContext) -> Grounding:
    """
    Converts the body of a chat completion to the answer that the pipeline would return.

    Args:
        body: parsed JSON.
        context: the request, or its context.

    Returns:
        [`Grounding`] in seconds and pixels of the original file. Its notes state if `max_tokens` ended the answer.

    Raises:
        RequestError: if the body is not that of a chat completion with one answer, or if the server counted other prompt tokens than the
            processor: then it has not asked what the request asks.
    """
    if isinstance(context, GroundingRequest):
        context = context.context
    if isinstance(body, dict) and body.get("error"):
        raise RequestError(f"The server answered with an error: {error_message(body)}")
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or len(choices) != 1:
        count = f"{len(choices)} choices" if isinstance(choices, list) else f"{body!r:.200}"
        raise RequestError(f"The body of a chat completion must have one choice, got {count}.")
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise RequestError(f"The choice of a chat completion must have a message with text, got {choices[0]!r:.200}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no file can store
        raise RequestError(f"The text of the answer is not valid Unicode: {text!r:.200}.") from error
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    counted = usage.get("prompt_tokens")
    if isinstance(counted, int) and counted != context.prompt_tokens:
        raise RequestError(
            f"The server counted {counted} prompt tokens, but the processor of this client writes {context.prompt_tokens}: the server has "
            "another checkpoint, chat template or number of video frames, so its answer is not one to this question. Serve the checkpoint "
            "with the plug-in of llava-st-hf, and give its processor to the client."
        )
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise RequestError(f"The answer ended with finish_reason={reason!r}; it must be 'stop' or 'length'.")
    tokens = usage.get("completion_tokens", context.max_tokens)
    answer = read_answer(
        text.strip(),
        context.question,
        context.num_temporal_bins,
        context.num_spatial_bins,
        cut_off_after=tokens if reason == "length" else None,
        limit_name="max_tokens",
        words_suffice=context.constrained,
    )
    return Grounding.from_dict(answer)


def error_message(body) -> str:
    """The message in the body of an error, as OpenAI's API, vLLM and FastAPI write it; at most 1,000 characters."""
    error = body.get("error", body.get("detail", body.get("message"))) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message", error)
    return f"{error}"[:1000]
