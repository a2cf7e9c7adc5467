// SPDX-License-Identifier: Apache-2.0
// Construction of elements. Texts of users and models become text nodes and attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An HTML element; functions among the attributes are listeners of the event of that name. */
export const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element, as `html`. */
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** A shadow root with the style sheet of the components. */
export function shadowRoot(host) {
  const root = host.attachShadow({ mode: "open" });
  root.append(html("link", { rel: "stylesheet", href: new URL("components.css", import.meta.url) }));
  return root;
}

/**
 * Follows a pointer from a `pointerdown` event until it is released.
 *
 * @param move is called with each `pointermove` event
 * @param end is called once, also when the browser cancels the gesture
 */
export function drag(event, target, move, end = () => {}) {
  event.preventDefault();
  target.setPointerCapture(event.pointerId);
  const stop = () => {
    target.removeEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) target.removeEventListener(name, stop);
    end();
  };
  target.addEventListener("pointermove", move);
  for (const name of ["pointerup", "pointercancel"]) target.addEventListener(name, stop);
}
