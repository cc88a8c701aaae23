#!/usr/bin/env python3
"""Compares `rerankd` with torch and with its own ONNX export, on a model of the shape of
gte-multilingual-reranker-base: 12 layers, 768 wide, rotary embeddings, GeGLU.

    pip install -r tests/reference/requirements.txt
    python benches/gte.py --raw docs/bench/DATE-gte.json

Weights are random and the vocabulary is that of the built-in model: neither changes the speed. Every system is
measured once a round, one after the other, and a line for each is added to the raw file.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import compare

ROOT = compare.ROOT
sys.path.insert(0, str(ROOT / "tests" / "reference"))


def make(folder: Path):
    """Writes the model, and returns the reference that it is compared with."""
    import make_encoders
    import torch
    from safetensors.torch import save_file
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    config = make_encoders.gte_config(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, pad_token_id=0,
        rope_scaling={"factor": 8.0, "type": "ntk"}, rope_theta=20000, vocab_size=30522)
    torch.manual_seed(1)
    network = make_encoders.gte(config)(config["vocab_size"]).eval()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = make_encoders.gte_tensors(config)(network.state_dict())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(compare.TOKENIZER)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | inputs))
    with tempfile.TemporaryDirectory() as draft:
        tokenizer.save_pretrained(draft)
        small = BertConfig(vocab_size=30522, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1)
        BertForSequenceClassification(small).save_pretrained(draft)
        model = CrossEncoder(draft, device="cpu", max_length=compare.LONGEST_PAIR)
    model.tokenizer.model_input_names = tokenizer.model_input_names
    model[0].model = network
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="file to add the figures to")
    parser.add_argument("--rerankd", default=str(ROOT / "target" / "release" / "rerankd"))
    parser.add_argument("--folder", type=Path, default=ROOT / "target" / "bench" / "gte")
    parser.add_argument("--workload", default="mixed", choices=compare.WORKLOADS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=12, help="of each measurement")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    model = make(args.folder)
    exported = args.folder.with_name(f"{args.folder.name}-onnx")
    shutil.rmtree(exported, ignore_errors=True)
    subprocess.run([args.rerankd, "export", "--model", str(args.folder), "--out", str(exported)], check=True)

    def bare(folder: Path, *flags: str):
        engine = ["--model", str(folder), *flags, "--threads", str(args.threads)]
        arguments = ["--bare", "--workload", args.workload, "--", *engine]
        return lambda seed: compare.load(args.rerankd, arguments, args.seconds, seed)

    def predict(seed: int):
        requests = compare.Requests(args.rerankd, args.workload, seed)
        score = lambda pairs: model.predict(pairs, batch_size=compare.BATCH, show_progress_bar=False)
        return compare.timed(score, requests, args.seconds)

    systems = {
        "rerankd-fp32": bare(args.folder, "--precision", "fp32"),
        "rerankd-int8": bare(args.folder, "--precision", "int8"),
        "torch": predict,
        "rerankd-onnx": bare(exported),
    }
    with args.raw.open("a") as raw:
        for seed in range(1, args.rounds + 1):
            for name, measure in systems.items():
                found = {"system": name, "workload": args.workload, "seed": seed, "machine": compare.machine(),
                         "threads": args.threads, "commit": compare.commit(), **measure(seed)}
                raw.write(compare.raw_line(found))
                raw.flush()
                print(f"{name:14} {found['pairs_per_second']:8.1f} pairs/s", flush=True)


if __name__ == "__main__":
    main()
