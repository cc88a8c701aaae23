"""Figures of sentence-transformers, ir-measures and ranx for made-up scores: `golden.json`.

No model and no data: scores and judgements are drawn from a seed, and each library is asked for its
figures of them. The script stops where two libraries disagree about scores without ties.

    python -m venv /tmp/venv && /tmp/venv/bin/pip install -r requirements.txt
    /tmp/venv/bin/python make_golden.py
"""

import json
import random
from importlib.metadata import version
from pathlib import Path

import ir_measures
import numpy as np
import ranx
from ir_measures import AP, RR, R, nDCG
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderCorrelationEvaluator,
    CrossEncoderRerankingEvaluator,
)

CUTOFFS = [1, 5, 10]
LIBRARIES = ["ir-measures", "pytrec-eval-terrier", "ranx", "scikit-learn", "scipy", "sentence-transformers"]


class Given:
    """A model that answers with the scores it was given."""

    def __init__(self, scores):
        self.scores = scores
        self.model_card_data = self

    def set_evaluation_metrics(self, *_, **__):
        pass

    def predict(self, pairs, **_):
        return np.array([self.scores[tuple(pair)] for pair in pairs], dtype=np.float32)


def f32(value):
    """What a model can answer, so that no library rounds it."""
    return float(np.float32(value))


def correlation_cases(rng):
    n = 200
    gold = [round(rng.uniform(0, 5), 1) for _ in range(n)]
    near = [f32(1 / (1 + np.exp(-(g - 2.5 + rng.gauss(0, 1))))) for g in gold]
    yield "ties in the gold scores", gold, near
    yield "ties in both", gold, [f32(round(s, 1)) for s in near]
    yield "a saturated sigmoid", gold, [f32(1 / (1 + np.exp(-20 * (g - 2.5)))) for g in gold]
    yield "the opposite order", gold, [f32(-s) for s in near]
    yield "a large offset", gold, [f32(1000 + s) for s in near]
    yield "two pairs", [0.0, 1.0], [f32(0.7), f32(0.1)]


def correlation(rng):
    for name, gold, scores in correlation_cases(rng):
        pairs = [(f"a{i}", f"b{i}") for i in range(len(gold))]
        model = Given(dict(zip(pairs, scores)))
        figures = CrossEncoderCorrelationEvaluator([list(p) for p in pairs], gold, write_csv=False)(model)
        yield {
            "name": name,
            "gold": gold,
            "scores": scores,
            "pearson": float(figures["pearson"]),
            "spearman": float(figures["spearman"]),
        }


def collection(rng, queries, documents, levels, ties):
    """Judgements and two sets of scores; some relevant documents are missed, some found were never judged."""
    names = [f"d{i}" for i in range(documents)]
    qrels, run, scores = {}, {}, {}
    for number in range(queries):
        query = f"q{number}"
        judged = rng.sample(names, rng.randint(4, documents // 2))
        qrels[query] = {document: rng.choice(levels) for document in judged}
        qrels[query][judged[0]] = max(levels)
        found = rng.sample(names, rng.randint(5, documents - 5))
        draw = (lambda: float(rng.randint(0, 4))) if ties else (lambda: f32(rng.uniform(-8, 8)))
        run[query] = {document: draw() for document in found}
        scores[query] = {document: draw() for document in names}
    # One query for which nothing was found, and one for which nothing is relevant.
    qrels["q-unanswered"] = {names[0]: max(levels)}
    run["q-unanswered"], scores["q-unanswered"] = {}, {document: 0.0 for document in names}
    qrels["q-hopeless"] = {names[0]: 0}
    run["q-hopeless"] = {names[1]: 1.0, names[0]: 0.5}
    scores["q-hopeless"] = {document: f32(i) for i, document in enumerate(names)}
    return qrels, run, scores


def by_ir_measures(qrels, run, level, ties):
    measures = {}
    for k in CUTOFFS:
        measures[f"ndcg@{k}"] = nDCG @ k
        measures[f"mrr@{k}"] = RR(rel=level) @ k
        measures[f"recall@{k}"] = R(rel=level) @ k
    measures["map"] = AP(rel=level)
    figures = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    figures = {name: float(figures[measure]) for name, measure in measures.items()}
    if ties:
        # Of equal scores its own RR@k takes another first than trec_eval, which all else comes from.
        whole = [found.value for found in ir_measures.pytrec_eval.iter_calc([RR(rel=level)], qrels, run)]
        whole += [0.0] * (len(qrels) - len(whole))
        for k in CUTOFFS:
            figures[f"mrr@{k}"] = float(np.mean([value if value >= 1 / k else 0.0 for value in whole]))
    return figures


def by_ranx(qrels, run, level):
    names = [f"{figure}@{k}" for figure in ["ndcg", "mrr", "recall"] for k in CUTOFFS] + ["map"]
    # It wants every query in both, and only judgements above 0.
    judged = {q: {d: r for d, r in ds.items() if r > 0} or {"nothing": 1} for q, ds in qrels.items()}
    found = {q: run.get(q) or {"none": 0.0} for q in qrels}
    asked = {name: name if name.startswith("ndcg") else f"{name}-l{level}" for name in names}
    figures = ranx.evaluate(ranx.Qrels(judged), ranx.Run(found), list(asked.values()), make_comparable=True)
    return {name: float(figures[metric]) for name, metric in asked.items()}


def by_sentence_transformers(qrels, run, scores, add_relevant):
    figures = {}
    for k in CUTOFFS:
        samples = []
        for query, judged in qrels.items():
            # It takes an empty list for no list.
            documents = sorted(run[query], key=lambda d: -run[query][d]) or ["none"]
            samples.append(
                {"query": query, "positive": [d for d, r in judged.items() if r > 0], "documents": documents}
            )
        evaluator = CrossEncoderRerankingEvaluator(
            samples, at_k=k, always_rerank_positives=add_relevant, write_csv=False
        )
        model = Given({(q, d): s for q, ds in scores.items() for d, s in (ds | {"none": -100.0}).items()})
        found = evaluator(model)
        figures |= {name: float(found[name]) for name in [f"ndcg@{k}", f"mrr@{k}", "map"]}
    return figures


def same(a, b, what):
    for name in a.keys() & b.keys():
        assert abs(a[name] - b[name]) < 1e-9, (what, name, a[name], b[name])


def reranking(rng):
    for name, levels, level, ties, add in [
        ("two kinds of relevance", [0, 1], 1, False, False),
        ("two kinds, relevant ones added", [0, 1], 1, False, True),
        ("four grades and negative ones", [-1, 0, 1, 2, 3], 1, False, False),
        ("four grades, relevant from 2", [0, 1, 2, 3], 2, False, False),
        ("equal scores", [0, 1, 2], 1, True, False),
    ]:
        qrels, run, scores = collection(rng, 12, 40, levels, ties)
        chosen = {
            q: {
                d: scores[q][d]
                for d in scores[q]
                if d in run[q] or (add and qrels[q].get(d, 0) >= level)
            }
            for q in qrels
        }
        figures = {
            "first_stage": by_ir_measures(qrels, run, level, ties),
            "reranked": by_ir_measures(qrels, chosen, level, ties),
        }
        if not ties:
            same(figures["first_stage"], by_ranx(qrels, run, level), (name, "ranx"))
            same(figures["reranked"], by_ranx(qrels, chosen, level), (name, "ranx"))
        if add:
            same(figures["reranked"], by_sentence_transformers(qrels, run, scores, True), (name, "st"))
        yield {
            "name": name,
            "relevant_from": level,
            "add_relevant": add,
            "at": CUTOFFS,
            "qrels": qrels,
            "run": run,
            "scores": scores,
            **figures,
        }


def main():
    rng = random.Random(7)
    golden = {
        "made_with": {name: version(name) for name in LIBRARIES},
        "correlation": list(correlation(rng)),
        "reranking": list(reranking(rng)),
    }
    path = Path(__file__).parent / "golden.json"
    path.write_text(json.dumps(golden, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")


if __name__ == "__main__":
    main()
