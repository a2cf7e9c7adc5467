# SPDX-License-Identifier: Apache-2.0
"""Fuzz tests of the annotation readers: a damaged row gives a sample or a problem with a reason, and never raises another error."""

import copy
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf.data.mixture import Entry, Strategy
from llava_st_hf.data.records import read_entry
from llava_st_hf.data.rows import FEATURES
from modeling_tests.test_data_annotations import ANNOTATION, IMAGE, SENTENCES, VERSION_1, VERSION_2, vidor
from modeling_tests.test_data_jsonl import ROWS
from modeling_tests.test_data_st_align import SAMPLE


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 2**40),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
        st.sampled_from(["<t>", "<w-3px>", "<h1>", "<TEMP-INPUT>", "<video>", "{<t0.5><t0.4>}", "../a", "[<w0.2>"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


def places(value, path=()):
    """Yields the paths of all values inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def damaged(draw, original):
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(sorted(places(value), key=str)))
        if not path:
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = draw(VALUES)
    return value


def read_all(tmp_path, format: str, content, task: str | None = None) -> list:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content))
    entry = Entry(str(path), "/data", "made", Strategy("all"), format, task, str(tmp_path / "boxes"))
    found = list(read_entry(entry, num_frames=20))
    for row, values in found:
        assert row >= 1
        assert (isinstance(values, str) and values) or FEATURES.encode_example(values).keys() == FEATURES.keys()
    return found


def make_fuzz(format: str, originals: list, task: str | None, wrap):
    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def fuzz(tmp_path_factory, data):
        tmp_path = tmp_path_factory.mktemp("fuzz")
        if format == "vidstg":
            vidor(tmp_path)
        original = data.draw(st.sampled_from(originals))
        good = read_all(tmp_path, format, wrap(original), task)
        assert good and not any(isinstance(values, str) for _, values in good)
        read_all(tmp_path, format, wrap(data.draw(damaged(original))), task)

    return fuzz


test_st_align = make_fuzz("st_align", [SAMPLE], "talk", lambda sample: [sample])
test_jsonl = make_fuzz("jsonl", [{"task": task, **row} for task, row in ROWS.items()], None, lambda row: [row])
test_refcoco = make_fuzz("refcoco", [[IMAGE, ANNOTATION]], "rec", lambda pair: {"images": pair[:1], "annotations": pair[1:]})
test_hc_stvg = make_fuzz("hc_stvg", [VERSION_1, VERSION_2], "elc", lambda video: {"a.mp4": video})
test_vidstg = make_fuzz("vidstg", [SENTENCES], "stvg", lambda row: [row])
