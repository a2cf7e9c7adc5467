// SPDX-License-Identifier: Apache-2.0
// <llava-player>: choice of a video or image, its display with the boxes of answers, and the box, span and time of the question.
import { Chooser } from "./chooser.js";
import { html, shadowRoot } from "./dom.js";
import { Fields } from "./fields.js";
import { clamp, formatTime, round } from "./geometry.js";
import { Overlay } from "./overlay.js";
import { Timeline } from "./timeline.js";

const NOTHING = { box: null, span: null, time: null };

class Player extends HTMLElement {
  #data = null;
  #medium = null;
  #task = "";
  #values = NOTHING;
  #shown = [];
  #position = 0;
  #stopAt = null;

  connectedCallback() {
    if (this.shadowRoot) return;
    const root = shadowRoot(this);
    const size = () => (this.#medium ? [this.#medium.width, this.#medium.height] : [1, 1]);
    this.chooser = new Chooser({
      onExample: (name) => this.#open(name),
      onUploaded: () => this.#open(null),
    });
    this.overlay = new Overlay({
      size,
      onDraw: () => this.#beginDrawing(),
      onBox: (box) => this.#change({ box }),
      onTap: () => this.#toggle(),
    });
    this.timeline = new Timeline({
      onSeek: (time) => this.seek(time),
      onSpan: (span) => this.#change({ span }),
      onTime: (time) => this.#change({ time }),
      onEvent: (event) => this.#playEvent(event),
    });
    this.fields = new Fields({
      size,
      duration: () => this.#medium?.duration ?? 0,
      position: () => this.#position,
      onChange: (change) => this.#change(change),
      onAddBox: () => this.#addBox(),
    });
    this.play = html("button", { type: "button", class: "play", click: () => this.#toggle() }, "Play");
    this.clock = html("output", { class: "clock" });
    this.sound = html("button", { type: "button", "aria-pressed": "false", click: () => this.#toggleSound() }, "Sound");
    this.controls = html(
      "div",
      { class: "controls", role: "group", "aria-label": "Player" },
      this.play,
      html("button", { type: "button", "aria-label": "Previous frame", click: () => this.#step(-1) }, "−1"),
      html("button", { type: "button", "aria-label": "Next frame", click: () => this.#step(1) }, "+1"),
      this.sound,
      this.clock
    );
    this.hint = html("p", { class: "hint" });
    this.notice = html("p", { class: "status", role: "status" });
    this.stage = html("div", { class: "stage" });
    this.workspace = html("div", { class: "workspace", hidden: true }, this.stage, this.controls, this.timeline.element, this.hint, this.fields.element);
    root.append(this.chooser.element, this.notice, this.workspace);
    document.addEventListener("llava-show", (event) => this.#show(event.detail));
    document.addEventListener("llava-jump", (event) => this.#playEvent(event.detail));
  }

  /**
   * What the server sends: {settings: {upload, max_bytes, limits, examples, needs: {task: [names]}}, visit, medium, busy, problem}; a medium
   * is {id, url, kind, name, example, width, height, duration, fps, notes}.
   */
  set data(data) {
    if (!data) return;
    this.#data = data;
    this.chooser.set(data.settings, data.medium?.example ?? null);
    this.notice.textContent = data.problem ?? data.busy ?? "";
    this.notice.classList.toggle("problem", Boolean(data.problem));
    this.notice.classList.toggle("busy", Boolean(data.busy));
    if (data.medium?.id !== this.#medium?.id) this.#load(data.medium);
  }

  /** Task of the question, a key of `needs`: what the user can draw depends on it. */
  set task(task) {
    this.#task = task;
    this.#renderQuestion();
  }

  /** The question as the server takes it: what the task does not need is null. */
  get question() {
    const needs = this.#needs();
    const drawn = Object.fromEntries(Object.keys(NOTHING).map((name) => [name, needs[name] ? this.#values[name] : null]));
    return { visit: this.#data?.visit ?? null, medium: this.#medium?.id ?? null, ...drawn };
  }

  /** Seconds of the frame that is shown. */
  get position() {
    return this.#position;
  }

  seek(seconds) {
    this.#stopAt = null;
    this.#seek(seconds);
  }

  #open(example) {
    this.#emit("llava-open", { visit: this.#data.visit, example });
  }

  // Media

  #load(medium) {
    this.#medium = medium;
    this.#values = NOTHING;
    this.#shown = [];
    this.workspace.hidden = !medium;
    this.video = null;
    if (!medium) return this.stage.replaceChildren();
    const isVideo = medium.kind === "video";
    let shown;
    if (isVideo) {
      shown = this.video = html("video", { src: medium.url, playsinline: true, preload: "auto", "aria-label": medium.name });
      shown.muted = true;
      this.#follow(shown);
    } else {
      shown = html("img", { src: medium.url, alt: medium.name });
    }
    shown.addEventListener("error", () => {
      this.notice.textContent = "The browser cannot display this file. Questions about it can be answered all the same.";
    });
    this.stage.style.aspectRatio = `${medium.width} / ${medium.height}`;
    // Small media are enlarged, tall ones fit on the screen.
    this.stage.style.maxWidth = `min(100%, ${(62 * medium.width) / medium.height}vh)`;
    this.stage.replaceChildren(shown, this.overlay.element);
    this.controls.hidden = this.timeline.element.hidden = !isVideo;
    this.timeline.setMedium(medium.duration ?? 0, this.#frame());
    this.timeline.showAnswers([]);
    this.#setPosition(0);
    this.#renderQuestion();
    this.#emit("llava-medium", medium);
  }

  #frame() {
    return this.#medium?.fps ? 1 / this.#medium.fps : 0.04;
  }

  #follow(video) {
    const next = (_, frame) => {
      if (!video.paused) this.#setPosition(frame.mediaTime);
      if (this.#stopAt !== null && frame.mediaTime >= this.#stopAt - this.#frame() / 2) {
        this.#stopAt = null;
        video.pause();
      }
      if (video === this.video) video.requestVideoFrameCallback(next);
    };
    video.requestVideoFrameCallback(next);
    for (const name of ["play", "pause", "ended"]) {
      video.addEventListener(name, () => (this.play.textContent = video.paused ? "Play" : "Pause"));
    }
  }

  #toggle() {
    if (!this.video) return;
    this.#stopAt = null;
    if (this.video.paused) this.video.play();
    else this.video.pause();
  }

  #toggleSound() {
    if (!this.video) return;
    this.video.muted = !this.video.muted;
    this.sound.setAttribute("aria-pressed", String(!this.video.muted));
  }

  #step(frames) {
    this.video.pause();
    this.seek(round(Math.round(this.#position / this.#frame() + frames) * this.#frame(), 4));
  }

  #seek(seconds) {
    if (!this.video) return;
    const time = clamp(seconds, 0, this.#medium.duration);
    // A little after the time at which the frame begins, so that rounding does not show the frame before it.
    this.video.currentTime = Math.min(time + 1e-3, this.#medium.duration);
    this.#setPosition(time);
  }

  #playEvent(event) {
    if (!this.video || event.start === null || event.start === undefined) return;
    this.#seek(event.start);
    this.#stopAt = event.end ?? null;
    if (event.end > event.start) this.video.play();
    else this.video.pause();
    this.stage.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  #setPosition(seconds) {
    this.#position = seconds;
    this.timeline.setPosition(seconds);
    this.clock.textContent = `${formatTime(seconds)} of ${formatTime(this.#medium?.duration ?? 0)}`;
    this.overlay.show(this.#shown, seconds);
  }

  // Answers

  #show(answers) {
    const tolerance = this.#frame() / 2;
    this.#shown = answers.map((answer) => ({ ...answer, events: answer.events.map((event) => ({ ...event, tolerance })) }));
    this.overlay.show(this.#shown, this.#position);
    this.timeline.showAnswers(this.#medium?.kind === "video" ? this.#shown : []);
  }

  // Question

  #needs() {
    const names = (this.#medium && this.#data?.settings.needs[this.#task]) || [];
    const isVideo = this.#medium?.kind === "video";
    return { box: names.includes("box"), span: isVideo && names.includes("span"), time: isVideo && names.includes("time") };
  }

  #beginDrawing() {
    if (!this.video) return;
    this.video.pause();
    // The box is that of the frame that is shown: the event begins there, unless a time has been chosen.
    if (this.#needs().time && this.#values.time === null) this.#change({ time: round(this.#position, 3) });
  }

  #addBox() {
    this.#beginDrawing();
    const { width, height } = this.#medium;
    this.#change({ box: [width / 4, height / 4, (3 * width) / 4, (3 * height) / 4].map((side) => round(side, 1)) });
    this.overlay.focusBox();
  }

  #change(change) {
    this.#values = { ...this.#values, ...change };
    this.#renderQuestion();
  }

  #renderQuestion() {
    const needs = this.#needs();
    this.overlay.setBox(needs.box ? this.#values.box : null, needs.box);
    this.timeline.setQuestion(this.#values.span, this.#values.time, needs);
    this.fields.set(this.#values, needs);
    const steps = [
      needs.box && (this.video ? "draw a box around the object on the paused frame" : "draw a box around the object"),
      needs.span && "drag a span on the time line",
      needs.time && "mark the time at which the event begins",
    ].filter(Boolean);
    const optional = this.#task === "" && steps.length > 0;
    const text = steps.length > 1 ? `${steps.slice(0, -1).join(", ")} and ${steps.at(-1)}` : (steps[0] ?? "");
    this.hint.textContent = text && (optional ? `You may ${text}, and refer to it as {box}, {span} or {time}.` : `${text[0].toUpperCase()}${text.slice(1)}.`);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
  }
}

customElements.define("llava-player", Player);
