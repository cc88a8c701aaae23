"""Targets to train on: groups of a query and passages, and new pairings of STS-B's training sentences.

    python teach.py --data DIR --work DIR [--teachers minilm,mpnet] [--pairs 60000]

Writes `groups-PART-TEACHERS.json` and `pairs-TEACHERS.json` into the work folder, from the vectors that `vectors.py`
leaves there.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluate import Bm25, logits, read_sts
from texts import collect, grams, judged
from vectors import sentences, vectors

DEPTH = 30  # of BM25's best, over which scores are standardized
BM25_SHARE = 0.35  # of BM25 beside the mean of the teachers
GROUP = 6  # passages
PER_SENTENCE = 8  # new pairings that start at a sentence, at most


def standard(values, over):
    """`values` in deviations from the mean of `over`."""
    return (values - over.mean()) / (over.std() + 1e-6)


def lines(data, work, teachers):
    """teacher -> the line from its cosine to the human score, fitted on STS-B's training pairs."""
    train, texts = read_sts(data, "train"), sentences(data)
    place = {text: i for i, text in enumerate(texts)}
    left, right = [place[a] for a, *_ in train], [place[b] for _, b, _ in train]
    found = {}
    for name in teachers:
        known = vectors(work, name, texts)
        found[name] = np.polyfit((known[left] * known[right]).sum(1), [score for *_, score in train], 1)
    return found


def groups(data, work, part, teachers):
    """[query, places of passages, targets, order]: a target is on the scale of STS-B, and order is in deviations
    over BM25's best.

    A passage counts as the mean of the teachers' standardized cosines, a share of BM25's standardized score, and for
    the passage that the query was made from, how sure it is that it answers. The target has the mean and the
    deviation of the teachers' cosines on the scale of STS-B, in this order.
    """
    made, rng = collect(work, data, part), np.random.default_rng(part)
    fits = lines(data, work, teachers)
    index, found = Bm25(made["passages"]), []
    asked = {name: vectors(work, name, made["queries"]) for name in teachers}
    known = {name: vectors(work, name, made["passages"]) for name in teachers}
    for number, query in enumerate(tqdm(made["queries"], desc="groups", mininterval=10)):
        own, sure = made["groups"][number]
        words = index.scores(query)
        listed = np.argsort(-words, kind="stable")[:DEPTH]
        cosines = {name: known[name] @ asked[name][number] for name in teachers}
        fused = np.mean([standard(cosines[name], cosines[name][listed]) for name in teachers], axis=0)
        fused = fused + BM25_SHARE * standard(words, words[listed])
        fused[own] += sure
        level = np.mean([np.polyval(fits[name], cosines[name]) for name in teachers], axis=0)
        order = standard(fused, fused[listed])
        targets = np.clip(level[listed].mean() + level[listed].std() * order, 0.0, 1.0)

        chosen = [own]
        best = listed[np.argsort(-fused[listed])]
        near = [np.argsort(-cosines[name])[:8] for name in teachers]
        for pool, count in ((best[:5], 2), *((pool, 1) for pool in near), (best[5:], GROUP)):
            pool = [int(place) for place in rng.permutation(pool) if place not in chosen]
            chosen += pool[: min(count, GROUP - len(chosen))]
        found.append([query, chosen, targets[chosen].round(4).tolist(), order[chosen].round(3).tolist()])
    made = {"passages": made["passages"], "groups": found, "lines": {name: list(fit) for name, fit in fits.items()}}
    save(groups_file(work, part, teachers), made)


def pairs(data, work, count, teachers, network, tokenizer):
    """[a, b, score] of new pairings: half what a line through the teachers' cosines says, half the model so far.

    Partners are near by the first teacher, log-uniformly in rank, so that scores of all sizes occur. A sentence
    that shares words with a validation or test pair is left out.
    """
    known, rng = judged(data), np.random.default_rng(0)
    train, texts = read_sts(data, "train"), sentences(data)
    place = {text: i for i, text in enumerate(texts)}
    told = {name: vectors(work, name, texts) for name in teachers}
    allowed = np.array([not grams(text) & known for text in texts])
    print(f"{(~allowed).sum()} of {len(texts)} sentences share words in a row with judged texts: left out", flush=True)
    human = {frozenset((place[a], place[b])) for a, b, _ in train}
    chosen = []
    for a in rng.permutation(np.flatnonzero(allowed)):
        ranks = np.argsort(-(told[teachers[0]] @ told[teachers[0]][a]))
        for rank in 10 ** rng.uniform(0, np.log10(len(texts) - 1), PER_SENTENCE):
            b = ranks[int(rank)]
            pair = frozenset((int(a), int(b)))
            if allowed[b] and a != b and pair not in human:
                human.add(pair)
                chosen.append((a, b))
        if len(chosen) >= count:
            break

    def features(left, right):
        return np.stack([(told[name][left] * told[name][right]).sum(1) for name in teachers] + [np.ones(len(left))], 1)

    left, right = np.array([place[a] for a, *_ in train]), np.array([place[b] for _, b, _ in train])
    weights = np.linalg.lstsq(features(left, right), np.array([score for *_, score in train]), rcond=None)[0]
    left, right = np.array(chosen).T
    said = features(left, right) @ weights
    own = 1 / (1 + np.exp(-logits(network, tokenizer, [(texts[a], texts[b]) for a, b in chosen], size=16)))
    print("weights", dict(zip((*teachers, "offset"), weights.round(3))), "agreement with the model so far",
          np.corrcoef(said, own)[0, 1].round(3), flush=True)
    scores = np.clip((said + own) / 2, 0.0, 1.0).round(4)
    save(pairs_file(work, teachers), [[texts[a], texts[b], float(score)] for (a, b), score in zip(chosen, scores)])


def groups_file(work, part, teachers):
    return Path(work) / f"groups-{part}-{'+'.join(teachers)}.json"


def pairs_file(work, teachers):
    return Path(work) / f"pairs-{'+'.join(teachers)}.json"


def save(path, made):
    path.with_suffix(".part").write_text(json.dumps(made), encoding="utf-8")
    path.with_suffix(".part").rename(path)


def main():
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", default="out/work")
    parser.add_argument("--part", type=int, default=0, help="of the texts")
    parser.add_argument("--teachers", default="mpnet,minilm", help="of the groups")
    parser.add_argument("--pair-teachers", default="mpnet,e5", help="of the pairings, beside the model so far")
    parser.add_argument("--pairs", type=int, default=60000)
    parser.add_argument("--model", default="../models/minilm-l6-rank", help="the model so far")
    args = parser.parse_args()
    torch.set_num_threads(1)
    teachers, pair_teachers = args.teachers.split(","), args.pair_teachers.split(",")
    if not groups_file(args.work, args.part, teachers).exists():
        groups(args.data, args.work, args.part, teachers)
    if not pairs_file(args.work, pair_teachers).exists():
        network = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
        pairs(args.data, args.work, args.pairs, pair_teachers, network, AutoTokenizer.from_pretrained(args.model))


if __name__ == "__main__":
    main()
