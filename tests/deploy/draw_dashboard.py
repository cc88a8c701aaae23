#!/usr/bin/env python3
"""Draws the dashboard as an SVG, of two instances that a load was put on.

    draw_dashboard.py FILE [--seconds S]

Every panel is where the dashboard has it, and shows what Prometheus answers to the panel's own
expressions. It is a drawing of the dashboard, not a screenshot of Grafana.
"""

import argparse
import html
import pathlib
import random
import re
import tempfile
import threading
import time

from stack import DASHBOARD, DOCUMENTS, Prometheus, expressions, haproxy, rerank, servers

COLOURS = ["#3b7dd8", "#d9822b", "#3f9b5a", "#c23d4b", "#8458b3", "#6b7280"]
CELL, ROW, GAP, WIDTH = 50, 25, 6, 1200
STEP = 2


def document(chance: random.Random) -> str:
    """Most are new to the server, a fifth are asked for again and again, a few are longer than the model reads."""
    kind = chance.random()
    if kind < 0.02:
        return f"{chance.randrange(10**6)} A man eats pasta. " * 100
    return f"{chance.choice(DOCUMENTS)} {chance.randrange(50 if kind < 0.2 else 10**6)}"


def put_load(url: str, seconds: float) -> None:
    """Four parts: a little, as much as they can do, more than that, and a little again."""
    clients = [2, 6, 60, 2]
    begun = time.monotonic()
    ends = [begun + seconds * part for part in (0.25, 0.5, 0.75, 1)]

    def ask(client: int) -> None:
        chance = random.Random(client)
        for end, count in zip(ends, clients):
            while time.monotonic() < end:
                if client >= count:
                    time.sleep(max(0.0, end - time.monotonic()))
                    continue
                documents = [document(chance) for _ in range(chance.choice([8, 8, 8, 64]))]
                # A few have less patience than the queue is long, and some say so.
                deadline = {"x-request-timeout-ms": "1500"} if chance.random() < 0.1 else {}
                status, _ = rerank(url, documents, chance.choice([0.7, 10, 30, 30]), deadline)
                time.sleep(chance.expovariate(10) if status == 200 else 0.3)

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(max(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def amount(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"
    scale, suffix = 1.0, ""
    for factor, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            scale, suffix = factor, name
            break
    suffix += {"bytes": "B" if suffix else " B", "reqps": "/s"}.get(unit, "")
    return f"{value / scale:.3g}{suffix}"


def rounded_up(value: float) -> float:
    """The next number that reads well."""
    if value <= 0:
        return 1.0
    size = 10 ** (len(f"{value:.0f}") - 1) if value >= 1 else 10 ** -(len(re.match(r"0\.0*", f"{value:.9f}")[0]) - 1)
    # A quarter of it reads well too.
    return next(size * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 20) if size * step >= value)


def text(x: float, y: float, words: str, size: int, colour: str = "#1f2933", **more: str) -> str:
    others = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}"{others}>{html.escape(words)}</text>'


def series(prometheus: Prometheus, panel: dict, start: float, end: float) -> list[tuple[str, list[tuple[float, float]]]]:
    found = []
    for expression, legend in expressions(panel, "20s"):
        for result in prometheus.ask("query_range", query=expression, start=f"{start}", end=f"{end}", step=f"{STEP}"):
            name = re.sub(r"\{\{(\w+)\}\}", lambda label: result["metric"].get(label[1], ""), legend)
            found.append((name, [(at, float(value)) for at, value in result["values"] if value != "NaN"]))
    return found


def draw_panel(panel: dict, lines: list, start: float, end: float) -> str:
    place = panel["gridPos"]
    x, y = place["x"] * CELL + GAP / 2, place["y"] * ROW + GAP / 2
    width, height = place["w"] * CELL - GAP, place["h"] * ROW - GAP
    out = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="#fff" stroke="#d5dbe3"/>']
    tight = {"textLength": f"{width - 20}", "lengthAdjust": "spacingAndGlyphs"} if len(panel["title"]) * 7 > width - 20 else {}
    out.append(text(x + 10, y + 20, panel["title"], 13, font_weight="600", **tight))
    defaults = panel["fieldConfig"]["defaults"]
    unit = defaults["unit"]
    if panel["type"] == "stat":
        value = lines[0][1][-1][1] if lines and lines[0][1] else None
        colour = "#6b7280"
        for step in defaults["thresholds"]["steps"]:
            if value is not None and (step["value"] is None or value >= step["value"]):
                colour = {"green": "#2f8f4e", "orange": "#c77b1e", "red": "#c23d4b"}[step["color"]]
        shown = "no data" if value is None else amount(value, unit)
        out.append(text(x + width / 2, y + height / 2 + 20, shown, 34, colour, text_anchor="middle"))
        return "\n".join(out)
    if defaults["custom"]["stacking"]["mode"] == "normal":
        below: dict[float, float] = {}
        stacked = []
        for name, points in lines:
            stacked.append((name, [(at, below.setdefault(at, 0.0) + value) for at, value in points]))
            below.update(stacked[-1][1])
        lines = stacked
    left, right, top = x + 62, x + width - 12, y + 34
    # Where each name of the legend begins, and in which of its lines.
    legend, at, below_it = [], left, 0
    for name, _ in lines:
        takes = 28 + 6.2 * len(name)
        if at > left and at + takes > right + 12:
            at, below_it = left, below_it + 1
        legend.append((at, below_it))
        at += takes
    bottom = y + height - 40 - 14 * below_it
    highest = defaults.get("max") or rounded_up(max((v for _, points in lines for _, v in points), default=0))
    for part in range(5):
        level = bottom - (bottom - top) * part / 4
        out.append(f'<line x1="{left}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}" stroke="#e8ecf1"/>')
        out.append(text(left - 6, level + 4, amount(highest * part / 4, unit), 10, "#6b7280", text_anchor="end"))
    for minute in range(int((end - start) // 60) + 1):
        at = left + (right - left) * minute * 60 / (end - start)
        out.append(text(at, bottom + 14, f"{minute} min", 10, "#6b7280", text_anchor="middle" if at < right - 20 else "end"))
    for number, ((name, points), (at, line)) in enumerate(zip(lines, legend)):
        colour = COLOURS[number % len(COLOURS)]
        path, before = "", None
        for when, value in points:
            across = left + (right - left) * (when - start) / (end - start)
            # Where there is no value, there is no line.
            move = "L" if before is not None and when - before <= 1.5 * STEP else "M"
            path += f"{move}{across:.1f} {bottom - (bottom - top) * min(value / highest, 1):.1f}"
            before = when
        out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        foot = bottom + 28 + 14 * line
        out.append(f'<rect x="{at:.0f}" y="{foot - 5:.0f}" width="12" height="3" fill="{colour}"/>')
        out.append(text(at + 16, foot, name, 10, "#4b5563"))
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=240)
    arguments = parser.parse_args()
    flags = ("--threads", "1", "--max-queue-tokens", "16384")
    with tempfile.TemporaryDirectory() as folder, servers(2, *flags) as instances:
        folder = pathlib.Path(folder)
        prometheus = Prometheus(folder, [instance.address for instance in instances])
        try:
            with haproxy(folder, instances) as proxy:
                rerank(proxy.url, DOCUMENTS)
                time.sleep(10)
                start = time.time()
                put_load(proxy.url, arguments.seconds)
                end = time.time()
            # Ports say nothing to a reader.
            names = {instance.address: f"rerankd-{number}" for number, instance in enumerate(instances)}
            drawn, rows = [], 0
            for panel in DASHBOARD["panels"]:
                place = panel["gridPos"]
                rows = max(rows, place["y"] + place["h"])
                if panel["type"] == "row":
                    drawn.append(text(8, place["y"] * ROW + 19, panel["title"], 15, font_weight="600"))
                    continue
                lines = series(prometheus, panel, start, end)
                lines = [(names.get(name, name), points) for name, points in lines]
                if any(name in names.values() for name, _ in lines):
                    lines.sort()
                drawn.append(draw_panel(panel, lines, start, end))
        finally:
            prometheus.close()
    height = rows * ROW + 4
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif">'
    title = "<title>The dashboard of two instances: a little load, as much as they can do, more than that, a little again</title>"
    background = f'<rect width="{WIDTH}" height="{height}" fill="#f4f6f9"/>'
    arguments.file.write_text("\n".join([head, title, background, *drawn, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
