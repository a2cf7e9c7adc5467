# SPDX-License-Identifier: Apache-2.0
"""A damaged video is read or rejected with an error that names it. These tests run a part of `video_fuzz`, which is run on demand."""

import os
import time

import pytest

from modeling_tests.child_processes import Died, Hung, call_each
from modeling_tests.video_fuzz import FAULTS, SOURCES, damaged, outcomes, source


def test_video_processor_damaged_videos_are_read_or_raise_error_with_file_name():
    found = list(outcomes(range(120)))
    assert sorted(index for index, _, _ in found) == list(range(120))
    assert [(index, outcome, detail) for index, outcome, detail in found if outcome in FAULTS] == []
    assert {outcome for _, outcome, _ in found} == {"read", "refused"}


def test_damaged_is_deterministic_and_covers_every_container():
    for suffix, codec in SOURCES:
        assert source.__wrapped__(suffix, codec) == source(suffix, codec), suffix  # encoded anew
    assert [damaged(index) for index in range(30)] == [damaged(index) for index in range(30)]
    assert {damaged(index)[0] for index in range(30)} == {suffix for suffix, _ in SOURCES}
    assert len({damaged(index)[1] for index in range(30)}) == 30


def act(job: str):
    """Job that crashes, exits or hangs, as a video decoder may."""
    if job == "abort":
        os.abort()
    if job == "exit":
        os._exit(3)
    if job == "hang":
        time.sleep(60)
    return job


@pytest.mark.parametrize("processes", [1, 2])
def test_call_each_crashed_and_hung_calls_do_not_affect_other_jobs(processes):
    jobs = ["a", "abort", "b", "hang", "exit", "c"]
    results = dict(call_each(act, jobs, seconds=1.0, processes=processes))
    assert results == {"a": "a", "b": "b", "c": "c", "abort": Died("SIGABRT"), "exit": Died("exit code 3"), "hang": Hung(1.0)}
