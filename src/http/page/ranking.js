// The ranking: rows with bars and scores, and lines from where each document was to where it is.

const SVG = "http://www.w3.org/2000/svg";

/** Rows that are drawn before somebody asks for the rest. */
const FIRST_ROWS = 50;

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

/**
 * Bars from 0 to 1 where scores lie there; from the lowest to the highest score otherwise, as
 * logits have no ends.
 */
export const scale = (scores) => {
  const low = Math.min(...scores);
  const high = Math.max(...scores);
  if (low >= 0 && high <= 1) return (score) => score;
  if (low === high) return () => 1;
  return (score) => 0.02 + (0.98 * (score - low)) / (high - low);
};

const movement = (before, after) => {
  if (before === after) return ["same", "stayed"];
  const places = Math.abs(before - after);
  const words = `${places} ${places === 1 ? "place" : "places"}`;
  return before > after ? ["up", `up ${words}`] : ["down", `down ${words}`];
};

const row = ({ index, score }, after, text, width, cut) => {
  const before = index + 1;
  const [direction, words] = movement(before, after);
  const move = element("span", { className: `move ${direction}`, title: words });
  move.setAttribute("aria-hidden", "true");
  move.append(
    element("span", { className: "before", textContent: before }),
    element("span", { className: "arrow", textContent: "→" }),
    element("b", { textContent: after }),
  );
  const spoken = element("span", { className: "hidden" });
  spoken.textContent = `Place ${after}, was ${before}: `;
  const shown = element("p", { className: "text", textContent: text || "(empty)" });
  if (!text) shown.classList.add("none");
  const fill = element("span", { className: "fill" });
  fill.style.width = `${(100 * width).toFixed(2)}%`;
  const bar = element("span", { className: "track" }, fill);
  bar.setAttribute("aria-hidden", "true");
  const body = element("div", { className: "body" }, shown, bar);
  if (cut) body.append(element("p", { className: "cut", textContent: cut }));
  const number = element("span", { className: "score", textContent: score.toFixed(4) });
  const item = element("li", {}, move, spoken, body, number);
  item.dataset.index = index;
  return item;
};

/** Whether a row's text is longer than the lines it gets. */
const isLong = (item) => {
  const text = item.querySelector(".text");
  return text.scrollHeight > text.clientHeight + 2;
};

/** Gives a row a way to read the rest of its text. */
const fold = (item) => {
  const text = item.querySelector(".text");
  const button = element("button", { type: "button", className: "link", textContent: "more" });
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    const open = text.classList.toggle("open");
    button.textContent = open ? "less" : "more";
    button.setAttribute("aria-expanded", open);
  });
  text.after(button);
};

export class Ranking {
  #places = document.getElementById("places");
  #rows = document.getElementById("rows");
  #slope = document.getElementById("slope");
  #all = document.getElementById("all");
  #shown = null;

  constructor() {
    this.#all.addEventListener("click", () => {
      const next = this.#rows.children.length;
      this.#draw(this.#shown.results.length);
      this.#rows.children[next].tabIndex = -1;
      this.#rows.children[next].focus();
    });
    new ResizeObserver(() => this.#lines()).observe(this.#rows);
    const point = (event) => this.#point(event.target.closest?.("li"));
    this.#rows.addEventListener("pointerover", point);
    this.#rows.addEventListener("focusin", point);
    this.#rows.addEventListener("pointerleave", () => this.#point(null));
  }

  /**
   * Shows `results` (index and score, best first) of `documents`; `truncated` has the indices of
   * those that were cut, and `limit` the tokens the model reads, where that is known.
   */
  show({ results, documents, truncated, limit }) {
    this.#shown = { results, documents, truncated: new Set(truncated), limit };
    this.#places.hidden = false;
    this.#draw(FIRST_ROWS);
  }

  clear() {
    this.#places.hidden = true;
    this.#all.hidden = true;
    this.#rows.replaceChildren();
  }

  #draw(most) {
    const { results, documents, truncated, limit } = this.#shown;
    const width = scale(results.map(({ score }) => score));
    const cut = limit
      ? `cut: longer than ${limit} tokens with the query`
      : "cut: longer than the model reads";
    const rows = results
      .slice(0, most)
      .map((result, at) =>
        row(
          result,
          at + 1,
          documents[result.index],
          width(result.score),
          truncated.has(result.index) && cut,
        ),
      );
    this.#rows.replaceChildren(...rows);
    // All are measured before the first is changed: to measure after a change lays out anew.
    for (const item of rows.filter(isLong)) fold(item);
    this.#all.hidden = results.length <= most;
    this.#all.textContent = `Show all ${results.length}`;
    this.#lines();
  }

  #lines() {
    const rows = [...this.#rows.children];
    const width = this.#slope.clientWidth;
    if (rows.length === 0 || width === 0) return this.#slope.replaceChildren();
    const height = this.#rows.clientHeight;
    this.#slope.setAttribute("viewBox", `0 0 ${width} ${height}`);
    // Beside the first line of a text: where the places stand.
    const middles = rows.map((item) => item.querySelector(".move").offsetTop + 11);
    const lines = rows.map((item, at) => {
      const before = Number(item.dataset.index);
      // A place that is not drawn is below everything that is.
      const from = middles[before] ?? height + 8;
      const to = middles[at];
      const bend = width * 0.5;
      const line = document.createElementNS(SVG, "path");
      line.setAttribute("d", `M2 ${from}C${bend} ${from} ${width - bend} ${to} ${width - 2} ${to}`);
      line.setAttribute("class", movement(before + 1, at + 1)[0]);
      line.dataset.index = before;
      return line;
    });
    const dots = middles.map((y) => {
      const dot = document.createElementNS(SVG, "circle");
      for (const [name, value] of [["cx", 3], ["cy", y], ["r", 2]]) dot.setAttribute(name, value);
      return dot;
    });
    this.#slope.replaceChildren(...lines, ...dots);
  }

  #point(item) {
    this.#slope.classList.toggle("pointed", Boolean(item));
    for (const line of this.#slope.querySelectorAll("path")) {
      line.classList.toggle("here", line.dataset.index === item?.dataset.index);
    }
  }
}
