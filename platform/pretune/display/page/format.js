// Numbers as people read them, as display/format.py writes them in a terminal.

export function score(value, stderr) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (typeof stderr !== "number" || !(stderr > 0)) return value.toFixed(3);
  const digits = Math.min(6, Math.max(1, 1 - Math.floor(Math.log10(stderr))));
  return `${value.toFixed(digits)} ± ${stderr.toFixed(digits)}`;
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") {
    if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(3)));
  }
  if (Array.isArray(value)) return `[${value.map(number).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, item]) => `${key}=${number(item)}`).join(", ")}}`;
  return String(value);
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (count) => String(count).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

// What is expected is not known to the second.
export function about(seconds) {
  if (seconds < 60) return `${Math.max(5, 5 * Math.round(seconds / 5))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return duration(60 * Math.round(seconds / 60));
}

export function rate(perSecond) {
  if (typeof perSecond !== "number") return "– img/s";
  return perSecond >= 10000
    ? `${Number((perSecond / 1000).toPrecision(3))}k img/s`
    : `${Math.round(perSecond).toLocaleString("en-US")} img/s`;
}

export function size(count) {
  for (const unit of ["bytes", "kB", "MB", "GB"]) {
    if (count < 999.5) return unit === "bytes" ? `${Math.round(count)} bytes` : `${Number(count.toPrecision(3))} ${unit}`;
    count /= 1000;
  }
  return `${Number(count.toPrecision(3))} TB`;
}

export function count(whole) {
  return whole.toLocaleString("en-US");
}

export function clock(unix) {
  return new Date(1000 * unix).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

export function span(from, to) {
  const [began, ended] = [new Date(1000 * from), new Date(1000 * to)];
  const sameDay = began.toDateString() === ended.toDateString();
  return `${clock(from)} to ${sameDay ? ended.toLocaleTimeString([], { timeStyle: "short" }) : clock(to)}`;
}

// An element with a class, and text or elements in it: never HTML, as names and reasons are somebody's.
export function made(tag, name, ...content) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...content.map((part) => (part instanceof Node ? part : document.createTextNode(String(part)))));
  return element;
}
