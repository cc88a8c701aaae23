"""What the teacher says: the cosine of all-MiniLM-L6-v2 for groups of one query and several passages."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from evaluate import Bm25
from texts import collect

QUERIES = 9000  # so many groups; more than a short training sees
OF_BM25, OF_TEACHER = 30, 20  # near misses are drawn from the best so many of each
TEACHER_TOKENS = 256  # what the teacher reads of a text


def embed(network, tokenizer, texts, size=8, label="teacher"):
    """Unit vectors of `texts`: the mean over the tokens of the last layer, as the bi-encoder is used."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    out = np.zeros((len(texts), network.config.hidden_size), dtype=np.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in tqdm(range(0, len(order), size), desc=label, mininterval=5):
            part = order[start : start + size]
            encoded = tokenizer([texts[i] for i in part], padding=True, truncation=True,
                                max_length=TEACHER_TOKENS, return_tensors="pt")
            hidden = network(**encoded).last_hidden_state.float()
            mask = encoded["attention_mask"].unsqueeze(-1)
            out[part] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    return out


def groups(work, texts_dir, base, seed, sts, size=6):
    """Cached in `work`: passages, queries, and for each query `size` passages with the teacher's cosine.

    A group is the query's own passage, two of BM25's best, two of the teacher's best, and one of the same
    source at random. The cosine is put on the scale of STS-B's scores: the line that fits them best on its
    training pairs, clipped to 0..1.
    """
    path = Path(work) / f"groups-{seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    from transformers import AutoModel, AutoTokenizer

    network = AutoModel.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    passages, queries = collect(texts_dir, seed)
    vectors = embed(network, tokenizer, [text for *_, text in passages], label="passages")
    asked = embed(network, tokenizer, [text for text, *_ in queries], label="queries")
    left = embed(network, tokenizer, [a for a, *_ in sts], label="sts")
    right = embed(network, tokenizer, [b for _, b, _ in sts], label="sts")
    slope, offset = np.polyfit((left * right).sum(1), [score for *_, score in sts], 1)

    found = near_misses(passages, queries, vectors, asked, slope, offset, size, seed)
    made = {"passages": [text for *_, text in passages], "groups": found, "slope": float(slope), "offset": float(offset)}
    path.write_text(json.dumps(made), encoding="utf-8")
    return made


def near_misses(passages, queries, vectors, asked, slope, offset, size, seed):
    """[query, places of passages, targets] for QUERIES of the queries, in random order."""
    index, rng = Bm25([text for *_, text in passages]), random.Random(seed)
    by_source, found = {}, []
    for place, (source, *_) in enumerate(passages):
        by_source.setdefault(source, []).append(place)
    for number in tqdm(rng.sample(range(len(queries)), min(QUERIES, len(queries))), desc="near misses", mininterval=5):
        text, source, own = queries[number]
        cosines = vectors @ asked[number]
        words, near = index.top(text, OF_BM25).tolist(), np.argpartition(-cosines, OF_TEACHER)[:OF_TEACHER].tolist()
        rng.shuffle(words), rng.shuffle(near)
        chosen = [own]
        for pool, wanted in ((words, 2), (near, 2), (rng.sample(by_source[source], 2 * size), size)):
            pool = [place for place in pool if place not in chosen]
            chosen += pool[: min(wanted, size - len(chosen))]
        targets = np.clip(slope * cosines[chosen] + offset, 0.0, 1.0)
        found.append([text, chosen, [round(float(target), 4) for target in targets]])
    return found
