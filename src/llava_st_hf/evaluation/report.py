# SPDX-License-Identifier: Apache-2.0
"""A report on one or several evaluated benchmarks, as HTML and Markdown.

It is computed from the folders that `run_benchmark` wrote, without a model, and can be repeated at any time. The best and worst samples
are drawn if their images and videos are available.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..deprecation import RENAMED_METRICS
from ..files import write_file
from ..model.media_files_llava_st import MEDIA_ERRORS
from .charts import bar_chart, histogram
from .metrics import bootstrap_interval, mean_iou
from .original_protocol import follows_original_program
from .predictions import read_predictions
from .published import MODEL, PUBLISHED, PUBLISHED_LATER, PUBLISHED_OTHERS, SOURCE
from .report_page import Card, Heading, Page, Paragraph, Picture, Pictures, Table, to_html, to_markdown
from .report_rows import CONDITIONS, IOUS, Samples, read_samples
from .report_samples import draw_sample
from .rows import GROUNDING_FIELDS, Prediction
from .runner import PREDICTIONS, SETTINGS
from .scores import Scores
from .scoring import score


HTML, MARKDOWN, FILES = "report.html", "report.md", "report_files"
SHOWN = 4  # number of best samples, and of worst samples
_BINS = 4
_MAX_SKIPPED = 10
_MAX_QUESTION, _MAX_ANSWER = 800, 300  # characters; an answer with a hundred boxes has thousands
_COUNTS = {"unparsable": "partly unreadable", "cut_off": "cut off", "skipped": "skipped"}
# The metrics of each task in the overview of several benchmarks.
_MAIN = {
    "rec": ("R1@0.5", "miou"),
    "tvg": ("R1@0.5", "miou"),
    "stvg": ("m_tiou", "m_siou", "m_viou"),
    "svg": ("m_siou", "m_viou"),
    "elc": ("m_tiou", "m_siou", "m_viou", "exact_match", "METEOR"),
    "tr": ("exact_match", "METEOR", "CIDEr"),
    "reg": ("exact_match", "METEOR", "CIDEr"),
    "dgc": ("object_recall@0.5", "miou"),
}
_ORIGINAL_NAMES = {new: old for old, new in RENAMED_METRICS.items()}
_PROTOCOLS = ("default protocol", "95 % interval", "original protocol")
_PUBLISHED_HEADER = f"published (original protocol): {MODEL}"
_SCALES = "IoUs, BLEU, METEOR and ROUGE_L are fractions, recalls (…@threshold) and exact_match percentages; CIDEr is in [0, 10]."
_COMPARISON = (
    f"Published metrics are from {SOURCE}. Those of {MODEL} were computed under the original protocol. Compare them with the column of "
    "the original protocol, not with the default protocol, which includes every sample and does not round."
)
_NOT_COMPARABLE = (
    f"Published metrics are from {SOURCE}. Those of {MODEL} were computed under the original protocol, which cannot be applied to these "
    "predictions: it requires answers in coordinate tokens at 100 frames per clip, and at least one sample that was not skipped."
)
_ELC_SPANS = (
    "Under the original protocol as published, an answer `Ends in …`, which is the form that the prompt asks for, has no span and a tIoU "
    "of 0. The published tIoU cannot have been computed in this way; it is closer to the default protocol."
)
_NONE = "–"


@dataclass(frozen=True)
class _Run:
    """The predictions of one folder, how they were made, and their metrics. `original` is empty if that protocol is not applicable."""

    folder: Path
    settings: dict
    benchmark: str
    task: str
    models: list[str]
    versions: list[str]
    parsers: list[str]
    default: Scores
    original: Scores

    def predictions(self) -> Iterable[Prediction]:
        return read_predictions(self.folder / PREDICTIONS)

    def count(self, name: str) -> int:
        return int(self.default[name])

    def share(self, name: str) -> str:
        return _share(self.count(name), self.count("count"))


def write_report(folder: str | os.PathLike) -> Path:
    """
    Writes `report.html`, a self-contained file, and `report.md` with its pictures in `report_files`.

    Args:
        folder: output of `run_benchmark`, or a folder that contains several of these. The report is written there and replaces an older
            one.

    Returns:
        Path of `report.html`.

    Raises:
        ValueError: naming the folder, if it contains no predictions; naming file and line of an invalid prediction; naming a sample that
            cannot be scored.
        OSError: naming the file, if it cannot be read or written.
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
        write_file(files / picture.name, picture.data)
    write_file(folder / MARKDOWN, to_markdown(page, FILES))
    write_file(folder / HTML, to_html(page))
    return folder / HTML


def _older_pictures(page: Path) -> list[str]:
    """Names of the pictures of an earlier report. Other files in their folder are kept."""
    if not page.is_file():
        return []
    return re.findall(rf"^!\[.*\]\({FILES}/([\w-]+\.(?:svg|jpg))\)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def _folders(folder: Path) -> list[Path]:
    candidates = [folder, *sorted(part for part in folder.iterdir() if part.is_dir())]
    found = [part for part in candidates if (part / PREDICTIONS).is_file()]
    if not found:
        raise ValueError(f"Neither {folder} nor a folder in it contains {PREDICTIONS}, which a run writes when all questions are answered.")
    return found[:1] if found[0] == folder else found


def _read_run(folder: Path) -> _Run:
    path, settings_path = folder / PREDICTIONS, folder / SETTINGS
    settings = json.loads(settings_path.read_text(encoding="utf-8")) if settings_path.is_file() else {}
    tasks, benchmarks, models, versions, parsers = (Counter[str]() for _ in range(5))
    is_original = True
    for prediction in read_predictions(path):
        tasks[prediction.task] += 1
        benchmarks[prediction.benchmark] += 1
        parsers[prediction.reader] += 1
        is_original &= follows_original_program(prediction)
        models[_model_name(prediction.model)] += 1
        versions[", ".join(f"{name} {version}" for name, version in prediction.versions.items()) or "unknown"] += 1
    if not tasks:
        raise ValueError(f"{path} is empty.")
    task = next(iter(tasks))
    default = score(task, read_predictions(path))
    is_original &= default["skipped"] < default["count"]
    original = score(task, read_predictions(path), "original") if is_original else Scores()
    return _Run(folder, settings, next(iter(benchmarks)), task, list(models), list(versions), list(parsers), default, original)


def _model_name(model: str | None) -> str:
    """Name of a model; of a local path only the last part."""
    if model is None:
        return "unknown"
    return Path(model).name if model.startswith(("/", "~", ".")) else model


# Sections


def _overview(runs: list[_Run]) -> list:
    rows = []
    for run in runs:
        for metric in _MAIN.get(run.task, ()):
            published = _number(metric, PUBLISHED.get(run.benchmark, {}).get(metric))
            rows.append([run.benchmark, ", ".join(run.models), metric, *_protocols(run, metric), published, str(run.count("count"))])
    counts = [[run.benchmark, str(run.count("count")), *map(run.share, _COUNTS)] for run in runs]
    return [
        Heading(2, "Overview"),
        Table(["benchmark", "model", "metric", *_PROTOCOLS, _PUBLISHED_HEADER, "samples"], rows, marked=(5, 6), text_columns=(0, 1, 2)),
        Paragraph(_COMPARISON),
        Table(["benchmark", "samples", *_COUNTS.values()], counts),
    ]


def _sections(run: _Run, prefix: str) -> list:
    """All blocks about one benchmark. Names of pictures begin with `prefix`."""
    blocks = [Heading(2, run.benchmark), *_settings(run), *_metrics(run), *_counts(run)]
    if run.task not in IOUS:
        return [*blocks, Paragraph(f"Answers of {run.task} are text, so there is no IoU to plot and samples are not ranked.")]
    samples = read_samples(run.task, run.predictions())
    return [*blocks, *_distributions(samples, prefix), *_reliability(samples, prefix), *_extremes(run, samples, prefix)]


def _settings(run: _Run) -> list:
    facts = [["task", run.task], ["model", ", ".join(run.models)]]
    facts += [["answer format", ", ".join(run.parsers)], ["versions", "; ".join(run.versions)]]
    names = {"batch_size": "batch size", "dtype": "dtype", "max_new_tokens": "maximum number of new tokens", "seed": "seed"}
    facts += [[text, str(run.settings[name])] for name, text in names.items() if name in run.settings]
    if "temperature" in run.settings:
        temperature, decimals = run.settings["temperature"], run.settings["prompt_decimals"]
        facts.append(["decoding", "greedy" if temperature is None else f"sampling at temperature {temperature}"])
        facts.append(["coordinates of prompts", "exact" if decimals is None else f"rounded to {decimals} decimals"])
    count, questions = run.count("count"), run.settings.get("questions")
    facts.append(["samples", str(count) if questions in (None, count) else f"{count} of {questions} questions"])
    return [Heading(3, "Settings"), Table(["setting", "value"], facts, text_columns=(0, 1))]


def _metrics(run: _Run) -> list:
    published = PUBLISHED.get(run.benchmark, {})
    others = {model: metrics[run.benchmark] for model, metrics in PUBLISHED_OTHERS.items() if run.benchmark in metrics}
    later = {model: result for model, result in PUBLISHED_LATER.items() if result.benchmark == run.benchmark}
    others |= {model: result.metrics for model, result in later.items()}
    shown = [name for name in run.default if name not in (*_COUNTS, "count") and not name.endswith(("_low", "_high"))]
    shown += [name for name in published if name not in shown]
    header = ["metric", *_PROTOCOLS, _PUBLISHED_HEADER, *(f"published: {model}" for model in others)]
    rows = [
        [name, *_protocols(run, name), *(_number(name, metrics.get(name)) for metrics in (published, *others.values()))] for name in shown
    ]
    kept = [column for column in range(len(header)) if any(row[column] != _NONE for row in rows)]
    marked = [index for index, column in enumerate(kept) if header[column] in (_PROTOCOLS[-1], _PUBLISHED_HEADER)]
    table = Table([header[column] for column in kept], [[row[column] for column in kept] for row in rows], marked=marked)
    notes = [f"{_SCALES} Intervals are bootstrapped over the samples."]
    if "caption" in GROUNDING_FIELDS[run.task]:
        notes[0] += " BLEU and METEOR count matches over all samples: they are not means, and have no intervals."
    if not published:
        notes.append(f"There are no published metrics of {MODEL} on {run.benchmark}.")
    else:
        notes.append(_COMPARISON if run.original else _NOT_COMPARABLE)
    if later:
        sources = "; ".join(f"{model}: {result.source}" for model, result in later.items())
        notes.append(f"Results of later papers, under their own protocols: {sources}.")
    notes += [_without_paths(note, None) for note in dict.fromkeys([*run.default.notes, *run.original.notes])]
    if run.task == "elc" and run.original:
        notes.append(_ELC_SPANS)
    return [Heading(3, "Metrics"), table, *map(Paragraph, notes)]


def _counts(run: _Run) -> list:
    read = run.count("count") - sum(map(run.count, _COUNTS))
    rows = [["read completely", _share(read, run.count("count"))], *([text, run.share(name)] for name, text in _COUNTS.items())]
    blocks: list = [Heading(3, "Answers"), Table(["answer", "samples"], rows)]
    if skipped := [prediction for prediction in run.predictions() if prediction.skipped is not None]:
        reasons = [[one.id, _without_paths(one.skipped or "", one.path)] for one in skipped[:_MAX_SKIPPED]]
        blocks.append(Table(["skipped", "reason"], reasons, text_columns=(0, 1)))
        if len(skipped) > _MAX_SKIPPED:
            blocks.append(Paragraph(f"… and {len(skipped) - _MAX_SKIPPED} more."))
    return blocks


def _distributions(samples: Samples, prefix: str) -> list:
    charts = [
        Picture(f"{prefix}-histogram-{_slug(name)}.svg", histogram(values, f"Samples by {name}", name), f"Histogram of {name}")
        for name, values in samples.ious.items()
    ]
    text = "Under the default protocol: skipped samples and unreadable answers have an IoU of 0."
    return [Heading(3, "Distribution"), Pictures(charts), Paragraph(text)]


def _reliability(samples: Samples, prefix: str) -> list:
    """Mean IoU in bins of about equal numbers of samples, by each condition."""
    main, blocks = next(iter(samples.ious)), list[Table | Paragraph]()
    charts = []
    for condition, unit in CONDITIONS.items():
        values = samples.conditions[condition]
        if not (is_known := np.isfinite(values)).any():
            continue
        labels, mains, intervals, rows = [], [], [], []
        for low, high, inside in _quantile_bins(values):
            intervals.append([float(bound) for bound in bootstrap_interval(samples.ious[main][inside])])
            bounds = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} – {high:.3g}"
            means = [mean_iou(ious[inside]) for ious in samples.ious.values()]
            rows.append([bounds, str(int(inside.sum())), *(f"{value:.3f}" for value in means), "{:.3f} – {:.3f}".format(*intervals[-1])])
            mains.append(means[0])
            labels.append(f"{bounds}\nn = {int(inside.sum())}")
        title, label = f"{main} by {condition}", f"{condition} in {unit}"
        chart = bar_chart(labels, np.array(mains), *np.array(intervals).T, title, label)
        charts.append(Picture(f"{prefix}-by-{_slug(condition)}.svg", chart, f"Mean {title}"))
        blocks.append(Table([label, "samples", *(f"mean {name}" for name in samples.ious), f"95 % interval of {main}"], rows))
        if unknown := int((~is_known).sum()):
            blocks.append(Paragraph(f"Excluded here: {unknown} of {len(values)} samples with unknown {condition}."))
    return [Heading(3, "Reliability"), Pictures(charts), *blocks] if charts else []


def _quantile_bins(values: np.ndarray) -> Iterable[tuple[float, float, np.ndarray]]:
    """Yields lowest and highest value of each bin, and (N,) which values are in it; fewer bins if many values are equal."""
    finite = np.isfinite(values)
    edges = np.unique(np.quantile(values[finite], np.linspace(0, 1, _BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, values, side="left")
    for number in range(len(edges) + 1):
        inside = finite & (bins == number)
        if inside.any():
            yield float(values[inside].min()), float(values[inside].max()), inside


def _extremes(run: _Run, samples: Samples, prefix: str) -> list:
    groups = {"Best": samples.best(SHOWN), "Worst": samples.worst(SHOWN)}
    wanted = {index for indices in groups.values() for index in indices}
    found = {index: prediction for index, prediction in enumerate(run.predictions()) if index in wanted}
    blocks: list = []
    for name, indices in groups.items():
        blocks.append(Heading(3, f"{name} samples"))
        if not indices:
            blocks.append(Paragraph("No answer has an IoU above 0." if name == "Best" else "There are no other samples."))
        for number, index in enumerate(indices, start=1):
            ious = ", ".join(f"{measure} {float(values[index]):.3f}" for measure, values in samples.ious.items())
            blocks.append(_card(found[index], samples.states[index], ious, f"{prefix}-{name.lower()}-{number}.jpg"))
    text = "Ground truth is blue, the answer orange."
    if run.task not in ("rec", "dgc"):
        text += " Frames are spread over the ground-truth span; vertical lines mark them on the timeline of the clip."
    return [blocks[0], Paragraph(text), *blocks[1:]]


def _card(prediction: Prediction, state: str | None, ious: str, name: str) -> Card:
    facts = [
        ("file", "unknown" if prediction.path is None else Path(prediction.path).name),
        ("question", _short(prediction.prompt, _MAX_QUESTION)),
        ("answer", "none" if prediction.answer is None else _short(prediction.answer) or "(empty)"),
    ]
    for text, grounding in (("ground truth", prediction.truth), ("answer", prediction.prediction)):
        if prediction.truth.span is not None:
            facts.append((f"span ({text})", _NONE if grounding.span is None else _span_text(grounding.span)))
        if prediction.truth.caption is not None:
            facts.append((f"caption ({text})", _short(grounding.caption or _NONE)))
    if state is not None:
        facts.append(("counted as", _COUNTS[state]))
    if prediction.notes:
        facts.append(("notes", _short(" ".join(prediction.notes))))
    pictures, reason = [], prediction.skipped
    if reason is None:
        try:
            pictures.append(Picture(name, draw_sample(prediction), f"Ground truth and answer of {prediction.id}"))
        except MEDIA_ERRORS as error:
            reason = str(error)
    if reason is not None:
        facts.append(("not drawn", _without_paths(reason, prediction.path)))
    return Card(f"{prediction.id}: {ious}", facts, pictures)


# Text


def _protocols(run: _Run, metric: str) -> list[str]:
    """A metric under the default protocol, its interval, and under the original protocol."""
    low, high = run.default.get(f"{metric}_low"), run.default.get(f"{metric}_high")
    interval = _NONE if low is None else f"{_number(metric, low)} – {_number(metric, high)}"
    return [_number(metric, run.default.get(metric)), interval, _number(metric, run.original.get(_ORIGINAL_NAMES.get(metric, metric)))]


def _number(metric: str, value: float | None) -> str:
    """In the scale of `score`: percentages with one digit, fractions with three."""
    return _NONE if value is None else f"{value:.1f}" if "@" in metric or metric == "exact_match" else f"{value:.3f}"


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)"


def _span_text(span: tuple) -> str:
    return " – ".join("?" if position is None else f"{position:.3f}" for position in span) + " of the clip"


def _short(text: str, length: int = _MAX_ANSWER) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]} … ({len(text)} characters)"


def _without_paths(text: str, path: str | None) -> str:
    """Replaces paths in an error message by the names of their files, since reports are shared with others."""
    if path is not None:
        text = text.replace(path, Path(path).name)
    return re.sub(r"(?<![\w.:/])(?:/[^\s/'\"]+)+/", "", text)


def _slug(text: str) -> str:
    return text.lower().replace(" ", "-")
