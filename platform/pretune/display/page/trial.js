// One trial: its config against the base, its curves, the end of its log.

import { Chart } from "./chart.js";
import { clock, made, number, score } from "./format.js";

const $ = (id) => document.getElementById(id);
const AGAIN_MS = 3000;

export class TrialView {
  // `names(state)` is a state in words; `closed()` is called when it was closed.
  constructor(closed) {
    this.closed = closed;
    this.dialog = $("trial");
    this.chart = new Chart($("trial-chart"));
    this.number = null;
    this.metric = null;
    this.asked = 0;
    $("trial-close").addEventListener("click", () => this.close());
    $("trial-metric").addEventListener("change", (event) => {
      this.metric = event.target.value;
      this.curve();
    });
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      this.close();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.number !== null) this.close();
    });
    setInterval(() => {
      if (this.number !== null && this.runs && !document.hidden) this.load();
    }, AGAIN_MS);
  }

  open(sweep, trial, whole) {
    const same = this.number === trial && this.sweep === sweep;
    [this.sweep, this.number, this.whole] = [sweep, trial, whole];
    if (!this.dialog.open) {
      this.back = document.activeElement;
      if (matchMedia("(max-width: 900px)").matches) this.dialog.showModal();
      else this.dialog.show();
      document.body.classList.add("beside");
    }
    if (same) return;
    $("trial-title").textContent = `Trial ${trial}`;
    this.dialog.querySelector(".trial-body").scrollTop = 0;
    $("trial-title").focus();
    this.load();
  }

  close() {
    if (this.number === null) return;
    this.number = null;
    this.dialog.close();
    document.body.classList.remove("beside");
    this.back?.focus?.();
    this.closed();
  }

  // Its row has changed.
  changed() {
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.number !== null && this.load(), 300);
  }

  async load() {
    const mine = (this.asked += 1), wanted = this.number;
    try {
      const answer = await fetch(`trial?sweep=${encodeURIComponent(this.sweep)}&number=${wanted}`);
      if (!answer.ok) throw new Error(answer.statusText);
      const told = await answer.json();
      if (mine === this.asked && wanted === this.number) this.show(told);
    } catch {
      if (mine === this.asked && this.told?.row[0] !== wanted) $("trial-value").textContent = "cannot be read now";
    }
  }

  show(told) {
    this.told = told;
    const { states, short, names } = this.whole();
    const [trial, state, epoch, epochs, value, stderr, started, resultOf, failures, reason, ...params] = told.row;
    this.runs = states[state].id === "RUNNING";
    $("trial-title").textContent = `Trial ${trial}`;
    $("trial-state").textContent = states[state].text;
    $("trial-state").className = `pill s-${states[state].id}`;
    $("trial-value").textContent = score(value, stderr);
    $("trial-reason").hidden = !reason;
    $("trial-reason").textContent = reason;
    const facts = [["epochs", `${epoch} of ${epochs}`]];
    if (started) facts.push(["started", clock(started)]);
    if (told.attempts > 1) facts.push(["attempts", told.attempts]);
    if (failures) facts.push(["failures", failures]);
    if (resultOf !== null) facts.push(["result of", `trial ${resultOf}, which has the same config`]);
    else if (told.duplicate_of !== null) facts.push(["same settings as", `trial ${told.duplicate_of}`]);
    if (told.extended) facts.push(["made longer", "yes"]);
    names.forEach((name, index) => {
      if (params[index] !== undefined && params[index] !== null) facts.push([short[name] ?? name, number(params[index])]);
    });
    $("trial-facts").replaceChildren(...facts.flatMap(([what, said]) => [made("dt", "", what), made("dd", "", said)]));
    fill($("trial-changes"), ["setting", "base", "this trial"], told.changes.map(([path, was, is]) => [path, number(was), number(is)]));
    $("trial-changes").hidden = !told.changes.length;
    $("trial-same").textContent = told.changes.length ? "" : told.refused ? "The space gave no config." : "The same as the base.";
    const log = $("trial-log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
    log.hidden = !told.log.length;
    log.textContent = told.log.join("\n");
    if (atEnd) log.scrollTop = log.scrollHeight;
    $("trial-log-path").textContent = told.log.length ? told.log_path : `No log on this machine (${told.log_path}).`;
    fill($("trial-metrics"), ["metric", "value"], Object.entries(told.metrics).map(([name, said]) => [name, number(said)]));
    $("trial-replay").textContent = told.replay;
    const known = Object.keys(told.curves);
    const select = $("trial-metric");
    if (known.join() !== this.known) {
      this.known = known.join();
      select.replaceChildren(...known.map((name) => new Option(name, name)));
    }
    if (!known.includes(this.metric)) this.metric = known[0] ?? null;
    if (this.metric !== null) select.value = this.metric;
    $("trial-curve-section").hidden = !known.length;
    this.curve();
  }

  curve() {
    const [xs, ys] = this.told?.curves[this.metric] ?? [[], []];
    const says = (index) => `epoch ${xs[index]} · ${number(ys[index])}`;
    const series = xs.length ? [{ id: 0, xs, ys, color: "accent", width: 2, dots: xs.length < 60 ? 2.5 : 0, says }] : [];
    this.chart.show({ series, x: "epoch", label: `${this.metric} of trial ${this.number} by epoch, ${xs.length} points` });
  }
}

function fill(table, heads, rows) {
  const head = made("tr", "", ...heads.map((text) => made("th", "", text)));
  const body = rows.map((row) => made("tr", "", ...row.map((text, index) => made("td", index === 1 && row.length > 2 ? "was" : "", text))));
  table.replaceChildren(made("thead", "", head), made("tbody", "", ...body));
}
