# SPDX-License-Identifier: Apache-2.0
"""Reports: their figures are those of `score`, samples are in order, words are escaped, and missing media are said to be missing."""

import json
import re
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_st_hf.evaluation.answers import ANSWER_PARSERS, ParseContext
from llava_st_hf.evaluation.benchmarks import read_benchmark
from llava_st_hf.evaluation.charts import Bar, bar_chart, histogram
from llava_st_hf.evaluation.metrics import mean_iou
from llava_st_hf.evaluation.predictions import append_predictions
from llava_st_hf.evaluation.published import MODEL, PUBLISHED, SOURCE
from llava_st_hf.evaluation.report import write_report
from llava_st_hf.evaluation.report_page import Card, Heading, Page, Paragraph, Table, to_html, to_markdown
from llava_st_hf.evaluation.report_rows import IOUS, read_samples
from llava_st_hf.evaluation.report_samples import draw_sample, read_frames
from llava_st_hf.evaluation.rows import GroundingResult, Prediction
from llava_st_hf.evaluation.scoring import score
from llava_st_hf.visualization import ANSWER_COLOUR, TRUTH_COLOUR, add_caption, draw_boxes, draw_timeline, one_above_another, side_by_side
from modeling_tests.media import moving_frames, write_video
from modeling_tests.miniatures import FPS, MINIATURES, media_of, shifted_oracle


# Tasks without captions, which take Java and seconds.
BENCHMARKS = {"rec": "refcoco_val", "tvg": "charades_sta", "stvg": "st_align_stvg", "svg": "st_align_svg"}
SCRIPT = "<script>alert('1')</script> | *a* & b"


def predictions_for(name: str, folder: Path) -> list[Prediction]:
    """Answers that are off by more and more; the last but two says nothing, the last but one was cut off, and the last was skipped."""
    questions = read_benchmark(name, *MINIATURES[name](folder))
    predictions = []
    for number in range(9):
        question = questions[number % len(questions)]
        media = replace(media_of(question), last_frame=39) if name == "charades_sta" else media_of(question)
        answer = shifted_oracle(question, 3 * number) if number < 6 else ""
        said, notes = ANSWER_PARSERS["llava_st"](answer, ParseContext(question.task, media, question.given))
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
                prediction=said,
                notes=notes,
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


def written(figure: str, value: float) -> str:
    return f"{value:.1f}" if "@" in figure else f"{value:.3f}"


def markdown_rows(markdown: str) -> dict[str, list[list[str]]]:
    """Rows of all tables, by their first cell."""
    rows: dict[str, list[list[str]]] = {}
    for line in markdown.splitlines():
        if line.startswith("| "):
            first, *rest = (cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            rows.setdefault(first, []).append(rest)
    return rows


@pytest.mark.parametrize("task", BENCHMARKS)
def test_figures_are_those_of_score(runs, task):
    _, predictions, page, markdown = runs[task]
    default, released = score(task, predictions), score(task, predictions, "released")
    published, rows = PUBLISHED[BENCHMARKS[task]], markdown_rows(markdown)
    names = [name for name in default if f"{name}_low" in default]
    assert names
    for name in names:
        low, high = written(name, default[f"{name}_low"]), written(name, default[f"{name}_high"])
        expected = [written(name, default[name]), f"{low} – {high}", written(name, released[name])]
        expected.append(written(name, published[name]) if name in published else "–")
        assert rows[name][0][:4] == expected
        assert all(f">{cell}</td>" in page for cell in expected)
    assert rows["skipped"][0] == ["1 (11.1 %)"] and rows["cut off"][0] == ["1 (11.1 %)"]
    assert rows["not readable in full"][0] == ["1 (11.1 %)"] and rows["read in full"][0] == ["6 (66.7 %)"]
    for text in (page, markdown):
        assert MODEL in text and SOURCE.split()[0] in text and "released protocol" in text and "2.14.0" in text and "77" in text


@pytest.mark.parametrize("task", BENCHMARKS)
def test_samples_have_the_ious_that_score_takes_the_mean_of(runs, task):
    predictions, figures = runs[task][1], score(task, runs[task][1])
    samples = read_samples(task, predictions)
    assert {name: mean_iou(values) for name, values in samples.ious.items()} == pytest.approx(
        {name: figures[figure] for name, figure in IOUS[task].items()}, abs=1e-12
    )
    assert samples.states == [None] * 6 + ["unparsable", "cut_off", "skipped"]


def test_the_start_that_an_elc_question_gives_counts():
    truth = GroundingResult(span=(0.2, 0.6), tubelet={1: (0, 0, 1, 1)}, caption="it runs")
    said = GroundingResult(span=(None, 0.6), tubelet={1: (0, 0, 1, 1)}, caption="it runs")
    row = Prediction("one", "b", "elc", "?", truth, GroundingResult(span=(0.2, 0.2)), answer="", prediction=said)
    assert {name: values.tolist() for name, values in read_samples("elc", [row]).ious.items()} == {"vIoU": [1], "sIoU": [1], "tIoU": [1]}


@pytest.mark.parametrize("task", BENCHMARKS)
def test_best_and_worst_samples_are_in_order(runs, task):
    _, predictions, page, markdown = runs[task]
    samples = read_samples(task, predictions)
    main = next(iter(samples.ious.values()))
    best, worst = samples.best(4), samples.worst(4)
    assert best[0] == main.argmax() and not set(best) & set(worst)
    assert sorted(main[best], reverse=True) == list(main[best]) and sorted(main[worst]) == list(main[worst])
    assert max(main[worst]) <= min(main[best])
    for text, pattern in ((page, r"<h4>(sample\d)"), (markdown, r"#### (sample\d)")):
        assert re.findall(pattern, text) == [f"sample{place}" for place in (*best, *worst)]


def test_few_samples_and_samples_with_nothing_right():
    truth, media = GroundingResult(span=(0.0, 0.5)), {"kind": "video", "width": 9, "height": 9}
    right = Prediction("a", "b", "tvg", "?", truth, media=media, answer="", prediction=truth)
    wrong = replace(right, prediction=GroundingResult(span=(0.8, 0.9)))
    skipped, silent = replace(right, skipped="gone", prediction=GroundingResult()), replace(right, prediction=GroundingResult())
    only = read_samples("tvg", [right])
    assert (only.best(4), only.worst(4)) == ([0], [])
    several = read_samples("tvg", [skipped, silent, wrong])
    assert (several.best(4), several.worst(4)) == ([], [2, 1, 0])  # what can be looked at comes first


def test_conditions(runs):
    _, predictions, page, markdown = runs["stvg"]
    conditions = read_samples("stvg", predictions).conditions
    first, media = predictions[0], predictions[0].medium()
    boxes = np.array(list(first.truth.tubelet.values()))
    share = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean() / (media.width * media.height)
    assert conditions["object size"][0] == pytest.approx(100 * share)
    assert conditions["clip length"][0] == pytest.approx((media.last_frame - media.first_frame) / FPS, abs=1e-3)
    assert conditions["span length"][0] == pytest.approx(100 * (first.truth.span[1] - first.truth.span[0]))
    assert np.isnan(conditions["clip length"][8]) and np.isnan(conditions["object size"][8])  # what was skipped has no known size
    assert "the object size of 1 of 9 samples" in page
    bins = [row for rows in markdown_rows(markdown).values() for row in rows if len(row) == 5 and row[0].isdigit()]
    assert sum(int(row[0]) for row in bins) == 8 + 8 + 9  # each sample is in one bin per condition
    # Of "svg" the question gives the span.
    assert np.isfinite(read_samples("svg", runs["svg"][1]).conditions["span length"]).all()


@pytest.mark.parametrize("task", BENCHMARKS)
def test_words_are_escaped_and_paths_are_left_out(runs, task):
    folder, predictions, page, markdown = runs[task]
    assert "<script" not in page and "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt; | *a* &amp; b" in page
    assert "<script" not in markdown and r"&lt;script&gt;alert('1')&lt;/script&gt; \| \*a\* &amp; b" in markdown
    for text in (page, markdown):
        assert "/home/somebody" not in text and "tiny" in text
        assert str(folder) not in text and str(Path(predictions[0].path).parent) not in text
        assert f"no such file: {Path(predictions[8].path).name}" in text.replace("\\", "")


@pytest.mark.parametrize("task", BENCHMARKS)
def test_pages_have_all_their_pictures(runs, task):
    folder, _, page, markdown = runs[task]
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing from elsewhere
    shown = re.findall(r"\]\((report_files/[^)]+)\)", markdown)
    assert {path.name for path in (folder / "report_files").iterdir()} == {Path(path).name for path in shown}
    for path in shown:
        if path.endswith(".jpg"):
            assert Image.open(folder / path).width > 200
        else:
            assert (folder / path).read_text() in page
    assert page.count("<img") == len([path for path in shown if path.endswith(".jpg")]) >= 6
    if task in ("stvg", "svg", "rec"):
        assert page.count("Truth is blue") == 1


def test_without_media_the_page_says_so(runs, tmp_path):
    predictions = [replace(row, path=str(tmp_path / "gone" / "clip.mp4")) for row in runs["stvg"][1]]
    page = write_report(write_run(tmp_path / "run", predictions)).read_text()
    assert "<img" not in page and str(tmp_path) not in page
    assert page.count("<dt>not drawn</dt><dd>no such file: ") == page.count("<h4>") == 8
    assert "<svg" in page


def test_another_video_under_the_same_name(runs, tmp_path):
    short = write_video(tmp_path / "clip.mp4", moving_frames(5, 48, 64))
    with pytest.raises(ValueError, match=r"no frame .* which has 5"):
        draw_sample(replace(runs["stvg"][1][0], path=str(short)))
    assert [frame.shape for frame in read_frames(str(short), [0, 4])] == [(48, 64, 3)] * 2


def test_several_runs_on_one_page(runs, tmp_path):
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


def test_all_samples_skipped(runs, tmp_path):
    predictions = [replace(runs["tvg"][1][8], id=str(number)) for number in range(12)]
    write_report(write_run(tmp_path / "run", predictions))
    markdown = (tmp_path / "run" / "report.md").read_text()
    assert markdown_rows(markdown)["miou"][0] == ["0.000", "0.000 – 0.000", "0.424"]
    assert (
        "which has no figures here" in markdown
        and "12 of 9 questions" in markdown
        and "and 2 more" in markdown
        and "no answer has anything right" in markdown
    )


def test_answers_of_peers_have_no_figures_of_the_released_protocol(runs, tmp_path):
    predictions = [replace(row, reader="qwen3_vl") for row in runs["stvg"][1]]
    write_report(write_run(tmp_path / "run", predictions))
    markdown = (tmp_path / "run" / "report.md").read_text()
    rows, figures = markdown_rows(markdown), score("stvg", predictions)
    low, high = written("mtiou", figures["mtiou_low"]), written("mtiou", figures["mtiou_high"])
    assert rows["mtiou"][0][:3] == [written("mtiou", figures["mtiou"]), f"{low} – {high}", "0.438"]
    assert rows["answers read as"] == [["qwen3_vl"]]
    assert "which has no figures here" in markdown


def test_only_pictures_of_the_older_report_are_removed(runs, tmp_path):
    folder = write_run(tmp_path / "run", runs["rec"][1])
    write_report(folder)
    files = folder / "report_files"
    (files / "mine.jpg").touch()
    older = {path.name for path in files.iterdir()}
    (folder / "predictions.jsonl").unlink()
    append_predictions(folder / "predictions.jsonl", runs["rec"][1][8:])  # nothing to draw but charts
    write_report(folder)
    shown = re.findall(r"\]\(report_files/([^)]+)\)", (folder / "report.md").read_text())
    assert {path.name for path in files.iterdir()} == {"mine.jpg", *shown} < older


@pytest.mark.parametrize("task", ["tr", "reg"])
@pytest.mark.filterwarnings("ignore:.*aptions")
def test_reports_on_captions_have_no_empty_columns_and_nothing_to_draw(tmp_path, task):
    row = Prediction(
        "one", "mine", task, "What?", GroundingResult(caption="a cat"), answer="a cat", prediction=GroundingResult(caption="a cat")
    )
    page = write_report(write_run(tmp_path / "run", [row])).read_text()
    assert "released protocol</th>" not in page and "published: " not in page and "<svg" not in page
    assert "no means, and have no intervals" in page and "there is no IoU to draw" in page


def test_folders_without_predictions(tmp_path):
    with pytest.raises(ValueError, match=r"holds no predictions\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "predictions.jsonl").touch()
    with pytest.raises(ValueError, match="is empty"):
        write_report(tmp_path)


# Pages, charts, drawings


def test_every_text_of_a_page_is_escaped():
    bad = "<b>|`x`"
    card = Card(bad, [(bad, bad)])
    page = Page(bad, [Heading(2, bad), Paragraph(bad), Table([bad, "n"], [[bad, "1"]], marked=[1]), card])
    assert "<b>" not in to_html(page) and to_html(page).count("&lt;b&gt;") == 9
    assert "<b>" not in to_markdown(page, "files") and to_markdown(page, "files").count(r"&lt;b&gt;\|\`x\`") == 8


def chart_texts(svg: str) -> list[str]:
    return [element.text or "" for element in xml.etree.ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


def test_charts_are_well_formed_and_tell_their_numbers():
    texts = chart_texts(histogram(np.array([0.0, 0.0, 0.4, 1.0]), "<title>", "tIoU"))
    assert "<title>" in texts and "tIoU; the line is the mean of 4; 2 are 0" in texts
    hints = re.findall("<title>(.*?)</title></rect>", histogram(np.array([0.0, 0.0, 0.4, 1.0]), "t", "tIoU"))
    assert len(hints) == 20 and hints[0].endswith(": 2") and hints[8].endswith(": 1") and hints[19].endswith(": 1")
    assert {"0", "5", "10", "15", "20", "25"} <= set(chart_texts(histogram(np.zeros(24), "t", "a")))
    for count in (1, 3, 7, 99, 100, 101, 12345):
        ticks = [int(text) for text in chart_texts(histogram(np.zeros(count), "t", "a")) if text.isdigit()]
        assert max(ticks) >= count  # no bar goes beyond the chart
    assert chart_texts(histogram(np.zeros(0), "t", "a"))
    texts = chart_texts(bar_chart([Bar("1 – 2\nn = 3", 0.5, 0.4, 0.6)], "t", "a & b"))
    assert {"1 – 2", "n = 3", "a & b"} <= set(texts)
    assert chart_texts(bar_chart([], "t", "a"))


def test_boxes_are_drawn_where_they_are():
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
def test_odd_pictures_and_odd_boxes_are_drawn(mode):
    nan, infinite = float("nan"), float("inf")
    odd = [(-1e9, -5, 1e9, 7), (3, 3, 3, 3), (nan, 0, 1, 1), (0, 0, infinite, 1), (500, 500, 600, 600)]
    drawn = draw_boxes(Image.new(mode, (30, 20)), [(box, TRUTH_COLOUR, "a label wider than the picture") for box in odd])
    assert (drawn.size, drawn.mode) == ((30, 20), "RGB")
    assert draw_boxes(Image.new(mode, (1, 1)), [((0, 0, 1, 1), TRUTH_COLOUR, "x")]).size == (1, 1)


def test_timelines():
    line = np.array(draw_timeline(300, [((0.5, 1.0), TRUTH_COLOUR, "truth"), (None, ANSWER_COLOUR, "answer")], marks=[0.5]))
    columns = np.flatnonzero((line == TRUTH_COLOUR).all(axis=2).any(axis=0))
    assert 290 <= columns.max() < 300 and 140 < columns.min() < 200
    assert not (line == ANSWER_COLOUR).all(axis=2).any()
    assert draw_timeline(300, [((float("nan"), 1.0), TRUTH_COLOUR, "x"), ((0.9, -3.0), TRUTH_COLOUR, "y")]).width == 300


def test_pictures_are_put_together():
    small, large = Image.new("RGB", (10, 20), (255, 0, 0)), Image.new("RGB", (30, 40), (0, 0, 255))
    assert side_by_side([small, large], gap=5).size == (45, 40)
    assert one_above_another([small, large], gap=5).size == (30, 65)
    captioned = add_caption(large, "words")
    assert captioned.width == 30 and captioned.height > 40 and captioned.getpixel((15, captioned.height - 1)) == (0, 0, 255)
