// Curves or points on a canvas, with axes, and a line of text at the point that is nearest to the pointer.

import { made, number } from "./format.js";

const EDGE = { left: 52, right: 14, top: 10, bottom: 34 };
const NEAR = 28;

export class Chart {
  // `pick(id)` is called where a series, or a point, is clicked.
  constructor(place, pick = null) {
    this.pick = pick;
    this.canvas = made("canvas");
    this.canvas.setAttribute("role", "img");
    this.tip = made("div", "tip");
    this.tip.hidden = true;
    place.append(this.canvas, this.tip);
    this.data = { series: [], x: "", y: "", label: "" };
    this.waits = false;
    new ResizeObserver(() => this.draw()).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => this.leave());
    this.canvas.addEventListener("click", (event) => {
      const found = this.nearest(event);
      if (found && this.pick) this.pick(found.id);
    });
  }

  // `series`: {id, xs, ys, color, width, alpha, dots, line, steps, says}; `x`, `y`: what the axes are.
  show(data) {
    this.data = data;
    this.canvas.setAttribute("aria-label", data.label);
    this.draw();
  }

  draw() {
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => {
      this.waits = false;
      this.paint();
    });
  }

  paint() {
    const { canvas } = this;
    const width = canvas.clientWidth, height = canvas.clientHeight, scale = devicePixelRatio || 1;
    if (!width || !height) return;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    this.range(width, height);
    const { left, right, top, bottom } = this.box;
    pen.lineWidth = 1;
    pen.strokeStyle = color("line");
    pen.fillStyle = color("dim");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const tick of ticks(this.low, this.high, Math.max(2, (bottom - top) / 36))) {
      const y = Math.round(this.atY(tick)) + 0.5;
      line(pen, left, y, right, y);
      pen.fillText(number(Number(tick.toPrecision(10))), left - 8, y);
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const tick of ticks(this.first, this.last, Math.max(2, (right - left) / 80))) {
      if (Number.isInteger(tick)) pen.fillText(String(tick), this.atX(tick), bottom + 6);
    }
    pen.textAlign = "right";
    pen.fillText(this.data.x, right, bottom + 20);
    if (!this.data.series.length) {
      pen.textAlign = "center";
      pen.fillText("nothing measured yet", (left + right) / 2, (top + bottom) / 2);
      return;
    }
    pen.save();
    pen.beginPath();
    pen.rect(left - 4, top - 4, right - left + 8, bottom - top + 8);
    pen.clip();
    pen.lineJoin = "round";
    for (const one of this.data.series) this.stroke(pen, one, color);
    pen.restore();
  }

  stroke(pen, one, color) {
    pen.globalAlpha = one.alpha ?? 1;
    pen.strokeStyle = pen.fillStyle = color(one.color);
    pen.lineWidth = one.width ?? 1.25;
    if (one.line !== false) {
      pen.beginPath();
      let before = null;
      one.xs.forEach((at, index) => {
        const value = one.ys[index];
        if (typeof value !== "number") {
          before = null;
          return;
        }
        const x = this.atX(at), y = this.atY(value);
        if (before === null) pen.moveTo(x, y);
        else {
          if (one.steps) pen.lineTo(x, before);
          pen.lineTo(x, y);
        }
        before = y;
      });
      pen.stroke();
    }
    if (one.dots || one.xs.length === 1) {
      const radius = one.dots || 2;
      one.xs.forEach((at, index) => {
        if (typeof one.ys[index] !== "number") return;
        pen.beginPath();
        pen.arc(this.atX(at), this.atY(one.ys[index]), radius, 0, 7);
        pen.fill();
      });
    }
    pen.globalAlpha = 1;
  }

  // A value far off, such as a loss that went astray, must not flatten all others.
  range(width, height) {
    this.box = { left: EDGE.left, right: width - EDGE.right, top: EDGE.top, bottom: height - EDGE.bottom };
    const values = [];
    let first = Infinity, last = -Infinity;
    for (const { xs, ys } of this.data.series) {
      xs.forEach((x, index) => {
        if (typeof ys[index] !== "number") return;
        values.push(ys[index]);
        if (x < first) first = x;
        if (x > last) last = x;
      });
    }
    if (!values.length) [first, last] = [0, 1];
    values.sort((one, other) => one - other);
    let low = values[0] ?? 0, high = values[values.length - 1] ?? 1;
    const part = (share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
    const [under, over] = [part(0.02), part(0.98)];
    if (values.length > 20 && high - low > 6 * (over - under) && over > under) {
      [low, high] = [Math.max(low, under - (over - under)), Math.min(high, over + (over - under))];
    }
    if (low === high) [low, high] = [low - 0.5 * (Math.abs(low) || 1), high + 0.5 * (Math.abs(high) || 1)];
    const margin = 0.05 * (high - low);
    [this.low, this.high] = [low - margin, high + margin];
    [this.first, this.last] = first === last ? [first - 1, last + 1] : [first, last];
  }

  atX(value) {
    const { left, right } = this.box;
    return left + ((value - this.first) / (this.last - this.first)) * (right - left);
  }

  atY(value) {
    const { top, bottom } = this.box;
    return bottom - ((value - this.low) / (this.high - this.low)) * (bottom - top);
  }

  nearest(event) {
    if (!this.box) return null;
    const bounds = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
    let best = null, distance = NEAR * NEAR;
    for (const one of this.data.series) {
      if (one.says === undefined) continue;
      one.xs.forEach((at, index) => {
        if (typeof one.ys[index] !== "number") return;
        const [px, py] = [this.atX(at), this.atY(one.ys[index])];
        const found = (px - x) ** 2 + (py - y) ** 2;
        if (found < distance) {
          distance = found;
          best = { id: one.ids ? one.ids[index] : one.id, text: one.says(index), x: px, y: py };
        }
      });
    }
    return best;
  }

  hover(event) {
    const found = this.nearest(event);
    this.tip.hidden = !found;
    if (!found) return;
    this.tip.textContent = found.text;
    const most = this.canvas.clientWidth - this.tip.offsetWidth - 4;
    this.tip.style.left = `${Math.max(4, Math.min(found.x + 10, most))}px`;
    this.tip.style.top = `${Math.max(2, found.y - 30)}px`;
  }

  leave() {
    this.tip.hidden = true;
  }
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
  pen.stroke();
}

// Round numbers between `low` and `high`, about so many.
function ticks(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high; at += 1) found.push(at * step);
  return found;
}
