// SPDX-License-Identifier: Apache-2.0
// Numbers of boxes, spans and times, without the DOM. Boxes are [x1, y1, x2, y2] in pixels of the original image or frame, times are
// seconds from the start of the container.

const SAME_TIME = 1e-3; // seconds; results are rounded to milliseconds
const MIN_SIDE = 2; // pixels of a drawn box

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
export const round = (value, digits) => Number(value.toFixed(digits));

/** "1.25 s", from a minute on "2:03.5". */
export function formatTime(seconds) {
  if (seconds === null || seconds === undefined) return "?";
  if (seconds < 60) return `${seconds.toFixed(2)} s`;
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}

/**
 * The box of an event at a time: that of the answer, else interpolated linearly between the boxes before and after; outside the boxes the
 * first or last one. null outside the span, or outside the boxes if there is no span. The same values as `Event.box_at` of the package.
 *
 * @param event {start, end, boxes: [{time, box}]}, boxes in the order of time
 * @param tolerance seconds by which the time may be outside the span
 */
export function boxAt(event, seconds, tolerance = SAME_TIME) {
  const boxes = event.boxes.filter((item) => item.time !== null && item.time !== undefined);
  if (!boxes.length) return null;
  const hasSpan = event.start !== null && event.end !== null;
  const first = hasSpan ? event.start : boxes[0].time;
  const last = hasSpan ? event.end : boxes[boxes.length - 1].time;
  if (seconds < first - tolerance || seconds > last + tolerance) return null;
  let after = boxes.findIndex((item) => item.time >= seconds - SAME_TIME);
  if (after === -1) after = boxes.length - 1;
  const before = Math.max(after - 1, 0);
  const gap = boxes[after].time - boxes[before].time;
  if (Math.abs(boxes[after].time - seconds) <= SAME_TIME || gap <= 0) {
    return { box: boxes[after].box, interpolated: Math.abs(boxes[after].time - seconds) > SAME_TIME };
  }
  const weight = clamp((seconds - boxes[before].time) / gap, 0, 1);
  const box = boxes[before].box.map((side, index) => round((1 - weight) * side + weight * boxes[after].box[index], 2));
  return { box, interpolated: true };
}

/** The box with two opposite corners, within the image, at least MIN_SIDE pixels wide and high. */
export function boxOfCorners([ax, ay], [bx, by], width, height) {
  const sides = (a, b, length) => {
    let [low, high] = [clamp(Math.min(a, b), 0, length), clamp(Math.max(a, b), 0, length)];
    if (high - low < MIN_SIDE) {
      low = clamp(low, 0, length - MIN_SIDE);
      high = low + MIN_SIDE;
    }
    return [low, high];
  };
  const [x1, x2] = sides(ax, bx, width);
  const [y1, y2] = sides(ay, by, height);
  return [x1, y1, x2, y2].map((side) => round(side, 1));
}

/** A box moved by (dx, dy) pixels, kept within the image at its size. */
export function movedBox([x1, y1, x2, y2], dx, dy, width, height) {
  const x = clamp(x1 + dx, 0, width - (x2 - x1));
  const y = clamp(y1 + dy, 0, height - (y2 - y1));
  return [x, y, x + x2 - x1, y + y2 - y1].map((side) => round(side, 1));
}

/** A box whose right and bottom edges are moved by (dx, dy) pixels, within the image. */
export function resizedBox([x1, y1, x2, y2], dx, dy, width, height) {
  return [x1, y1, clamp(x2 + dx, x1 + MIN_SIDE, width), clamp(y2 + dy, y1 + MIN_SIDE, height)].map((side) => round(side, 1));
}

/** A span [start, end] within [0, duration], in ascending order. */
export function spanOf(a, b, duration) {
  const [start, end] = [clamp(Math.min(a, b), 0, duration), clamp(Math.max(a, b), 0, duration)];
  return [round(start, 3), round(end, 3)];
}

/** A span moved by some seconds, kept within [0, duration] at its length. */
export function movedSpan([start, end], seconds, duration) {
  const moved = clamp(start + seconds, 0, duration - (end - start));
  return [round(moved, 3), round(moved + end - start, 3)];
}

/** Intersection over union of two spans [start, end] in seconds; 0 where both have no length, unless they are equal. */
export function spanIou([a, b], [c, d]) {
  const union = Math.max(b, d) - Math.min(a, c);
  if (union === 0) return 1;
  return clamp((Math.min(b, d) - Math.max(a, c)) / union, 0, 1);
}

/** Times of the ticks of a time line: about five, at 1, 2 or 5 times a power of ten seconds, or whole parts of minutes. */
export function ticks(duration) {
  if (!(duration > 0)) return [0];
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600, 7200];
  const step = steps.find((candidate) => duration / candidate <= 6) ?? duration / 5;
  return Array.from({ length: Math.floor(duration / step + 1e-6) + 1 }, (_, index) => round(index * step, 2));
}
