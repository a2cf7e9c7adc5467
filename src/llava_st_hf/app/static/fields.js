// SPDX-License-Identifier: Apache-2.0
// Number fields of the box, span and time of the question: what the pointer draws, in pixels and seconds, for the keyboard.
import { boxOfCorners, clamp, round, spanOf } from "./geometry.js";
import { html } from "./dom.js";

const SIDES = ["Left", "Top", "Right", "Bottom"];

export class Fields {
  /**
   * @param size function that returns [width, height] of the image or video in pixels
   * @param duration function that returns the seconds of the video
   * @param position function that returns the seconds of the frame that is shown
   * @param onChange is called with {box}, {span} or {time} when the user changes it
   * @param onAddBox is called when the user asks for a box in the middle
   */
  constructor({ size, duration, position, onChange, onAddBox }) {
    Object.assign(this, { size, duration, position, onChange, values: { box: null, span: null, time: null } });
    const here = () => round(this.position(), 3);
    this.box = this.#group("Box in pixels", SIDES, 1, () => this.#readBox(), [
      ["Add a box", onAddBox],
      ["Remove", () => onChange({ box: null })],
    ]);
    this.span = this.#group("Span in seconds", ["From", "To"], 0.01, () => this.#readSpan(), [
      ["Start here", () => onChange({ span: spanOf(here(), Math.max(this.values.span?.[1] ?? this.duration(), here()), this.duration()) })],
      ["End here", () => onChange({ span: spanOf(Math.min(this.values.span?.[0] ?? 0, here()), here(), this.duration()) })],
      ["Remove", () => onChange({ span: null })],
    ]);
    this.time = this.#group("Time in seconds", ["At"], 0.01, () => this.#readTime(), [
      ["Here", () => onChange({ time: here() })],
      ["Remove", () => onChange({ time: null })],
    ]);
    this.element = html("div", { class: "fields" }, this.box.element, this.span.element, this.time.element);
  }

  /** @param needs {box, span, time}: which of them the question may have */
  set(values, needs) {
    this.values = values;
    for (const name of ["box", "span", "time"]) {
      const group = this[name];
      group.element.hidden = !needs[name];
      const value = values[name];
      const numbers = value === null ? [] : [value].flat();
      group.inputs.forEach((input, index) => {
        if (input !== input.getRootNode().activeElement) input.value = numbers[index] ?? "";
        if (value !== null) input.setCustomValidity("");
      });
      group.buttons.at(-1).disabled = value === null;
    }
    this.box.buttons[0].disabled = values.box !== null;
  }

  #group(legend, labels, step, read, buttons) {
    const inputs = labels.map((label) => html("input", { type: "number", step: "any", min: 0, inputmode: "decimal", change: read }));
    inputs.forEach((input) =>
      input.addEventListener("keydown", (event) => {
        // The arrow keys change by a useful amount, although any number is valid.
        const sign = { ArrowUp: 1, ArrowDown: -1 }[event.key];
        if (!sign || input.value === "") return;
        event.preventDefault();
        input.value = round(Math.max(Number(input.value) + sign * step * (event.shiftKey ? 10 : 1), 0), 3);
        read();
      })
    );
    const made = buttons.map(([text, click]) => html("button", { type: "button", click }, text));
    const element = html(
      "fieldset",
      {},
      html("legend", {}, legend),
      ...labels.map((label, index) => html("label", {}, html("span", {}, label), inputs[index])),
      ...made
    );
    return { element, inputs, buttons: made };
  }

  /** The numbers of a group; null while a field is empty. Fields that are not numbers within [0, most] are marked. */
  #numbers(group, most) {
    const numbers = group.inputs.map((input, index) => {
      const limit = most[index % most.length];
      const valid = input.value !== "" && Number(input.value) >= 0 && Number(input.value) <= limit;
      input.setCustomValidity(input.value === "" || valid ? "" : `Enter a number between 0 and ${round(limit, 2)}.`);
      input.reportValidity();
      return valid ? Number(input.value) : null;
    });
    return numbers.includes(null) ? null : numbers;
  }

  #ordered(group, pairs, numbers) {
    for (const [low, high] of pairs) {
      if (numbers[low] > numbers[high]) {
        group.inputs[high].setCustomValidity(`Enter a number of at least ${numbers[low]}.`);
        group.inputs[high].reportValidity();
        return false;
      }
    }
    return true;
  }

  #readBox() {
    const numbers = this.#numbers(this.box, this.size());
    if (!numbers || !this.#ordered(this.box, [[0, 2], [1, 3]], numbers)) return;
    this.onChange({ box: boxOfCorners(numbers.slice(0, 2), numbers.slice(2), ...this.size()) });
  }

  #readSpan() {
    const numbers = this.#numbers(this.span, [this.duration()]);
    if (numbers && this.#ordered(this.span, [[0, 1]], numbers)) this.onChange({ span: numbers });
  }

  #readTime() {
    const numbers = this.#numbers(this.time, [this.duration()]);
    if (numbers) this.onChange({ time: clamp(numbers[0], 0, this.duration()) });
  }
}
