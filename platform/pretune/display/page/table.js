// The trials, of which only the rows in sight are in the page: ten thousand cost no more than twenty.

import { count, made, score } from "./format.js";

const TALL = 58, FLAT = 34, MOST = 16, BEYOND = 6;
const CELLS = ["num id", "state", "num right epochs", "num right value", "set", "why"];

export class TrialTable {
  // `open(number)` is called where a trial is chosen; `note` is an element that says how many are shown.
  constructor(place, note, open) {
    this.note = note;
    this.open = open;
    this.rows = [];
    this.pool = [];
    this.active = 0;
    this.chosen = null;
    this.best = null;
    this.head = made("div", "head");
    this.head.setAttribute("role", "row");
    this.scroller = made("div", "scroller");
    this.space = made("div");
    this.scroller.append(this.space);
    place.append(this.head, this.scroller);
    place.setAttribute("role", "grid");
    place.setAttribute("aria-label", "Trials");
    this.place = place;
    this.scroller.tabIndex = 0;
    this.scroller.setAttribute("role", "rowgroup");
    this.scroller.addEventListener("scroll", () => this.draw());
    this.scroller.addEventListener("keydown", (event) => this.key(event));
    this.scroller.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.choose(Number(row.dataset.index));
    });
    new ResizeObserver(() => this.draw()).observe(place);
  }

  get height() {
    return this.head.offsetParent === null ? TALL : FLAT; // the style sheet has no heads where it is narrow
  }

  // Rows in their order; `cells(row)` gives the texts of one.
  show(rows, { metric, all, best, cells, state }) {
    const was = this.rows[this.active]?.number;
    this.rows = rows;
    this.cells = cells;
    this.state = state;
    this.best = best;
    if (was !== undefined && rows[this.active]?.number !== was) {
      const now = rows.findIndex((row) => row.number === was);
      this.active = now >= 0 ? now : Math.min(this.active, Math.max(0, rows.length - 1));
    }
    const heads = ["trial", "state", "epochs", metric, "settings", "why it ended"];
    if (this.heads !== heads.join()) {
      this.heads = heads.join();
      this.head.replaceChildren(...heads.map((text, index) => {
        const head = made("span", CELLS[index].replace("num", ""), text);
        head.setAttribute("role", "columnheader");
        head.title = text;
        return head;
      }));
    }
    this.place.setAttribute("aria-rowcount", String(rows.length + 1));
    this.note.textContent = rows.length === all
      ? `${count(all)} ${all === 1 ? "trial" : "trials"}`
      : `${count(rows.length)} of ${count(all)} trials`;
    this.draw();
  }

  draw() {
    const { height, rows, scroller } = this;
    const inSight = Math.min(MOST, Math.max(1, rows.length));
    scroller.style.height = `${inSight * height}px`;
    this.space.style.height = `${rows.length * height}px`;
    const first = Math.max(0, Math.floor(scroller.scrollTop / height) - BEYOND);
    const last = Math.min(rows.length, first + inSight + 2 * BEYOND);
    while (this.pool.length < last - first) this.pool.push(this.made());
    this.pool.forEach((element, index) => {
      element.hidden = first + index >= last;
      if (element.hidden) element.removeAttribute("id");
      else this.fill(element, first + index);
    });
  }

  made() {
    const element = made("div", "row", ...CELLS.map((name) => {
      const cell = made("span", name);
      cell.setAttribute("role", "gridcell");
      return cell;
    }));
    element.setAttribute("role", "row");
    this.space.append(element);
    return element;
  }

  fill(element, index) {
    const row = this.rows[index], texts = this.cells(row);
    element.style.transform = `translateY(${index * this.height}px)`;
    element.dataset.index = String(index);
    element.id = `row-${row.number}`;
    element.setAttribute("aria-rowindex", String(index + 2));
    element.setAttribute("aria-selected", String(row.number === this.chosen));
    element.className = "row";
    if (row.number === this.best) element.classList.add("best");
    if (index === this.active && document.activeElement === this.scroller) element.classList.add("active");
    texts.forEach((text, at) => {
      const cell = element.children[at];
      if (cell.textContent !== text) cell.textContent = text;
      if (at >= 4) cell.title = at === 5 ? row.reason : text;
    });
    element.children[1].className = `state s-${this.state(row)}`;
    if (index === this.active) this.scroller.setAttribute("aria-activedescendant", element.id);
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.height) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in moves && !event.ctrlKey && !event.metaKey && !event.altKey) {
      this.active = Math.min(this.rows.length - 1, Math.max(0, this.active + moves[event.key]));
      const top = this.active * this.height, { scroller } = this;
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      else if (top + this.height > scroller.scrollTop + scroller.clientHeight) {
        scroller.scrollTop = top + this.height - scroller.clientHeight;
      }
      this.draw();
    } else if (event.key === "Enter" || event.key === " ") this.choose(this.active);
    else return;
    event.preventDefault();
  }

  choose(index) {
    if (!this.rows[index]) return;
    this.active = index;
    this.open(this.rows[index].number);
  }

  mark(number) {
    this.chosen = number;
    this.draw();
  }
}

// The orders in which trials may be listed. "Best first" is that of `pretune show`: those that are complete by their
// value, then the others by how far they got.
export function orders(names, short, maximize) {
  const sign = maximize ? -1 : 1;
  const worth = (row) => (typeof row.value === "number" ? sign * row.value : Infinity);
  const found = [
    ["best first", (one, other) => (one.state !== 2) - (other.state !== 2)
      || (one.state !== 2 ? other.epoch - one.epoch : 0) || compare(worth(one), worth(other))],
    ["newest first", (one, other) => other.number - one.number],
    ["oldest first", (one, other) => one.number - other.number],
    ["most epochs first", (one, other) => other.epoch - one.epoch],
  ];
  names.forEach((name, index) => {
    found.push([`by ${short[name] ?? name}`, (one, other) => compare(one.params[index] ?? null, other.params[index] ?? null)]);
  });
  return found.map(([text, by]) => [text, (one, other) => by(one, other) || one.number - other.number]);
}

function compare(one, other) {
  if (one === other) return 0;
  if (one === null) return 1;
  if (other === null) return -1;
  if (typeof one === "number" && typeof other === "number") return one < other ? -1 : 1;
  const [text, another] = [JSON.stringify(one), JSON.stringify(other)];
  return text === another ? 0 : text < another ? -1 : 1;
}

// A rung's reason without the value, which stands beside it.
function shortly(reason) {
  const found = /^\S+ \S+ at (.+) is not among the best (\d+) of (\d+)$/.exec(reason);
  return found ? `not among best ${found[2]} of ${found[3]} at ${found[1] === "1 epochs" ? "1 epoch" : found[1]}` : reason;
}

export function cells(row, state, settings) {
  const why = [shortly(row.reason)];
  if (row.failures) why.unshift(`${row.failures} ${row.failures === 1 ? "failure" : "failures"}`);
  return [
    String(row.number), state, `${row.epoch} of ${row.epochs}`, score(row.value, row.stderr), settings,
    why.filter(Boolean).join("; "),
  ];
}
