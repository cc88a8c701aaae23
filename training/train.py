"""Train the embedded cross-encoder: seeded, resumable, CPU is enough.

    python vectors.py --data DIR --work DIR ranking && python vectors.py --data DIR --work DIR sts
    python teach.py --data DIR --work DIR
    python train.py --data DIR --work DIR --out ../models/minilm-l6-rank

Every step learns from groups of one query and several passages, from pairs of STS Benchmark with their human score,
and from new pairings of their sentences. Started again, it goes on from its last state; `--steps` may then differ.
`evaluate.py` scores the checkpoints.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.multiprocessing as mp
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import finish
from evaluate import keep_memory, read_sts
from packed import Packed

STS_TOKENS, RANK_TOKENS = 128, 420  # the longest of each that is seen in training
HEAD_SEED = 12  # every run from the base starts from the same head, so that the weights of several can be averaged
MEAN_OF = 4  # last checkpoints, whose mean is the model
SAVE_EVERY = 50  # steps between states to go on from
PROCESSES = 2  # of one thread each: threads of one process wait for each other on a busy machine
DROPOUT = 0.1
SHARPER = 5.0  # a softmax over a group is of so many logits


def batches(count, size, lengths, rng):
    """Endless batches of places below `count`, each place once a round; those of a batch have like `lengths`, if any."""
    while count and size:
        order = list(range(count))
        rng.shuffle(order)
        run, chunks = size * 32, []
        for start in range(0, count, run):
            part = order[start : start + run]
            if lengths:
                part.sort(key=lengths.__getitem__)
            chunks += [part[i : i + size] for i in range(0, len(part), size)]
        rng.shuffle(chunks)
        yield from chunks


def rank_losses(scores, targets, order):
    """Pointwise: cross-entropy with the target. Listwise: how far the student's softmax over the group is from that
    of the wanted `order`, which is in deviations."""
    point = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets)
    wanted = torch.log_softmax(order, dim=-1)
    given = torch.log_softmax(SHARPER * scores, dim=-1)
    return point, (wanted.exp() * (wanted - given)).sum()


class Average:
    """The running mean of the weights that learn: steadier than the last step, and what is saved."""

    def __init__(self, network, decay):
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in network.named_parameters() if tensor.requires_grad}

    def update(self, network, step):
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in network.named_parameters():
                if name in self.weights:
                    self.weights[name].lerp_(tensor, 1 - decay)


def rates(network, peak, layer_decay, weight_decay):
    """Parameter groups: a layer learns slower than the one above it, by `layer_decay`; the embeddings stay."""
    network.bert.embeddings.requires_grad_(False)
    layers, found = len(network.bert.encoder.layer), {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            below = layers - 1 - int(name.split("layer.")[1].split(".")[0]) if ".layer." in name else 0
            plain = name.endswith("bias") or "LayerNorm" in name
            found.setdefault((below, plain), []).append(parameter)
    return [{"params": parameters, "peak": peak * layer_decay**below, "weight_decay": 0.0 if plain else weight_decay}
            for (below, plain), parameters in found.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with stsb/")
    parser.add_argument("--work", default="out/work", help="what vectors.py and teach.py left; checkpoints go there")
    parser.add_argument("--init", default="../models/minilm-l6-rank", help="a BERT save to start from")
    parser.add_argument("--out", default="out/minilm-l6-rank", help="where the model is saved in the end")
    parser.add_argument("--name", default="main", help="of this run, inside --work")
    parser.add_argument("--groups", default="groups-0-mpnet+minilm.json", help="files of teach.py in --work, with commas")
    parser.add_argument("--pairs", default="pairs-mpnet+e5.json", help="file of teach.py in --work")
    parser.add_argument("--steps", type=int, default=2100)
    parser.add_argument("--rank-groups", type=int, default=4, help="groups a step")
    parser.add_argument("--sts-pairs", type=int, default=8, help="pairs with a human score a step")
    parser.add_argument("--new-pairs", type=int, default=8, help="new pairings a step")
    parser.add_argument("--lr", type=float, default=8e-5)
    parser.add_argument("--layer-decay", type=float, default=0.9)
    parser.add_argument("--warmup", type=int, default=50, help="steps")
    parser.add_argument("--decay", type=float, default=0.4, help="share of the steps over which the rate falls to 0")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--listwise", type=float, default=1.0, help="weight of the listwise loss")
    parser.add_argument("--sharpness", type=float, default=1.5, help="of the wanted order: its deviations are multiplied by it")
    parser.add_argument("--sts-weight", type=float, default=1.0)
    parser.add_argument("--average", type=float, default=0.995)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=21)
    args = parser.parse_args()

    keep_memory()
    mp.set_start_method("fork")
    torch.set_num_threads(1)
    torch.manual_seed(HEAD_SEED)
    run = Path(args.work) / args.name
    run.mkdir(parents=True, exist_ok=True)
    human = read_sts(args.data, "train")
    new = json.loads((Path(args.work) / args.pairs).read_text(encoding="utf-8")) if args.new_pairs else []
    rank = []
    for name in args.groups.split(","):
        made = json.loads((Path(args.work) / name).read_text(encoding="utf-8"))
        rank += [([(query, made["passages"][place]) for place in places], targets, order)
                 for query, places, targets, order in made["groups"]]

    network = AutoModelForSequenceClassification.from_pretrained(
        args.init, num_labels=1, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.init)
    packed = Packed(network, tokenizer)
    optimizer = torch.optim.AdamW(rates(network, args.lr, args.layer_decay, args.weight_decay), lr=args.lr, fused=True)
    average = Average(network, args.average)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]

    rank_batches = batches(len(rank), args.rank_groups, None, random.Random(args.seed))
    human_batches = batches(len(human), args.sts_pairs, [len(a) + len(b) for a, b, _ in human], random.Random(args.seed + 1))
    new_batches = batches(len(new), args.new_pairs, [len(a) + len(b) for a, b, _ in new], random.Random(args.seed + 2))
    swap = random.Random(args.seed + 3)

    log, first = {"args": public(args), "checkpoints": []}, 0
    if (run / "state.pt").exists():
        state = torch.load(run / "state.pt", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average.weights, first = state["average"], state["step"]
        if (run / "log.json").exists():
            log["checkpoints"] = json.loads((run / "log.json").read_text())["checkpoints"]
    shared = [torch.zeros_like(parameter).share_memory_() for parameter in learning]
    losses, taken = torch.zeros(4).share_memory_(), mp.Value("i", 0)  # point, order, human, new
    start, done = mp.Barrier(PROCESSES), mp.Barrier(PROCESSES)

    def sts(rows, places, dropout):
        pairs = [(row[1], row[0]) if swapped else row[:2] for row, swapped in ((rows[i], side) for i, side in places)]
        gold = torch.tensor([rows[i][2] for i, _ in places])
        return torch.nn.functional.binary_cross_entropy_with_logits(packed.logits(pairs, STS_TOKENS, dropout), gold)

    def learn(kind, what):
        """Adds the gradient of one task, and its losses."""
        if kind == "group":
            pairs, targets, order = rank[what]
            scores = packed.logits(pairs, RANK_TOKENS)
            point, listwise = rank_losses(scores, torch.tensor(targets), args.sharpness * torch.tensor(order))
            ((point + args.listwise * listwise) / args.rank_groups).backward()
            found = torch.tensor([point.item(), listwise.item(), 0, 0]) / args.rank_groups
        else:
            # Dropout for the few pairs that come again and again; soft targets need none.
            loss = sts(human, what, DROPOUT) if kind == "human" else sts(new, what, 0.0)
            (args.sts_weight * loss).backward()
            found = torch.tensor([0, 0, loss.item() * (kind == "human"), loss.item() * (kind == "new")])
        with taken.get_lock():
            losses.add_(found)

    def learn_all(tasks):
        """Takes tasks until none is left: a process that gets more of the machine takes more."""
        while True:
            with taken.get_lock():
                number, taken.value = taken.value, taken.value + 1
            if number >= len(tasks):
                return
            learn(*tasks[number])

    def plan():
        """The tasks of each step; the same in both processes, and in a run that was stopped and goes on."""
        for step in range(1, args.steps + 1):
            tasks = [("group", place) for place in next(rank_batches)]
            for kind, source, count in (("human", human_batches, args.sts_pairs), ("new", new_batches, args.new_pairs)):
                if count:
                    tasks.append((kind, [(place, swap.random() < 0.5) for place in next(source)]))
            if step > first:
                yield step, tasks

    def helper():
        torch.manual_seed(args.seed + first + 1)
        for _, tasks in plan():
            start.wait()
            packed.refresh()
            learn_all(tasks)
            for there, gradient in zip(shared, packed.gradients()):
                there.zero_() if gradient is None else there.copy_(gradient)
            done.wait()

    # The weights are shared memory: the helper sees every step that this process takes.
    network.share_memory()
    mp.Process(target=helper, daemon=True).start()
    began, sums, since, recent = time.time(), torch.zeros(4), 0, None
    with tqdm(total=args.steps, initial=first, unit="step", mininterval=10) as bar:
        for step, tasks in plan():
            rate = min(step / args.warmup, 1.0, (args.steps - step + 1) / max(1, args.steps * args.decay))
            for part in optimizer.param_groups:
                part["lr"] = part["peak"] * rate
            taken.value = 0
            losses.zero_()
            start.wait()
            packed.refresh()
            learn_all(tasks)
            done.wait()
            for there, parameter, gradient in zip(shared, learning, packed.gradients()):
                parameter.grad = there.clone() if gradient is None else there + gradient
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(network, step)
            sums, since = sums + losses, since + 1
            recent = losses.clone() if recent is None else recent.lerp(losses, 0.03)
            bar.update()
            bar.set_postfix_str("point, order, human, new: " + " ".join(f"{value:.3f}" for value in recent), refresh=False)
            if step % args.every == 0 or step == args.steps:
                # Saved is the average; the run goes on from its own last weights.
                log["checkpoints"].append({"step": step, "losses": [round(float(v), 4) for v in sums / since],
                                           "minutes": round((time.time() - began) / 60, 1)})
                bar.write(json.dumps(log["checkpoints"][-1]))
                sums, since = torch.zeros(4), 0
                own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
                network.load_state_dict(average.weights, strict=False)
                network.save_pretrained(str(run / f"step-{step}"))
                finish.plain(run / f"step-{step}", network.state_dict())
                tokenizer.save_pretrained(str(run / f"step-{step}"))
                network.load_state_dict(own)
                (run / "log.json").write_text(json.dumps(log, indent=2) + "\n")
            if step % SAVE_EVERY == 0 or step == args.steps:
                torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(),
                            "average": average.weights, "step": step}, run / "state.tmp")
                (run / "state.tmp").rename(run / "state.pt")
    finish.save(args.out, [run / f"step-{past['step']}" for past in log["checkpoints"][-MEAN_OF:]])


def public(args):
    return {key: value for key, value in vars(args).items() if key not in ("data", "work", "out")}


if __name__ == "__main__":
    main()
