"""Figures that training chooses by: STS Benchmark, and reranking of five judged collections after BM25.

    python evaluate.py --data DIR [--rerankd PROGRAM --precision int8] [--test] MODEL...

Scores STS-B validation, and NDCG@10 of BM25's best 30 in new order: Cranfield's queries with even ids, CACM, CISI,
MED and 200 of XQuAD's. With `--test`, STS-B test and Cranfield's odd ids: for the end, once. `--rerankd` scores with
the server's program, which is faster than PyTorch and the only one with int8.
"""

import argparse
import csv
import json
import os
import re
import subprocess
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import scipy.sparse
import torch
from scipy.stats import pearsonr, spearmanr


def keep_memory():
    """Tells the C library to keep what it was given: large tensors otherwise come and go as fresh pages of the
    system, which takes a third of the time."""
    import ctypes

    libc = ctypes.CDLL(None)
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        libc.mallopt(option, value)


DEPTH, CUTOFF = 30, 10  # BM25's best 30 are reordered; the first 10 are judged


def read_sts(data, name):
    with open(Path(data) / "stsb" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return [(a, b, float(score) / 5) for a, b, score in csv.reader(file)]


class Bm25:
    """BM25 (k1 1.2, b .75) over lower-cased words; `top(query, n)` gives the best n places, best first."""

    def __init__(self, texts, k1=1.2, b=0.75):
        self.words, rows, columns, values = {}, [], [], []
        lengths = np.zeros(len(texts))
        for row, text in enumerate(texts):
            counts = {}
            for word in words(text):
                place = self.words.setdefault(word, len(self.words))
                counts[place] = counts.get(place, 0) + 1
            lengths[row] = sum(counts.values())
            rows += [row] * len(counts)
            columns += counts.keys()
            values += counts.values()
        rows, columns, counts = np.array(rows), np.array(columns), np.array(values, dtype=float)
        found = np.bincount(columns, minlength=len(self.words))
        idf = np.log(1 + (len(texts) - found + 0.5) / (found + 0.5))
        weight = counts * (k1 + 1) / (counts + k1 * (1 - b + b * lengths[rows] / lengths.mean()))
        self.matrix = scipy.sparse.csc_matrix((weight * idf[columns], (rows, columns)), (len(texts), len(self.words)))

    def scores(self, query):
        scores = np.zeros(self.matrix.shape[0])
        for word in words(query):
            if word in self.words:
                part = slice(*self.matrix.indptr[self.words[word] :][:2])
                scores[self.matrix.indices[part]] += self.matrix.data[part]
        return scores

    def top(self, query, n):
        scores = self.scores(query)
        order = np.argsort(-scores, kind="stable")[:n]
        return order[scores[order] > 0]


def words(text):
    return re.findall(r"\w+", text.lower())


COLLECTIONS = ("cranfield", "xquad", "med", "cisi", "cacm")
MOST_QUERIES = 200  # of a collection, taken at even distances
RESAMPLES = 2000  # of the queries, for the interval of a difference


class Collection:
    """Queries with BM25's best, and the judgments."""

    def __init__(self, data, name, keep=lambda query: True, limit=MOST_QUERIES):
        folder = Path(data) / name
        docs = [json.loads(line) for line in (folder / "docs.jsonl").open(encoding="utf-8")]
        queries = [json.loads(line) for line in (folder / "queries.jsonl").open(encoding="utf-8")]
        gains = {}
        for line in (folder / "qrels.tsv").read_text().splitlines():
            query, doc, gain = line.split()
            gains.setdefault(query, {})[doc] = max(0, int(gain))
        queries = [query for query in queries if query["id"] in gains and keep(query["id"])]
        if len(queries) > limit:
            queries = [queries[i * len(queries) // limit] for i in range(limit)]
        index = Bm25([doc["text"] for doc in docs])
        self.name, self.lists = name, []
        for query in queries:
            found = [(docs[i]["id"], docs[i]["text"]) for i in index.top(query["text"], DEPTH)]
            self.lists.append((query["text"], found, gains[query["id"]]))

    def pairs(self):
        return [(query, text) for query, found, _ in self.lists for _, text in found]

    def ndcg(self, scores=None):
        """NDCG@10 of each list, ordered by `scores` (one a pair, in the order of `pairs`), or as BM25 has it."""
        figures, at = [], 0
        for _, found, gains in self.lists:
            part = np.arange(len(found), 0, -1) if scores is None else np.asarray(scores[at : at + len(found)])
            at += len(found)
            ranked = [gains.get(found[i][0], 0) for i in np.argsort(-part, kind="stable")]
            best = dcg(sorted(gains.values(), reverse=True))
            figures.append(dcg(ranked) / best if best else 0.0)
        return np.array(figures)


def collections(data, test=False):
    if test:
        return [Collection(data, "cranfield", lambda query: int(query) % 2 == 1)]
    return [Collection(data, name, (lambda query: int(query) % 2 == 0) if name == "cranfield" else lambda query: True)
            for name in COLLECTIONS]


def interval(differences):
    """Bounds of the mean of `differences` that hold 95 % of the resampled means."""
    rng = np.random.default_rng(0)
    means = differences[rng.integers(0, len(differences), (RESAMPLES, len(differences)))].mean(1)
    return np.percentile(means, (2.5, 97.5))


def dcg(gains):
    return sum(gain / np.log2(place + 2) for place, gain in enumerate(gains[:CUTOFF]))


def logits(network, tokenizer, pairs, max_length=512, size=8, bf16=True):
    """One logit a pair; sorted by length inside, so that little is padded."""
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    out, was = np.zeros(len(pairs), dtype=np.float32), network.training
    network.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for start in range(0, len(order), size):
            part = order[start : start + size]
            encoded = tokenizer([pairs[i][0] for i in part], [pairs[i][1] for i in part], padding=True,
                                truncation="longest_first", max_length=max_length, return_tensors="pt")
            out[part] = network(**encoded).logits.float().squeeze(-1).numpy()
    network.train(was)
    return out


def served(program, model, precision, pairs):
    """Logits from the server's program."""
    rows = "".join(json.dumps({"query": query, "document": text}) + "\n" for query, text in pairs)
    done = subprocess.run([program, "score", "--model", model, "--precision", precision, "--raw-scores", "--format", "jsonl",
                           "--input", "-", "--output", "-"], input=rows, capture_output=True, text=True, check=True)
    return np.array([json.loads(line)["score"] for line in done.stdout.splitlines()])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", action="store_true", help="STS-B test and Cranfield's odd ids")
    parser.add_argument("--rerankd", help="the server's program")
    parser.add_argument("--precision", default="int8", help="of the server's program")
    parser.add_argument("--only-sts", action="store_true")
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    sts = read_sts(args.data, "test" if args.test else "validation")
    judges = [] if args.only_sts else collections(args.data, args.test)
    pairs = [row[:2] for row in sts] + [pair for judge in judges for pair in judge.pairs()]
    bm25 = [judge.ndcg() for judge in judges]
    print("BM25", json.dumps({judge.name: round(float(found.mean()), 4) for judge, found in zip(judges, bm25)}), flush=True)
    for place in args.models:
        if args.rerankd:
            scores = served(args.rerankd, place, args.precision, pairs)
        else:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            network = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32)
            scores = logits(network, AutoTokenizer.from_pretrained(place), pairs, bf16=False)
        gold, at = [row[2] for row in sts], len(sts)
        figures = {"spearman": spearmanr(scores[:at], gold)[0], "pearson": pearsonr(1 / (1 + np.exp(-scores[:at])), gold)[0]}
        means = []
        for judge, without in zip(judges, bm25):
            count = len(judge.pairs())
            found = judge.ndcg(scores[at : at + count])
            at += count
            means.append(found.mean())
            low, high = interval(found - without)
            figures[judge.name] = found.mean()
            figures[f"{judge.name} - BM25"] = f"{low:+.4f} .. {high:+.4f}"
        if means:
            figures["mean"] = np.mean(means)
        print(place, json.dumps({key: value if isinstance(value, str) else round(float(value), 4)
                                 for key, value in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
