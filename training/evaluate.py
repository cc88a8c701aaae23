"""Figures that training chooses by: STS Benchmark and reranking of Cranfield, with BM25 as it is used here.

    python evaluate.py --data DIR --split validation|test MODEL...

`validation` scores STS-B validation and Cranfield's queries with even ids; `test` scores STS-B test and
the odd ids, and is for the end.
"""

import argparse
import csv
import json
import os
import re
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

    def top(self, query, n):
        scores = np.zeros(self.matrix.shape[0])
        for word in words(query):
            if word in self.words:
                part = slice(*self.matrix.indptr[self.words[word] :][:2])
                scores[self.matrix.indices[part]] += self.matrix.data[part]
        order = np.argsort(-scores, kind="stable")[:n]
        return order[scores[order] > 0]


def words(text):
    return re.findall(r"\w+", text.lower())


class Cranfield:
    """Queries of one parity with BM25's best, and the judgements."""

    def __init__(self, data, odd, limit=None):
        folder = Path(data) / "cranfield"
        docs = [json.loads(line) for line in (folder / "docs.jsonl").open(encoding="utf-8")]
        queries = [json.loads(line) for line in (folder / "queries.jsonl").open(encoding="utf-8")]
        self.gains = {}
        for line in (folder / "qrels.tsv").read_text().splitlines():
            query, doc, gain = line.split()
            self.gains.setdefault(query, {})[doc] = max(0, int(gain))
        index = Bm25([doc["text"] for doc in docs])
        self.lists = [
            (query["id"], query["text"], [(docs[i]["id"], docs[i]["text"]) for i in index.top(query["text"], DEPTH)])
            for query in queries if int(query["id"]) % 2 == odd
        ][:limit]

    def pairs(self):
        return [(query, text) for _, query, found in self.lists for _, text in found]

    def ndcg(self, scores=None):
        """Mean NDCG@10 of the lists ordered by `scores` (one a pair, in the order of `pairs`), or as BM25 has them."""
        figures, at = [], 0
        for query, _, found in self.lists:
            part = np.arange(len(found), 0, -1) if scores is None else np.asarray(scores[at : at + len(found)])
            at += len(found)
            gains = self.gains.get(query, {})
            ranked = [gains.get(found[i][0], 0) for i in np.argsort(-part, kind="stable")]
            best = dcg(sorted(gains.values(), reverse=True))
            figures.append(dcg(ranked) / best if best else 0.0)
        return float(np.mean(figures))


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


def sts_figures(network, tokenizer, rows, **how):
    scores, gold = logits(network, tokenizer, [row[:2] for row in rows], **how), [row[2] for row in rows]
    return {"spearman": float(spearmanr(scores, gold)[0]), "pearson": float(pearsonr(1 / (1 + np.exp(-scores)), gold)[0])}


def main():
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(args.threads)
    cranfield, sts = Cranfield(args.data, odd=args.split == "test"), read_sts(args.data, args.split)
    print(f"BM25 alone: NDCG@10 {cranfield.ndcg():.4f} on {len(cranfield.lists)} queries", flush=True)
    for place in args.models:
        network = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place)
        figures = sts_figures(network, tokenizer, sts, bf16=False)
        figures["ndcg"] = cranfield.ndcg(logits(network, tokenizer, cranfield.pairs(), bf16=False))
        print(place, json.dumps({key: round(value, 4) for key, value in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
