#!/usr/bin/env python3
"""Measures `rerankd` on an NVIDIA GPU beside torch on the same GPU, with the same texts.

    pip install -r benches/requirements.txt
    make bench-cuda

Makes a cross-encoder of six layers, 768 wide, with seeded random weights, and measures on every workload
the pairs a second of `rerankd` in this process, of its bare sessions, and of torch in FP16 with SDPA and
batches sorted by length. Prints a line of JSON for each, and at the end the ratio to torch.
"""

import argparse
import json
import sys
from pathlib import Path

from compare import WORKLOADS, Requests, load, make_model, timed

BATCH = 128


def torch_half(folder: Path):
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float16, attn_implementation="sdpa"
    )
    model = model.eval().cuda()

    @torch.inference_mode()
    def score(pairs):
        order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
        for first in range(0, len(order), BATCH):
            texts = [list(pairs[i]) for i in order[first : first + BATCH]]
            encoded = tokenizer(texts, padding=True, truncation="longest_first", max_length=512, return_tensors="pt")
            model(**encoded.to("cuda")).logits.float().cpu()

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rerankd", default="target/release/rerankd")
    parser.add_argument("--folder", type=Path, default=Path("target/bench/cuda-768"))
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch finds no GPU")
    if not (arguments.folder / "model.safetensors").exists():
        make_model(768, arguments.folder)
    engine = ["--", "--model", str(arguments.folder), "--device", "cuda", "--precision", "fp16", "--cache-size", "0"]
    gpu = torch.cuda.get_device_name()
    for workload in WORKLOADS:
        rerankd = [arguments.rerankd, ["--workload", workload, "--clients", "16"]]
        found = {
            "rerankd": load(rerankd[0], [*rerankd[1], *engine], arguments.seconds, 1),
            "bare": load(rerankd[0], [*rerankd[1], "--bare", *engine], arguments.seconds, 1),
            "torch": timed(torch_half(arguments.folder), Requests(arguments.rerankd, workload, 1), arguments.seconds),
        }
        for name, figures in found.items():
            line = {"gpu": gpu, "workload": workload, "system": name}
            print(json.dumps(line | {"pairs_per_second": figures["pairs_per_second"]}), flush=True)
        ratio = found["rerankd"]["pairs_per_second"] / found["torch"]["pairs_per_second"]
        print(f"{workload}: {ratio:.2f} times torch", flush=True)


if __name__ == "__main__":
    main()
