// The playground: reads the form, asks the server, shows what it says.

import { Live } from "./live.js";
import { Ranking } from "./ranking.js";
import { address, ask, hasKey, serverTiming, useKey } from "./server.js";

const $ = (id) => document.getElementById(id);

const EXAMPLE = {
  query: "A man is eating food.",
  documents: [
    "A monkey is playing the drums.",
    "A cheetah is running behind its prey.",
    "Somebody eats a meal.",
    "A man is riding a white horse.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Two men pushed carts through the woods.",
    "A man is eating pasta with a friend.",
  ],
};
/** The model that is compiled in, by its own name. */
const BUILT_IN = "minilm-l6-rank";
const READY_EVERY_MS = 5000;
/** Characters beyond which the command and the answer are not drawn. */
const TEXT_CHARS = 200_000;

const ranking = new Ranking();
const live = new Live(wantKey);
let info = null;
/** What a key lets go on. */
let afterKey = () => {};
/** Ends the request that is running. */
let running = null;

// ---- the form

/** The texts of a JSON array, or of a request's body; `null` where it is neither. */
const jsonDocuments = (text) => {
  if (!/^\s*[[{]/.test(text)) return null;
  try {
    const value = JSON.parse(text);
    const items = Array.isArray(value) ? value : (value.documents ?? value.texts);
    const texts = items.map((item) => (typeof item === "string" ? item : item.text));
    return texts.every((item) => typeof item === "string") ? texts : null;
  } catch {
    return null;
  }
};

const documents = () => {
  const text = $("documents").value;
  const listed = jsonDocuments(text);
  if (listed) return { texts: listed, json: true };
  const blank = $("split-blank").checked;
  const parts = text.split(blank ? /\n[^\S\n]*\n/ : "\n").map((part) => part.trim());
  return { texts: parts.filter((part) => part !== ""), json: false };
};

/** The model that was chosen, where there are several. */
const chosen = () => ($("served-field").hidden ? "" : $("served").value);

const body = () => {
  const made = { query: $("query").value.trim(), documents: documents().texts };
  if (chosen()) made.model = chosen();
  const top = $("top").valueAsNumber;
  if (Number.isFinite(top)) made.top_n = top;
  if ($("raw").checked) made.raw_scores = true;
  if (!$("cut").checked) made.truncate = false;
  return made;
};

const curl = () => {
  const key = hasKey() ? `  -H "authorization: Bearer $RERANKD_API_KEY" \\\n` : "";
  const head = `curl -s '${address("rerank")}' \\\n  -H 'content-type: application/json' \\\n${key}`;
  return `${head}  -d @- <<'JSON'\n${JSON.stringify(body(), null, 2)}\nJSON\n`;
};

/** What the form holds now, beside it. */
const formChanged = () => {
  const { texts, json } = documents();
  const most = info?.max_documents;
  const many = texts.length === 1 ? "1 document" : `${texts.length} documents`;
  const over = most !== undefined && texts.length > most;
  let told = texts.length === 0 ? "no documents yet" : many;
  if (json) told += ", from JSON";
  if (over) told += `; this server takes ${most} at a time`;
  $("count").textContent = told;
  $("count").classList.toggle("over", over);
  $("curl-details").hidden = texts.length === 0;
  if ($("curl-details").open) {
    const text = curl();
    $("curl").textContent =
      text.length <= TEXT_CHARS ? text : "Too long to be shown here; Copy still copies it.";
  }
};

// ---- what went wrong

const HINTS = {
  overloaded: (response) => {
    const seconds = response.headers.get("retry-after");
    return seconds ? `Its queue is full. Try again in ${seconds} s.` : "Its queue is full.";
  },
  not_ready: () => "The model is still loading.",
  draining: () => "This server is stopping; another one should take over.",
};

const clearProblem = () => {
  $("problem").hidden = true;
  $("problem").replaceChildren();
};

const showProblem = (title, text, more = "") => {
  const part = (name, content) => Object.assign(document.createElement(name), { textContent: content });
  const parts = [part("strong", title), part("p", text)];
  if (more) parts.push(Object.assign(part("p", more), { className: "hint" }));
  $("problem").replaceChildren(...parts);
  $("problem").hidden = false;
  ranking.clear();
  $("empty").hidden = true;
  $("answer-details").hidden = true;
  $("timing").textContent = "";
};

const refused = async (response) => {
  let said = {};
  try {
    said = await response.json();
  } catch {
    // A proxy may answer in its own words.
  }
  const type = said.error_type ?? "";
  const title = `${response.status} ${type.replaceAll("_", " ")}`.trim();
  const text = said.message ?? `The answer was ${response.status} ${response.statusText}`.trim();
  const hint = HINTS[type]?.(response) ?? "";
  const id = response.headers.get("x-request-id");
  showProblem(title, text, [hint, id && `Request ${id}`].filter(Boolean).join(" "));
};

// ---- keys

/** Asks for a key, and remembers what it is needed for. */
function wantKey(then = null) {
  if (then) afterKey = then;
  const hint = $("key-hint");
  hint.textContent = hasKey()
    ? "The server did not accept this key."
    : "This server answers those who have a key.";
  hint.classList.toggle("over", hasKey());
  if ($("key-form").hidden) {
    $("key-form").hidden = false;
    $("key").focus();
  }
}

$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  useKey($("key").value);
  if (!(await readInfo())) return;
  $("key").value = "";
  $("key-form").hidden = true;
  live.now();
  const then = afterKey;
  afterKey = () => {};
  then();
});

// ---- ranking

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

const summary = (asked, said, took, response) => {
  const tokens = said.usage?.total_tokens;
  const count = asked.documents.length;
  const parts = [
    `${count} ${count === 1 ? "document" : "documents"}`,
    tokens !== undefined && `${tokens.toLocaleString("en")} tokens`,
    milliseconds(took),
    ...serverTiming(response.headers.get("server-timing")).map(
      ({ name, milliseconds: spent }) => `${name} ${milliseconds(spent)}`,
    ),
  ];
  return parts.filter(Boolean).join(" · ");
};

const setRunning = (controller) => {
  running = controller;
  $("run-text").textContent = controller ? "Cancel" : "Rank";
  $("run-keys").hidden = Boolean(controller);
  $("ranking").setAttribute("aria-busy", Boolean(controller));
};

const rank = async () => {
  if (running) {
    running.abort();
    return;
  }
  const asked = body();
  if (!asked.query) {
    $("query").focus();
    showProblem("No query", "Write what the documents are to be judged by.");
    return;
  }
  if (asked.documents.length === 0) {
    $("documents").focus();
    showProblem("No documents", "Paste at least one text to rank.");
    return;
  }
  setRunning(new AbortController());
  const start = performance.now();
  try {
    const response = await ask("rerank", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(asked),
      signal: running.signal,
    });
    if (response.status === 401) {
      wantKey(rank);
      return;
    }
    if (!response.ok) {
      await refused(response);
      return;
    }
    const text = await response.text();
    show(asked, JSON.parse(text), performance.now() - start, response);
  } catch (error) {
    if (error.name === "AbortError") showProblem("Cancelled", "The server was told to stop.");
    else showProblem("No answer", "The server cannot be reached, or the connection broke.");
  } finally {
    setRunning(null);
  }
};

const show = (asked, said, took, response) => {
  clearProblem();
  $("empty").hidden = true;
  ranking.show({
    results: said.results.map(({ index, relevance_score: score }) => ({ index, score })),
    documents: asked.documents,
    truncated: said.truncated ?? [],
    limit: info?.max_length,
  });
  $("timing").textContent = summary(asked, said, took, response);
  const text = JSON.stringify(said, null, 2);
  $("answer").textContent = text.length <= TEXT_CHARS ? text : "Too long to be shown here.";
  $("answer-details").hidden = false;
  formChanged();
  // On a small screen the ranking is below the form.
  if ($("ranking").getBoundingClientRect().top > 0.6 * innerHeight) $("ranking").scrollIntoView();
  live.now();
};

const example = () => {
  $("query").value = EXAMPLE.query;
  $("split-line").checked = true;
  $("documents").value = EXAMPLE.documents.join("\n");
  formChanged();
  rank();
};

// ---- what is served

const setState = (state, text) => {
  $("state").dataset.state = state;
  $("state").textContent = text;
};

/** Offers the models of the server, where there are several. */
const readModels = async () => {
  const response = await ask("v1/models");
  if (!response.ok) return;
  const { data } = await response.json();
  $("served").replaceChildren(...data.map(({ id }) => new Option(id, id)));
  $("served-field").hidden = data.length < 2;
};

/** Whether `/info` told what is served. */
const readInfo = async () => {
  try {
    if ($("served").length === 0) await readModels();
    const response = await ask(chosen() ? `info?model=${encodeURIComponent(chosen())}` : "info");
    if (response.status === 401) wantKey();
    if (!response.ok) return false;
    info = await response.json();
  } catch {
    return false;
  }
  const parts = [
    info.model_id,
    info.precision,
    info.max_length && `${info.max_length} tokens a pair`,
    info.threads && `${info.threads} ${info.threads === 1 ? "thread" : "threads"}`,
  ];
  $("model").textContent = parts.filter(Boolean).join(" · ");
  $("advice").hidden = info.model_id !== BUILT_IN;
  live.limits(info);
  formChanged();
  return true;
};

/** Follows the server's phase, and reads what it serves once that is known. */
const follow = async () => {
  if (!document.hidden) {
    try {
      const response = await ask("ready");
      const said = await response.json();
      if (response.ok) setState("ready", "ready");
      else setState("waiting", said.error_type === "draining" ? "stopping" : "loading");
      if (response.ok && !info && $("key-form").hidden) await readInfo();
    } catch {
      setState("away", "no answer");
    }
  }
};

// ---- wiring

const mac = /Mac|iPhone|iPad/.test(navigator.platform);
for (const keys of [$("run-keys"), $("empty-keys")]) keys.textContent = mac ? "⌘ ↵" : "Ctrl ↵";

$("request").addEventListener("submit", (event) => {
  event.preventDefault();
  rank();
});
$("request").addEventListener("input", formChanged);
$("served").addEventListener("change", readInfo);
addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  if (!running) rank();
});
$("example").addEventListener("click", example);
$("example-too").addEventListener("click", () => {
  $("ranking").focus();
  example();
});
$("curl-details").addEventListener("toggle", formChanged);
$("copy").addEventListener("click", async () => {
  const text = curl();
  try {
    await navigator.clipboard.writeText(text);
    $("copy").textContent = "Copied";
  } catch {
    // Browsers give the clipboard to secure origins only; this may be plain HTTP.
    getSelection().selectAllChildren($("curl"));
    $("copy").textContent = `Selected: ${mac ? "⌘" : "Ctrl"} C copies`;
  }
  setTimeout(() => {
    $("copy").textContent = "Copy";
  }, 2000);
});

formChanged();
follow();
setInterval(follow, READY_EVERY_MS);
live.now();
