# SPDX-License-Identifier: Apache-2.0
"""`pack_by_video`: which samples are packed together, in which order, and reading in batches."""

import numpy as np
import pytest
from datasets import Dataset

from llava_st_hf.data import FEATURES, GROUPED_FEATURES, load_mixture, pack_by_video
from llava_st_hf.data.grouping import opening
from llava_st_hf.data.rows import Medium, conversation_row
from modeling_tests.miniatures import write_json


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Uses a new cache of `datasets`, whose keys do not depend on our code: results of earlier test runs would be reused."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


VIDEO = Medium("video", "/a.mp4")
TURNS = [("user", "When?"), ("assistant", "{<t0.1><t0.2>}")]


def dataset(*rows) -> Dataset:
    """Dataset of samples `(medium, turns)`, with their indices as ids."""
    made = [conversation_row(str(i), f"task{i}", "made", medium, turns) for i, (medium, turns) in enumerate(rows)]
    return Dataset.from_list(made, features=FEATURES)


def ids(grouped: Dataset) -> list[str]:
    return ["".join(row) for row in grouped["ids"]]


def test_pack_by_video_merges_samples_of_one_video_or_image_in_order_of_the_first(tmp_path):
    image = Medium("image", "/a.jpg")
    longer = [("user", "When does the dog run, and where to?"), TURNS[1]]
    rows = dataset((VIDEO, TURNS), (image, TURNS), (None, TURNS), (VIDEO, longer), (None, TURNS), (image, TURNS), (VIDEO, TURNS))
    grouped = pack_by_video(rows, 8)
    assert ids(grouped) == ["036", "15", "2", "4"]
    assert grouped["length"][:] == [sum(rows[int(number)]["length"] for number in group) for group in ids(grouped)]
    assert grouped.features == GROUPED_FEATURES
    assert grouped["modality"][:] == ["video", "image", "text", "text"]
    first = grouped[0]
    assert first["tasks"] == ["task0", "task3", "task6"] and first["source"] == "made"
    assert first["conversations"] == [rows[number]["messages"] for number in (0, 3, 6)]


def test_pack_by_video_groups_have_at_most_max_conversations():
    rows = dataset(*[(VIDEO, TURNS)] * 5, (Medium("video", "/b.mp4"), TURNS), (VIDEO, TURNS))
    assert ids(pack_by_video(rows, 2)) == ["01", "23", "46", "5"]
    assert ids(pack_by_video(rows, 1)) == list("0123456")


@pytest.mark.parametrize(
    "medium, turns",
    [
        (Medium("video", "/b.mp4"), TURNS),
        (Medium("image", "/a.mp4"), TURNS),
        (Medium("video", "/a.mp4", clip=(0, 9)), TURNS),
        (Medium("video", "/a.mp4", start=1.0), TURNS),
        (Medium("video", "/a.mp4", end=1.0), TURNS),
        (VIDEO, [("system", "Be short."), *TURNS]),
    ],
)
def test_pack_by_video_other_file_clip_or_system_message_is_a_separate_group(medium, turns):
    assert ids(pack_by_video(dataset((VIDEO, TURNS), (medium, turns), (VIDEO, TURNS)), 8)) == ["02", "1"]


def test_pack_by_video_samples_with_several_or_late_media_are_not_grouped():
    rows = dataset(*[(VIDEO, TURNS * 2)] * 2).to_list()
    moved = dataset(*[(VIDEO, TURNS * 2)] * 2).to_list()
    for row in rows:
        row["messages"][2]["content"].insert(0, row["messages"][0]["content"][0])
        assert opening(row["messages"]) is None
    for row in moved:
        row["messages"][2]["content"].insert(0, row["messages"][0]["content"].pop(0))
        assert opening(row["messages"]) is None
    grouped = pack_by_video(Dataset.from_list([*rows, *moved], features=FEATURES), 8)
    assert [len(row) for row in grouped["ids"]] == [1] * 4


def test_pack_by_video_group_lists_all_its_sources():
    rows = dataset((VIDEO, TURNS), (VIDEO, TURNS)).to_list()
    rows[1]["source"] = "other"
    assert pack_by_video(Dataset.from_list(rows, features=FEATURES), 8)[0]["source"] == "made, other"


def test_pack_by_video_9000_samples_are_each_in_exactly_one_group():
    """More samples than are read at a time, with groups that span several reads."""
    generator = np.random.default_rng(0)
    media = [None, *(Medium("video", f"/{i}.mp4") for i in range(60))]
    chosen = generator.integers(0, 61, 9000)
    rows = dataset(*[(media[i], TURNS) for i in chosen])
    grouped = pack_by_video(rows, 7)
    found = [int(id) for row in grouped["ids"] for id in row]
    assert sorted(found) == list(range(9000))
    firsts = [int(row[0]) for row in grouped["ids"]]
    assert firsts == sorted(firsts)
    for row in grouped.to_list():
        assert len({chosen[int(id)] for id in row["ids"]}) == 1 and len(row["ids"]) <= 7
        assert [int(id) for id in row["ids"]] == sorted(int(id) for id in row["ids"])
    assert len(grouped) == sum(-(-np.sum(chosen == i) // 7) for i in range(1, 61)) + np.sum(chosen == 0)


def test_pack_by_video_of_a_mixture_is_cached(tmp_path):
    rows = [
        {
            "id": i,
            "video": f"{i % 2}.mp4",
            "conversations": [{"from": "human", "value": "<video>\nWhen?"}, {"from": "gpt", "value": "Now."}],
        }
        for i in range(6)
    ]
    write_json(tmp_path / "rows.json", rows)
    write_json(tmp_path / "mixture.yaml", {"datasets": [{"json_path": str(tmp_path / "rows.json"), "data_folder": str(tmp_path)}]})
    files = []
    for _ in range(2):
        mixture = load_mixture(tmp_path / "mixture.yaml", cache_dir=str(tmp_path / "cache"))
        grouped = pack_by_video(mixture, 2)
        assert ids(grouped) == ["02", "13", "4", "5"]
        files.append(grouped.cache_files)
    assert files[0] == files[1] and files[0]


def test_pack_by_video_invalid_arguments_raise():
    rows = dataset((VIDEO, TURNS))
    with pytest.raises(ValueError, match="max_conversations=0"):
        pack_by_video(rows, 0)
    with pytest.raises(ValueError, match="streaming=False"):
        pack_by_video(rows.to_iterable_dataset(), 2)
    with pytest.raises(ValueError, match="lacks the columns modality"):
        pack_by_video(rows.remove_columns("modality"), 2)
