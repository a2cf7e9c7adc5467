// SPDX-License-Identifier: Apache-2.0
// <llava-answers>: the answers of a visit, which of them the player shows, and their downloads.
import { formatTime, spanIou } from "./geometry.js";
import { html, shadowRoot } from "./dom.js";

const LETTERS = ["A", "B"];

class Answers extends HTMLElement {
  #data = { answers: [], formats: [] };
  #shown = []; // numbers of the answers that the player shows: one, or two to compare

  connectedCallback() {
    if (this.shadowRoot) return;
    this.problem = html("p", { class: "problem", role: "alert" });
    this.progress = html("p", { class: "status", role: "status" });
    this.comparison = html("p", { class: "comparison", role: "status" });
    this.list = html("ol", { class: "answers-list", reversed: true });
    shadowRoot(this).append(this.problem, this.progress, this.comparison, this.list);
  }

  /**
   * What the server sends: {answers, pending, problem, formats}. An answer is {number, title, prompt, kind, events, text, notes, url}, oldest
   * first; `pending` is {answer, status}, the answer as far as it is generated; a format is {path, label}.
   */
  set data(data) {
    if (!data) return;
    const known = this.#data.answers.length;
    this.#data = data;
    if (data.answers.length > known) this.#shown = [data.answers.at(-1).number];
    if (data.answers.length < known) this.#shown = [];
    this.problem.textContent = data.problem ?? "";
    this.progress.textContent = data.pending?.status ?? "";
    this.progress.classList.toggle("busy", Boolean(data.pending));
    this.#render();
  }

  #render() {
    const { answers, pending } = this.#data;
    const open = new Set([...this.list.querySelectorAll("details[open]")].map((element) => element.dataset.number));
    const cards = answers.map((answer) => this.#card(answer, open.has(String(answer.number))));
    if (pending) cards.push(html("li", { class: "answer pending" }, ...this.#body(pending.answer)));
    this.list.replaceChildren(...cards.reverse());
    const shown = this.#shown.map((number) => answers.find((answer) => answer.number === number)).filter(Boolean);
    this.comparison.textContent = compare(shown);
    const visible = pending ? [pending.answer] : shown;
    const detail = visible.map(({ title, events }, index) => ({ letter: LETTERS[index], title, events }));
    document.dispatchEvent(new CustomEvent("llava-show", { detail }));
  }

  #card(answer, isOpen) {
    const place = this.#shown.indexOf(answer.number);
    const buttons = [
      html(
        "button",
        { type: "button", class: "show", "aria-pressed": String(place === 0), click: () => this.#select([answer.number]) },
        "Show"
      ),
    ];
    if (this.#data.answers.length > 1 && place !== 0) {
      const chosen = place === 1 ? this.#shown.slice(0, 1) : [this.#shown[0], answer.number];
      buttons.push(
        html("button", { type: "button", class: "compare", "aria-pressed": String(place === 1), click: () => this.#select(chosen) }, "Compare")
      );
    }
    const links = this.#data.formats
      .filter(({ kinds }) => kinds.includes(answer.kind))
      .map(({ path, label, title }) => {
        const click = (event) => this.#download(event, label);
        return html("li", {}, html("a", { href: `${answer.url}/${path}`, title, download: true, click }, label));
      });
    return html(
      "li",
      { class: `answer ${place >= 0 ? `shown answer-${LETTERS[place]}` : ""}`, "data-number": answer.number },
      ...this.#body(answer, place),
      html("div", { class: "actions" }, ...buttons),
      html("details", { "data-number": answer.number, open: isOpen }, html("summary", {}, "Downloads"), html("ul", {}, ...links))
    );
  }

  #body(answer, place = -1) {
    const letter = place >= 0 ? html("span", { class: "letter" }, LETTERS[place]) : null;
    return [
      html("h3", {}, letter, answer.title),
      answer.prompt ? html("p", { class: "prompt" }, answer.prompt) : null,
      answer.events.length
        ? html("ul", { class: "events" }, ...answer.events.map((event) => html("li", {}, ...describe(event))))
        : html("p", { class: "text" }, answer.text || (answer.number ? "The model gave no answer." : "")),
      answer.notes.length ? html("ul", { class: "notes" }, ...answer.notes.map((note) => html("li", {}, note))) : null,
    ].filter(Boolean);
  }

  /** Fetches a file before it is saved, because the server writes it now, which takes time and may fail with a reason. */
  async #download(event, label) {
    event.preventDefault();
    this.problem.textContent = "";
    this.progress.textContent = `Preparing: ${label}…`;
    this.progress.classList.add("busy");
    try {
      const response = await fetch(event.target.href);
      if (!response.ok) throw new Error(await response.text());
      const name = decodeURIComponent(response.headers.get("Content-Disposition").split("''")[1]);
      const url = URL.createObjectURL(await response.blob());
      html("a", { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (error) {
      this.problem.textContent = error instanceof TypeError ? "The download was interrupted. Try again." : error.message;
    }
    this.progress.textContent = "";
    this.progress.classList.remove("busy");
  }

  #select(numbers) {
    this.#shown = numbers;
    this.#render();
  }
}

/** Parts of the line of an event: its span as a button that plays it, caption, number of boxes, and score. */
function describe(event) {
  const hasSpan = event.start !== null && event.end !== null;
  const single = event.boxes.length === 1 ? ` at ${event.boxes[0].box.join(", ")}` : "";
  const count = event.boxes.length ? `${event.boxes.length} ${event.boxes.length === 1 ? "box" : "boxes"}${single}` : "";
  const jump = () => document.dispatchEvent(new CustomEvent("llava-jump", { detail: event }));
  const score = event.score ?? event.span_score;
  return [
    hasSpan
      ? html("button", { type: "button", class: "jump", click: jump }, `${formatTime(event.start)} – ${formatTime(event.end)}`)
      : null,
    event.caption ? html("span", { class: "caption" }, event.caption) : null,
    count ? html("span", { class: "count" }, count) : null,
    score === null || score === undefined
      ? null
      : html("span", { class: "score", title: "Expected IoU with the ground truth" }, `score ${score.toFixed(2)}`),
  ].filter(Boolean);
}

/** Agreement of two answers: temporal IoU of their first spans. */
function compare(shown) {
  if (shown.length < 2) return "";
  const spans = shown.map(({ events }) => events.find(({ start, end }) => start !== null && end !== null));
  if (spans.includes(undefined)) return "A and B are shown together.";
  const iou = spanIou(...spans.map(({ start, end }) => [start, end]));
  return `A and B are shown together. Temporal IoU of their first spans: ${iou.toFixed(2)}.`;
}

customElements.define("llava-answers", Answers);
