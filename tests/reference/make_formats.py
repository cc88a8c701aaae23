"""Save tiny models as the installed sentence-transformers does, with what it then answers for them.

    python make_formats.py            # into formats/sentence-transformers-<version>-<variant>
    python make_formats.py --bare     # into formats/transformers-<version>-<variant>, by transformers alone

README.md says with which versions. Before anything is written the script makes the mistakes that a reader
of these files can make (another length, another activation, token types that are overlooked) and stops
where one would not show.
"""

import argparse
import inspect
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

HERE = Path(__file__).resolve().parent
WORDS = ("a the old bridge over river water stone word under report about is it of and to in where who ? , . !".split()
         + list("abcdefghijklmnopqrstuvwxyz") + ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"])
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + list(dict.fromkeys(WORDS))
POSITIONS = 96
# Shorter than what the model could read, so that a length that is overlooked shows.
MAX_LENGTH = 40
LONG = "the water of a river is under it and to the bridge . "
PAIRS = [
    ["a river", "the old bridge"],
    ["", "a"],
    ["Stone?", "THE bridge over the river."],
    ["where is the bridge", "a report about water, and who is under it"],
    ["the water", LONG * 9],
    [LONG * 9, "the stone"],
    [LONG * 5, "report about stone " * 40],
    ["bridge", "bridge"],
]
LABELS = {0: "no", 1: "perhaps", 2: "yes"}
SEED = 31
VISIBLE = 1e-3  # a mistake must move some number by more than this

VARIANTS = {
    # What a model of one label has that nobody said anything about: a sigmoid, and all its positions.
    "plain": dict(labels=1),
    # A length and an activation that are not those.
    "settings": dict(labels=1, max_length=MAX_LENGTH, identity=True),
    # Several labels with names; none has an activation by itself.
    "labels": dict(labels=3, max_length=MAX_LENGTH),
}


def draft(folder, labels):
    """A model and a vocabulary in files that every version reads."""
    names = {i: name for i, name in LABELS.items()} if labels > 1 else {0: "LABEL_0"}
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=POSITIONS, id2label=names, label2id={name: i for i, name in names.items()})
    network = BertForSequenceClassification(config)
    rng = np.random.default_rng(SEED)
    for name, parameter in sorted(network.named_parameters()):
        shape = tuple(parameter.shape)
        # Attention so even that each of many tokens counts.
        spread = 0.15 if ".query." in name or ".key." in name else 0.5
        value = rng.uniform(0.5, 1.5, shape) if name.endswith("LayerNorm.weight") else rng.normal(0, spread, shape)
        parameter.data = torch.tensor(value, dtype=torch.float32)
    network.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": POSITIONS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def keyword(function, *names):
    """The first of `names` that this version calls an argument by, if there is one."""
    known = {}
    while function is not None:
        known |= inspect.signature(function).parameters
        function = getattr(function, "__wrapped__", None)
    return next((name for name in names if name in known), None)


def with_sentence_transformers(draft, folder, variant):
    import sentence_transformers
    from sentence_transformers import CrossEncoder

    made_with = f"sentence-transformers {sentence_transformers.__version__}"
    more = {}
    if variant.get("identity"):
        if keyword(CrossEncoder.__init__, "activation_fn"):
            more["activation_fn"] = torch.nn.Identity()
        else:
            # The third version does not write what it was given, but keeps what the file had before.
            path = draft / "config.json"
            config = json.loads(path.read_text())
            config["sbert_ce_default_activation_function"] = "torch.nn.modules.linear.Identity"
            path.write_text(json.dumps(config))
    if "max_length" in variant:
        more["max_length"] = variant["max_length"]
    CrossEncoder(str(draft), device="cpu", **more).save_pretrained(str(folder))
    clean(folder)
    # As somebody would who has only the folder.
    model = CrossEncoder(str(folder), device="cpu")
    name = keyword(model.predict, "activation_fn", "activation_fct")
    scores = model.predict(PAIRS, batch_size=1, show_progress_bar=False)
    logits = model.predict(PAIRS, batch_size=1, show_progress_bar=False, **{name: torch.nn.Identity()})
    # Where a version has no length of its own, the tokenizer's counts.
    length = min(model.max_length or POSITIONS, model.tokenizer.model_max_length)
    return made_with, np.asarray(logits), np.asarray(scores), length


def bare(draft, folder, variant):
    tokenizer = AutoTokenizer.from_pretrained(draft)
    if "max_length" in variant:
        tokenizer.model_max_length = variant["max_length"]
    AutoModelForSequenceClassification.from_pretrained(draft).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    clean(folder)
    length = AutoTokenizer.from_pretrained(folder).model_max_length
    logits = logits_of(folder, length)
    # What sentence-transformers takes where a checkpoint says nothing.
    scores = 1 / (1 + np.exp(-logits)) if logits.ndim == 1 else logits
    return f"transformers {transformers.__version__}", logits, scores, length


def logits_of(folder, length, types=True):
    """What transformers says of a folder, pair by pair."""
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for query, document in PAIRS:
        inputs = tokenizer(query, document, truncation="longest_first", max_length=length, return_tensors="pt")
        if not types:
            inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
        with torch.no_grad():
            rows.append(network(**inputs).logits[0].numpy())
    rows = np.stack(rows)
    return rows[:, 0] if rows.shape[1] == 1 else rows


def check(folder, variant, logits, scores, length):
    """Stops where a reader could be wrong and not be noticed."""
    def moved(a, b):
        return float(np.abs(a - b).max())

    # The third version keeps no length with the model.
    assert length == variant.get("max_length", POSITIONS) or "-3." in folder.name, (folder.name, length)
    assert logits.std() > 0.1, logits
    assert moved(logits, logits_of(folder, length)) < 1e-5
    sigmoid = 1 / (1 + np.exp(-logits))
    activation = moved(scores, logits if moved(scores, sigmoid) < 1e-5 else sigmoid)
    mistakes = {
        "length": logits_of(folder, POSITIONS if length < POSITIONS else MAX_LENGTH),
        "a token less": logits_of(folder, length - 1),
        "no token types": logits_of(folder, length, types=False),
    }
    sizes = {what: moved(logits, wrong) for what, wrong in mistakes.items()} | {"activation": activation}
    hidden = {what: size for what, size in sizes.items() if size <= VISIBLE}
    assert not hidden, f"{folder.name}: these mistakes would not show: {hidden}"
    print(f"{folder.name}: {sum(path.stat().st_size for path in folder.iterdir())} bytes, least visible "
          f"{min(sizes, key=sizes.get)} {min(sizes.values()):.3f}")


def clean(folder):
    """No place of this machine, and no text about the model."""
    for name, keys in (
        ("config.json", ["_name_or_path"]),
        ("tokenizer_config.json", ["name_or_path", "is_local", "local_files_only", "vocab_file", "tokenizer_file"]),
    ):
        path = folder / name
        settings = json.loads(path.read_text())
        for key in keys:
            settings.pop(key, None)
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)
    for path in folder.iterdir():
        os.chmod(path, 0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bare", action="store_true", help="a checkpoint of transformers alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as work:
            # Not named after this run: versions write the folder's name into what they save.
            source, saved = Path(work) / "draft", Path(work) / "saved"
            source.mkdir()
            draft(source, variant["labels"])
            save = bare if args.bare else with_sentence_transformers
            made_with, logits, scores, length = save(source, saved, variant)
            folder = HERE / "formats" / f"{made_with.replace(' ', '-')}-{name}"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(saved, folder)
        check(folder, variant, logits, scores, length)
        answers = {
            "made_with": made_with if args.bare else f"{made_with}, transformers {transformers.__version__}",
            "labels": list(LABELS.values()) if variant["labels"] > 1 else ["LABEL_0"],
            "max_length": length,
            "pairs": PAIRS,
            "logits": logits.tolist(),
            "scores": scores.tolist(),
        }
        text = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in answers.items())
        folder.with_name(f"{folder.name}.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
