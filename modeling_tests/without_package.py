# SPDX-License-Identifier: Apache-2.0
"""Loads a published model in an interpreter in which this package cannot be imported, as a program that tests start.

    python -m modeling_tests.without_package MODEL VIDEO RESULTS

MODEL is a folder or hub id. RESULTS, a JSON file, gets the classes that transformers finds, answers about the video, and the message of
the error without `trust_remote_code`.
"""

import json
import sys
from pathlib import Path

import transformers


AUTO_CLASSES = (
    "AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoProcessor", "AutoImageProcessor",
    "AutoVideoProcessor",
)  # fmt: skip
QUESTIONS = [{"task": "tvg", "text": "the red circle moves"}, {"task": "stvg", "text": "the blue square moves", "max_new_tokens": 48}]


def answers(grounder, video: str) -> list[dict]:
    return [grounder(video, **question) for question in QUESTIONS]


def main(model: str, video: str, results: str) -> None:
    sys.modules["llava_st_hf"] = None  # type: ignore[assignment]  # `import llava_st_hf` raises ModuleNotFoundError
    trusted = {"trust_remote_code": True}
    classes = {name: type(getattr(transformers, name).from_pretrained(model, **trusted)).__name__ for name in AUTO_CLASSES}
    grounder = transformers.pipeline("video-grounding", model=model, **trusted)
    found = {"classes": classes, "pipeline": type(grounder).__name__, "answers": answers(grounder, video), "untrusted": {}}
    grounder.save_pretrained(str(Path(results).parent / "saved-again"))
    for name in ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"):
        try:
            getattr(transformers, name).from_pretrained(model, trust_remote_code=False)
        except ValueError as error:
            found["untrusted"][name] = str(error)
    Path(results).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
