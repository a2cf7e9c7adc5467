# SPDX-License-Identifier: Apache-2.0
"""Examples of docs/data.md: they are valid input of the data readers."""

import json
import re
from pathlib import Path

import yaml

from llava_st_hf.data import FEATURES, GroundingSample, load_mixture, read_jsonl, read_mixture
from llava_st_hf.data.st_align import st_align_row
from llava_st_hf.model.tasks_llava_st import TASKS


PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = {kind: re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("yaml", "json")}


def test_data_page_samples_cover_all_tasks_and_load(tmp_path):
    tasks, chat, _ = BLOCKS["json"]
    (tmp_path / "mine.jsonl").write_text(tasks + chat)
    found = [sample for _, sample in read_jsonl(str(tmp_path / "mine.jsonl"))]
    assert [sample.task for sample in found if isinstance(sample, GroundingSample)] == list(TASKS) and len(found) == len(TASKS) + 1
    (tmp_path / "m.yaml").write_text("datasets: [{json_path: mine.jsonl, data_folder: media, format: jsonl}]")
    assert load_mixture(tmp_path / "m.yaml", cache_dir=str(tmp_path / "cache"))["task"][:] == [*TASKS, "talk"]


def test_data_page_st_align_sample_is_converted():
    row = st_align_row(json.loads(BLOCKS["json"][2]), "/data", "st", "tvg", "1")
    assert row.keys() == FEATURES.keys() and row["messages"][1]["content"][0]["text"] == "During {<t0.253><t0.871>}."


def test_data_page_mixture_is_parsed(tmp_path):
    for entry in yaml.safe_load(BLOCKS["yaml"][0])["datasets"]:
        path = tmp_path / entry["json_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "vidor" / "annotations" / "training").mkdir(parents=True)
    (tmp_path / "mixture.yaml").write_text(BLOCKS["yaml"][0])
    assert [entry.format for entry in read_mixture(tmp_path / "mixture.yaml")] == ["st_align", "refcoco", "vidstg", "jsonl"]
