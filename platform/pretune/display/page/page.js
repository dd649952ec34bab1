// What the server tells, drawn. It sends everything once, then what has changed, each change with a mark; after a
// connection was lost it is asked for what came since the last mark.

import { Chart } from "./chart.js";
import { about, count, duration, made, number, rate, score, size, span } from "./format.js";
import { TrialTable, cells, orders } from "./table.js";
import { TrialView } from "./trial.js";

const $ = (id) => document.getElementById(id);
// In the order of analysis/following.py.
const STATES = [
  { id: "WAITING", text: "waiting" }, { id: "RUNNING", text: "running" }, { id: "COMPLETE", text: "complete" },
  { id: "PRUNED", text: "stopped early" }, { id: "INFEASIBLE", text: "infeasible" }, { id: "FAIL", text: "failed" },
  { id: "UNFINISHED", text: "unfinished" },
];
const STATUS = {
  running: "RUNNING", finished: "COMPLETE", interrupted: "UNFINISHED", failed: "FAIL", killed: "FAIL", gone: "INFEASIBLE",
  unreadable: "FAIL",
};
const isFinished = (status) => status.startsWith("finished"); // and how: "finished, out of time"
const colored = (status) => STATUS[isFinished(status) ? "finished" : status] ?? "WAITING";
const SILENCE_MS = 15000, AGAIN_MS = 2000, REDRAW_MS = 200, QUIET_S = 300;

let key = null, alone = null, many = false, source = null, mark = "", heard = 0, lost = false, drawing = null, ahead = 0;
let sweep = {}, trials = new Map(), names = [], drawn = [], curves = new Map(), view = "epoch", closingOf = "";

const table = new TrialTable($("table"), $("table-note"), (number) => go(key, number));
const chart = new Chart($("chart"), (number) => go(key, number));
const trialView = new TrialView(() => go(key, null));
const whole = () => ({ states: STATES, short: sweep.short ?? {}, names });

// ---- the connection ----------------------------------------------------------------------------------------------

function connect() {
  source?.close();
  const since = mark ? `&since=${encodeURIComponent(mark)}` : "";
  source = new EventSource(key === null ? "events" : `events?sweep=${encodeURIComponent(key)}${since}`);
  heard = Date.now();
  const on = (name, act) => source.addEventListener(name, (event) => {
    if (event.target !== source) return;
    found();
    const told = JSON.parse(event.data);
    if (told.now) ahead = told.now - Date.now() / 1000;
    act(told, event);
  });
  on("beat", () => {});
  on("sweeps", onSweeps);
  on("sweep", onSweep);
  on("trials", onTrials);
  on("slots", onSlots);
  on("gpus", onGpus);
  source.addEventListener("error", (event) => {
    if (event.target !== source) return;
    gone();
    if (source.readyState === EventSource.CLOSED) setTimeout(() => event.target === source && connect(), AGAIN_MS);
  });
}

function found() {
  heard = Date.now();
  if (!lost && $("connection").classList.contains("on")) return;
  lost = false;
  $("lost").hidden = true;
  $("connection").className = "connection on";
  $("connection").textContent = "connected";
}

async function gone() {
  if (!lost) {
    lost = true;
    $("connection").className = "connection off";
    $("connection").textContent = "connection lost";
    $("lost").textContent = `Connection lost; trying again. What is shown is of ${new Date(heard).toLocaleTimeString()}.`;
    $("lost").hidden = false;
  }
  try {
    const answer = await fetch("icon.svg", { cache: "no-store" });
    if (answer.status === 403) {
      $("lost").textContent = "This address has ended: pretune watch was started again, and printed a new one.";
    }
  } catch {
    // The server is away: the browser tries again.
  }
}

setInterval(() => {
  if (Date.now() - heard > SILENCE_MS && source?.readyState !== EventSource.CONNECTING) {
    gone();
    connect();
  }
}, 3000);
addEventListener("online", () => connect());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && Date.now() - heard > SILENCE_MS) connect();
});

// ---- where we are ------------------------------------------------------------------------------------------------

function place() {
  const said = new URLSearchParams(location.hash.slice(1));
  const trial = said.get("trial");
  return { sweep: said.get("sweep") ?? alone, trial: trial === null || !/^\d+$/.test(trial) ? null : Number(trial) };
}

function go(wanted, trial) {
  const said = new URLSearchParams();
  if (wanted !== null && wanted !== alone) said.set("sweep", wanted);
  if (trial !== null) said.set("trial", trial);
  const hash = said.size ? `#${said}` : "#";
  if (location.hash === hash || (hash === "#" && !location.hash)) route();
  else if (hash === "#") {
    history.pushState(null, "", location.pathname);
    route();
  } else location.hash = hash;
}

function route() {
  const { sweep: wanted, trial } = place();
  if (wanted !== key || source === null) {
    key = wanted;
    [mark, sweep, trials, names, drawn, curves, closingOf] = ["", {}, new Map(), [], [], new Map(), ""];
    $("list").hidden = key !== null || !many;
    $("sweep").hidden = true;
    $("closing").hidden = true;
    $("reading").hidden = key === null && many;
    connect();
  }
  table.mark(trial);
  if (trial === null) trialView.close();
  else if (key !== null) trialView.open(key, trial, whole);
  redraw();
}

addEventListener("hashchange", route);
$("home").addEventListener("click", (event) => {
  event.preventDefault();
  go(null, null);
});
$("back").addEventListener("click", (event) => {
  event.preventDefault();
  go(null, null);
});

// ---- all sweeps --------------------------------------------------------------------------------------------------

function onSweeps(told) {
  if (told.alone && told.sweeps.length) {
    alone = told.sweeps[0].key;
    route();
    return;
  }
  if (key !== null) return;
  many = true;
  $("list").hidden = false;
  $("reading").hidden = true;
  document.title = "pretune watch";
  $("list-place").textContent = told.place;
  $("list-problem").hidden = !told.problem;
  $("list-problem").textContent = told.problem;
  $("list-empty").hidden = told.sweeps.length > 0;
  $("list-empty").textContent = "No sweeps here yet. They are shown once they begin: pretune sweep kernels";
  const had = document.activeElement?.dataset?.key;
  $("sweeps").replaceChildren(...told.sweeps.map(listed));
  if (had !== undefined) document.querySelector(`#sweeps a[data-key="${CSS.escape(had)}"]`)?.focus();
}

function listed(one) {
  const link = made("a", "panel");
  link.href = `#${new URLSearchParams({ sweep: one.key })}`;
  link.dataset.key = one.key;
  const about = one.space ? `${one.space}${one.recipe ? ` from ${one.recipe}` : ""} on ${one.data}` : one.place;
  link.append(made("div", "", made("div", "name", one.name), made("div", "sub", about)));
  link.append(made("div", "", made("span", `pill s-${colored(one.status)}`, one.status)));
  if (one.counts) {
    link.append(made("div", "num", one.best ? score(one.best[1], one.best[2]) : "–", made("div", "sub", one.metric)));
    const bar = made("div", "bar");
    segments(bar, one);
    link.append(made("div", "num", `${count(ended(one))} of ${count(one.asked)} trials`, bar));
  }
  if (one.problem) link.append(made("div", "wrong", one.problem));
  return made("li", "", link);
}

// ---- one sweep ---------------------------------------------------------------------------------------------------

function ended(told) {
  return ["COMPLETE", "PRUNED", "INFEASIBLE", "FAIL"].reduce((sum, state) => sum + told.counts[state], 0);
}

const SHOWN = ["COMPLETE", "PRUNED", "INFEASIBLE", "FAIL", "RUNNING", "UNFINISHED", "WAITING"];

function segments(bar, told) {
  bar.replaceChildren(...SHOWN.filter((state) => told.counts[state] && state !== "WAITING").map((state) => {
    const part = made("i", `s-${state}`);
    part.style.flex = `${told.counts[state]} 0 0`;
    return part;
  }));
  const rest = made("i", "rest");
  rest.style.flex = `${Math.max(0, told.asked - ended(told) - told.counts.RUNNING - told.counts.UNFINISHED)} 0 0`;
  bar.append(rest);
}

function onSweep(told) {
  sweep = told;
  $("reading").hidden = true;
  $("sweep").hidden = false;
  $("list").hidden = true;
  $("back").hidden = told.alone !== false;
  document.title = `${told.name} · ${told.status} · pretune watch`;
  $("title").textContent = told.name;
  $("status").textContent = told.status;
  $("status").className = `pill s-${colored(told.status)}${told.status === "running" ? " running-now" : ""}`;
  $("about").textContent = told.space === undefined ? told.place
    : `${told.space}${told.recipe ? ` from ${told.recipe}` : ""} on ${told.data} · ${told.place}`;
  $("about").title = told.command ?? "";
  const notes = [told.problem, told.detail, ...(told.notices ?? [])].filter(Boolean);
  if (told.status === "gone") notes.push("The sweep was removed or renamed; this is what was known of it.");
  if (told.status === "killed") notes.push("Its driver ended without a word. To go on with it: pretune resume");
  $("notes").replaceChildren(...notes.map((text) => made("p", "", text)));
  $("content").hidden = told.counts === undefined;
  $("waiting").hidden = told.counts !== undefined;
  if (!told.counts) {
    const waits = {
      waiting: "There is no such sweep yet. It is shown once it begins.",
      starting: "The sweep is just starting and has no record yet.",
      "never started": "The sweep was never started: its driver ended before the first record.",
      gone: "There is no such sweep any more.",
      unreadable: "Its journal cannot be read.",
    };
    $("waiting").firstElementChild.textContent = waits[told.status] ?? told.status;
    return;
  }
  $("done").textContent = count(ended(told));
  $("of").textContent = `of ${count(told.asked)} done`;
  segments($("bar"), told);
  const parts = SHOWN.filter((state) => told.counts[state] || state === "COMPLETE");
  $("bar").setAttribute("aria-label", parts.map((state) => `${told.counts[state]} ${stateText(state)}`).join(", "));
  $("legend").replaceChildren(...parts.map((state) => made("li", `s-${state}`, made("i", ""), made("b", "", count(told.counts[state])), ` ${stateText(state)}`)));
  if (told.enqueued) $("legend").append(made("li", "", made("b", "", count(told.enqueued)), " handed in and waiting"));
  if (told.reused) $("legend").append(made("li", "", made("b", "", count(told.reused)), " not run again"));
  $("best").textContent = told.best ? score(told.best[1], told.best[2]) : "–";
  $("h-best").textContent = told.ablation ? "Highest so far" : "Best so far";
  if (told.best) {
    const button = made("button", "linkish", `trial ${told.best[0]}`);
    button.type = "button";
    button.addEventListener("click", () => go(key, told.best[0]));
    $("best-of").replaceChildren(`${told.metric}${told.maximize ? "" : ", lower is better"}, `, button);
  } else $("best-of").textContent = `${told.metric}${told.maximize ? "" : ", lower is better"}; no trial is complete yet`;
  times();
  $("h-chart").textContent = told.metric;
  const running = told.status === "running";
  $("slots-panel").hidden = !running;
  $("two").classList.toggle("alone", !running);
  choices();
  closing();
  redraw();
}

function stateText(id) {
  return STATES.find((state) => state.id === id).text;
}

function times() {
  if (!sweep.counts) return;
  const now = Date.now() / 1000 + ahead;
  if (sweep.status === "running") {
    $("time").textContent = duration(now - sweep.since);
    const said = [sweep.left_s === null ? "time left follows" : `about ${about(sweep.left_s)} left`];
    if (sweep.limit !== null) said.unshift(sweep.limit);
    if (sweep.images_per_s !== null) said.unshift(rate(sweep.images_per_s));
    if (sweep.sessions > 1) said.push(`taken up ${sweep.sessions - 1}×`);
    if (now - sweep.newest > QUIET_S) said.push(`last record ${about(now - sweep.newest)} ago`);
    $("pace").textContent = said.join(" · ");
  } else {
    $("time").textContent = duration(sweep.newest - sweep.began);
    $("pace").textContent = span(sweep.began, sweep.newest);
  }
}
setInterval(times, 1000);

function onTrials(told, event) {
  mark = event.lastEventId;
  if (told.reset) [trials, curves, drawn] = [new Map(), new Map(), []];
  if (told.names.length !== names.length) for (const row of trials.values()) row.settings = undefined;
  names = told.names;
  const chosen = place().trial;
  for (const [id, state, epoch, epochs, value, stderr, started, resultOf, failures, reason, ...params] of told.trials) {
    trials.set(id, { number: id, state, epoch, epochs, value, stderr, started, resultOf, failures, reason, params });
    if (chosen === id) trialView.changed();
  }
  if (told.drawn) drawn = told.drawn;
  for (const [id, curve] of Object.entries(told.curves)) curves.set(Number(id), curve);
  choices();
  redraw();
}

function settings(row) {
  if (row.settings !== undefined && row.short === sweep.short) return row.settings;
  row.short = sweep.short;
  row.settings = names.map((name, index) => [name, row.params[index]])
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => `${sweep.short?.[name] ?? name}=${number(value)}`).join(" ");
  return row.settings;
}

let orderOf = [];

function choices() {
  const said = `${names.join()} ${sweep.maximize} ${JSON.stringify(sweep.short)}`;
  if (choices.said === said) return;
  choices.said = said;
  const chosen = $("sort").selectedIndex;
  orderOf = orders(names, sweep.short ?? {}, sweep.maximize !== false);
  $("sort").replaceChildren(...orderOf.map(([text], index) => new Option(text, index)));
  $("sort").selectedIndex = Math.max(0, Math.min(chosen, orderOf.length - 1));
}

STATES.forEach((state, index) => $("state").append(new Option(state.text, index)));
for (const id of ["filter", "state", "sort"]) $(id).addEventListener("input", () => redraw());

function redraw() {
  drawing ??= setTimeout(() => {
    drawing = null;
    if (sweep.counts) draw();
  }, redraw.once ? REDRAW_MS : 0);
  redraw.once = true;
}

function draw() {
  const wanted = $("filter").value.trim().toLowerCase(), state = $("state").value;
  let rows = [...trials.values()];
  if (state !== "") rows = rows.filter((row) => row.state === Number(state));
  if (/^\d+$/.test(wanted)) rows = rows.filter((row) => String(row.number).startsWith(wanted));
  else if (wanted) {
    rows = rows.filter((row) => `${settings(row)} ${row.reason} ${STATES[row.state].text}`.toLowerCase().includes(wanted));
  }
  const order = orderOf[Number($("sort").value || 0)];
  if (order) rows.sort(order[1]);
  table.show(rows, {
    metric: sweep.metric, all: trials.size, best: sweep.ablation ? null : sweep.best?.[0] ?? null,
    state: (row) => STATES[row.state].id, cells: (row) => cells(row, STATES[row.state].text, settings(row)),
  });
  if (view === "epoch") byEpoch();
  else byTrial();
}

function byEpoch() {
  const chosen = place().trial, best = sweep.best?.[0];
  const rank = (id) => (id === chosen ? 3 : id === best ? 2 : trials.get(id)?.state === 1 ? 1 : 0);
  const shown = drawn.filter((id) => curves.get(id)?.[0].length && trials.has(id));
  const series = shown.sort((one, other) => rank(one) - rank(other)).map((id) => {
    const [xs, ys] = curves.get(id), level = rank(id);
    const color = level === 3 ? "accent" : level === 2 ? "COMPLETE" : STATES[trials.get(id).state].id;
    return {
      id, xs, ys, color, width: level >= 2 ? 2.5 : level === 1 ? 1.75 : 1.1, alpha: level ? 1 : shown.length > 40 ? 0.4 : 0.6,
      dots: level === 3 ? 3 : 0, says: (index) => `trial ${id} · epoch ${xs[index]} · ${number(ys[index])}`,
    };
  });
  chart.show({ series, x: "epoch", label: `${sweep.metric} by epoch of ${shown.length} trials; the table has their last values` });
  $("chart-note").textContent = drawn.length < trials.size
    ? `${count(shown.length)} of ${count(trials.size)} curves: the best, those that run, and a sample.`
    : "A curve for each trial, in the color of its state; the best is bold. Click one to see all of it.";
}

function byTrial() {
  const rows = [...trials.values()].filter((row) => typeof row.value === "number").sort((one, other) => one.number - other.number);
  const groups = new Map();
  for (const row of rows) {
    const id = STATES[row.state].id;
    if (!groups.has(id)) groups.set(id, { id, ids: [], xs: [], ys: [], color: id, line: false, dots: rows.length > 2000 ? 1.5 : 3, alpha: 0.75 });
    const group = groups.get(id);
    group.ids.push(row.number);
    group.xs.push(row.number);
    group.ys.push(row.value);
  }
  for (const group of groups.values()) group.says = (index) => `trial ${group.xs[index]} · ${stateText(group.id)} · ${number(group.ys[index])}`;
  const best = { id: -1, xs: [], ys: [], color: "COMPLETE", width: 2, steps: true };
  for (const row of rows.filter((one) => one.state === 2)) {
    const last = best.ys[best.ys.length - 1];
    if (last === undefined || (sweep.maximize ? row.value > last : row.value < last)) {
      best.xs.push(row.number);
      best.ys.push(row.value);
    }
  }
  if (best.xs.length) {
    best.xs.push(rows[rows.length - 1].number);
    best.ys.push(best.ys[best.ys.length - 1]);
  }
  chart.show({ series: [...groups.values(), best], x: "trial", label: `${sweep.metric} of ${rows.length} trials by number` });
  $("chart-note").textContent = "Each trial's last value, in the color of its state; the line is the best complete one so far.";
}

for (const [id, wanted] of [["by-epoch", "epoch"], ["by-trial", "trial"]]) {
  $(id).addEventListener("click", () => {
    view = wanted;
    $("by-epoch").setAttribute("aria-pressed", String(view === "epoch"));
    $("by-trial").setAttribute("aria-pressed", String(view === "trial"));
    redraw();
  });
}

function onSlots(told) {
  $("slots-empty").textContent = told.slots.length ? "" : "No trial runs at the moment: workers start, or the sweep ends.";
  $("slots-empty").hidden = told.slots.length > 0;
  const had = document.activeElement?.dataset?.slot;
  $("slots").replaceChildren(...told.slots.map((slot) => {
    const share = slot.within?.endsWith("%") ? parseFloat(slot.within) / 100 : 0;
    const fill = made("i", "");
    fill.style.width = `${Math.min(100, (100 * (slot.epoch + share)) / Math.max(1, slot.epochs))}%`;
    const speed = typeof slot.images_per_s === "number" ? `${rate(slot.images_per_s)} · ` : "";
    const button = made("button", "slot",
      made("div", "line", made("b", "", `trial ${slot.trial}`), made("span", "", `${speed}slot ${slot.slot + 1}`)),
      made("div", "line", made("span", "", `epoch ${slot.epoch} of ${slot.epochs}${slot.within ? `, ${slot.within}` : ""}`), made("b", "", score(slot.value, slot.stderr))),
      made("div", "meter", fill));
    button.type = "button";
    button.dataset.slot = slot.slot;
    button.addEventListener("click", () => go(key, slot.trial));
    if (slot.log.length) button.append(made("pre", "", slot.log.map(brief).join("\n")));
    return made("li", "", button);
  }));
  if (had !== undefined) document.querySelector(`#slots [data-slot="${CSS.escape(had)}"]`)?.focus();
  $("platform").hidden = !told.logs.length;
  $("platform-logs").replaceChildren(...told.logs.flatMap((log) => [made("p", "", log.name), made("pre", "", log.lines.join("\n"))]));
}

// A line of a log without its date and where it comes from: there is little room.
function brief(text) {
  return text.replace(/^\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d),\d+ (?:INFO|(\w+)) [\w.]+: /, (_, time, level) => `${time} ${level ? `${level} ` : ""}`);
}

function onGpus(told) {
  if (told.absent || !told.gpus.length) {
    $("gpus").replaceChildren(made("p", "", told.absent ?? "none"));
    return;
  }
  $("gpus").replaceChildren(...told.gpus.map((gpu) => {
    const fill = made("i", "");
    fill.style.width = `${gpu.percent ?? 0}%`;
    const said = [gpu.percent === null ? "– %" : `${gpu.percent} %`];
    if (gpu.used !== null && gpu.total !== null) said.push(`${size(gpu.used)} of ${size(gpu.total)}`);
    if (gpu.celsius !== null) said.push(`${gpu.celsius} °C`);
    return made("div", "gpu", made("span", "", made("b", "", `${gpu.index} ${gpu.name}`), made("em", "", said.join(" · "))), made("div", "meter", fill));
  }));
}

// What the closing screen says, once there is one.
async function closing() {
  const over = isFinished(sweep.status) || ["interrupted", "failed", "killed"].includes(sweep.status);
  const now = over ? `${key} ${sweep.status} ${sweep.newest}` : "";
  if (now === closingOf) return;
  closingOf = now;
  if (!over) {
    $("closing").hidden = true;
    return;
  }
  try {
    const told = await (await fetch(`closing?sweep=${encodeURIComponent(key)}`)).json();
    if (closingOf !== now) return;
    $("closing").hidden = false;
    $("closing-text").textContent = told.text ?? told.problem;
  } catch {
    closingOf = "";
  }
}

route();
