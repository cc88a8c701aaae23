// The live view: counters of `/metrics`, read every two seconds and compared with the last.

import { ask } from "./server.js";

const SVG = "http://www.w3.org/2000/svg";
const EVERY_MS = 2000;
/** After an answer that was no metrics: asking often would not change it. */
const EVERY_WHEN_REFUSED_MS = 15000;
/** Two minutes of samples. */
const SAMPLES = 61;
/** Samples that a rate looks back: 10 s. */
const RATE = 5;
/** Samples that a quantile looks back: 30 s. */
const QUANTILE = 15;
/** Requests that reach the model; probes would make every latency look good. */
const WORK = /rerank|ranking|predict|score|infer$|invocations/;

const unescape = (text) => text.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));

/** The Prometheus text format: a name to its series, each with labels and a value. */
export const parse = (text) => {
  const families = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line);
    if (!found) continue;
    const [, name, inside = "", number] = found;
    const labels = {};
    for (const [, label, value] of inside.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[label] = unescape(value);
    }
    const value = number === "+Inf" ? Infinity : Number(number);
    if (!families.has(name)) families.set(name, []);
    families.get(name).push({ labels, value });
  }
  return families;
};

/** The sum of a family's series; `undefined` where there is none. */
const total = (families, name, keep = () => true) =>
  families.get(name)?.filter(keep).reduce((sum, { value }) => sum + value, 0);

/** Cumulative buckets by their upper ends, over all series that are kept. */
const buckets = (families, name, keep = () => true) => {
  const ends = new Map();
  for (const { labels, value } of families.get(`${name}_bucket`)?.filter(keep) ?? []) {
    const end = labels.le === "+Inf" ? Infinity : Number(labels.le);
    ends.set(end, (ends.get(end) ?? 0) + value);
  }
  return ends;
};

/**
 * The value below which a part `q` of what lies between two readings of a histogram is, as
 * `histogram_quantile` of Prometheus estimates it. `undefined` where nothing was counted.
 */
export const quantile = (q, before, after) => {
  const ends = [...after.keys()].sort((a, b) => a - b);
  const counts = ends.map((end) => after.get(end) - (before.get(end) ?? 0));
  const rank = q * (counts.at(-1) ?? 0);
  if (!(rank > 0)) return undefined;
  const at = counts.findIndex((count) => count >= rank);
  const low = at === 0 ? 0 : ends[at - 1];
  if (ends[at] === Infinity) return low;
  const below = at === 0 ? 0 : counts[at - 1];
  return low + ((ends[at] - low) * (rank - below)) / (counts[at] - below);
};

const work = ({ labels }) => WORK.test(labels.route ?? "");

/** What one reading of `/metrics` says; what it does not say is undefined. */
const sample = (text) => {
  const families = parse(text);
  const of = (name, keep) => total(families, `rerankd_${name}`, keep);
  if (of("pairs_total") === undefined) return undefined;
  return {
    at: performance.now(),
    queue: of("queue_tokens"),
    delay: of("queue_delay_seconds"),
    hits: of("cache_hits_total"),
    misses: of("cache_misses_total"),
    refused: of("refused_requests_total"),
    pairs: of("pairs_total"),
    tokens: of("tokens_total"),
    requests: of("request_seconds_count", work) ?? 0,
    seconds: buckets(families, "rerankd_request_seconds", work),
    waits: buckets(families, "rerankd_queue_seconds"),
    batches: of("batch_pairs_count"),
    batchPairs: of("batch_pairs_sum"),
    batchTokens: of("batch_tokens_sum"),
    inference: of("inference_seconds_sum"),
  };
};

const number = (value) => {
  if (value === undefined || !Number.isFinite(value)) return "–";
  const digits = value !== 0 && Math.abs(value) < 10 ? 1 : 0;
  return value.toLocaleString("en", { minimumFractionDigits: 0, maximumFractionDigits: digits });
};

export const duration = (seconds) => {
  if (seconds === undefined || !Number.isFinite(seconds)) return "–";
  return seconds < 1 ? `${number(seconds * 1e3)} ms` : `${number(seconds)} s`;
};

/** What the four cells show, from samples (oldest first) up to the one at `at`. */
const figures = (samples, at) => {
  const now = samples[at];
  const recent = samples[Math.max(0, at - RATE)];
  const older = samples[Math.max(0, at - QUANTILE)];
  const passed = (now.at - recent.at) / 1e3;
  const rate = (name) => (passed > 0 ? (now[name] - recent[name]) / passed : undefined);
  const batches = now.batches - older.batches;
  const mean = (name) => (batches > 0 ? (now[name] - older[name]) / batches : undefined);
  const known = now.hits - older.hits;
  const looked = known + now.misses - older.misses;
  return {
    queue: now.queue,
    delay: now.delay,
    known: looked > 0 ? known / looked : undefined,
    wait: quantile(0.5, older.waits, now.waits),
    refused: now.refused - samples[0].refused,
    pairs: rate("pairs"),
    tokens: rate("tokens"),
    requests: rate("requests"),
    median: quantile(0.5, older.seconds, now.seconds),
    p95: quantile(0.95, older.seconds, now.seconds),
    batchPairs: mean("batchPairs"),
    batchTokens: mean("batchTokens"),
    inference: mean("inference"),
  };
};

/** A line of values over the last two minutes, the newest at the right; gaps stay gaps. */
const spark = (svg, values, label) => {
  const high = Math.max(...values.filter(Number.isFinite), 0);
  const x = (at) => ((SAMPLES - values.length + at) / (SAMPLES - 1)) * 120;
  const y = (value) => 30.5 - (high > 0 ? value / high : 0) * 28;
  const runs = [];
  values.forEach((value, at) => {
    if (!Number.isFinite(value)) return;
    if (at > 0 && Number.isFinite(values[at - 1])) runs.at(-1).push([x(at), y(value)]);
    else runs.push([[x(at), y(value)]]);
  });
  const path = (name, d) => {
    const made = document.createElementNS(SVG, "path");
    made.setAttribute("class", name);
    made.setAttribute("d", d);
    return made;
  };
  const points = (run) => run.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join("L");
  const line = runs.map((run) => `M${points(run)}h0.01`).join("");
  const area = runs
    .map((run) => `M${run[0][0].toFixed(1)} 31L${points(run)}L${run.at(-1)[0].toFixed(1)} 31Z`)
    .join("");
  svg.setAttribute("viewBox", "0 0 120 32");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(path("base", "M0 31.5H120"), path("area", area), path("line", line));
  svg.setAttribute("aria-label", label);
};

export class Live {
  #note = document.getElementById("live-note");
  #cells = document.getElementById("cells");
  #samples = [];
  #timer = 0;
  #limits = {};
  #unauthorized;

  /** `unauthorized` is called where the server requires an API key. */
  constructor(unauthorized) {
    this.#unauthorized = unauthorized;
    document.addEventListener("visibilitychange", () => this.now());
  }

  /** What `/info` says: the tokens of a batch, for comparison. */
  limits(info) {
    this.#limits = info;
  }

  /** Reads now, and from now on every two seconds while somebody can see it. */
  now() {
    clearTimeout(this.#timer);
    if (!document.hidden) this.#read();
  }

  async #read() {
    let wait = EVERY_MS;
    try {
      const response = await ask("metrics", { headers: { accept: "text/plain" } });
      if (response.status === 401) {
        this.#unauthorized();
        this.#off("`/metrics` wants an API key.");
        return;
      }
      const taken = response.ok ? sample(await response.text()) : undefined;
      if (taken) {
        this.#take(taken);
      } else {
        wait = EVERY_WHEN_REFUSED_MS;
        const what = response.ok ? "gave no figures of this server" : `answered ${response.status}`;
        this.#off(`\`/metrics\` ${what}. It may be on a port of its own.`);
      }
    } catch {
      this.#off("`/metrics` cannot be reached.");
    }
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.#read(), wait);
  }

  #off(why) {
    this.#samples = [];
    this.#cells.classList.add("off");
    this.#note.textContent = why;
    for (const cell of this.#cells.children) {
      cell.querySelector("b").textContent = "–";
      for (const part of cell.querySelectorAll(".figure span, .hint")) part.textContent = "";
      const name = cell.querySelector("h3").textContent;
      spark(cell.querySelector("svg"), [], `${name}: not measured`);
    }
  }

  #take(taken) {
    const last = this.#samples.at(-1);
    // Counters go back when the server has started anew.
    if (last && taken.pairs < last.pairs) this.#samples = [];
    this.#samples.push(taken);
    if (this.#samples.length > SAMPLES) this.#samples.shift();
    this.#cells.classList.remove("off");
    this.#note.textContent = "the last two minutes";
    this.#draw();
  }

  #draw() {
    const samples = this.#samples;
    const history = samples.map((_, at) => figures(samples, at));
    const now = history.at(-1);
    const values = (name) => history.map((figure) => figure[name]);
    const limit = this.#limits.max_batch_tokens;
    const highest = (name, format) => {
      const known = values(name).filter(Number.isFinite);
      return known.length > 0 ? `highest ${format(Math.max(...known))}` : "nothing yet";
    };

    const refused = now.refused > 0 ? ` · ${number(now.refused)} refused` : "";
    const waited = now.wait === undefined ? "nothing waited" : `a pair waited ${duration(now.wait)}`;
    const delay = now.delay === undefined ? "" : `${duration(now.delay)} of work · `;
    this.#cell("queue", number(now.queue), "tokens", `${delay}${waited}${refused}`);
    this.#line("queue", values("queue"), highest("queue", (v) => `${number(v)} tokens`));

    const known = now.known === undefined ? "" : ` · ${Math.round(now.known * 100)} % known`;
    const more =
      now.tokens === undefined
        ? "counting"
        : `${number(now.tokens)} tokens/s · ${number(now.requests)} requests/s${known}`;
    this.#cell("throughput", number(now.pairs), "pairs/s", more);
    this.#line("throughput", values("pairs"), highest("pairs", (v) => `${number(v)} pairs/s`));

    const [median, unit] = duration(now.median).split(" ");
    const quiet = now.median === undefined;
    this.#cell(
      "latency",
      median,
      quiet ? "" : `${unit} median`,
      quiet ? "no requests in 30 s" : `95 of 100 within ${duration(now.p95)}`,
    );
    this.#line("latency", values("p95"), highest("p95", duration));

    const of = limit ? ` of ${number(limit)}` : "";
    const idle = now.batchPairs === undefined;
    this.#cell(
      "batches",
      number(now.batchPairs),
      idle ? "" : "pairs each",
      idle
        ? "no batches in 30 s"
        : `${number(now.batchTokens)}${of} tokens · ${duration(now.inference)} in the model`,
    );
    this.#line("batches", values("batchPairs"), highest("batchPairs", (v) => `${number(v)} pairs`));
  }

  #cell(name, figure, unit, more) {
    const cell = this.#cells.querySelector(`[data-cell=${name}]`);
    cell.querySelector("b").textContent = figure;
    cell.querySelector(".figure span").textContent = unit;
    cell.querySelector(".hint").textContent = more;
  }

  #line(name, values, label) {
    const cell = this.#cells.querySelector(`[data-cell=${name}]`);
    const title = cell.querySelector("h3").textContent;
    spark(cell.querySelector("svg"), values, `${title} over two minutes: ${label}`);
  }
}
