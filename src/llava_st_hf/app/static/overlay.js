// SPDX-License-Identifier: Apache-2.0
// The boxes on an image or video: those of answers, and the box of the question, which the user draws, moves and resizes.
import { boxAt, boxOfCorners, movedBox, resizedBox } from "./geometry.js";
import { drag, svg } from "./dom.js";

const CORNERS = [
  [0, 1, "nwse"],
  [2, 1, "nesw"],
  [2, 3, "nwse"],
  [0, 3, "nesw"],
]; // indices of x and y in a box, and the cursor; the opposite corner is two places further on
const FAST = 10; // pixels of an arrow key with Shift
const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Overlay {
  /**
   * @param size function that returns [width, height] of the original image or video in pixels
   * @param onDraw is called when the user begins to draw or change the box
   * @param onBox is called with the new box
   */
  constructor({ size, onDraw, onBox, onTap }) {
    Object.assign(this, { size, onDraw, onBox, onTap, box: null, drawable: false, answers: [], position: 0, label: "Box" });
    this.shapes = svg("g", { class: "answers", "aria-hidden": "true" });
    this.edited = svg("g", { class: "edited" });
    this.element = svg("svg", { class: "overlay" }, this.shapes, this.edited);
    this.element.addEventListener("pointerdown", (event) => this.#press(event));
    new ResizeObserver(() => this.render()).observe(this.element);
  }

  /** Answers to show: [{letter, events}]; see `boxAt` for events. Those of images have no times. */
  show(answers, position) {
    this.answers = answers;
    this.position = position;
    this.#renderAnswers();
  }

  setBox(box, drawable) {
    this.box = box;
    this.drawable = drawable;
    this.element.classList.toggle("drawable", drawable);
    this.#renderBox();
  }

  focusBox() {
    this.edited.querySelector(".box")?.focus();
  }

  render() {
    this.#renderAnswers();
    this.#renderBox();
  }

  #scale() {
    const [width, height] = this.size();
    const shown = this.element.getBoundingClientRect();
    return [shown.width / width, shown.height / height];
  }

  #pixels(event) {
    const shown = this.element.getBoundingClientRect();
    const [sx, sy] = this.#scale();
    return [(event.clientX - shown.left) / sx, (event.clientY - shown.top) / sy];
  }

  #renderAnswers() {
    const [sx, sy] = this.#scale();
    const shown = this.answers.flatMap(({ letter, events }) =>
      events.flatMap((event, number) => {
        const timed = event.boxes.some((item) => item.time !== null && item.time !== undefined);
        const found = timed ? [boxAt(event, this.position, event.tolerance)] : event.boxes.map(({ box }) => ({ box }));
        return found.filter(Boolean).map(({ box, interpolated }) => this.#answerBox(letter, event, number, box, interpolated, sx, sy));
      })
    );
    this.shapes.replaceChildren(...shown);
    const { width } = this.element.getBoundingClientRect();
    for (const text of this.shapes.querySelectorAll("text")) {
      const most = Math.max(width - text.getComputedTextLength() - 4, 2);
      text.setAttribute("x", Math.min(Number(text.getAttribute("x")), most));
    }
  }

  #answerBox(letter, event, number, [x1, y1, x2, y2], interpolated, sx, sy) {
    const text = event.label ? (event.label.length > 40 ? `${event.label.slice(0, 39)}…` : event.label) : `Event ${number + 1}`;
    const [top, bottom] = [y1 * sy, y2 * sy];
    // Two labels of nearly the same box do not cover each other: the second is below it.
    const above = top > 18 ? top - 5 : top + 15;
    const below = bottom < this.element.clientHeight - 18 ? bottom + 16 : bottom - 6;
    const frame = { x: x1 * sx, y: top, width: Math.max((x2 - x1) * sx, 1), height: Math.max(bottom - top, 1) };
    return svg(
      "g",
      { class: `answer answer-${letter}`, "data-box": [x1, y1, x2, y2].join(" "), "data-interpolated": String(Boolean(interpolated)) },
      svg("rect", { ...frame, class: "halo" }),
      svg("rect", { ...frame, class: "line" }),
      svg("text", { x: Math.max(x1 * sx, 2), y: letter === "B" ? below : above }, text)
    );
  }

  #renderBox() {
    const hadFocus = this.edited.contains(this.element.getRootNode().activeElement);
    if (!this.box) return this.edited.replaceChildren();
    const [sx, sy] = this.#scale();
    const [x1, y1, x2, y2] = this.box;
    const rectangle = svg("rect", {
      class: "box",
      x: x1 * sx,
      y: y1 * sy,
      width: (x2 - x1) * sx,
      height: (y2 - y1) * sy,
      tabindex: this.drawable ? 0 : null,
      role: "group",
      "aria-roledescription": "bounding box",
      "aria-label":
        `Box of the question: left ${x1}, top ${y1}, right ${x2}, bottom ${y2} pixels. ` +
        "Arrow keys move it, with Alt they resize it, with Shift by 10 pixels. Delete removes it.",
      keydown: (event) => this.#key(event),
    });
    const handles = CORNERS.map(([x, y, cursor]) =>
      svg("circle", { class: `handle ${cursor}`, cx: this.box[x] * sx, cy: this.box[y] * sy, r: 7, "aria-hidden": "true" })
    );
    this.edited.replaceChildren(rectangle, ...(this.drawable ? handles : []));
    if (hadFocus) this.focusBox();
  }

  #press(event) {
    if (event.button > 0) return;
    if (!this.drawable) return this.onTap();
    this.onDraw();
    const start = this.#pixels(event);
    const size = this.size();
    const before = this.box;
    const corner = [...this.edited.querySelectorAll(".handle")].indexOf(event.target);
    let change;
    if (corner >= 0) {
      const [x, y] = CORNERS[(corner + 2) % 4];
      const fixed = [before[x], before[y]];
      change = (point) => boxOfCorners(fixed, point, ...size);
    } else if (event.target.classList.contains("box")) {
      change = (point) => movedBox(before, point[0] - start[0], point[1] - start[1], ...size);
    } else {
      change = (point) => boxOfCorners(start, point, ...size);
    }
    let moved = false;
    drag(
      event,
      this.element,
      (next) => {
        const point = this.#pixels(next);
        moved ||= Math.hypot(next.clientX - event.clientX, next.clientY - event.clientY) > 3;
        if (moved) this.onBox(change(point));
      },
      () => this.focusBox()
    );
  }

  #key(event) {
    const direction = DIRECTIONS[event.key];
    if (event.key === "Delete" || event.key === "Backspace") {
      this.onBox(null);
    } else if (direction) {
      const step = event.shiftKey ? FAST : 1;
      const change = event.altKey ? resizedBox : movedBox;
      this.onBox(change(this.box, direction[0] * step, direction[1] * step, ...this.size()));
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }
}
