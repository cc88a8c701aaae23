"""Make the reference fixtures: tiny seeded models, and what sentence-transformers answers for them.

    python make_fixtures.py                    # the tiny models and their answers
    python make_fixtures.py --only tiny-bert   # one of them
    python make_fixtures.py --model DIR        # the answers for one more model, named after its folder,
                                               # and its logits for the pairs of quality.tsv

The models are random but made to fail: before anything is written the script perturbs each one
(tanh GELU, a missing bias, no token types, positions off by one, another epsilon ...) and stops if a
perturbation would go unnoticed.
"""

import argparse
import base64
import copy
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from tokenizers import Tokenizer
from transformers import (
    BertConfig, BertForSequenceClassification, BertModel, BertTokenizer,
    CamembertConfig, CamembertForSequenceClassification, CamembertTokenizer,
    DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Tokenizer,
    DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer,
    ElectraConfig, ElectraForSequenceClassification,
    ModernBertConfig, ModernBertForSequenceClassification,
    MPNetConfig, MPNetForSequenceClassification, MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig, RobertaForSequenceClassification, RobertaTokenizer,
    XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaTokenizer,
)

import texts

HERE = Path(__file__).resolve().parent
MAX_LENGTH = 512
VISIBLE = 1e-3  # a mistake must move some logit by more than this
EPSILONS = (1e-12, 1e-5, 1e-3)


# ---------------------------------------------------------------- tokenizers

def wordpiece(lowercase, kind=BertTokenizer, specials=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")):
    """Counted, not trained: the library's trainer breaks ties differently in every run."""
    from tokenizers import normalizers, pre_tokenizers

    normalizer, splitter = normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()
    words, letters, parts = Counter(), Counter(), Counter()
    for line in texts.corpus(random.Random(7)):
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(line)):
            words[word] += 1
    for word, count in words.items():
        letters.update({word[0]: count})
        for i in range(1, len(word)):
            letters.update({"##" + word[i]: count})
            for end in range(i + 2, min(i + 5, len(word)) + 1):
                parts.update({"##" + word[i:end]: count})

    def commonest(counter, most):
        return [piece for piece, _ in sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:most]]

    # Rare letters become [UNK], every third word is left to be put together from its parts.
    words = [word for i, word in enumerate(commonest(words, 900)) if len(word) > 1 and i % 3 != 2]
    pieces = list(dict.fromkeys(list(specials) + commonest(letters, 380) + words
                                + commonest(parts, 1200)))[:1200]
    return kind(vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=lowercase,
                model_max_length=MAX_LENGTH)


def trained_bpe(specials):
    from tokenizers import models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.train_from_iterator(
        texts.corpus(random.Random(7)),
        trainers.BpeTrainer(vocab_size=1300, show_progress=False, special_tokens=specials,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return raw


def byte_bpe():
    raw = trained_bpe(["<s>", "<pad>", "</s>", "<unk>"])
    trained = json.loads(raw.to_str())["model"]
    vocab = dict(trained["vocab"])
    vocab["<mask>"] = len(vocab)
    return RobertaTokenizer(vocab=vocab, merges=[tuple(m) for m in trained["merges"]], model_max_length=MAX_LENGTH)


def template_bpe():
    """As ModernBERT: byte-level BPE between BERT's special tokens, and no class of its own."""
    from tokenizers import processors

    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]",
             "mask_token": "[MASK]"}
    raw = trained_bpe(list(names.values()))
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(piece, raw.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")])
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=MAX_LENGTH,
                                   model_input_names=["input_ids", "attention_mask"], **names)


def unigram():
    """As XLM-RoBERTa: a SentencePiece unigram model with its own character map (nmt_nfkc)."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts.corpus(random.Random(7)), model_prefix=f"{folder}/spm", vocab_size=1200,
            model_type="unigram", normalization_rule_name="nmt_nfkc", character_coverage=0.9995, num_threads=1,
            minloglevel=2,
        )
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString(Path(f"{folder}/spm.model").read_bytes())
    head = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [(p.piece, round(p.score, 6)) for p in proto.pieces if p.type == p.NORMAL]
    return XLMRobertaTokenizer(vocab=head + pieces + [("<mask>", 0.0)], model_max_length=MAX_LENGTH,
                               _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap)


def camembert():
    """As CamemBERT: its own special tokens behind those that fairseq left unused, and no character map."""
    unused = [("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0), ("<unk>NOTUSED", -100.0),
              ("<s>", 0.0), ("</s>", 0.0)]
    pieces = json.loads(unigram().backend_tokenizer.to_str())["model"]["vocab"][4:-1]
    return CamembertTokenizer(vocab=unused + [tuple(piece) for piece in pieces] + [("<mask>", 0.0)],
                              model_max_length=MAX_LENGTH)


def deberta_pieces():
    """Pieces of the XLM-RoBERTa fixture between DeBERTa's special tokens, and their character map."""
    saved = json.loads((HERE / "models/tiny-xlm-roberta/tokenizer.json").read_text(encoding="utf-8"))
    head = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0)]
    characters = base64.b64decode(saved["normalizer"]["precompiled_charsmap"])
    return head + [tuple(piece) for piece in saved["model"]["vocab"][4:-1]], characters


def deberta():
    """As transformers saves DeBERTa-v2's tokenizer."""
    pieces, _ = deberta_pieces()
    return DebertaV2Tokenizer(vocab=pieces + [("[MASK]", 0.0)], unk_id=3, model_max_length=MAX_LENGTH)


def published_deberta():
    """`tokenizer.json` as published with DeBERTa-v3 and its rerankers: converted from SentencePiece, with its
    character map."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

    pieces, characters = deberta_pieces()
    raw = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    raw.normalizer = normalizers.Sequence([
        normalizers.Strip(), normalizers.Precompiled(characters),
        normalizers.Replace(Regex(" {2,}"), " ")])
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always")])
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["[PAD]", "[CLS]", "[SEP]"]
    raw.add_special_tokens([AddedToken(token, special=True) for token in special])
    raw.add_special_tokens([AddedToken("[UNK]", special=True, normalized=True)])
    raw.add_special_tokens([AddedToken("[MASK]", special=True)])
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(piece, raw.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")])
    return raw


def publish(folder):
    """Tokenizer files as published with DeBERTa-v3 and its rerankers, instead of those that were just saved."""
    raw = published_deberta()
    raw.save(str(folder / "tokenizer.json"))
    added = json.loads(raw.to_str())["added_tokens"]
    settings = {
        "added_tokens_decoder": {str(token.pop("id")): token for token in added},
        "bos_token": "[CLS]", "clean_up_tokenization_spaces": True, "cls_token": "[CLS]", "do_lower_case": False,
        "eos_token": "[SEP]", "mask_token": "[MASK]", "model_max_length": MAX_LENGTH, "pad_token": "[PAD]",
        "sep_token": "[SEP]", "sp_model_kwargs": {}, "split_by_punct": False,
        "tokenizer_class": "DebertaV2Tokenizer", "unk_token": "[UNK]", "vocab_type": "spm",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- models

SHAPE = dict(num_hidden_layers=3, hidden_size=32, num_attention_heads=4, intermediate_size=64, hidden_act="gelu",
             initializer_range=0.4)
# The fairseq numbering of both RoBERTa kinds: the first position is pad + 1, so 514 rows hold 512 tokens.
FAIRSEQ = dict(max_position_embeddings=514, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1)

# Windows so narrow that short texts are longer, too.
MODERN = dict(max_position_embeddings=512, local_attention=24, norm_eps=1e-5, pad_token_id=3, cls_token_id=1,
              sep_token_id=2, bos_token_id=1, eos_token_id=2)

DEBERTA_V3 = dict(relative_attention=True, position_buckets=256, max_relative_positions=-1,
                  pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm",
                  position_biased_input=False, type_vocab_size=0, pooler_hidden_size=32, pooler_hidden_act="gelu",
                  pooler_dropout=0, layer_norm_eps=1e-7)

KINDS = {
    "tiny-bert": dict(
        tokenizer=lambda: wordpiece(lowercase=True), config=BertConfig, network=BertForSequenceClassification,
        settings=dict(max_position_embeddings=512, layer_norm_eps=1e-12, num_labels=1), seed=118),
    "tiny-bert-3-labels": dict(
        tokenizer=lambda: wordpiece(lowercase=False), config=BertConfig, network=BertForSequenceClassification,
        settings=dict(max_position_embeddings=512, layer_norm_eps=1e-3, num_labels=3), seed=112),
    "tiny-roberta": dict(
        tokenizer=byte_bpe, config=RobertaConfig, network=RobertaForSequenceClassification,
        settings=dict(**FAIRSEQ, layer_norm_eps=1e-5, num_labels=1), seed=127),
    "tiny-xlm-roberta": dict(
        tokenizer=unigram, config=XLMRobertaConfig, network=XLMRobertaForSequenceClassification,
        settings=dict(**FAIRSEQ, layer_norm_eps=1e-5, num_labels=1), seed=117,
        activation=torch.nn.Identity(), prompts={"search": "search query: "}),
    "tiny-camembert": dict(
        tokenizer=camembert, config=CamembertConfig, network=CamembertForSequenceClassification,
        settings=dict(max_position_embeddings=514, pad_token_id=1, bos_token_id=5, eos_token_id=6, type_vocab_size=1,
                      layer_norm_eps=1e-5, num_labels=1), seed=118),
    "tiny-distilbert": dict(
        tokenizer=lambda: wordpiece(lowercase=True, kind=DistilBertTokenizer), config=DistilBertConfig,
        network=DistilBertForSequenceClassification,
        shape=dict(n_layers=3, dim=32, n_heads=4, hidden_dim=64, activation="gelu", initializer_range=0.4),
        settings=dict(max_position_embeddings=512, num_labels=1), seed=118),
    "tiny-electra": dict(
        tokenizer=lambda: wordpiece(lowercase=True), config=ElectraConfig, network=ElectraForSequenceClassification,
        settings=dict(max_position_embeddings=512, embedding_size=16, layer_norm_eps=1e-5, num_labels=1), seed=118),
    "tiny-modular": dict(
        tokenizer=lambda: wordpiece(lowercase=True), config=BertConfig, network=BertModel,
        settings=dict(max_position_embeddings=512, layer_norm_eps=1e-5), seed=118,
        modules=lambda: [
            Pooling(32, ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]),
            Dense(192, 24, activation_function=torch.nn.GELU(), use_residual=True),
            Dropout(0.1),
            LayerNorm(24),
            Dense(24, 24, bias=False, activation_function=torch.nn.Tanh(), use_residual=True),
            Dense(24, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
        ]),
    "tiny-mpnet": dict(
        tokenizer=lambda: wordpiece(lowercase=True, kind=MPNetTokenizer,
                                    specials=("<s>", "<pad>", "</s>", "[UNK]", "<mask>")),
        config=MPNetConfig, network=MPNetForSequenceClassification,
        settings=dict(max_position_embeddings=514, layer_norm_eps=1e-5, num_labels=1), seed=118),
    "tiny-modernbert": dict(
        tokenizer=template_bpe, config=ModernBertConfig, network=ModernBertForSequenceClassification,
        settings=dict(**MODERN, classifier_pooling="mean", num_labels=1), seed=118),
    # The configuration, names and shapes of mixedbread-ai/mxbai-rerank-xsmall-v1, but fewer and narrower layers and
    # fewer words. As there, the vocabulary has room behind the tokens, and the weights are F16.
    "tiny-deberta-v3": dict(
        tokenizer=deberta, config=DebertaV2Config, network=DebertaV2ForSequenceClassification,
        settings=dict(DEBERTA_V3, max_position_embeddings=512, num_labels=1), seed=118, unused_words=99,
        dtype=torch.float16, publish=publish),
    # All that DeBERTa-v3's rerankers don't have: distances without buckets that end at 40, positions with
    # projections of their own, absolute positions and token types, narrow embeddings; three labels.
    "tiny-deberta-v2-unshared": dict(
        tokenizer=deberta, config=DebertaV2Config, network=DebertaV2ForSequenceClassification,
        settings=dict(max_position_embeddings=512, relative_attention=True, max_relative_positions=40,
                      pos_att_type=["c2p", "p2c"], share_att_key=False, position_biased_input=True,
                      type_vocab_size=2, embedding_size=16, pooler_hidden_size=32, pooler_hidden_act="tanh",
                      layer_norm_eps=1e-5, num_labels=3), seed=118),
    # Everything that may have a bias has one, and the first token is read, as of a local layer.
    "tiny-modernbert-biased": dict(
        tokenizer=template_bpe, config=ModernBertConfig, network=ModernBertForSequenceClassification,
        settings=dict(**MODERN, classifier_pooling="cls", num_labels=1, norm_bias=True, attention_bias=True,
                      mlp_bias=True, classifier_bias=True), seed=118),
}


def randomise(network, seed):
    """Weights under which every part of the graph shows in the logits."""
    rng = np.random.default_rng(seed)
    for name, parameter in sorted(network.named_parameters()):
        shape = tuple(parameter.shape)
        if name.lower().endswith("norm.weight"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bias"):
            value = rng.normal(0, 0.5, shape)
        elif name.endswith("relative_attention_bias.weight"):
            value = rng.normal(0, 1.0, shape)
        elif name.endswith("rel_embeddings.weight"):
            value = rng.normal(0, 0.5, shape)
        elif "embeddings." in name:
            # Rows of small variance: a wrong LayerNorm epsilon shows. Token types as large as the words.
            value = rng.normal(0, 0.02 if "position" in name else 0.03, shape)
        else:
            head = name.endswith("out_proj.weight") or name in ("classifier.weight", "6.linear.weight")
            value = rng.normal(0, 1.0 if head else SHAPE["initializer_range"], shape)
        parameter.data = torch.tensor(value, dtype=torch.float32)


def clean(folder):
    """A save must not carry the place it was made in, nor what the last call happened to set."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for key in ("name_or_path", "is_local", "local_files_only"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for weights in folder.rglob("model.safetensors"):
        os.chmod(weights, 0o644)


def make_model(name):
    kind = KINDS[name]
    tokenizer = kind["tokenizer"]()
    shape = kind.get("shape", {**SHAPE, **({"hidden_activation": "gelu"} if "modern" in name else {})})
    if "modern" in name:
        shape.pop("hidden_act")
    words = len(tokenizer) + kind.get("unused_words", 0)
    network = kind["network"](kind["config"](vocab_size=words, **shape, **kind["settings"]))
    randomise(network, kind["seed"])
    network.to(kind.get("dtype", torch.float32))
    folder = HERE / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as draft:
        network.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        if "modules" in kind:
            behind = kind["modules"]()
            randomise(torch.nn.Sequential(torch.nn.Identity(), *behind), kind["seed"] + 1)
            model = CrossEncoder(modules=[Transformer(draft), *behind], device="cpu")
        else:
            model = CrossEncoder(draft, device="cpu", activation_fn=kind.get("activation"), prompts=kind.get("prompts"))
        model.save_pretrained(str(folder), create_model_card=False)
    clean(folder)
    if "publish" in kind:
        kind["publish"](folder)
    size = sum((folder / file).stat().st_size for file in ("model.safetensors", "tokenizer.json"))
    assert size <= 1_000_000, (name, size)
    return folder


# ---------------------------------------------------------------- texts

def expand(text):
    """`{"repeat": [unit, n]}` stands for the unit n times."""
    return text["repeat"][0] * text["repeat"][1] if isinstance(text, dict) else text


def expand_pairs(pairs):
    return [(expand(a), expand(b)) for a, b in pairs]


def repeat(unit, times):
    return {"repeat": [unit, times]}


def exact_fit(tokenizer, length, side, other):
    """A pair that encodes to exactly `length` tokens before truncation."""
    fewest, most = 1, length  # the token count only grows with the repeats
    while fewest <= most:
        times = (fewest + most) // 2
        text = repeat("the ", times)
        pair = (text, other) if side == 0 else (other, text)
        a, b = expand(pair[0]), expand(pair[1])
        found = len(tokenizer([a], [b], verbose=False)["input_ids"][0])
        if found == length:
            return pair
        fewest, most = (times + 1, most) if found < length else (fewest, times - 1)
    raise AssertionError(f"no text of {length} tokens")


def long_pairs(rng, tokenizer):
    ordinary = texts.sentence(rng, 9)
    five, ten, mixed = (texts.sentence(rng, n, mix) + " " for n, mix in ((5, 0.0), (10, 0.0), (12, 0.4)))
    pairs = [exact_fit(tokenizer, length, side, ordinary) for length in (511, 512, 513, 514) for side in (0, 1)]
    pairs += [
        (ordinary, repeat("word ", 500)), (repeat("word ", 500), ordinary),
        (ordinary, repeat("water ", 2000)), (repeat("river ", 2000), ordinary),
        (ordinary, repeat(ten, 200)), (repeat(ten, 200), ordinary),
        ("", repeat(ten, 200)), (repeat(ten, 200), ""),
        (ordinary, repeat(mixed, 120)), (repeat(mixed, 120), ordinary),
        # Both sides give way, one token at a time from the longer one.
        (repeat(five, 60), repeat(ten, 60)), (repeat(ten, 60), repeat(five, 60)), (repeat(ten, 40), repeat(ten, 40)),
        (repeat(ten, 27), repeat(ten, 80)), (repeat(ten, 80), repeat(ten, 23)), (repeat(mixed, 50), repeat(five, 150)),
        (repeat("stone ", 254), repeat("bridge ", 255)), (repeat("stone ", 255), repeat("bridge ", 254)),
        (repeat("stone ", 255), repeat("bridge ", 255)), (repeat("stone ", 256), repeat("bridge ", 300)),
        (repeat("😀", 700), repeat("今", 700)), (repeat(" ", 3000), ordinary), (ordinary, repeat("\n", 3000)),
        (repeat("x", 3000), ordinary), (ordinary, repeat("ж", 3000)), (repeat("?", 600), repeat("!", 600)),
    ]
    return pairs


def tiny_pairs(tokenizer):
    rng = random.Random(11)
    ordinary = "The quick river under the old bridge."
    pairs = [("", ""), ("", ordinary), (ordinary, ""), ("word", "word"), ("?", "!"), (" ", "\t\n"), (ordinary, ordinary)]
    for number, odd in enumerate(texts.ODD):
        pairs.append((odd, ordinary) if number % 2 else (ordinary, odd))
    pairs += [(texts.ODD[i], texts.ODD[-1 - i]) for i in range(0, len(texts.ODD) // 2, 2)]
    pairs += long_pairs(rng, tokenizer)
    for number in range(110):
        words = rng.choice([2, 4, 6, 9, 14, 20, 30, 45, 70, 110, 160])
        query = texts.sentence(rng, rng.randrange(1, 16), mix=0.3 * (number % 4 == 3))
        pairs.append((query, texts.sentence(rng, words, mix=0.3 * (number % 3 == 2))))
    return pairs


def plain_pairs():
    pairs = [list(pair) for pair in texts.PLAIN]
    sides = [side for pair in texts.PLAIN[:37] for side in pair]
    rng = random.Random(13)
    for words in (10, 40, 80, 150):  # a question and passages made of several sentences
        for _ in range(6):
            passage = ""
            while len(passage.split()) < words:
                passage += rng.choice(sides) + " "
            pairs.append((rng.choice(sides), passage.strip()))
    long = "The bridge over the river was closed after the flood, and nobody knew when it would open again. "
    other = "Two engineers measured the pillars and wrote a long report about the cracks in the stone. "
    pairs += [
        ("Why was the bridge closed?", repeat(long, 15)), ("Why was the bridge closed?", repeat(long, 60)),
        (repeat(long, 60), "Why was the bridge closed?"), (repeat(long, 30), repeat(other, 40)),
        (repeat(other, 12), repeat(long, 12)), ("", repeat(other, 60)), (repeat("the ", 600), repeat("a ", 600)),
        ("bridge", repeat("bridge ", 509)), ("bridge", repeat("bridge ", 508)), ("bridge", repeat("bridge ", 510)),
    ]
    while len(pairs) < 100:
        pairs.append((rng.choice(sides), rng.choice(sides)))
    return pairs[:100]


def rank_cases(rng, plain):
    if plain:
        sides = [side for pair in texts.PLAIN[:44] for side in pair]
        draw = lambda: rng.choice(sides)
        queries = ["Why was the bridge closed?", "a dog on the beach", "interest rates"]
    else:
        draw = lambda: texts.sentence(rng, rng.choice([1, 3, 6, 10, 20, 50]), mix=rng.choice([0, 0, 0.3]))
        queries = [texts.sentence(rng, 6), "search query", ""]
    cases = []
    for query, count, doubled in zip(queries, (36, 50, 32), (5, 8, 3)):
        documents = list(dict.fromkeys(draw() for _ in range(count)))
        for _ in range(doubled):  # exact ties, near and far apart
            documents.insert(rng.randrange(len(documents) + 1), rng.choice(documents))
        cases.append((query, documents))
    cases.append((queries[1], ["the same text"] * 5))
    cases.append((queries[0], ["one document"]))
    cases.append((queries[0], ["", " ", "?", "", "word", " "]))
    return cases


# ---------------------------------------------------------------- answers

def logits_of(model, pairs, **kwargs):
    values = model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False, **kwargs)
    return np.asarray(values, dtype=np.float32).reshape(len(pairs), -1)


def number(value):
    return float(f"{value:.9g}")


def numbers(values):
    return [numbers(v) if np.ndim(v) else number(v) for v in values]


def answer_rank(model, query, documents):
    """rank(), less the documents whose place rests on rounding.

    One pair a batch: in a larger one the reference scores equal texts apart by 1e-8, in no fixed order.
    """
    kept, seen = [], {}
    scores = model.predict([(query, d) for d in documents], show_progress_bar=False, batch_size=1)
    for document, score in zip(documents, scores):
        near = [other for other, known in seen.items() if abs(known - score) < 5e-5]
        if all(other == document for other in near):
            seen[document] = score
            kept.append(document)
    ranked = model.rank(query, kept, batch_size=1)
    for first, second in zip(ranked, ranked[1:]):
        same = kept[first["corpus_id"]] == kept[second["corpus_id"]]
        gap = first["score"] - second["score"]
        assert (gap == 0 and first["corpus_id"] < second["corpus_id"]) if same else gap > 2e-5, (query, gap)
    return {"query": query, "documents": kept, "order": [r["corpus_id"] for r in ranked],
            "scores": [number(r["score"]) for r in ranked]}


def answers(folder, plain, model=None):
    """What the saved model says, in float32, loaded as anyone would load it, or what `model` says in its place."""
    model = model or CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    assert model.max_seq_length == MAX_LENGTH, model.max_seq_length
    tokenizer = model.tokenizer
    pairs = plain_pairs() if plain else tiny_pairs(tokenizer)
    expanded = expand_pairs(pairs)

    ids, type_ids = [], []
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if model.model.config.model_type == "deberta-v2":
        # transformers puts them in place of those of the file.
        raw.normalizer, raw.pre_tokenizer = (getattr(tokenizer.backend_tokenizer, part)
                                             for part in ("normalizer", "pre_tokenizer"))
    has_types = getattr(model.model.config, "type_vocab_size", 0) > 0
    raw.enable_truncation(MAX_LENGTH, strategy="longest_first")
    raw.no_padding()
    for a, b in expanded:
        # The reference's own way in. Not tokenizer(a, b): that takes an empty `b` for no second text.
        encoded = model.preprocess([(a, b)])
        pair_ids = encoded["input_ids"][0].tolist()
        pair_types = encoded["token_type_ids"][0].tolist() if "token_type_ids" in encoded else [0] * len(pair_ids)
        reads_types = "token_type_ids" in encoded and has_types
        alone = raw.encode(a, b)
        assert alone.ids == pair_ids, f"tokenizer.json alone disagrees on {(a[:40], b[:40])}"
        assert "token_type_ids" not in encoded or alone.type_ids == pair_types, (a[:40], b[:40])
        ids.append(pair_ids)
        type_ids.append(pair_types if reads_types else [0] * len(pair_ids))

    logits = logits_of(model, expanded)
    alone = np.concatenate([logits_of(model, [pair]) for pair in expanded])
    double = copy.deepcopy(model)
    double.double()
    exact = np.asarray(double.predict(expanded, activation_fn=torch.nn.Identity(), show_progress_bar=False,
                                      convert_to_numpy=False, convert_to_tensor=True).double()).reshape(logits.shape)
    noise = {"padding": number(np.abs(logits - alone).max()), "float64": number(np.abs(logits - exact).max())}
    if not plain:
        check_visible(folder.name, model, expanded, logits)

    prompt = model.prompts.get("search") or "query: "
    prompted = [p for p in pairs if p[0] != ""][: 12 if not plain else 8] + [("", "a document"), pairs[-1]]
    prompted += [p for p in pairs if isinstance(p[0], dict) and isinstance(p[1], dict)][:3]
    scores = np.asarray(model.predict(expanded, show_progress_bar=False), dtype=np.float32)
    result = {
        "model": folder.name,
        "made_with": {name: version(name) for name in ("sentence-transformers", "transformers", "tokenizers", "torch")},
        "max_length": MAX_LENGTH,
        "noise": noise,
        "pairs": pairs, "ids": ids, "type_ids": type_ids,
        "logits": numbers(logits), "scores": numbers(scores),
        "rank": [], "prompt": {"prompt": prompt, "pairs": prompted,
                               "logits": numbers(logits_of(model, expand_pairs(prompted), prompt=prompt))},
    }
    if model.num_labels == 1:
        rng = random.Random(17)
        result["rank"] = [answer_rank(model, query, documents) for query, documents in rank_cases(rng, plain)]
        assert max(len(case["documents"]) for case in result["rank"]) >= 30
    else:
        result["softmax"] = numbers(np.asarray(
            model.predict(expanded, apply_softmax=True, show_progress_bar=False), dtype=np.float32))
    print(f"{folder.name}: {len(pairs)} pairs, logits {logits.min():.3f}..{logits.max():.3f}, noise {noise}")
    return result


def quality(folder):
    """The fp32 logits of the pairs that eight-bit weights are held against."""
    model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    lines = (HERE / "quality.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split("\t")) for line in lines]
    assert len(set(pairs)) == len(pairs) == 300 and all(len(pair) == 2 for pair in pairs)
    return {
        "model": folder.name,
        "made_with": {name: version(name) for name in ("sentence-transformers", "transformers", "tokenizers", "torch")},
        "logits": numbers(logits_of(model, pairs)),
    }


# ---------------------------------------------------------------- would a mistake show?

def check_visible(name, model, pairs, logits):
    spread = logits.max(0) - logits.min(0)
    assert (spread >= 0.5).all(), (name, spread)
    rng = random.Random(19)
    fixed = texts.sentence(rng, 8)
    others = [texts.sentence(rng, 8) for _ in range(30)]
    for side, varied in (("document", [(fixed, o) for o in others]), ("query", [(o, fixed) for o in others])):
        assert (logits_of(model, varied).std(0) > 0.05).all(), f"{name}: the {side} hardly matters"

    # Ordinary lengths, a few full ones.
    short = [pair for pair in pairs if 20 < len(pair[0]) + len(pair[1]) < 1200][-60:] + \
        [pair for pair in pairs if len(pair[1]) > 1200][:4]
    before = logits_of(model, short)

    def moved(change):
        other = copy.deepcopy(model)
        change(other)
        return np.abs(logits_of(other, short) - before).max()

    def zero(parameter):
        def change(other):
            other.get_parameter(parameter).data.zero_()
        return change

    def ones(parameter):
        def change(other):
            other.get_parameter(parameter).data.fill_(1)
        return change

    def layers(other):
        base = other.model.base_model
        if hasattr(base, "layers"):
            return base.layers
        return (base.encoder if hasattr(base, "encoder") else base.transformer).layer

    def tanh_gelu(other):
        for layer in layers(other):
            for part in layer.modules():
                for name in ("intermediate_act_fn", "activation", "act", "act_fn"):
                    if hasattr(part, name):
                        setattr(part, name, torch.nn.GELU(approximate="tanh"))

    def table(name, change_ids):
        def change(other):
            table = getattr(other.model.base_model.embeddings, name)
            forward, last = table.forward, table.num_embeddings - 1
            table.forward = lambda ids: forward(change_ids(ids).clamp(0, last))
        return change

    def no_types(other):
        table = other.model.base_model.embeddings.token_type_embeddings
        forward = table.forward
        table.forward = lambda ids: forward(ids) * 0

    def epsilon(value):
        def change(other):
            for module in other.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.eps = value
        return change

    def scaling(other):
        for name, parameter in other.named_parameters():
            if any(part in name for part in (".query.", ".q_lin.", ".attn.q.", ".q_proj.", ".query_proj.")):
                parameter.data *= 0.9
            elif ".Wqkv." in name:
                parameter.data[: len(parameter) // 3] *= 0.9

    mistakes = {"tanh GELU": tanh_gelu, "attention scale": scaling}
    config, embeddings = model.model.config, model.model.base_model.embeddings
    if isinstance(getattr(embeddings, "position_embeddings", None), torch.nn.Embedding):
        for by in (1, -1):
            mistakes[f"positions + {by}"] = table("position_embeddings", lambda ids, by=by: ids + by)
    if isinstance(getattr(embeddings, "token_type_embeddings", None), torch.nn.Embedding):
        mistakes["no token types"] = no_types
        if config.type_vocab_size > 1 and "token_type_ids" in model.tokenizer.model_input_names:
            mistakes["all token types 0"] = table("token_type_embeddings", lambda ids: ids * 0)
    mistakes |= mistakes_of(config)
    if len(model) > 1:
        mistakes.pop("pooling", None)  # that of the modules counts
    usual = next(m.eps for m in model.model.modules() if isinstance(m, torch.nn.LayerNorm))
    for value in EPSILONS:
        if value != usual:
            mistakes[f"epsilon {value}"] = epsilon(value)
    for parameter, _ in model.named_parameters():
        if parameter.endswith(("key.bias", "k_lin.bias", "attn.k.bias", "pos_key_proj.bias")) or ("modules" in KINDS.get(name, {}) and ".pooler." in parameter):
            continue  # adds the same to every score of a query: softmax cannot see it; nor is that pooler used
        if parameter.endswith("bias"):
            mistakes[f"no {parameter}"] = zero(parameter)
        elif parameter.lower().endswith("norm.weight"):
            mistakes[f"no {parameter}"] = ones(parameter)
        elif any(part in parameter for part in ("residual", "relative_attention_bias", "rel_embeddings")):
            mistakes[f"no {parameter}"] = zero(parameter)
    sizes = {what: moved(change) for what, change in mistakes.items()}
    least = sorted(sizes.items(), key=lambda item: item[1])[:4]
    print(f"{name}: {len(sizes)} mistakes show, least: " + ", ".join(f"{what} {size:.4f}" for what, size in least))
    hidden = {what: size for what, size in sizes.items() if size <= VISIBLE}
    assert not hidden, f"{name}: these mistakes would not show: {hidden}"


def mistakes_of(config):
    """What can go wrong in one architecture only."""
    model_type = config.model_type

    def attribute(find, name, value):
        def change(other):
            found = find(other.model)
            setattr(found, name, value(getattr(found, name)))
        return change

    if model_type == "electra":
        return {"tanh in the head": attribute(lambda m: m.classifier, "activation", lambda _: torch.nn.Tanh())}
    if model_type == "mpnet":
        def buckets(change_position):
            def change(other):
                encoder = other.model.base_model.encoder
                bucket = encoder.relative_position_bucket
                encoder.relative_position_bucket = lambda position, **kw: bucket(change_position(position), **kw)
            return change
        return {"bias of the next place": buckets(lambda p: p + 1), "bias mirrored": buckets(lambda p: -p),
                "bias of few places": buckets(lambda p: p.clamp(-90, 90))}
    if model_type == "deberta-v2":
        def distances(change_position):
            def change(other):
                encoder = other.model.base_model.encoder
                distances = encoder.get_rel_pos
                encoder.get_rel_pos = lambda *args: change_position(distances(*args))
            return change
        def attention(change_part):
            def change(other):
                for layer in other.model.base_model.encoder.layer:
                    change_part(layer.attention.self)
            return change
        def only(term):
            return attention(lambda part: setattr(part, "pos_att_type", [term]))
        def swap(part):
            keys, queries = (("key_proj", "query_proj") if part.share_att_key else ("pos_key_proj", "pos_query_proj"))
            part.pos_key_proj, part.pos_query_proj = getattr(part, queries), getattr(part, keys)
            part.share_att_key = False
        def no_terms_in_scale(part):
            for name in ("query_proj", "pos_query_proj"):
                if hasattr(part, name):
                    for parameter in getattr(part, name).parameters():
                        parameter.data *= 3 ** 0.5
        def share(part):
            part.share_att_key = True
        def plain_embeddings(other):
            other.model.base_model.encoder.norm_rel_ebd = ["none"]
        def pooler(other):
            act = {"gelu": "tanh", "tanh": "gelu"}
            other.model.config.pooler_hidden_act = act[other.model.config.pooler_hidden_act]
            other.model.pooler.config = other.model.config
        return {
            "distances mirrored": distances(lambda p: -p), "distances + 1": distances(lambda p: p + 1),
            "distances - 1": distances(lambda p: p - 1), "distances to 30 only": distances(lambda p: p.clamp(-30, 30)),
            "one bucket for all far behind": distances(lambda p: p.clamp(-512, 100)),
            "one bucket for all far ahead": distances(lambda p: p.clamp(-100, 512)),
            "content to position only": only("c2p"), "position to content only": only("p2c"),
            "position keys and queries swapped": attention(swap),
            "scale of one term": attention(no_terms_in_scale), "another activation of the pooler": pooler,
            **({} if config.share_att_key else {"projections shared": attention(share)}),
            **({"embeddings of positions without LayerNorm": plain_embeddings}
               if getattr(config, "norm_rel_ebd", "none") != "none" else {}),
        }
    if model_type == "modernbert":
        def theta(kind, factor):
            def change(other):
                name = f"{kind}_inv_freq"
                rotary = other.model.base_model.rotary_emb
                setattr(rotary, name, getattr(rotary, name) * factor)
            return change
        def gate(other):
            for layer in other.model.base_model.layers:
                weight = layer.mlp.Wi.weight.data
                layer.mlp.Wi.weight.data = torch.cat([weight[len(weight) // 2:], weight[: len(weight) // 2]])
        def local(index):
            def change(other):
                layer = other.model.base_model.layers[index]
                both = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}
                layer.attention_type = both[layer.attention_type]
            return change
        of_model = lambda m: m.config
        return {"window + 1": attribute(of_model, "local_attention", lambda x: x + 2),
                "window - 1": attribute(of_model, "local_attention", lambda x: x - 2),
                "global theta": theta("full_attention", 1.1), "local theta": theta("sliding_attention", 1.1),
                "gate and input swapped": gate,
                "pooling": attribute(of_model, "classifier_pooling", lambda x: {"cls": "mean", "mean": "cls"}[x]),
                **{f"layer {i} local or global": local(i) for i in range(3)}}
    return {}


# ---------------------------------------------------------------- files

def write(path, result):
    """One element a line: diffs stay readable, the file small."""
    def dump(value):
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"))

    parts = []
    for key, value in result.items():
        if isinstance(value, list) and value:
            parts.append(f"{dump(key)}:[\n" + ",\n".join(dump(item) for item in value) + "\n]")
        else:
            parts.append(f"{dump(key)}:{dump(value)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    assert path.stat().st_size < 1_500_000, path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS, help="one of the tiny models")
    parser.add_argument("--model", type=Path, help="a saved model: only its answers are made")
    args = parser.parse_args()
    torch.manual_seed(1)
    if args.model:
        folder = args.model.resolve()
        write(HERE / f"{folder.name}.json", answers(folder, plain=True))
        write(HERE / f"{folder.name}-quality.json", quality(folder))
        return
    for name in [args.only] if args.only else KINDS:
        write(HERE / f"{name}.json", answers(make_model(name), plain=False))


if __name__ == "__main__":
    main()
