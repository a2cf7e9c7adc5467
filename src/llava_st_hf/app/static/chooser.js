// SPDX-License-Identifier: Apache-2.0
// Choice of an example or of a file to upload.
import { html } from "./dom.js";

export class Chooser {
  /**
   * @param onExample is called with the name of an example
   * @param onUploaded is called when a file has been uploaded
   */
  constructor({ onExample, onUploaded }) {
    Object.assign(this, { onExample, onUploaded, settings: null, request: null });
    this.input = html("input", { type: "file", class: "file", "aria-label": "Upload a video or image", change: () => this.#take(this.input.files) });
    this.status = html("p", { class: "status", role: "status" });
    this.bar = html("progress", { max: 1, value: 0, hidden: true, "aria-label": "Upload" });
    this.limits = html("span", { class: "limits" });
    this.examples = html("div", { class: "examples", role: "group", "aria-label": "Examples" });
    this.drop = html("label", { class: "drop" }, this.input, html("strong", {}, "Upload a video or image"), this.limits);
    this.element = html("div", { class: "chooser" }, this.examples, this.drop, this.bar, this.status);
    for (const name of ["dragenter", "dragover"]) {
      this.drop.addEventListener(name, (event) => {
        event.preventDefault();
        this.drop.classList.add("over");
      });
    }
    for (const name of ["dragleave", "drop"]) this.drop.addEventListener(name, () => this.drop.classList.remove("over"));
    this.drop.addEventListener("drop", (event) => {
      event.preventDefault();
      this.#take(event.dataTransfer.files);
    });
  }

  /** @param settings {upload, max_bytes, limits, examples: [{name, title, poster}]} */
  set(settings, chosen) {
    if (this.settings !== settings) {
      this.limits.textContent = settings.limits;
      this.examples.replaceChildren(
        ...settings.examples.map(({ name, title, poster }) =>
          html(
            "button",
            { type: "button", class: "example", "data-name": name, click: () => this.onExample(name) },
            html("img", { src: poster, alt: "" }),
            html("span", {}, title)
          )
        )
      );
    }
    this.settings = settings;
    for (const button of this.examples.children) button.setAttribute("aria-pressed", String(button.dataset.name === chosen));
  }

  #take(files) {
    const [file] = files;
    if (!file || this.request) return;
    if (file.size > this.settings.max_bytes) {
      this.#finish(`${file.name} has ${megabytes(file.size)}, more than the ${megabytes(this.settings.max_bytes)} that are allowed.`);
      return;
    }
    this.request = new XMLHttpRequest();
    this.request.open("POST", `${this.settings.upload}?name=${encodeURIComponent(file.name)}`);
    this.request.setRequestHeader("Content-Type", "application/octet-stream");
    this.request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) this.bar.value = event.loaded / event.total;
    });
    this.request.addEventListener("load", () => {
      const { status, responseText } = this.request;
      this.#finish(status === 200 ? "" : responseText || `The upload failed with HTTP status ${status}.`);
      if (status === 200) this.onUploaded();
    });
    this.request.addEventListener("error", () => this.#finish("The upload was interrupted. Check the connection and try again."));
    this.bar.hidden = false;
    this.bar.value = 0;
    this.status.textContent = `Uploading ${file.name}…`;
    this.status.classList.remove("problem");
    this.request.send(file);
  }

  #finish(problem) {
    this.request = null;
    this.input.value = "";
    this.bar.hidden = true;
    this.status.textContent = problem;
    this.status.classList.toggle("problem", problem !== "");
  }
}

function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;
}
