# SPDX-License-Identifier: Apache-2.0
"""The page as Gradio blocks: task, text and buttons of a question are Gradio's components, player and answers are our own."""

from typing import Any

import gradio as gr

from .answering import Answering
from .limits import Limits
from .questions import LABELS, needs, tasks_for


_FONTS = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]  # of the visitor's system: none is downloaded
_MONOSPACE = ["ui-monospace", "Menlo", "Consolas", "monospace"]
#: Loads the components; the path is relative to the page, so that it also works behind a proxy that adds a prefix.
HEAD = '<script type="module" src="llava-st/static/page.js"></script>'
CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto; padding: 0 !important; }
.gradio-container .fillable { padding: 16px !important; }
.gradio-container main { padding: 0 !important; }
.html-container { padding: 0 !important; }
#title h1 { margin: 0 0 2px; font-size: 24px; }
#title p { margin: 0; }
#follow-up { white-space: nowrap; padding-inline: 6px; }
@media (max-width: 600px) { .gradio-container .fillable { padding: 10px !important; } #columns { flex-direction: column; } }
"""
# Properties are set after the module has defined the element: before that they would hide its setters.
_PLAYER = """
const player = element.querySelector("llava-player");
const update = () => customElements.whenDefined("llava-player").then(() => { player.data = props.value; });
watch("value", update);
player.addEventListener("llava-open", (event) => trigger("choose", event.detail));
update();
"""
_ANSWERS = """
const answers = element.querySelector("llava-answers");
const update = () => customElements.whenDefined("llava-answers").then(() => { answers.data = props.value; });
watch("value", update);
update();
"""
_QUESTION = "document.querySelector('llava-player').question"
_SET_TASK = """(task) => {
  customElements.whenDefined("llava-player").then(() => { document.querySelector("llava-player").task = task; });
}"""
_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # one question at a time


def theme() -> gr.themes.Base:
    """Gradio's theme with fonts of the visitor's system."""
    return gr.themes.Default(primary_hue="orange", neutral_hue="zinc", font=_FONTS, font_mono=_MONOSPACE)


def _task_choices(kind: str) -> list[tuple[str, str]]:
    return [(LABELS[task][0], task) for task in tasks_for(kind)]


def _text_field(task: str) -> dict:
    """Properties of the text field for a task."""
    _, label, example = LABELS[task]
    return {"visible": "text" in needs(task), "label": label or "Text", "placeholder": example}


def make_page(answering: Answering, title: str, notice: str | None) -> gr.Blocks:
    """
    Args:
        answering: answers the questions.
        title: heading of the page.
        notice: text below it, about the model; None for none.
    """
    limits: Limits = answering.limits
    first = tasks_for("video")[0]
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"# {title}\n{notice or ''}", elem_id="title", sanitize_html=True)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=7, min_width=320):
                player = gr.HTML(
                    value=answering.player(None), html_template="<llava-player></llava-player>", js_on_load=_PLAYER, apply_default_css=False
                )
            with gr.Column(scale=5, min_width=320):
                task = gr.Radio(_task_choices("video"), value=first, label="Task", elem_id="task")
                text = gr.Textbox(**_text_field(first), lines=2, max_lines=4, max_length=limits.text_characters, elem_id="text")
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", size="md", elem_id="ask", min_width=70)
                    follow_up = gr.Button("Follow up", size="md", elem_id="follow-up", min_width=70)
                    stop = gr.Button("Stop", size="md", elem_id="stop", min_width=70)
                answers = gr.HTML(
                    value=answering.answers(None),
                    html_template="<llava-answers></llava-answers>",
                    js_on_load=_ANSWERS,
                    apply_default_css=False,
                )
        drawn = gr.JSON(visible=False)

        def begin(request: gr.Request):
            return answering.player(answering.visits.begin(str(request.session_hash)))

        def choose(task: str, event: gr.EventData):
            visit, example = event._data.get("visit"), event._data.get("example")
            for number, data in enumerate(answering.open(visit, example)):
                if number:  # the visitor may have chosen another task meanwhile
                    yield data, gr.skip(), gr.skip(), gr.skip()
                    continue
                kind = (data["medium"] or {"kind": "video"})["kind"]
                task = task if task in tasks_for(kind) else tasks_for(kind)[0]
                yield data, answering.answers(None), gr.Radio(choices=_task_choices(kind), value=task), gr.Textbox(**_text_field(task))

        def question(drawn: dict, task: str, text: str):
            yield from answering.ask(drawn, task, text, follow_up=False)

        def continued(drawn: dict, task: str, text: str):
            yield from answering.ask(drawn, task, text, follow_up=True)

        def end(request: gr.Request):
            answering.visits.end_page(request.session_hash)

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        with_drawn: dict[str, Any] = {
            "inputs": [drawn, task, text],
            "outputs": answers,
            "js": f"(_, task, text) => [{_QUESTION}, task, text]",
        }
        page.load(begin, outputs=player, queue=False, **private)
        page.load(None, inputs=task, js=_SET_TASK)
        page.unload(end)
        player.choose(choose, inputs=task, outputs=[player, answers, task, text], trigger_mode="always_last", **_MODEL, **private)
        task.change(lambda task: gr.Textbox(**_text_field(task)), inputs=task, outputs=text, queue=False, **private)
        task.change(None, inputs=task, js=_SET_TASK)
        gr.on([ask.click, text.submit], question, **with_drawn, **_MODEL, **private)
        follow_up.click(continued, **with_drawn, **_MODEL, **private)
        stop.click(answering.stop, inputs=drawn, js=f"(_) => {_QUESTION}", queue=False, **private)
    return page.queue(max_size=limits.waiting, default_concurrency_limit=4, api_open=False)


__all__ = ["CSS", "HEAD", "make_page", "theme"]
