#!/usr/bin/env python3
"""Compares `rerankd` with other ways to run the same cross-encoder, on the same texts and threads.

    pip install -r benches/requirements.txt
    python benches/compare.py models target/bench
    python benches/compare.py round target/bench/384 --raw target/bench/raw.jsonl
    python benches/compare.py report target/bench/raw.jsonl docs/bench/2026-01-31-comparison

`models` makes two cross-encoders of six layers, 384 and 768 wide, and one of the shape of
mxbai-rerank-base-v1 with fewer words, with seeded random weights: speed does not depend on what the
weights say. `round` measures every system once, one after the other, and
adds a line for each to the raw file; run it several times, so that what else the machine does meets all
systems alike. `report` takes medians over the rounds, and writes a table, the raw data and a plot.

Other servers can take part: `--peer NAME DIALECT URL` names one that already serves the same model.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "models" / "minilm-l6-rank"
WORKLOADS = ["short", "passage", "mixed", "long"]
CLIENTS = 4
BATCH = 32
LONGEST_PAIR = 512
PRECISIONS = ["fp32", "bf16", "int8"]
# Texts that OpenVINO's int8 is calibrated with.
CALIBRATION = ROOT / "tests" / "reference" / "quality.tsv"
# What `models` makes, by folder.
TITLES = {
    "384": "Six layers, 384 wide",
    "768": "Six layers, 768 wide",
    "deberta-base": "DeBERTa-v3, twelve layers, 768 wide",
}
# What each system is, for the table and the plot, in their order.
SYSTEMS = {
    "rerankd-int8": "rerankd over HTTP, int8",
    "rerankd-bf16": "rerankd over HTTP, bf16",
    "rerankd-fp32": "rerankd over HTTP, fp32",
    "rerankd-onnx": "rerankd over HTTP, from an ONNX export",
    "bare-int8": "its bare sessions, int8",
    "bare-bf16": "its bare sessions, bf16",
    "bare-fp32": "its bare sessions, fp32",
    "crossencoder": "CrossEncoder.predict (torch)",
    "openvino-int8": "OpenVINO, int8, padded, sorted by length",
    "openvino-bf16": "OpenVINO, bf16, padded, sorted by length",
    "openvino-fp32": "OpenVINO, fp32, padded, sorted by length",
    "onnxruntime-sorted": "onnxruntime, padded, sorted by length",
    "onnxruntime-arrival": "onnxruntime, padded, in arrival order",
}



def batched(items, size: int):
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


# Models


def bert(width: int):
    import transformers

    config = transformers.BertConfig(
        hidden_size=width,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=4 * width,
        num_labels=1,
    )
    return transformers.BertForSequenceClassification(config)


def deberta():
    import transformers

    config = transformers.DebertaV2Config(
        vocab_size=30522,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        relative_attention=True,
        position_buckets=256,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
        num_labels=1,
    )
    return transformers.DebertaV2ForSequenceClassification(config)


def make_model(folder: Path) -> None:
    import torch
    import transformers

    transformers.set_seed(768)
    model = (deberta() if folder.name == "deberta-base" else bert(int(folder.name))).eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        (folder / name).write_bytes((TOKENIZER / name).read_bytes())

    ids = torch.ones(2, 8, dtype=torch.long)
    dynamic = {0: "batch", 1: "sequence"}
    names = ["input_ids", "attention_mask", "token_type_ids"]

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            inputs = dict(zip(names, (input_ids, attention_mask, token_type_ids)))
            return self.model(**inputs).logits

    torch.onnx.export(
        Logits(),
        (ids, ids, ids * 0),
        folder / "model.onnx",
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: dynamic for name in names} | {"logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


# Systems


class Requests:
    """Batches of pairs of as many requests as there are clients, never the same twice."""

    def __init__(self, rerankd: str, workload: str, seed: int):
        count = 8 * CLIENTS
        command = [rerankd, "bench", "--workload", workload, "--seed", str(seed)]
        lines = subprocess.check_output([*command, "--print-requests", str(count)], text=True)
        self.requests = [json.loads(line) for line in lines.splitlines()]

    def waves(self):
        """Pairs and the number of their tokens."""
        while True:
            for wave in batched(self.requests, CLIENTS):
                pairs = [(r["query"], d) for r in wave for d in r["documents"]]
                yield pairs, sum(r["tokens"] for r in wave)


def timed(score, requests: Requests, seconds: float) -> dict:
    """Pairs a second of `score`, which takes the pairs of all clients' requests at once."""
    waves = requests.waves()
    score(next(waves)[0][:8])
    done = {"pairs": 0, "tokens": 0}
    start = time.perf_counter()
    while True:
        pairs, tokens = next(waves)
        score(pairs)
        done["pairs"] += len(pairs)
        done["tokens"] += tokens
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            rates = {f"{what}_per_second": count / elapsed for what, count in done.items()}
            return rates | {"seconds": elapsed}


def cross_encoder(folder: Path, threads: int):
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    model = CrossEncoder(str(folder), device="cpu", max_length=LONGEST_PAIR)
    return lambda pairs: model.predict(pairs, batch_size=BATCH, show_progress_bar=False)


def onnxruntime_session(folder: Path, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    used = {value.name for value in session.get_inputs()}
    return used, lambda inputs: session.run(None, inputs)


def openvino_session(folder: Path, precision: str, threads: int):
    import openvino

    file = openvino_int8(folder) if precision == "int8" else folder / "model.onnx"
    config = {"INFERENCE_NUM_THREADS": threads}
    # In int8, OpenVINO chooses the precision of what is not quantized.
    if precision != "int8":
        config["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
    model = openvino.Core().compile_model(file, "CPU", config)
    request = model.create_infer_request()
    used = {name for value in model.inputs for name in value.names}
    return used, request.infer


def openvino_int8(folder: Path) -> Path:
    """The model in int8, statically quantized by NNCF, calibrated with texts of this repository."""
    import nncf
    import numpy as np
    import openvino
    from tokenizers import Tokenizer

    file = folder / "openvino-int8.xml"
    if file.exists():
        return file
    model = openvino.Core().read_model(folder / "model.onnx")
    used = {name for value in model.inputs for name in value.names}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST_PAIR)
    tokenizer.no_padding()
    pairs = [tuple(line.split("\t")) for line in CALIBRATION.read_text().splitlines()]

    def inputs(pair):
        encoding = tokenizer.encode(*pair)
        arrays = (encoding.ids, encoding.attention_mask, encoding.type_ids)
        named = zip(("input_ids", "attention_mask", "token_type_ids"), arrays)
        return {name: np.array([ids], dtype=np.int64) for name, ids in named if name in used}

    smooth = nncf.AdvancedSmoothQuantParameters(matmul=0.95)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(pairs, inputs),
        subset_size=len(pairs),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smooth),
    )
    openvino.save_model(quantized, file, compress_to_fp16=False)
    return file


def padded(folder: Path, session):
    import numpy as np
    from tokenizers import Tokenizer

    used, run = session
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST_PAIR)
    tokenizer.no_padding()

    def score(pairs, ordered: bool):
        encodings = tokenizer.encode_batch(pairs)
        order = range(len(pairs))
        if ordered:
            order = sorted(order, key=lambda i: len(encodings[i].ids))
        for chosen in batched(order, BATCH):
            longest = max(len(encodings[i].ids) for i in chosen)
            arrays = np.zeros((3, len(chosen), longest), dtype=np.int64)
            for row, i in enumerate(chosen):
                encoding = encodings[i]
                for array, values in zip(
                    arrays, (encoding.ids, encoding.attention_mask, encoding.type_ids)
                ):
                    array[row, : len(values)] = values
            names = ("input_ids", "attention_mask", "token_type_ids")
            run({name: array for name, array in zip(names, arrays) if name in used})

    return score


class Server:
    """`rerankd serve`, from its start until it is ready to its end."""

    def __init__(self, rerankd: str, folder: Path, what: str, threads: int, port: int):
        self.url = f"http://127.0.0.1:{port}"
        command = [rerankd, "serve", "--listen", f"127.0.0.1:{port}", "--model", str(folder)]
        command += ["--precision", what] if what in PRECISIONS else ["--onnx-file", "model.onnx"]
        settings = ["--threads", str(threads), "--log-level", "warn"]
        self.process = subprocess.Popen([*command, *settings])
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{self.url}/ready", timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"rerankd ended with code {self.process.returncode}")
                time.sleep(0.1)
        sys.exit("rerankd did not become ready")

    def stop(self):
        self.process.terminate()
        self.process.wait()


def raw_line(found: dict) -> str:
    """A line of raw data. Servers may name the model by its path, which is of this machine."""
    return json.dumps(found).replace(f"{ROOT}/", "") + "\n"


def load(rerankd: str, arguments: list[str], seconds: float, seed: int, warm_up: str = "0s") -> dict:
    """What `rerankd bench` finds."""
    command = [rerankd, "bench", "--json", "--target-ms", "0", "--seed", str(seed)]
    times = ["--duration", f"{seconds}s", "--warm-up", warm_up]
    done = subprocess.run([*command, *times, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join([*command, *arguments])} ended with code {done.returncode}")
    report = json.loads(done.stdout)
    return report.get("steady", report.get("bare"))["summary"] | {"info": report["info"]}


# Rounds


def machine() -> str:
    """The processor, with its family and model: a name alone does not always tell."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def commit() -> str:
    git = ["git", "-C", str(ROOT)]
    head = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
    changed = subprocess.check_output([*git, "status", "--porcelain", "src"], text=True)
    return head + ("+changes" if changed.strip() else "")


def round_of(args) -> None:
    seed = args.seed if args.seed is not None else int(time.time())
    folder = args.model.resolve()
    base = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "threads": args.threads,
        "clients": CLIENTS,
        "model": folder.name,
        "seed": seed,
    }
    wanted = lambda name: not args.systems or name in args.systems
    servers = {
        what: Server(args.rerankd, folder, what, args.threads, args.port + number)
        for number, what in enumerate([*PRECISIONS, "onnx"])
        if wanted(f"rerankd-{what}")
    }
    predict = cross_encoder(folder, args.threads) if wanted("crossencoder") else None
    onnx = any(wanted(f"onnxruntime-{order}") for order in ("sorted", "arrival"))
    score = padded(folder, onnxruntime_session(folder, args.threads)) if onnx else None
    openvino = {
        precision: padded(folder, openvino_session(folder, precision, args.threads))
        for precision in PRECISIONS
        if wanted(f"openvino-{precision}")
    }

    def systems(workload):
        common = ["--workload", workload]
        for what, server in servers.items():
            arguments = ["--url", server.url, "--clients", str(CLIENTS), *common]
            yield f"rerankd-{what}", lambda a=arguments: load(
                args.rerankd, a, args.seconds, seed
            )
        for precision in PRECISIONS:
            if wanted(f"bare-{precision}"):
                engine = ["--model", str(folder), "--precision", precision]
                arguments = ["--bare", *common, "--", *engine, "--threads", str(args.threads)]
                yield f"bare-{precision}", lambda a=arguments: load(
                    args.rerankd, a, args.seconds, seed
                )
        for name, dialect, url in args.peer:
            arguments = ["--url", url, "--dialect", dialect, "--clients", str(CLIENTS), *common]
            yield name, lambda a=arguments: load(args.rerankd, a, args.peer_seconds, seed)
        requests = Requests(args.rerankd, workload, seed)
        if predict:
            yield "crossencoder", lambda: timed(predict, requests, args.seconds)
        for precision, infer in openvino.items():
            run = lambda pairs, infer=infer: infer(pairs, True)
            yield f"openvino-{precision}", lambda r=run: timed(r, requests, args.seconds)
        for order in ("sorted", "arrival"):
            if wanted(f"onnxruntime-{order}"):
                run = lambda pairs, ordered=order == "sorted": score(pairs, ordered)
                yield f"onnxruntime-{order}", lambda r=run: timed(r, requests, args.seconds)

    try:
        with args.raw.open("a") as raw:
            for workload in args.workloads:
                for name, measure in systems(workload):
                    found = base | {"workload": workload, "system": name} | measure()
                    raw.write(raw_line(found))
                    raw.flush()
                    print(f"{workload:8} {name:20} {found['pairs_per_second']:8.1f} pairs/s")
    finally:
        for server in servers.values():
            server.stop()


# Report


def medians(lines: list[dict], figure: str) -> dict:
    """(model, workload, system) to the median and all values of a figure."""
    figures = {}
    for line in lines:
        key = (line["model"], line["workload"], line["system"])
        figures.setdefault(key, []).append(line[figure])
    return {key: (statistics.median(values), values) for key, values in figures.items()}


def report(args) -> None:
    lines = [json.loads(line) for line in args.raw.read_text().splitlines()]
    found = medians(lines, "pairs_per_second")
    tokens = medians(lines, "tokens_per_second")
    models = sorted({key[0] for key in found})
    systems = list(dict.fromkeys([*SYSTEMS, *(line["system"] for line in lines)]))
    names = {name: SYSTEMS.get(name, name) for name in systems}
    first = lines[0]
    rounds = max(len(values) for _, values in found.values())
    text = [
        "# Pairs a second, compared",
        "",
        f"{first['machine']}; {first['threads']} threads for every system; {CLIENTS} clients.",
        f"Measured {lines[0]['date'][:16]} to {lines[-1]['date'][:16]} UTC at commit"
        f" {', '.join(dict.fromkeys(line['commit'] for line in lines))}.",
        f"Medians of up to {rounds} rounds, in which the systems took turns; the smallest and the",
        "largest figure in brackets. Every figure is in the JSON file beside this one.",
        "The load generator shares the cores with the servers. Ratios are of tokens a second, as not",
        "every system got through the same number of texts.",
        "",
        *(f"    {command}" for command in args.command),
        "",
    ]
    for model in models:
        text += [f"## {TITLES.get(model, model)}", ""]
        text += ["| pairs/s | " + " | ".join(WORKLOADS) + " |", "|---" * (len(WORKLOADS) + 1) + "|"]
        for system in systems:
            cells = []
            for workload in WORKLOADS:
                median, values = found.get((model, workload, system), (None, []))
                cells.append(
                    f"{median:.1f} ({min(values):.1f}–{max(values):.1f})" if values else "–"
                )
            if any(cell != "–" for cell in cells):
                text.append(f"| {names[system]} | " + " | ".join(cells) + " |")
        text += ["", "Of `rerankd` over HTTP to the others:", ""]
        text += ["| ratio | " + " | ".join(WORKLOADS) + " |", "|---" * (len(WORKLOADS) + 1) + "|"]
        for over, precision in itertools.product(systems, PRECISIONS):
            held = over.startswith(("bare", "openvino"))
            same = not held or over.endswith(precision)
            if over in [f"rerankd-{own}" for own in PRECISIONS] or not same:
                continue
            cells = []
            for workload in WORKLOADS:
                ours = tokens.get((model, workload, f"rerankd-{precision}"))
                theirs = tokens.get((model, workload, over))
                cells.append(f"{ours[0] / theirs[0]:.2f}" if ours and theirs else "–")
            if any(cell != "–" for cell in cells):
                text.append(f"| {precision} / {names[over]} | " + " | ".join(cells) + " |")
        text.append("")
    out = str(args.out)
    data = json.dumps(lines, indent=1)
    Path(out + ".json").write_text(data + "\n")
    text += [f"![pairs a second]({Path(out).name}.svg)", ""]
    Path(out + ".md").write_text("\n".join(text))
    plot(Path(out + ".svg"), models, systems, names, found)


def plot(path: Path, models, systems, names, found) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rerankd"
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        len(models), len(WORKLOADS), figsize=(13, 3.2 * len(models)), squeeze=False
    )
    for row, model in zip(rows, models):
        measured = [w for w in WORKLOADS if any((model, w, s) in found for s in systems)]
        for axes in row[len(measured) :]:
            axes.set_visible(False)
        for axes, workload in zip(row, measured):
            shown = [s for s in systems if (model, workload, s) in found]
            values = [found[model, workload, s][0] for s in shown]
            colors = ["tab:blue" if s.startswith("rerankd") else "tab:gray" for s in shown]
            bars = axes.barh([names[s] for s in shown], values, color=colors)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
            axes.invert_yaxis()
            axes.margins(x=0.2)
            axes.set_title(f"{workload}, {TITLES.get(model, model)}", fontsize=8)
            axes.tick_params(labelsize=8)
            if axes is not row[0]:
                axes.sharey(row[0])
                axes.tick_params(labelleft=False)
    figure.supxlabel("pairs a second", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)

    make = commands.add_parser("models", help="make the models")
    make.add_argument("folder", type=Path)
    make.add_argument("--only", nargs="+", choices=TITLES, help="default: all")
    make.set_defaults(
        run=lambda args: [make_model(args.folder / name) for name in args.only or TITLES]
    )

    one = commands.add_parser("round", help="measure every system once")
    one.add_argument("model", type=Path, help="folder of a model that `models` made")
    one.add_argument("--raw", type=Path, required=True, help="file to add the figures to")
    one.add_argument("--rerankd", default=str(ROOT / "target" / "release" / "rerankd"))
    one.add_argument("--workloads", nargs="+", default=WORKLOADS, choices=WORKLOADS)
    one.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: all")
    one.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    one.add_argument("--seconds", type=float, default=6, help="of each measurement")
    one.add_argument("--peer-seconds", type=float, default=8, help="of each of another server")
    one.add_argument("--seed", type=int, help="default: the time")
    one.add_argument("--port", type=int, default=18080, help="and the next three, for `rerankd`")
    one.add_argument(
        "--peer", nargs=3, action="append", default=[], metavar=("NAME", "DIALECT", "URL")
    )
    one.set_defaults(run=round_of)

    show = commands.add_parser("report", help="write table, data and plot")
    show.add_argument("raw", type=Path)
    show.add_argument("out", type=Path, help="path of the files, without their endings")
    show.add_argument("--command", action="append", default=[], help="a command to be shown")
    show.set_defaults(run=report)

    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
