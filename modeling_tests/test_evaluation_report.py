# SPDX-License-Identifier: Apache-2.0
"""Reports: metrics equal `score`, samples are in order, text is escaped, and missing files are reported."""

import base64
import errno
import json
import os
import re
import xml.etree.ElementTree
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_st_hf.evaluation import predictions as predictions_module
from llava_st_hf.evaluation.answers import ANSWER_PARSERS, ParseContext
from llava_st_hf.evaluation.benchmarks import read_benchmark
from llava_st_hf.evaluation.charts import bar_chart, histogram
from llava_st_hf.evaluation.metrics import mean_iou
from llava_st_hf.evaluation.predictions import append_predictions
from llava_st_hf.evaluation.published import MODEL, PUBLISHED, PUBLISHED_LATER, SOURCE
from llava_st_hf.evaluation.report import write_report
from llava_st_hf.evaluation.report_page import Card, Heading, Page, Paragraph, Picture, Pictures, Table, to_html, to_markdown
from llava_st_hf.evaluation.report_rows import IOUS, read_samples
from llava_st_hf.evaluation.report_samples import draw_sample, read_frames
from llava_st_hf.evaluation.rows import GroundingResult, Prediction
from llava_st_hf.evaluation.scoring import score
from llava_st_hf.visualization import ANSWER_COLOUR, TRUTH_COLOUR, add_caption, draw_boxes, draw_timeline, one_above_another, side_by_side
from modeling_tests.media import moving_frames, write_video
from modeling_tests.miniatures import FPS, MINIATURES, in_clip, media_of, shifted_oracle


# Tasks without captions, whose metrics need Java.
BENCHMARKS = {"rec": "refcoco_val", "tvg": "charades_sta", "stvg": "st_align_stvg", "svg": "st_align_svg"}
ORIGINAL_NAMES = {"m_tiou": "mtiou", "m_siou": "msiou", "m_viou": "mstiou"}
SCRIPT = "<script>alert('1')</script> | *a* & b"


def predictions_for(name: str, folder: Path) -> list[Prediction]:
    """Answers with increasing errors; number 6 is empty, number 7 was cut off, and number 8 was skipped."""
    questions = read_benchmark(name, *MINIATURES[name](folder))
    predictions = []
    for number in range(9):
        question = in_clip(questions[number % len(questions)])
        media = replace(media_of(question), last_frame=39) if name == "charades_sta" else media_of(question)
        answer = shifted_oracle(question, 3 * number) if number < 6 else ""
        answered, notes = ANSWER_PARSERS["llava_st"](
            answer, ParseContext(question.task, media, question.given, num_frames=question.num_frames)
        )
        predictions.append(
            Prediction(
                f"sample{number}",
                name,
                question.task,
                f"{question.prompt} {SCRIPT}",
                question.truth,
                question.given,
                question.path,
                media.to_dict(),
                answer,
                prediction=answered,
                notes=notes,
                num_frames=question.num_frames,
                model="/home/somebody/checkpoints/tiny",
                seed=0,
                versions={"torch": "2.14.0"},
            )
        )
    predictions[7] = replace(predictions[0], id="sample7", finished=False)
    reason = f"no such file: {predictions[8].path}"
    predictions[8] = replace(predictions[8], media=None, answer=None, prediction=GroundingResult(), notes=[], skipped=reason)
    return predictions


def write_run(folder: Path, predictions: list[Prediction]) -> Path:
    folder.mkdir(parents=True)
    append_predictions(folder / "predictions.jsonl", predictions)
    settings = {"benchmark": predictions[0].benchmark, "model": "x", "batch_size": 3, "max_new_tokens": 77, "seed": 0, "questions": 9}
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`{task: (folder, predictions, HTML, Markdown)}` of a report on several benchmarks."""
    made = {}
    for task, name in BENCHMARKS.items():
        predictions = predictions_for(name, tmp_path_factory.mktemp("media"))
        folder = write_run(tmp_path_factory.mktemp("runs") / name, predictions)
        page = write_report(folder)
        made[task] = folder, predictions, page.read_text(), (folder / "report.md").read_text()
    return made


def raise_no_space(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def written(metric: str, value: float) -> str:
    return f"{value:.1f}" if "@" in metric else f"{value:.3f}"


def markdown_rows(markdown: str) -> dict[str, list[list[str]]]:
    """Rows of all tables, by their first cell."""
    rows: dict[str, list[list[str]]] = {}
    for line in markdown.splitlines():
        if line.startswith("| "):
            first, *rest = (cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            rows.setdefault(first, []).append(rest)
    return rows


def test_report_of_st_align_stvg_shows_later_results_with_their_sources(runs):
    assert BENCHMARKS["stvg"] == "st_align_stvg"
    markdown = runs["stvg"][3]
    [header] = [line for line in markdown.splitlines() if line.startswith("| metric") and "SARL-STG" in line]
    rows = {line.split("|")[1].strip().replace("\\", ""): line for line in markdown.splitlines() if line.startswith("| m")}
    columns = [cell.strip() for cell in header.replace("\\", "").split("|")]
    for model, result in PUBLISHED_LATER.items():
        column = columns.index(f"published: {model}")
        for metric in ("m_tiou", "m_siou", "m_viou"):
            cell = rows[metric].split("|")[column].strip()
            assert cell == (written(metric, result.metrics[metric]) if metric in result.metrics else "–")
        assert f"{model}: {result.source}" in markdown.replace("\\", "")
    assert "SARL-STG" not in runs["svg"][3]


@pytest.mark.parametrize("task", BENCHMARKS)
def test_report_metrics_equal_those_of_score(runs, task):
    _, predictions, page, markdown = runs[task]
    default, original = score(task, predictions), score(task, predictions, "original")
    published, rows = PUBLISHED[BENCHMARKS[task]], markdown_rows(markdown)
    names = [name for name in default if f"{name}_low" in default]
    assert names
    for name in names:
        low, high = written(name, default[f"{name}_low"]), written(name, default[f"{name}_high"])
        expected = [written(name, default[name]), f"{low} – {high}", written(name, original[ORIGINAL_NAMES.get(name, name)])]
        expected.append(written(name, published[name]) if name in published else "–")
        assert rows[name][0][:4] == expected
        assert all(f">{cell}</td>" in page for cell in expected)
    assert rows["skipped"][0] == ["1 (11.1 %)"] and rows["cut off"][0] == ["1 (11.1 %)"]
    assert rows["partly unreadable"][0] == ["1 (11.1 %)"] and rows["read completely"][0] == ["6 (66.7 %)"]
    for text in (page, markdown):
        assert MODEL in text and SOURCE.split()[0] in text and "original protocol" in text and "2.14.0" in text and "77" in text


@pytest.mark.parametrize("task", BENCHMARKS)
def test_read_samples_mean_of_ious_equals_score(runs, task):
    predictions, scores = runs[task][1], score(task, runs[task][1])
    samples = read_samples(task, predictions)
    assert {name: mean_iou(values) for name, values in samples.ious.items()} == pytest.approx(
        {name: scores[metric] for name, metric in IOUS[task].items()}, abs=1e-12
    )
    assert samples.states == [None] * 6 + ["unparsable", "cut_off", "skipped"]


def test_read_samples_elc_uses_the_start_of_the_prompt():
    truth = GroundingResult(span=(0.2, 0.6), tubelet={1: (0, 0, 1, 1)}, caption="it runs")
    answered = GroundingResult(span=(None, 0.6), tubelet={1: (0, 0, 1, 1)}, caption="it runs")
    row = Prediction("one", "b", "elc", "?", truth, GroundingResult(span=(0.2, 0.2)), answer="", prediction=answered)
    assert {name: values.tolist() for name, values in read_samples("elc", [row]).ious.items()} == {"vIoU": [1], "sIoU": [1], "tIoU": [1]}


@pytest.mark.parametrize("task", BENCHMARKS)
def test_report_best_and_worst_samples_are_in_order(runs, task):
    _, predictions, page, markdown = runs[task]
    samples = read_samples(task, predictions)
    main = next(iter(samples.ious.values()))
    best, worst = samples.best(4), samples.worst(4)
    assert best[0] == main.argmax() and not set(best) & set(worst)
    assert sorted(main[best], reverse=True) == list(main[best]) and sorted(main[worst]) == list(main[worst])
    assert max(main[worst]) <= min(main[best])
    for text, pattern in ((page, r"<h4>(sample\d)"), (markdown, r"#### (sample\d)")):
        assert re.findall(pattern, text) == [f"sample{place}" for place in (*best, *worst)]


def test_read_samples_best_excludes_wrong_samples_and_worst_excludes_best():
    truth, media = GroundingResult(span=(0.0, 0.5)), {"kind": "video", "width": 9, "height": 9}
    right = Prediction("a", "b", "tvg", "?", truth, media=media, answer="", prediction=truth)
    wrong = replace(right, prediction=GroundingResult(span=(0.8, 0.9)))
    skipped, silent = replace(right, skipped="gone", prediction=GroundingResult()), replace(right, prediction=GroundingResult())
    only = read_samples("tvg", [right])
    assert (only.best(4), only.worst(4)) == ([0], [])
    several = read_samples("tvg", [skipped, silent, wrong])
    assert (several.best(4), several.worst(4)) == ([], [2, 1, 0])  # samples with media come first


def test_report_conditions_equal_the_ground_truth(runs):
    _, predictions, page, markdown = runs["stvg"]
    conditions = read_samples("stvg", predictions).conditions
    first, media = predictions[0], predictions[0].medium()
    boxes = np.array(list(first.truth.tubelet.values()))
    share = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean() / (media.width * media.height)
    assert conditions["object size"][0] == pytest.approx(100 * share)
    assert conditions["clip length"][0] == pytest.approx((media.last_frame - media.first_frame) / FPS, abs=1e-3)
    assert conditions["span length"][0] == pytest.approx(100 * (first.truth.span[1] - first.truth.span[0]))
    assert np.isnan(conditions["clip length"][8]) and np.isnan(conditions["object size"][8])  # skipped samples have no known size
    assert "1 of 9 samples with unknown object size" in page
    bins = [row for rows in markdown_rows(markdown).values() for row in rows if len(row) == 5 and row[0].isdigit()]
    assert sum(int(row[0]) for row in bins) == 8 + 8 + 9  # each sample is in one bin per condition
    # The prompt of "svg" contains the span.
    assert np.isfinite(read_samples("svg", runs["svg"][1]).conditions["span length"]).all()


@pytest.mark.parametrize("task", BENCHMARKS)
def test_report_hostile_text_is_escaped_and_paths_are_removed(runs, task):
    folder, predictions, page, markdown = runs[task]
    assert "<script" not in page and "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; | *a* &amp; b" in page
    assert "<script" not in markdown and r"&lt;script&gt;alert('1')&lt;/script&gt; \| \*a\* &amp; b" in markdown
    for text in (page, markdown):
        assert "/home/somebody" not in text and "tiny" in text
        assert str(folder) not in text and str(Path(predictions[0].path).parent) not in text
        assert f"no such file: {Path(predictions[8].path).name}" in text.replace("\\", "")


@pytest.mark.parametrize("task", BENCHMARKS)
def test_report_contains_all_its_images(runs, task):
    folder, _, page, markdown = runs[task]
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # no external resources
    shown = re.findall(r"\]\((report_files/[^)]+)\)", markdown)
    assert {path.name for path in (folder / "report_files").iterdir()} == {Path(path).name for path in shown}
    for path in shown:
        if path.endswith(".jpg"):
            assert Image.open(folder / path).width > 200
        else:
            assert xml.etree.ElementTree.parse(folder / path).getroot().tag.endswith("}svg")
        assert base64.b64encode((folder / path).read_bytes()).decode() in page
    assert page.count("<img") == len(shown) >= 7
    if task in ("stvg", "svg", "rec"):
        assert page.count("Ground truth is blue") == 1


def test_report_without_media_gives_the_reason(runs, tmp_path):
    predictions = [replace(row, path=str(tmp_path / "gone" / "clip.mp4")) for row in runs["stvg"][1]]
    page = write_report(write_run(tmp_path / "run", predictions)).read_text()
    assert "data:image/jpeg" not in page and str(tmp_path) not in page
    assert page.count("<dt>not drawn</dt><dd>no such file: ") == page.count("<h4>") == 8
    assert "data:image/svg+xml" in page


def test_draw_sample_shorter_video_of_the_same_name_raises(runs, tmp_path):
    short = write_video(tmp_path / "clip.mp4", moving_frames(5, 48, 64))
    with pytest.raises(ValueError, match=r"no frame .* which has 5"):
        draw_sample(replace(runs["stvg"][1][0], path=str(short)))
    assert [frame.shape for frame in read_frames(str(short), [0, 4])] == [(48, 64, 3)] * 2


def colour_at(image: Image.Image, x: float, y: float) -> tuple[int, ...]:
    return image.convert("RGB").getpixel((round(x), round(y)))


def is_near(colour: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether two colours are equal up to JPEG compression loss."""
    return max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) < 60


def test_draw_sample_image_box_is_scaled_with_the_image(tmp_path):
    Image.new("RGB", (140, 105)).save(tmp_path / "black.png")
    truth, media = GroundingResult(box=(35.0, 35.0, 105.0, 70.0)), {"kind": "image", "width": 140, "height": 105}
    row = Prediction("a", "b", "rec", "?", truth, path=str(tmp_path / "black.png"), media=media, answer="")
    drawn = Image.open(BytesIO(draw_sample(row)))
    assert drawn.size == (560, 420)  # 4 times as large
    for x, y in ((141, 200), (419, 200), (280, 279)):
        assert is_near(colour_at(drawn, x, y), TRUTH_COLOUR)
    assert is_near(colour_at(drawn, 35, 50), (0, 0, 0)) and is_near(colour_at(drawn, 280, 200), (0, 0, 0))


def test_draw_sample_time_marks_count_from_the_first_frame_of_the_clip(tmp_path):
    """Frames 20 and 39 of a clip from frame 20 to 39 are marked at the ends of the timeline."""
    video = write_video(tmp_path / "clip.mp4", moving_frames(40, 48, 64))
    truth = GroundingResult(span=(0.0, 1.0), tubelet={20: (1, 1, 9, 9), 39: (1, 1, 9, 9)})
    media = {"kind": "video", "width": 64, "height": 48, "fps": 10.0, "first_frame": 20, "last_frame": 39}
    row = Prediction("a", "b", "stvg", "?", truth, path=str(video), media=media, answer="")
    drawn = np.array(Image.open(BytesIO(draw_sample(row))).convert("RGB")).astype(int)
    line = drawn[-4]  # below the spans, where only the marks are drawn
    marks = np.flatnonzero(line.max(axis=1) < 120)
    rail = np.flatnonzero(abs(drawn[-10] - 225).max(axis=1) < 12)  # the empty track of the answer, and edges of its label
    rail = rail[rail > 80]
    assert len(marks) and abs(marks.min() - rail.min()) <= 3 and abs(marks.max() - rail.max()) <= 3
    assert not [x for x in marks if rail.min() + 4 < x < rail.max() - 4]


def test_report_several_runs_are_on_one_page(runs, tmp_path):
    for task in ("rec", "svg"):
        write_run(tmp_path / task, runs[task][1])
    (tmp_path / "other").mkdir()
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    page, rows = path.read_text(), markdown_rows((tmp_path / "report.md").read_text())
    assert re.findall("<h2>(.*?)</h2>", page) == ["Overview", "refcoco_val", "st_align_svg"]
    assert rows["refcoco_val"][0][:3] == ["tiny", "R1@0.5", written("R1@0.5", score("rec", runs["rec"][1])["R1@0.5"])]
    assert rows["refcoco_val"][0][5] == "90.1"
    again = page
    assert write_report(tmp_path).read_text() == again


def test_report_all_samples_skipped_has_zero_metrics_and_lists_the_reasons(runs, tmp_path):
    predictions = [replace(runs["tvg"][1][8], id=str(number)) for number in range(12)]
    write_report(write_run(tmp_path / "run", predictions))
    markdown = (tmp_path / "run" / "report.md").read_text()
    assert markdown_rows(markdown)["miou"][0] == ["0.000", "0.000 – 0.000", "0.424"]
    assert (
        "which cannot be applied to these predictions" in markdown
        and "12 of 9 questions" in markdown
        and "and 2 more" in markdown
        and "No answer has an IoU above 0" in markdown
    )


def test_report_answers_of_other_models_have_no_original_protocol(runs, tmp_path):
    predictions = [replace(row, reader="qwen3_vl") for row in runs["stvg"][1]]
    write_report(write_run(tmp_path / "run", predictions))
    markdown = (tmp_path / "run" / "report.md").read_text()
    rows, scores = markdown_rows(markdown), score("stvg", predictions)
    low, high = written("m_tiou", scores["m_tiou_low"]), written("m_tiou", scores["m_tiou_high"])
    assert rows["m_tiou"][0][:3] == [written("m_tiou", scores["m_tiou"]), f"{low} – {high}", "0.438"]
    assert rows["answer format"] == [["qwen3_vl"]]
    assert "which cannot be applied to these predictions" in markdown


def test_report_removes_only_images_of_the_older_report(runs, tmp_path):
    folder = write_run(tmp_path / "run", runs["rec"][1])
    write_report(folder)
    files = folder / "report_files"
    (files / "mine.jpg").touch()
    older = {path.name for path in files.iterdir()}
    (folder / "predictions.jsonl").unlink()
    append_predictions(folder / "predictions.jsonl", runs["rec"][1][8:])  # only charts are drawn
    write_report(folder)
    shown = re.findall(r"\]\(report_files/([^)]+)\)", (folder / "report.md").read_text())
    assert {path.name for path in files.iterdir()} == {"mine.jpg", *shown} < older


def test_report_folder_of_version_0_1_is_scored_again(runs, tmp_path):
    folder = write_run(tmp_path / "run", runs["stvg"][1])
    (folder / "scores.json").write_text(json.dumps({"default": {"mtiou": 0.1, "msiou": 0.1, "mstiou": 0.1}}))
    write_report(folder)
    rows = markdown_rows((folder / "report.md").read_text())
    assert rows["m_viou"][0][0] == written("m_viou", score("stvg", runs["stvg"][1])["m_viou"]) and "mstiou" not in rows


def test_report_lone_surrogates_are_written_as_escapes(runs, tmp_path):
    predictions = [replace(row, answer="a\ud83db", id=f"{row.id}\udc00") for row in runs["tvg"][1]]
    folder = write_run(tmp_path / "run", predictions)
    write_report(folder)
    for name in ("report.html", "report.md"):
        assert "sample0" in (text := (folder / name).read_text()) and "udc00" in text


def test_report_full_disk_names_the_file(runs, tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", runs["rec"][1])
    monkeypatch.setattr(predictions_module.os, "fsync", raise_no_space)
    with pytest.raises(OSError, match=r"No space left on device: .*report_files.*svg"):
        write_report(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.jsonl", "report_files", "settings.json"]


@pytest.mark.parametrize("task", ["tr", "reg"])
@pytest.mark.filterwarnings("ignore:.*aptions")
def test_report_captions_have_no_empty_columns_and_no_charts(tmp_path, task, one_meteor):
    row = Prediction(
        "one", "mine", task, "What?", GroundingResult(caption="a cat"), answer="a cat", prediction=GroundingResult(caption="a cat")
    )
    page = write_report(write_run(tmp_path / "run", [row])).read_text()
    assert "original protocol</th>" not in page and "published: " not in page and "<img" not in page
    assert "they are not means, and have no intervals" in page and "there is no IoU to plot" in page


def test_report_folder_without_predictions_raises(tmp_path):
    with pytest.raises(ValueError, match=r"contains predictions\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "predictions.jsonl").touch()
    with pytest.raises(ValueError, match="is empty"):
        write_report(tmp_path)


# Pages, charts, drawings


def test_page_every_text_is_escaped():
    bad = "<b>|`x`"
    card = Card(bad, [(bad, bad)])
    pictures = Pictures([Picture("a.svg", b"", bad)])
    page = Page(bad, [Heading(2, bad), Paragraph(bad), Table([bad, "n"], [[bad, "1"]], marked=[1]), card, pictures])
    assert "<b>" not in to_html(page) and to_html(page).count("&lt;b&gt;|`x`") == 10
    assert "<b>" not in to_markdown(page, "files") and to_markdown(page, "files").count(r"&lt;b&gt;\|\`x\`") == 9


def chart_texts(svg: bytes) -> list[str]:
    return [element.text or "" for element in xml.etree.ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


def test_histogram_shows_title_counts_and_mean():
    texts = chart_texts(histogram(np.array([0.0] * 7 + [0.4] * 3), "<title> $x$", "tIoU"))
    assert {"<title> $x$", "tIoU; line: mean of 10 samples; 7 are 0", "7", "3"} < set(texts)
    assert "12345" in chart_texts(histogram(np.zeros(12345), "t", "a"))
    assert "line: mean of 0 samples" in " ".join(chart_texts(histogram(np.zeros(0), "t", "a")))


def test_bar_chart_shows_labels_and_means():
    arguments = (["1 – 2\nn = 3", "3"], np.array([0.5, 0.25]), np.array([0.4, 0.2]), np.array([0.6, 0.3]), "t", "a & b")
    chart = bar_chart(*arguments)
    assert {"1 – 2", "n = 3", "a & b", "0.500", "0.250"} < set(chart_texts(chart))
    assert chart == bar_chart(*arguments)


def test_draw_boxes_draws_the_given_corners():
    black = np.zeros((100, 120, 3), dtype=np.uint8)
    drawn = np.array(draw_boxes(black, [((20, 30, 80, 90), TRUTH_COLOUR, None), ((100, 60, 50, 10), ANSWER_COLOUR, None)], line_width=1))
    assert not black.any()
    for (row, column), colour in {
        (30, 25): TRUTH_COLOUR,
        (85, 20): TRUTH_COLOUR,
        (10, 60): ANSWER_COLOUR,
        (60, 100): ANSWER_COLOUR,
    }.items():
        assert tuple(drawn[row, column]) == colour
    assert not drawn[50, 70].any()  # inside both
    assert (drawn.reshape(-1, 3) == TRUTH_COLOUR).all(axis=1).sum() < 400


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_draw_boxes_odd_images_and_boxes_do_not_raise(mode):
    nan, infinite = float("nan"), float("inf")
    odd = [(-1e9, -5, 1e9, 7), (3, 3, 3, 3), (nan, 0, 1, 1), (0, 0, infinite, 1), (500, 500, 600, 600)]
    drawn = draw_boxes(Image.new(mode, (30, 20)), [(box, TRUTH_COLOUR, "a label wider than the picture") for box in odd])
    assert (drawn.size, drawn.mode) == ((30, 20), "RGB")
    assert draw_boxes(Image.new(mode, (1, 1)), [((0, 0, 1, 1), TRUTH_COLOUR, "x")]).size == (1, 1)


def test_draw_timeline_span_and_empty_track():
    line = np.array(draw_timeline(300, [((0.5, 1.0), TRUTH_COLOUR, "truth"), (None, ANSWER_COLOUR, "answer")], marks=[0.5]))
    columns = np.flatnonzero((line == TRUTH_COLOUR).all(axis=2).any(axis=0))
    assert 290 <= columns.max() < 300 and 140 < columns.min() < 200
    assert not (line == ANSWER_COLOUR).all(axis=2).any()
    assert draw_timeline(300, [((float("nan"), 1.0), TRUTH_COLOUR, "x"), ((0.9, -3.0), TRUTH_COLOUR, "y")]).width == 300


def test_side_by_side_one_above_another_and_add_caption_sizes():
    small, large = Image.new("RGB", (10, 20), (255, 0, 0)), Image.new("RGB", (30, 40), (0, 0, 255))
    assert side_by_side([small, large], gap=5).size == (45, 40)
    assert one_above_another([small, large], gap=5).size == (30, 65)
    captioned = add_caption(large, "words")
    assert captioned.width == 30 and captioned.height > 40 and captioned.getpixel((15, captioned.height - 1)) == (0, 0, 255)
