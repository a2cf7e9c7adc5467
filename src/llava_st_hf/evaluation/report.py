# SPDX-License-Identifier: Apache-2.0
"""A report on the answers of one benchmark or several, as a page in HTML and one in Markdown.

It is made of what `run_benchmark` left in its folders, so it can be made again at any time, without a model. Where media are at hand
the best and worst answers are shown on them.
"""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..model.media_files_llava_st import MEDIA_ERRORS
from .charts import Bar, bar_chart, histogram
from .metrics import bootstrap_interval, mean_iou
from .predictions import read_predictions
from .published import MODEL, PUBLISHED, PUBLISHED_OTHERS, SOURCE
from .released_protocol import is_released
from .report_page import Card, Heading, Page, Paragraph, Picture, Pictures, Table, to_html, to_markdown
from .report_rows import CONDITIONS, IOUS, Samples, read_samples
from .report_samples import draw_sample
from .rows import GROUNDING_FIELDS, Prediction
from .runner import PREDICTIONS, SETTINGS
from .scoring import score


HTML, MARKDOWN, FILES = "report.html", "report.md", "report_files"
SHOWN = 4  # best samples, and as many worst
_BINS = 4
_MAX_SKIPPED = 10
_MAX_QUESTION, _MAX_ANSWER = 800, 300  # characters; an answer of a hundred boxes has thousands, and they are drawn
_COUNTS = {"unparsable": "not readable in full", "cut_off": "cut off", "skipped": "skipped"}
# What the overview of several benchmarks shows of each.
_MAIN = {
    "rec": ("R1@0.5", "miou"),
    "tvg": ("R1@0.5", "miou"),
    "stvg": ("mtiou", "msiou", "mstiou"),
    "svg": ("msiou", "mstiou"),
    "elc": ("mtiou", "msiou", "mstiou", "exact_match", "METEOR"),
    "tr": ("exact_match", "METEOR", "CIDEr"),
    "reg": ("exact_match", "METEOR", "CIDEr"),
    "dgc": ("named@0.5", "miou"),
}
_THREE = ("default protocol", "95 % interval", "released protocol")
_SCALES = "IoUs and BLEU, METEOR and ROUGE_L are fractions, recalls (…@threshold) and exact_match per cent; CIDEr goes to 10."
_PUBLISHED_HEADER = f"published (released protocol): {MODEL}"
_ELC_SPANS = (
    "An answer `Ends in …`, as the released model is asked to give it, has no span for the released program as published, and so a tIoU of "
    "0 in the column of its protocol. The published tIoU cannot have come about in that way; it is nearer to the default protocol's."
)
_NONE = "–"


@dataclass(frozen=True)
class _Run:
    """One folder of predictions: what was run and what came of it. `released` is empty where that protocol has no figures; `problems`
    are what scoring warned of."""

    folder: Path
    settings: dict
    benchmark: str
    task: str
    models: list[str]
    versions: list[str]
    readers: list[str]
    default: dict[str, float]
    released: dict[str, float]
    problems: list[str]

    def predictions(self) -> Iterable[Prediction]:
        return read_predictions(self.folder / PREDICTIONS)


def write_report(folder: str | os.PathLike) -> Path:
    """
    Writes `report.html`, which needs no other file, and `report.md` with its pictures in `report_files`.

    Args:
        folder: that `run_benchmark` wrote to, or one of several such folders. Both pages go there, in place of older ones.

    Returns:
        Path of `report.html`.

    Raises:
        ValueError: naming the folder, where it holds no predictions; naming file and line, where a file of them is damaged; naming the
            sample, where one cannot be scored.
        OSError: where a file cannot be read or written.
    """
    folder = Path(folder)
    runs = [_read_run(part) for part in _folders(folder)]
    page = Page("Evaluation")
    if len(runs) > 1:
        page.blocks += _overview(runs)
    for number, run in enumerate(runs):
        page.blocks += _sections(run, f"{number:02d}")
    files = folder / FILES
    files.mkdir(exist_ok=True)
    for name in _older_pictures(folder / MARKDOWN):
        (files / name).unlink(missing_ok=True)
    for picture in page.pictures():
        (files / picture.name).write_bytes(picture.data)
    (folder / MARKDOWN).write_text(to_markdown(page, FILES), encoding="utf-8")
    (folder / HTML).write_text(to_html(page), encoding="utf-8")
    return folder / HTML


def _older_pictures(page: Path) -> list[str]:
    """Names of the pictures that a page of an earlier report shows. Other files may be somebody's own."""
    if not page.is_file():
        return []
    return re.findall(rf"^!\[.*\]\({FILES}/([\w-]+\.(?:svg|jpg))\)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def _folders(folder: Path) -> list[Path]:
    candidates = [folder, *sorted(part for part in folder.iterdir() if part.is_dir())]
    found = [part for part in candidates if (part / PREDICTIONS).is_file()]
    if not found:
        raise ValueError(f"{folder} holds no {PREDICTIONS}, and no folder in it does: a run writes it when all questions are answered.")
    return found[:1] if found[0] == folder else found


def _read_run(folder: Path) -> _Run:
    path, settings_path = folder / PREDICTIONS, folder / SETTINGS
    settings = json.loads(settings_path.read_text()) if settings_path.is_file() else {}
    tasks, benchmarks, models, versions, readers = (Counter[str]() for _ in range(5))
    has_released = True
    for prediction in read_predictions(path):
        tasks[prediction.task] += 1
        benchmarks[prediction.benchmark] += 1
        readers[prediction.reader] += 1
        has_released &= is_released(prediction)
        models[_model_name(prediction.model)] += 1
        versions[", ".join(f"{name} {version}" for name, version in prediction.versions.items()) or "unknown"] += 1
    if not tasks:
        raise ValueError(f"{path} is empty.")
    task = next(iter(tasks))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        default = score(task, read_predictions(path))
        # With nothing but skipped samples the released program has no rows, and so no figures.
        has_released &= default["skipped"] < default["count"]
        released = score(task, read_predictions(path), "released") if has_released else {}
    problems = list(dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning))
    return _Run(folder, settings, next(iter(benchmarks)), task, list(models), list(versions), list(readers), default, released, problems)


def _model_name(model: str | None) -> str:
    """A model's name; of a path its last part, as the rest tells of somebody's machine."""
    if model is None:
        return "unknown"
    return Path(model).name if model.startswith(("/", "~", ".")) else model


# Sections


def _overview(runs: list[_Run]) -> list:
    header = ["benchmark", "model", "figure", *_THREE, _PUBLISHED_HEADER, "samples"]
    rows = []
    for run in runs:
        for figure in _MAIN.get(run.task, ()):
            published = PUBLISHED.get(run.benchmark, {}).get(figure)
            rows.append(
                [run.benchmark, ", ".join(run.models), figure, *_three(run, figure), _number(figure, published), str(_count(run, "count"))]
            )
    counts = [[run.benchmark, str(_count(run, "count")), *(_share(run, name) for name in _COUNTS)] for run in runs]
    return [
        Heading(2, "Overview"),
        Table(header, rows, marked=(5, 6), words=(0, 1, 2)),
        _comparison(),
        Table(["benchmark", "samples", *_COUNTS.values()], counts),
    ]


def _sections(run: _Run, prefix: str) -> list:
    """All that is to be said of one benchmark. Pictures get names that begin with `prefix`."""
    blocks = [Heading(2, run.benchmark), *_what_was_run(run), *_figures(run), *_counts(run)]
    if run.task not in IOUS:
        return [*blocks, Paragraph(f"Answers of {run.task} are words: there is no IoU to draw and no order to rank them by.")]
    samples = read_samples(run.task, run.predictions())
    return [*blocks, *_distributions(samples, prefix), *_reliability(samples, prefix), *_extremes(run, samples, prefix)]


def _what_was_run(run: _Run) -> list:
    facts = [["task", run.task], ["model", ", ".join(run.models)]]
    facts += [["answers read as", ", ".join(run.readers)], ["versions", "; ".join(run.versions)]]
    names = {"batch_size": "batch size", "max_new_tokens": "tokens at most", "seed": "seed"}
    facts += [[words, str(run.settings[name])] for name, words in names.items() if name in run.settings]
    count, asked = _count(run, "count"), run.settings.get("questions")
    facts.append(["samples", str(count) if asked in (None, count) else f"{count} of {asked} questions"])
    return [Heading(3, "What was run"), Table(["setting", "value"], facts, words=(0, 1))]


def _figures(run: _Run) -> list:
    published = PUBLISHED.get(run.benchmark, {})
    others = {model: figures[run.benchmark] for model, figures in PUBLISHED_OTHERS.items() if run.benchmark in figures}
    shown = [name for name in run.default if name not in (*_COUNTS, "count") and not name.endswith(("_low", "_high"))]
    shown += [name for name in published if name not in shown]
    header = ["figure", *_THREE, _PUBLISHED_HEADER, *(f"published: {model}" for model in others)]
    rows = [
        [name, *_three(run, name), _number(name, published.get(name)), *(_number(name, figures.get(name)) for figures in others.values())]
        for name in shown
    ]
    kept = [column for column in range(len(header)) if any(row[column] != _NONE for row in rows)]
    comparable = [place for place, column in enumerate(kept) if header[column] in (_THREE[-1], _PUBLISHED_HEADER)]
    table = Table([header[column] for column in kept], [[row[column] for column in kept] for row in rows], marked=comparable)
    words = [f"{_SCALES} Intervals are bootstrapped over the samples."]
    if "caption" in GROUNDING_FIELDS[run.task]:
        words.append("BLEU and METEOR count matches over all samples at once: they are no means, and have no intervals.")
    notes = [_comparison() if published and run.released else Paragraph(_not_comparable(run, bool(published)))]
    notes += [Paragraph(_without_paths(problem, None)) for problem in run.problems]
    if run.task == "elc" and run.released:
        notes.append(Paragraph(_ELC_SPANS))
    return [Heading(3, "Figures"), table, Paragraph(" ".join(words)), *notes]


def _not_comparable(run: _Run, is_published: bool) -> str:
    if not is_published:
        return f"Nothing is published of {MODEL} on {run.benchmark}."
    return (
        f"Published figures are from {SOURCE}. Those of {MODEL} were computed under the released protocol, which has no figures here: it "
        "reads answers in coordinate tokens alone, and leaves out what was skipped."
    )


def _comparison() -> Paragraph:
    return Paragraph(
        f"Published figures are from {SOURCE}. Those of {MODEL} were computed under the released protocol: they compare with the column "
        "beside them and not with the default protocol, which counts every sample and rounds nothing."
    )


def _counts(run: _Run) -> list:
    read = _count(run, "count") - sum(_count(run, name) for name in _COUNTS)
    rows = [["read in full", f"{read} ({_percent(read, _count(run, 'count'))})"]]
    rows += [[words, _share(run, name)] for name, words in _COUNTS.items()]
    blocks: list = [Heading(3, "Answers"), Table(["answer", "samples"], rows)]
    if skipped := [prediction for prediction in run.predictions() if prediction.skipped is not None]:
        reasons = [[one.id, _without_paths(one.skipped or "", one.path)] for one in skipped[:_MAX_SKIPPED]]
        blocks.append(Table(["skipped", "because"], reasons, words=(0, 1)))
        if len(skipped) > _MAX_SKIPPED:
            blocks.append(Paragraph(f"… and {len(skipped) - _MAX_SKIPPED} more."))
    return blocks


def _distributions(samples: Samples, prefix: str) -> list:
    charts = [
        _svg(f"{prefix}-histogram-{_slug(name)}", histogram(values, f"Samples by {name}", name), f"Histogram of {name}")
        for name, values in samples.ious.items()
    ]
    words = "Under the default protocol: skipped and unreadable answers are among those of 0."
    return [Heading(3, "Distribution"), Pictures(charts), Paragraph(words)]


def _reliability(samples: Samples, prefix: str) -> list:
    """Mean IoU in bins of about equal numbers of samples."""
    main, blocks = next(iter(samples.ious)), list[Table | Paragraph]()
    charts = []
    for condition, unit in CONDITIONS.items():
        values = samples.conditions[condition]
        known = np.isfinite(values)
        if not known.any():
            continue
        bars, rows = [], []
        for low, high, inside in _quantile_bins(values):
            lowest, highest = (float(bound) for bound in bootstrap_interval(samples.ious[main][inside]))
            means = {name: mean_iou(ious[inside]) for name, ious in samples.ious.items()}
            bounds = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} – {high:.3g}"
            interval = f"{lowest:.3f} – {highest:.3f}"
            rows.append([bounds, str(int(inside.sum())), *(f"{mean:.3f}" for mean in means.values()), interval])
            bars.append(Bar(f"{bounds}\nn = {int(inside.sum())}", means[main], lowest, highest))
        title = f"{main} by {condition}"
        charts.append(_svg(f"{prefix}-by-{_slug(condition)}", bar_chart(bars, title, f"{condition} in {unit}"), f"Mean {title}"))
        header = [f"{condition} in {unit}", "samples", *(f"mean {name}" for name in samples.ious), f"95 % interval of {main}"]
        blocks.append(Table(header, rows))
        if unknown := int((~known).sum()):
            blocks.append(Paragraph(f"Not known, and so left out here: the {condition} of {unknown} of {len(values)} samples."))
    if not charts:
        return []
    return [Heading(3, "Reliability"), Pictures(charts), *blocks]


def _quantile_bins(values: np.ndarray) -> Iterable[tuple[float, float, np.ndarray]]:
    """Lowest and highest value in each bin, and (N,) which values are in it; fewer bins where many values are the same."""
    finite = np.isfinite(values)
    edges = np.unique(np.quantile(values[finite], np.linspace(0, 1, _BINS + 1)[1:-1]))
    places = np.searchsorted(edges, values, side="left")
    for place in range(len(edges) + 1):
        inside = finite & (places == place)
        if inside.any():
            yield float(values[inside].min()), float(values[inside].max()), inside


def _extremes(run: _Run, samples: Samples, prefix: str) -> list:
    groups = {"Best": samples.best(SHOWN), "Worst": samples.worst(SHOWN)}
    wanted = {place for places in groups.values() for place in places}
    found = {place: prediction for place, prediction in enumerate(run.predictions()) if place in wanted}
    blocks: list = []
    for name, places in groups.items():
        blocks.append(Heading(3, f"{name} samples"))
        if not places:
            blocks.append(Paragraph("There are none: no answer has anything right." if name == "Best" else "There are no more."))
        for number, place in enumerate(places, start=1):
            values = {measure: float(values[place]) for measure, values in samples.ious.items()}
            picture = f"{prefix}-{name.lower()}-{number}.jpg"
            blocks.append(_card(found[place], samples.states[place], values, picture))
    words = "Truth is blue, the answer orange. Frames are spread over the true span; lines mark them on the clip's time line."
    return [*blocks[:1], Paragraph(words if run.task not in ("rec", "dgc") else "Truth is blue, the answer orange."), *blocks[1:]]


def _card(prediction: Prediction, state: str | None, values: dict[str, float], name: str) -> Card:
    ious = ", ".join(f"{measure} {value:.3f}" for measure, value in values.items())
    facts = [
        ("medium", "unknown" if prediction.path is None else Path(prediction.path).name),
        ("question", _short(prediction.prompt, _MAX_QUESTION)),
    ]
    facts.append(("answer", "none" if prediction.answer is None else _short(prediction.answer) or "(empty)"))
    for words, grounding in (("truth", prediction.truth), ("answer", prediction.prediction)):
        if prediction.truth.span is not None:
            facts.append((f"span ({words})", _NONE if grounding.span is None else _span_words(grounding.span)))
        if prediction.truth.caption is not None:
            facts.append((f"caption ({words})", _short(grounding.caption or _NONE)))
    if state is not None:
        facts.append(("counted as", _COUNTS[state]))
    if prediction.notes:
        facts.append(("notes", _short(" ".join(prediction.notes))))
    picture = None
    if prediction.skipped is not None:
        facts.append(("not drawn", _without_paths(prediction.skipped, prediction.path)))
    else:
        try:
            picture = Picture(name, draw_sample(prediction), f"Truth and answer of {prediction.id}")
        except MEDIA_ERRORS as error:
            facts.append(("not drawn", _without_paths(str(error), prediction.path)))
    return Card(f"{prediction.id}: {ious}", facts, picture)


# Words


def _three(run: _Run, figure: str) -> list[str]:
    """A figure under the default protocol, its interval, and under the released protocol."""
    low, high = run.default.get(f"{figure}_low"), run.default.get(f"{figure}_high")
    interval = _NONE if low is None else f"{_number(figure, low)} – {_number(figure, high)}"
    return [_number(figure, run.default.get(figure)), interval, _number(figure, run.released.get(figure))]


def _number(figure: str, value: float | None) -> str:
    """In the scale of `score`: recalls and shares are per cent, of which a tenth is enough."""
    return _NONE if value is None else f"{value:.1f}" if "@" in figure or figure == "exact_match" else f"{value:.3f}"


def _count(run: _Run, name: str) -> int:
    return int(run.default[name])


def _share(run: _Run, name: str) -> str:
    return f"{_count(run, name)} ({_percent(_count(run, name), _count(run, 'count'))})"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _span_words(span: tuple) -> str:
    return " – ".join("?" if position is None else f"{position:.3f}" for position in span) + " of the clip"


def _short(text: str, length: int = _MAX_ANSWER) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]} … ({len(text)} characters)"


def _without_paths(text: str, path: str | None) -> str:
    """Words of an error, with files by their names alone: a page is shown around, and its readers have other folders."""
    if path is not None:
        text = text.replace(path, Path(path).name)
    return re.sub(r"(?<![\w.:/])(?:/[^\s/'\"]+)+/", "", text)


def _slug(text: str) -> str:
    return text.lower().replace(" ", "-")


def _svg(name: str, chart: str, words: str) -> Picture:
    return Picture(f"{name}.svg", chart.encode(), words)
