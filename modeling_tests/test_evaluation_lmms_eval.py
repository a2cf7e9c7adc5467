# SPDX-License-Identifier: Apache-2.0
"""LLaVA-ST and its benchmarks in lmms-eval: task files and functions without lmms-eval, and runs of its evaluator where it is installed."""

import importlib
import importlib.util
import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
import torch
import yaml
from datasets import Dataset

from llava_st_hf.evaluation import commands
from llava_st_hf.evaluation.benchmarks import BENCHMARKS, read_benchmark
from llava_st_hf.evaluation.captions import METRICS, CaptionScoringError, missing_caption_tools
from llava_st_hf.evaluation.runner import EvaluationSettings, run_benchmark
from llava_st_hf.evaluation.scoring import score
from llava_st_hf.integrations.lmms_eval import plugin
from llava_st_hf.integrations.lmms_eval.plugin import CUT_OFF, TASKS, LlavaST, _item, answer_chats, manifests
from llava_st_hf.integrations.lmms_eval.tasks import utils
from modeling_tests.miniatures import MINIATURES, oracle, shifted_oracle
from modeling_tests.processors import PICTURE, model_for, tiny_processor


HAS_LMMS_EVAL = importlib.util.find_spec("lmms_eval") is not None
needs_lmms_eval = pytest.mark.skipif(not HAS_LMMS_EVAL, reason="lmms-eval is not installed; it is not a dependency of the tests")
PLACEHOLDER = Dataset.from_list([{"placeholder": ""}])

# ============================================================ Task files


class _Loader(yaml.SafeLoader):
    """YAML loader that keeps function names as strings."""


_Loader.add_constructor("!function", lambda loader, node: ("function", loader.construct_scalar(node)))


def read_task(path: Path) -> dict:
    task = yaml.load(path.read_text(), _Loader)
    return {**(read_task(path.parent / task.pop("include")) if "include" in task else {}), **task}


def function(named: tuple[str, str]):
    kind, name = named
    assert kind == "function"
    module, _, name = name.rpartition(".")
    return getattr(importlib.import_module(module), name)


TASK_FILES = {path.stem: read_task(path) for path in sorted(Path(TASKS).glob("[!_]*.yaml"))}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Writes annotations and videos of each benchmark."""
    folder = tmp_path_factory.mktemp("data")
    return {name: MINIATURES[name](folder / utils.DATA[name]) for name in TASK_FILES}


@pytest.fixture
def environment(data, monkeypatch):
    monkeypatch.setattr(LlavaST, "num_frames", 100)  # set by the model in a run
    for name, paths in data.items():
        for part, path in zip(("ANNOTATIONS", "MEDIA"), paths, strict=True):
            monkeypatch.setenv(f"LLAVA_ST_{utils.DATA[name]}_{part}", path)


def docs_of(name: str) -> list[dict]:
    return list(function(TASK_FILES[name]["process_docs"])(PLACEHOLDER))


def averaged(answered: list[dict]) -> dict[str, float]:
    return {name: math.fsum(row[name] for row in answered) / len(answered) for name in answered[0] if name not in METRICS}


def test_task_files_cover_the_benchmarks_of_utils():
    assert set(TASK_FILES) == set(utils.DATA) <= set(BENCHMARKS)


@pytest.mark.parametrize("name", TASK_FILES)
def test_task_file_names_existing_functions_and_files(name):
    task = TASK_FILES[name]
    assert task["metadata"]["benchmark"] == name and task["task"] == f"llava_st_{name}"
    assert task["process_docs"][1].endswith(f".{name}")
    for part in ("process_docs", "process_results", "doc_to_text", "doc_to_visual", "doc_to_target", "doc_to_messages"):
        assert callable(function(task[part]))
    assert task["dataset_path"] == "json" and Path(TASKS, task["dataset_kwargs"]["data_files"][task["test_split"]]).is_file()
    for metric in task["metric_list"]:
        assert metric["aggregation"] == "mean" or callable(function(metric["aggregation"]))


@pytest.mark.parametrize("name", TASK_FILES)
def test_process_docs_equals_the_questions_of_read_benchmark(name, data, environment):
    task, questions = TASK_FILES[name], read_benchmark(name, *data[name])
    docs = docs_of(name)
    assert [utils._question(doc) for doc in docs] == questions
    for doc, question in zip(docs, questions, strict=True):
        assert all(isinstance(value, str) for value in doc.values())
        assert function(task["doc_to_text"])(doc) == question.prompt
        assert function(task["doc_to_visual"])(doc) == [question.path]
        assert json.loads(function(task["doc_to_target"])(doc)) == json.loads(json.dumps(question.truth.to_dict()))
        (message,) = function(task["doc_to_messages"])(doc)
        medium, text = message["content"]
        assert (medium["type"], medium["url"]) == ("video", question.path)
        assert medium.get("clip") == (None if question.clip is None else list(question.clip))
        assert text == {"type": "text", "text": question.prompt}


@pytest.mark.parametrize("name", TASK_FILES)
@pytest.mark.parametrize("bins", [0, 3, 20])
def test_process_results_metrics_equal_those_of_score(name, bins, environment, data, monkeypatch):
    if name == "st_align_elc":  # each call would start Java
        monkeypatch.setattr("llava_st_hf.evaluation.captions.missing_caption_tools", lambda: "none here")
    predictions, answered = [], []
    for doc in docs_of(name):
        answer = shifted_oracle(utils._question(doc), bins)
        answered.append(utils.process_results(doc, [answer]))
        predictions.append(utils._prediction(utils._question(doc), answer))
    figures = averaged(answered)
    with pytest.warns(UserWarning, match="none here") if name == "st_align_elc" else nullcontext():
        wanted = score(BENCHMARKS[name].task, predictions)
    for figure, value in figures.items():
        assert value == pytest.approx(wanted[figure] / (len(predictions) if figure in ("unparsable", "cut_off") else 1))
    assert {metric["metric"] for metric in TASK_FILES[name]["metric_list"]} - {*METRICS} == figures.keys()
    if bins == 0:
        assert {value for figure, value in figures.items() if "@" in figure} == {100.0}
        assert all(figures[mean] > 0.9 for mean in ("m_siou", "m_viou")) and not figures["unparsable"]
    if bins == 20:
        assert figures["viou@0.7"] == 0


@pytest.mark.parametrize("name", TASK_FILES)
def test_process_results_cut_off_answer_is_counted_and_empty_answer_scores_zero(name, environment):
    doc = docs_of(name)[0]
    answer = oracle(utils._question(doc))
    whole, cut_off = (averaged([utils.process_results(doc, [text])]) for text in (answer, answer + CUT_OFF))
    assert cut_off == whole | {"cut_off": 1}
    empty = averaged([utils.process_results(doc, [""])])
    assert empty.pop("unparsable") == 1 and not any(empty.values())


@pytest.mark.skipif(missing_caption_tools() is not None, reason="captions need pycocoevalcap and Java")
def test_caption_metrics_are_computed_over_all_answers(environment, one_meteor):
    docs = docs_of("st_align_elc")
    right = [utils.process_results(doc, [oracle(utils._question(doc))]) for doc in docs]
    metrics = {metric["metric"]: metric["aggregation"] for metric in TASK_FILES["st_align_elc"]["metric_list"]}
    for name in ("BLEU-1", "BLEU-4", "METEOR", "ROUGE_L"):
        assert function(metrics[name])([row[name] for row in right]) == pytest.approx(1, abs=1e-3)
    assert {*METRICS} < metrics.keys()
    # A cut-off answer is scored by its text.
    assert utils.process_results(docs[0], [oracle(utils._question(docs[0])) + CUT_OFF])["CIDEr"] == right[0]["CIDEr"]


def test_process_results_without_caption_tools_has_no_caption_metrics(environment, monkeypatch):
    monkeypatch.setattr(utils, "missing_caption_tools", lambda: "no Java")
    doc = docs_of("st_align_elc")[0]
    with pytest.warns(UserWarning, match="no Java"):
        assert not {*METRICS} & utils.process_results(doc, [oracle(utils._question(doc))]).keys()


def test_caption_metrics_failing_java_are_nan_with_a_warning(monkeypatch):
    def failing(*_):
        raise CaptionScoringError("Java has failed")

    monkeypatch.setattr(utils, "score_captions", failing)
    with pytest.warns(UserWarning, match="Java has failed"):
        values = [function(("function", f"{utils.__name__}.{name}"))([["said", "true"]]) for name in ("bleu_4", "meteor", "cider")]
    assert all(math.isnan(value) for value in values)


def test_process_results_elc_without_caption_is_unparsable(environment):
    doc = docs_of("st_align_elc")[0]
    answer = oracle(utils._question(doc)).replace(utils._question(doc).truth.caption or "", "")
    figures = utils.process_results(doc, [answer])
    assert figures["unparsable"] == 1 and figures["viou@0.5"] == 100


def test_process_docs_missing_environment_variable_raises_with_its_name(environment, monkeypatch):
    monkeypatch.delenv("LLAVA_ST_HC_STVG_V1_MEDIA")
    with pytest.raises(ValueError, match=r"hc_stvg_v1 .* not set: LLAVA_ST_HC_STVG_V1_MEDIA"):
        docs_of("hc_stvg_v1")


# ============================================================ Model


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model(processor):
    return model_for(processor)


def chats_of(docs: list[dict]):
    return [lambda doc=doc: utils.doc_to_messages(doc) for doc in docs]


@pytest.mark.parametrize("name", ["vidstg_declarative", "hc_stvg_v2", "st_align_elc"])
def test_answer_chats_equals_run_benchmark(name, environment, data, model, processor, tmp_path):
    settings = EvaluationSettings(name, "tiny", batch_size=2, max_new_tokens=7)
    questions = read_benchmark(name, *data[name])
    own = run_benchmark(questions, model, processor, tmp_path, settings, commands.read_own_answer, num_workers=0)
    options = {"max_new_tokens": 7, "temperature": 0, "until": [], "mark_cut_off": True}
    given = list(answer_chats(chats_of(docs_of(name)), options, model, processor, 2))
    assert given == [f"{row.answer}{'' if row.finished else CUT_OFF}" for row in own]


def test_answer_chats_ends_before_a_stop_string(environment, model, processor):
    chats = chats_of(docs_of("vidstg_declarative"))[:1]
    (answer,) = answer_chats(chats, {"max_new_tokens": 8}, model, processor, 1)
    assert len(answer) > 2 and not answer.endswith(CUT_OFF)
    for until in (answer[2:4], ["", "not there", answer[2:4]]):
        settings = {"max_new_tokens": 8, "until": until, "mark_cut_off": True}
        assert list(answer_chats(chats, settings, model, processor, 1)) == [answer[: answer.index(answer[2:4])]]


def test_answer_chats_unreadable_video_gives_empty_answer_only_for_its_request(environment, model, processor, tmp_path):
    docs = docs_of("vidstg_declarative")
    wanted = list(answer_chats(chats_of(docs), {"max_new_tokens": 4}, model, processor, 1))
    docs[1] = {**docs[1], "path": str(tmp_path / "gone.mp4")}
    with pytest.warns(UserWarning, match=r"gets an empty answer: .*gone\.mp4"):
        assert list(answer_chats(chats_of(docs), {"max_new_tokens": 4}, model, processor, 3)) == [wanted[0], "", wanted[2]]
    with pytest.warns(UserWarning, match=r"gone\.mp4"):
        assert list(answer_chats(chats_of(docs[1:2]), {"max_new_tokens": 4}, model, processor, 3)) == [""]


def test_answer_chats_samples_only_with_a_positive_temperature(environment, model, processor):
    chats = chats_of(docs_of("hc_stvg_v1"))
    greedy = list(answer_chats(chats, {"max_new_tokens": 6, "do_sample": False, "temperature": 9.0}, model, processor, 2))
    assert greedy == list(answer_chats(chats, {"max_new_tokens": 6}, model, processor, 2))
    torch.manual_seed(1)
    assert greedy != list(answer_chats(chats, {"max_new_tokens": 6, "temperature": 9.0, "top_p": 1.0}, model, processor, 2))


@pytest.mark.parametrize(
    "part, item",
    [
        ({"type": "text", "text": "a"}, {"type": "text", "text": "a"}),
        ({"type": "image", "url": "a.png"}, {"type": "image", "image": "a.png"}),
        ({"type": "video", "url": "a.mp4"}, {"type": "video", "video": "a.mp4"}),
        ({"type": "video", "url": "a.mp4", "start_time": None, "end_time": 2.5}, {"type": "video", "video": "a.mp4", "end": 2.5}),
        ({"type": "video", "url": "a.mp4", "clip": (3, 9)}, {"type": "video", "video": "a.mp4", "clip": [3, 9]}),
        (
            {"type": "video", "url": {"path": "a.mp4", "video_start": 1, "video_end": 2}},
            {"type": "video", "video": "a.mp4", "start": 1, "end": 2},
        ),
    ],
)
def test_item_converts_chat_content_to_processor_content(part, item):
    assert _item(part) == item


def test_answer_chats_batch_of_images_text_and_video_equals_single_requests(environment, model, processor):
    picture = PIL.Image.fromarray(PICTURE)
    contents = [[{"type": "image", "url": picture}] * 2, [], [{"type": "video", "url": docs_of("hc_stvg_v1")[0]["path"]}]]
    chats = [lambda media=media: [{"role": "user", "content": [*media, {"type": "text", "text": "What?"}]}] for media in contents]
    together = list(answer_chats(chats, {"max_new_tokens": 5}, model, processor, 3))
    assert all(together) and together == list(answer_chats(chats, {"max_new_tokens": 5}, model, processor, 1))


def test_item_audio_raises():
    with pytest.raises(ValueError, match="'audio'"):
        _item({"type": "audio", "url": "a.wav"})


@pytest.mark.skipif(HAS_LMMS_EVAL, reason="lmms-eval is installed")
def test_llava_st_without_lmms_eval_raises():
    with pytest.raises(ImportError, match="pip install lmms-eval"):
        LlavaST("somewhere")


@pytest.mark.parametrize("has_module", [False, True])
def test_llava_st_with_a_filelock_that_lmms_eval_cannot_use_ends_the_program_before_the_model_is_loaded(monkeypatch, tmp_path, has_module):
    monkeypatch.setattr(plugin, "_Base", object)
    monkeypatch.setattr(plugin, "find_spec", lambda name: object() if has_module and name == "filelock._api" else None)
    error, message = (OSError, str(tmp_path)) if has_module else (SystemExit, r"pip install filelock==3\.20\.3")
    with pytest.raises(error, match=message):
        LlavaST(str(tmp_path))  # an empty folder


# ============================================================ lmms-eval itself


@pytest.fixture
def evaluate(environment, tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    def run(model, tasks, **kwargs):
        manager = TaskManager("ERROR", include_path=TASKS, include_defaults=False)
        return simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **kwargs)

    return run


@needs_lmms_eval
def test_manifests_are_accepted_by_lmms_eval():
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    for manifest in registry._coerce_payload_to_manifests(manifests):
        registry.register_manifest(manifest)
    assert registry.get_model_class("llava_st") is LlavaST


@needs_lmms_eval
def test_lmms_eval_oracle_has_maximum_scores(evaluate):
    class Oracle(LlavaST):
        def __init__(self):
            super(LlavaST, self).__init__()

        def generate_until(self, requests):
            docs = [self.task_dict[task][split][doc_id] for _, _, _, doc_id, task, split in (request.args for request in requests)]
            return [oracle(utils._question(doc)) for doc in docs]

    results = evaluate(Oracle(), ["llava_st_grounding"])["results"]
    assert set(results) == {f"llava_st_{name}" for name in TASK_FILES}
    for task, figures in results.items():
        recalls = {figure: value for figure, value in figures.items() if "@" in figure and "_stderr" not in figure}
        assert set(recalls.values()) == {100.0} and len(recalls) == (6 if task.endswith("svg") else 9)
        assert figures["m_siou,none"] > 0.9 and figures["unparsable,none"] == figures["cut_off,none"] == 0
        assert ("CIDEr,none" in figures) == (task.endswith("elc") and missing_caption_tools() is None)


@needs_lmms_eval
def test_lmms_eval_runs_the_model(evaluate, model, processor, tmp_path):
    model.save_pretrained(tmp_path / "tiny")
    processor.save_pretrained(tmp_path / "tiny")
    tiny = LlavaST.create_from_arg_string(f"pretrained={tmp_path / 'tiny'}", {"batch_size": "2", "device": "cpu"})
    results = evaluate(tiny, ["llava_st_vidstg_declarative"], gen_kwargs="max_new_tokens=5")
    samples = results["samples"]["llava_st_vidstg_declarative"]
    options = {"max_new_tokens": 5, "mark_cut_off": True}
    wanted = list(answer_chats(chats_of(docs_of("vidstg_declarative")), options, model, processor, 2))
    assert [sample["filtered_resps"] for sample in samples] == [[answer] for answer in wanted]
    assert results["results"]["llava_st_vidstg_declarative"]["cut_off,none"] == 1


@needs_lmms_eval
def test_llava_st_unsupported_requests_raise(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="batch_size='auto'"):
        LlavaST(str(tmp_path), device="cpu", batch_size="auto")
    tiny = LlavaST(str(tmp_path), device="cpu")
    for method in (tiny.loglikelihood, tiny.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            method([SimpleNamespace(args=())])
