#!/usr/bin/env python3
"""Measures `rerankd` on an NVIDIA GPU beside torch on the same GPU, with the same texts.

    pip install -r benches/requirements.txt
    make bench-cuda

Makes a cross-encoder with seeded random weights of one of the shapes, and measures in turns the
pairs a second of `rerankd` in this process, of its bare sessions, and of torch in FP16 with SDPA and batches sorted
by length, tokenizing included. Prints a line of JSON for each, and for each workload the ratio to torch and the share
of the GPU's peak: what torch reaches in a product of 8192 x 8192 numbers in FP16.

`--squeeze` measures something else: torch takes nearly all of the memory that is free once the model is loaded, so
that batches do not fit any more. The line that it prints has the answers by their status.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from compare import TOKENIZER, WORKLOADS, Requests, load, timed

BATCH = 128
# Layers, width and heads. 24x1024 is the shape of bge-reranker-v2-m3, modernbert that of ModernBERT-base, deberta that
# of DeBERTa-v3-base, and qwen3 that of the first layers of Qwen3-Reranker-0.6B.
SHAPES = {
    "6x384": (6, 384, 12),
    "6x768": (6, 768, 12),
    "12x768": (12, 768, 12),
    "24x1024": (24, 1024, 16),
    "modernbert": (22, 768, 12),
    "deberta": (12, 768, 12),
    "qwen3": (8, 1024, 16),
}
# Weights of a layer's products, over the square of its width.
PRODUCTS = {"modernbert": 4 + 3 * 1.5, "qwen3": 2 + 2 * 1 + 2 + 3 * 3}
# Bytes that `--squeeze` leaves.
LEFT = 128 << 20


def make(shape: str, folder: Path) -> Path:
    """The model of a shape, made once."""
    import torch
    import transformers

    layers, width, heads = SHAPES[shape]
    folder = folder / shape
    if (folder / "model.safetensors").exists():
        return folder
    torch.manual_seed(width)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "num_labels": 1}
    if shape == "modernbert":
        # Of the tokenizer.
        tokens = {"cls_token_id": 101, "bos_token_id": 101, "sep_token_id": 102, "eos_token_id": 102, "pad_token_id": 0}
        config = transformers.ModernBertConfig(**sizes, **tokens, intermediate_size=3 * width // 2, vocab_size=30522)
        model = transformers.ModernBertForSequenceClassification(config)
    elif shape == "deberta":
        positions = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
        buckets = {"position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
        vocabulary = {"vocab_size": 30522, "type_vocab_size": 0, "pad_token_id": 0}
        config = transformers.DebertaV2Config(
            **sizes, **positions, **buckets, **vocabulary, intermediate_size=4 * width
        )
        model = transformers.DebertaV2ForSequenceClassification(config)
    elif shape == "qwen3":
        attention = {"num_key_value_heads": heads // 2, "head_dim": 128}
        vocabulary = {"vocab_size": 30522, "pad_token_id": 0}
        config = transformers.Qwen3Config(**sizes, **attention, **vocabulary, intermediate_size=3 * width)
        model = transformers.Qwen3ForSequenceClassification(config)
    else:
        model = transformers.BertForSequenceClassification(
            transformers.BertConfig(**sizes, intermediate_size=4 * width)
        )
    model.save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        (folder / name).write_bytes((TOKENIZER / name).read_bytes())
    return folder


def torch_half(folder: Path, shape: str):
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # DeBERTa has no other attention in transformers.
    attention = "eager" if shape == "deberta" else "sdpa"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float16, attn_implementation=attention
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


def peak() -> float:
    """Operations a second of a large product in FP16."""
    import torch

    size, rounds = 8192, 20
    x = torch.randn(size, size, device="cuda", dtype=torch.float16)
    for count in (3, rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            x @ x
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
    return rounds * 2 * size**3 / elapsed


def engine(folder: Path, *flags: str) -> list[str]:
    return ["--", "--model", str(folder), "--device", "cuda", "--precision", "fp16", "--cache-size", "0", *flags]


def warm_timed(score, requests: Requests, seconds: float) -> dict:
    """Pairs a second after the second of warm-up that `rerankd` has too."""
    timed(score, requests, 1)
    return timed(score, requests, seconds)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    import torch

    layers, width, _ = SHAPES[arguments.shape]
    products = PRODUCTS.get(arguments.shape, 4 + 2 * 4)
    best = peak()
    common = {"gpu": torch.cuda.get_device_name(), "shape": arguments.shape}
    print(json.dumps(common | {"peak_tflops": best / 1e12}), flush=True)
    reference = torch_half(folder, arguments.shape)
    for workload in arguments.workloads.split(","):
        flags = ["--workload", workload, "--clients", "16"]
        systems = {
            "rerankd": lambda: load(arguments.rerankd, [*flags, *engine(folder)], arguments.seconds, 1, "1s"),
            "bare": lambda: load(arguments.rerankd, [*flags, "--bare", *engine(folder)], arguments.seconds, 1, "1s"),
            "torch": lambda: warm_timed(reference, Requests(arguments.rerankd, workload, 1), arguments.seconds),
        }
        rates = {}
        for name, measure in systems.items():
            figures = measure()
            rates[name] = figures["pairs_per_second"]
            # Of the products with weights; attention is left out.
            operations = 2 * products * layers * width**2 * figures["tokens_per_second"]
            line = {"workload": workload, "system": name, "pairs_per_second": rates[name]}
            print(json.dumps(common | line | {"share_of_peak": operations / best}), flush=True)
        ratio = rates["rerankd"] / rates["torch"]
        print(json.dumps(common | {"workload": workload, "ratio": ratio}), flush=True)


def squeeze(arguments: argparse.Namespace, folder: Path) -> None:
    import torch

    flags = ["--bare", "--json", "--duration", f"{arguments.seconds}s", "--warm-up", "0s", "--target-ms", "0"]
    batches = ["--workload", "long", "--documents", "512", "--clients", "4"]
    command = [arguments.rerankd, "bench", *flags, *batches, *engine(folder, "--cuda-batch-tokens", "262144")]
    free = torch.cuda.mem_get_info()[0]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # The weights are on the GPU once this much is gone.
    weights = (folder / "model.safetensors").stat().st_size // 2
    while process.poll() is None and free - torch.cuda.mem_get_info()[0] < weights:
        time.sleep(0.05)
    held = []
    least = free
    while process.poll() is None:
        now = torch.cuda.mem_get_info()[0]
        least = min(least, now)
        if now > 2 * LEFT:
            held.append(torch.empty(now - LEFT, dtype=torch.uint8, device="cuda"))
        time.sleep(0.05)
    output = process.stdout.read()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with code {process.returncode}")
    statuses = json.loads(output)["bare"]["summary"]["statuses"]
    taken = sum(piece.numel() for piece in held)
    print(json.dumps({"statuses": statuses, "free_bytes": free, "least_free_bytes": least, "taken_bytes": taken}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rerankd", default="target/release/rerankd")
    parser.add_argument("--folder", type=Path, default=Path("target/bench/cuda"))
    parser.add_argument("--shape", choices=SHAPES, default="6x768")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--squeeze", action="store_true")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch finds no GPU")
    folder = make(arguments.shape, arguments.folder)
    (squeeze if arguments.squeeze else compare)(arguments, folder)


if __name__ == "__main__":
    main()
