# SPDX-License-Identifier: Apache-2.0
import json
import re

import numpy as np
import pytest
import torch

from llava_st_hf.model.messages_llava_st import prepare_conversation
from llava_st_hf.model.tasks_llava_st import TASKS, task_content
from modeling_tests.reference import REFERENCE


QUESTION = {"text": "a dog runs", "span": (1.5, 2.0), "time": 1.5, "box": (1, 2, 30, 40)}
WRITTEN = {"text": "a dog runs", "span": "{<t1.5s><t2.0s>}", "time": "<t1.5s>", "box": "[<w1.0px><h2.0px><w30.0px><h40.0px>]"}


def words(task, **question):
    (message,), _ = prepare_conversation([{"role": "user", "content": task_content(task, **question)}])
    return "".join(item["text"] for item in message["content"])


def question_of(task):
    return {name: QUESTION[name] for name in TASKS[task].needs}


def test_tasks_are_the_eight_tasks_of_the_paper():
    assert set(TASKS) == {"rec", "reg", "dgc", "tvg", "tr", "stvg", "svg", "elc"}
    assert {name for name, task in TASKS.items() if task.medium == "image"} == {"rec", "reg", "dgc"}


@pytest.mark.parametrize("task", TASKS)
def test_task_content_fills_the_prompt_template_with_the_arguments(task):
    assert words(task, **question_of(task)) == TASKS[task].prompt.format(**WRITTEN)


def test_task_content_braces_in_the_text_are_kept():
    assert words("tvg", text="a {box} at {text}").startswith("Give you a textual query: 'a {box} at {text}'.")


@pytest.mark.parametrize("task", TASKS)
def test_task_content_missing_argument_is_named(task):
    for name in TASKS[task].needs:
        rest = {key: value for key, value in question_of(task).items() if key != name}
        with pytest.raises(ValueError, match=f"task='{task}' takes .*{name} is missing"):
            task_content(task, **rest)


@pytest.mark.parametrize("task", TASKS)
def test_task_content_unused_argument_is_named(task):
    for name in set(QUESTION) - set(TASKS[task].needs) - ({"span"} if task == "elc" else set()):
        with pytest.raises(ValueError, match=f"task='{task}' takes .*{name} is not used"):
            task_content(task, **question_of(task), **{name: QUESTION[name]})


def test_task_content_elc_takes_the_start_of_a_span_as_time():
    assert words("elc", span=(1.5, 2.0), box=QUESTION["box"]) == words("elc", time=1.5, box=QUESTION["box"])


def test_task_content_unknown_task_raises_with_the_valid_tasks():
    with pytest.raises(ValueError, match=r"task='dvc' is not a valid task; it must be one of rec, reg, dgc"):
        task_content("dvc", text="x")
    with pytest.raises(ValueError, match=r"task=\['rec'\] is not a valid task"):
        task_content(["rec"], text="x")


@pytest.mark.parametrize("text", ["", "  ", 5, ["a"]])
def test_task_content_blank_or_non_string_text_raises(text):
    for task in ("rec", "dgc"):
        with pytest.raises(ValueError, match=re.escape(f"text={text!r} must be a string")):
            task_content(task, text=text)


@pytest.mark.parametrize("span", [[1.5, 2.0], np.array([1.5, 2.0]), torch.tensor([1.5, 2.0]), {"start": 1.5, "end": 2.0}])
def test_task_content_span_may_be_list_array_tensor_or_dict(span):
    assert words("tr", span=span) == words("tr", span=(1.5, 2.0))


@pytest.mark.parametrize("span", [(1.0,), (1, 2, 3), 5, "12"])
def test_task_content_span_that_is_not_a_pair_raises(span):
    with pytest.raises(ValueError, match="span"):
        task_content("tr", span=span)


def test_task_prompts_equal_those_of_the_original_code():
    prompts = json.loads((REFERENCE / "prompts.json").read_text())
    assert TASKS["rec"].prompt.replace("{text}", "<event>") in prompts["rec"]
    assert TASKS["tvg"].prompt.replace("{text}", "<event>") in prompts["tvg"]
    for task, suffix in prompts["st_align_suffixes"].items():
        assert TASKS[task].prompt.endswith(suffix)
    assert TASKS["svg"].prompt.split()[0] in " ".join(prompts["st_align_time_prefixes"])
