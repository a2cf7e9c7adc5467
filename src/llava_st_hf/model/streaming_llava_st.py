# SPDX-License-Identifier: Apache-2.0
"""Parts of an answer while it is generated: text, spans, boxes and events, as soon as no later token can change them.

`generate` runs in a thread and pushes tokens to a streamer; the caller's thread reads them. The text between the last complete item and the
end is searched again when a coordinate arrives, a bounded number of times for each item, so that the time is linear in the answer.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Event as Flag
from threading import Thread

from transformers.generation.streamers import BaseStreamer

from .coordinates_llava_st import COORDINATE_TOKEN, WIDTH_INPUT_TOKEN
from .grounding_llava_st import ANSWER_ITEM, NOTHING_MORE, AnswerReader, Event, event_in_units
from .media_info_llava_st import MediaInfo


# Text after a time that a later token may make a part of the same item: a separator, a colon and an open bracket before a box, or "to"
# before the end of a span.
_MAY_CONTINUE = re.compile(r"(?:[\s,]*(?::\s*)?(?:\[[\s,]*)?|\s*(?:to?|a(?:nd?)?|-|–)\s*)(?:<[A-Z]*-?\d*)?\Z")
_END_OF_BOX = re.compile(r"[\s,]*\]?")
_SEPARATORS = re.compile(r"[\s,]*")
# An item has up to five coordinates. A longer sequence is not valid, and is searched again when its length has doubled.
_MOST_SEARCHES = 8
# Tokens of text after a coordinate at which an item may turn out to be complete: "}", "]." or the words after a time.
_TEXTS_AFTER = 4
_LONGEST_CHARACTER = 8  # tokens that are waited for while a character is incomplete


class StoppedError(Exception):
    """The reader of a stream has stopped: ends the generation in its thread."""


class TokenQueue(BaseStreamer):
    """Streamer that puts the generated ids of one answer into a queue, without those of the prompt."""

    def __init__(self):
        self.queue: SimpleQueue = SimpleQueue()
        self.stopped = Flag()
        self._is_prompt = True

    def put(self, value) -> None:
        if self.stopped.is_set():
            raise StoppedError
        if not self._is_prompt:
            self.queue.put(("tokens", value.flatten().tolist()))
        self._is_prompt = False

    def end(self) -> None:
        """Nothing: the answer follows the last tokens."""


class TextDecoder:
    """Decodes tokens one after the other to text, as `LlavaSTProcessor.decode_answer` decodes all of them, with white space at the ends."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
        self.coordinates = {number: text for number, text in added.items() if COORDINATE_TOKEN.fullmatch(text) or text == WIDTH_INPUT_TOKEN}
        self.control = (set(added) | set(tokenizer.all_special_ids)) - set(self.coordinates)
        self.before: list[int] = []  # the tokens before: some decoders treat the first token of a text in another way
        self.pending: list[int] = []

    def decode(self, token: int) -> list[str]:
        """Texts that `token` completes: nothing within a character, two where a coordinate follows an incomplete character."""
        if token in self.control:
            return []
        if token in self.coordinates:
            texts = [*self.finish(), self.coordinates[token]]
            self.before = [token]
            return texts
        self.pending.append(token)
        text = self._pending_text()
        return [] if text.endswith("\ufffd") and len(self.pending) < _LONGEST_CHARACTER else self.finish()

    def finish(self) -> list[str]:
        """The text of the tokens that are not decoded yet."""
        if not self.pending:
            return []
        text, self.before, self.pending = self._pending_text(), self.pending, []
        return [text] if text else []

    def _pending_text(self) -> str:
        start = self.tokenizer.decode(self.before, skip_special_tokens=False)
        return self.tokenizer.decode(self.before + self.pending, skip_special_tokens=False)[len(start) :]


class PartReader:
    """
    Parses an answer part by part.

    Args:
        media: the image or video of the question.
        num_temporal_bins, num_spatial_bins: bins of the time axis, and of height and width.
        start: start of the event in the prompt, as a fraction of the clip; None without one.
    """

    def __init__(self, media: MediaInfo, num_temporal_bins: int, num_spatial_bins: int, start: float | None = None):
        self.media, self.start = media, start
        self.is_video = media.kind == "video"
        self.reader = AnswerReader("", num_temporal_bins, num_spatial_bins, self.is_video, [], {})
        self.num_coordinates = 0  # in the text after the last item
        self.texts_after = 0  # texts after the last coordinate
        self.box_is_open = False  # whether a closing bracket of the last item may follow

    def read(self, text: str) -> list[dict]:
        """Parts that `text`, a coordinate or text without coordinate tokens, completes."""
        if self.box_is_open:
            closing = _END_OF_BOX.match(text)
            assert closing is not None  # the pattern matches everywhere
            self.box_is_open = closing.end() == len(text) and not text.endswith("]")
            text = text[closing.end() :]
        self.reader.text += text
        if COORDINATE_TOKEN.fullmatch(text):
            self.num_coordinates, self.texts_after = self.num_coordinates + 1, 0
            continues = True
        else:
            self.texts_after += 1
            continues = _SEPARATORS.fullmatch(text) is not None
        few = self.num_coordinates <= _MOST_SEARCHES or self.num_coordinates.bit_count() == 1
        if not self.num_coordinates or self.texts_after > _TEXTS_AFTER or (continues and not few):
            return []
        parts = []
        while (item := ANSWER_ITEM.search(self.reader.text)) is not None and self._is_complete(item):
            parts += self._read_item(item)
        return parts

    def _is_complete(self, item: re.Match) -> bool:
        """Whether no text after an item can change its values."""
        if item.lastgroup in ("moment", "box") or item[0].endswith(("}", "]")):
            return True
        after = NOTHING_MORE if item.lastgroup == "broken" else _MAY_CONTINUE
        return after.match(self.reader.text, item.end()) is None

    def _read_item(self, item: re.Match) -> list[dict]:
        reader = self.reader
        events, event, num_boxes, span = len(reader.events), reader.event, len(reader.event.moments), self._span(reader.event)
        reader.read_item(item)
        parts: list[dict] = [{"type": "event", "event": self._in_units(closed)} for closed in reader.events[events:]]
        if reader.event is not event:
            num_boxes, span = 0, None
        if (found := self._span(reader.event)) is not None and found != span:
            parts.append({"type": "span", "start": self.media.time(found[0]), "end": self.media.time(found[1])})
        boxes = event_in_units(Event(moments=reader.event.moments[num_boxes:]), self.media, self.is_video)["boxes"]
        parts += [{"type": "box", **box} for box in boxes]
        reader.text, reader.cursor = reader.text[item.end() :], 0
        self.num_coordinates = len(COORDINATE_TOKEN.findall(reader.text))
        self.box_is_open = item.lastgroup in ("moment", "box") and not item[0].endswith("]") and not reader.text
        return parts

    def _span(self, event: Event) -> tuple[float, float] | None:
        start = self.start if self.start is not None and not self.reader.events else event.start
        if not self.is_video or start is None or event.end is None:
            return None
        return min(start, event.end), max(start, event.end)

    def _in_units(self, event: Event) -> dict:
        times = [time for time, _ in event.moments if time is not None]
        if event.start is None and event.end is None and times:
            event = Event(min(times), max(times), event.words, event.moments)
        elif event.start is not None and event.end is not None:
            event = Event(min(event.start, event.end), max(event.start, event.end), event.words, event.moments)
        return event_in_units(event, self.media, self.is_video)


def stream_answer(
    generate: Callable[[BaseStreamer], dict], tokenizer, media: MediaInfo | None, bins: Sequence[int], start: float | None
) -> Iterator[dict]:
    """
    Runs `generate` in a thread and yields the parts of its answer. The thread ends before the iterator does, also when it is closed early.

    Args:
        generate: takes the streamer and returns the result, as `VideoGroundingPipeline` does.
        tokenizer: of the processor.
        media: the image or video of the question; None for a question without one.
        bins: number of bins of the time axis, and of height and width.
        start: as of [`PartReader`].

    Yields:
        See `VideoGroundingPipeline.stream`.
    """
    streamer = TokenQueue()

    def run():
        try:
            streamer.queue.put(("answer", generate(streamer)))
        except BaseException as error:  # raised again in the thread of the reader
            streamer.queue.put(("error", error))

    decoder, reader = TextDecoder(tokenizer), None if media is None else PartReader(media, *bins, start=start)
    num_events = 0
    thread = Thread(target=run, name="llava-st-stream", daemon=True)
    thread.start()
    try:
        kind = "tokens"
        while kind == "tokens":
            kind, value = streamer.queue.get()
            if kind == "error":
                raise value
            texts = decoder.finish() if kind == "answer" else [text for token in value for text in decoder.decode(token)]
            if texts:
                yield {"type": "text", "text": "".join(texts)}
            for part in [part for text in texts for part in reader.read(text)] if reader is not None else ():
                num_events += part["type"] == "event"
                yield part
        for event in value["events"][num_events:]:
            yield {"type": "event", "event": event}
        yield {"type": "answer", "answer": value}
    finally:
        streamer.stopped.set()
        thread.join()


__all__ = ["stream_answer"]
