// SPDX-License-Identifier: Apache-2.0
// The time line: position in the video, span or time of the question, and a row of spans for each answer that is shown.
import { clamp, formatTime, movedSpan, round, spanOf, ticks } from "./geometry.js";
import { drag, html } from "./dom.js";

const LONG_STEP = 1; // seconds of an arrow key with Shift

export class Timeline {
  /**
   * @param onSeek is called with a time in seconds
   * @param onSpan is called with the new span [start, end] of the question
   * @param onTime is called with the new time of the question
   * @param onEvent is called with an event of an answer that the user selects
   */
  constructor({ onSeek, onSpan, onTime, onEvent }) {
    Object.assign(this, { onSeek, onSpan, onTime, onEvent, duration: 0, frame: 0.04, position: 0, span: null, time: null, needs: {} });
    this.playhead = html("div", { class: "playhead", "aria-hidden": "true" });
    this.ruler = html("div", { class: "ruler", role: "slider", tabindex: 0, "aria-label": "Position in the video", "aria-valuemin": 0 });
    this.question = html("div", { class: "lane question" });
    this.answers = html("div", { class: "lanes" });
    this.element = html(
      "div",
      { class: "timeline", role: "group", "aria-label": "Time line" },
      this.ruler,
      this.question,
      this.answers,
      this.playhead
    );
    this.ruler.addEventListener("pointerdown", (event) => {
      this.onSeek(this.#seconds(event));
      drag(event, this.ruler, (next) => this.onSeek(this.#seconds(next)));
      this.ruler.focus();
    });
    this.ruler.addEventListener("keydown", (event) => this.#key(event, this.position, this.onSeek));
    this.question.addEventListener("pointerdown", (event) => this.#press(event));
  }

  /** @param frame seconds between two frames */
  setMedium(duration, frame) {
    Object.assign(this, { duration, frame });
    this.ruler.setAttribute("aria-valuemax", round(duration, 2));
    this.ruler.replaceChildren(
      ...ticks(duration).map((time) => html("span", { class: "tick", style: `left:${this.#percent(time)}%` }, formatTick(time)))
    );
    this.setPosition(0);
  }

  setPosition(seconds) {
    this.position = seconds;
    this.playhead.style.left = `${this.#percent(seconds)}%`;
    this.ruler.setAttribute("aria-valuenow", round(seconds, 2));
    this.ruler.setAttribute("aria-valuetext", formatTime(seconds));
  }

  /** @param needs {span, time}: which of the two the question may have */
  setQuestion(span, time, needs) {
    Object.assign(this, { span, time, needs });
    this.#renderQuestion();
  }

  /** @param answers [{letter, title, events: [{start, end, label}]}] */
  showAnswers(answers) {
    this.answers.replaceChildren(
      ...answers.map(({ letter, title, events }) =>
        html(
          "div",
          { class: `lane answer-${letter}`, role: "group", "aria-label": `Answer ${letter}: ${title}` },
          html("span", { class: "letter", "aria-hidden": "true" }, letter),
          ...events.filter(({ start, end }) => start !== null && end !== null).map((event) => this.#eventButton(event))
        )
      )
    );
  }

  #eventButton(event) {
    const [left, right] = [event.start, event.end].map((time) => this.#percent(time));
    const name = event.label ?? "Event";
    return html(
      "button",
      {
        type: "button",
        class: "event",
        style: `left:${left}%;width:${Math.max(right - left, 0)}%`,
        title: name,
        "aria-label": `${name}, ${formatTime(event.start)} to ${formatTime(event.end)}: play`,
        click: () => this.onEvent(event),
      },
      html("span", {}, name)
    );
  }

  #renderQuestion() {
    this.question.hidden = !this.needs.span && !this.needs.time;
    const active = this.element.getRootNode().activeElement;
    const focused = this.question.contains(active) ? active.dataset.part : null;
    const parts = [];
    if (this.needs.span && this.span) {
      const [start, end] = this.span;
      const shape = `left:${this.#percent(start)}%;width:${this.#percent(end) - this.#percent(start)}%`;
      parts.push(
        html("div", {
          class: "span",
          style: shape,
          tabindex: 0,
          "data-part": "span",
          role: "slider",
          "aria-label": "Span of the question. Arrow keys move it, Delete removes it.",
          "aria-valuemin": 0,
          "aria-valuemax": round(this.duration, 2),
          "aria-valuenow": start,
          "aria-valuetext": `${formatTime(start)} to ${formatTime(end)}`,
          keydown: (event) => this.#spanKey(event),
        }),
        this.#handle("start", "Start of the span", start, (time) => this.onSpan(spanOf(Math.min(time, end), end, this.duration))),
        this.#handle("end", "End of the span", end, (time) => this.onSpan(spanOf(start, Math.max(time, start), this.duration)))
      );
    } else if (this.needs.span) {
      parts.push(html("span", { class: "prompt" }, "Drag here to mark a span"));
    }
    if (this.needs.time && this.time !== null) {
      parts.push(this.#handle("time", "Time of the question", this.time, (time) => this.onTime(round(time, 3))));
    } else if (this.needs.time && !this.needs.span) {
      parts.push(html("span", { class: "prompt" }, "Click here to mark the start"));
    }
    this.question.replaceChildren(...parts);
    if (focused) this.question.querySelector(`[data-part="${focused}"]`)?.focus();
  }

  #handle(part, label, time, change) {
    return html("div", {
      class: `grip ${part}`,
      style: `left:${this.#percent(time)}%`,
      tabindex: 0,
      "data-part": part,
      role: "slider",
      "aria-label": label,
      "aria-valuemin": 0,
      "aria-valuemax": round(this.duration, 2),
      "aria-valuenow": time,
      "aria-valuetext": formatTime(time),
      keydown: (event) => this.#key(event, time, change),
    });
  }

  #press(event) {
    if (event.button > 0) return;
    const part = event.target.dataset?.part;
    const at = this.#seconds(event);
    const before = this.span;
    let change;
    if (part === "time" || (!this.needs.span && this.needs.time)) change = (time) => this.onTime(round(time, 3));
    else if (part === "start") change = (time) => this.onSpan(spanOf(time, before[1], this.duration));
    else if (part === "end") change = (time) => this.onSpan(spanOf(before[0], time, this.duration));
    else if (part === "span") change = (time) => this.onSpan(movedSpan(before, time - at, this.duration));
    else change = (time) => this.onSpan(spanOf(at, time, this.duration));
    if (!this.needs.span || part === "time") change(at);
    drag(event, this.question, (next) => change(this.#seconds(next)), () => {
      this.question.querySelector(`[data-part="${part ?? (this.needs.span ? "end" : "time")}"]`)?.focus();
    });
  }

  #spanKey(event) {
    if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      return this.onSpan(null);
    }
    this.#key(event, this.span[0], (time) => this.onSpan(movedSpan(this.span, time - this.span[0], this.duration)));
  }

  #key(event, time, change) {
    const step = event.shiftKey ? LONG_STEP : this.frame;
    const targets = {
      ArrowLeft: time - step,
      ArrowDown: time - step,
      ArrowRight: time + step,
      ArrowUp: time + step,
      PageDown: time - LONG_STEP,
      PageUp: time + LONG_STEP,
      Home: 0,
      End: this.duration,
    };
    if (!(event.key in targets)) return;
    event.preventDefault();
    event.stopPropagation();
    change(clamp(targets[event.key], 0, this.duration));
  }

  #percent(time) {
    return this.duration > 0 ? (100 * clamp(time, 0, this.duration)) / this.duration : 0;
  }

  #seconds(event) {
    const shown = this.ruler.getBoundingClientRect();
    return round((clamp(event.clientX - shown.left, 0, shown.width) / shown.width) * this.duration, 3);
  }
}

function formatTick(time) {
  return time < 60 ? `${time} s` : `${Math.floor(time / 60)}:${String(Math.round(time % 60)).padStart(2, "0")}`;
}
