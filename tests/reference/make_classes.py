"""Make the reference fixtures of tokenizer classes: tiny seeded decoders whose `tokenizer.json` says one thing and
whose class another, and what sentence-transformers answers for them in fp32, one pair at a time.

    python make_classes.py                     # all of them
    python make_classes.py --only class-llama  # one of them

Before a fixture is written the script reads the pairs with `tokenizer.json` unchanged, too, and stops if too few
of them differ.
"""

import argparse
import json
import shutil
import tempfile
from importlib.metadata import version

import make_causal as causal
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

SHAPE = causal.SHAPE | dict(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
ROPE = dict(rope_type="default", rope_theta=10000.0)
LEAST = 20  # so many pairs must differ

TEXTS = ["the quick river", " the quick river", "  two  spaces ", "", " ", "end</s>after it", "end</s> after it",
         "<s>start", "<bos>start<eos> and on", "one<|im_end|>two", "It's 1998, we'LL see 12345", "tabs\tand\nlines\n\n",
         "caf\u00e9 cafe\u0301 A\u030angstrom \u212b", "\ufb01ne \uff21\uff22", "東京の天気", "😀 smile", "▁mark", "a▁b c",
         "<unk> and <mask>", "[note]quick[note] river", "x = 1; y = 2"]
QUERIES = ["Who wrote it?", " 10 rivers", "e\u0301te\u0301</s>\tit's"]


def spm(names):
    """Pieces as SentencePiece has them, with bytes for what they do not cover."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    ascii_only = [text for text in TEXTS + QUERIES if text.isascii()]
    raw.train_from_iterator(ascii_only * 2, trainers.BpeTrainer(
        vocab_size=420, special_tokens=names + bytes_, show_progress=False))
    # Only the names are found in texts as they are.
    saved = json.loads(raw.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] in names]
    return Tokenizer.from_str(json.dumps(saved))


def llama():
    """As converted from Llama 2."""
    raw = spm(["<unk>", "<s>", "</s>"])
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.add_tokens([AddedToken("[note]", normalized=False)])
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", raw.token_to_id("<s>"))])
    return raw


def gemma():
    """With the normalizer of Llama 2, and a pre-tokenizer at digits."""
    raw = spm(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", raw.token_to_id("<bos>"))])
    return raw


def qwen2():
    """Byte-level, split at spaces only, and with no normal form."""
    names = causal.SPECIALS
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\S+|\s+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator((TEXTS + QUERIES) * 2, trainers.BpeTrainer(
        vocab_size=420, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return raw


KINDS = {
    "class-llama": dict(
        config=LlamaConfig, tokenizer=llama, tokens=("q", "r"), seed=21,
        settings=dict(tokenizer_class="LlamaTokenizer", legacy=False, model_max_length=1000, pad_token="</s>"),
        # `bos_token` is the default of the class.
        template="{{ bos_token }}[INST] {% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}[/INST]"),
    "class-llama-legacy": dict(
        config=LlamaConfig, tokenizer=llama, seed=22,
        settings=dict(tokenizer_class="LlamaTokenizerFast", legacy=True, model_max_length=1000, unk_token="<unk>",
                      bos_token="<s>", eos_token="</s>", pad_token="</s>")),
    "class-qwen2": dict(
        config=Qwen2Config, tokenizer=qwen2, seed=23, template=causal.TEMPLATE,
        settings=dict(model_max_length=1000, eos_token="<|im_end|>", pad_token="<|endoftext|>", add_prefix_space=False)),
    "class-gemma": dict(
        config=GemmaConfig, tokenizer=gemma, seed=24, head_dim=16,
        settings=dict(tokenizer_class="GemmaTokenizer", model_max_length=1000, pad_token="<pad>", added_tokens_decoder={
            "0": dict(content="<pad>", special=True), "1": dict(content="<eos>", special=True),
            "2": dict(content="<bos>", special=True), "4": dict(content="<mask>", lstrip=True, special=True)})),
}


def write_tokenizer(folder, kind, raw):
    """The files as they are published; saving the tokenizer would write those of its class."""
    raw.save(str(folder / "tokenizer.json"))
    settings = json.dumps(kind["settings"], indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(settings + "\n", encoding="utf-8")
    if "template" in kind:
        (folder / "chat_template.jinja").write_text(kind["template"], encoding="utf-8")


def make_model(name):
    kind = KINDS[name]
    raw = kind["tokenizer"]()
    extra = {"head_dim": kind["head_dim"]} if "head_dim" in kind else {}
    labels = {} if "tokens" in kind else dict(num_labels=1)
    config = kind["config"](vocab_size=raw.get_vocab_size(), **SHAPE, **extra, **labels, rms_norm_eps=1e-5,
                            pad_token_id=0, rope_parameters=dict(ROPE))
    network = causal.auto(kind).from_config(config, dtype=torch.float32)
    causal.randomise(network, kind["seed"], "gemma" in name)
    network.tie_weights()
    folder = causal.HERE / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as draft:
        draft = causal.Path(draft)
        network.save_pretrained(draft)
        write_tokenizer(draft, kind, raw)
        if "tokens" in kind:
            transformer = Transformer(str(draft), transformer_task="text-generation")
            model = CrossEncoder(modules=[transformer, LogitScore(*map(raw.token_to_id, kind["tokens"]))], device="cpu",
                                 activation_fn=torch.nn.Identity())
        else:
            model = CrossEncoder(str(draft), device="cpu", activation_fn=torch.nn.Identity())
        model.save_pretrained(str(folder), create_model_card=False)
    write_tokenizer(folder, kind, raw)
    causal.clean(folder, False)
    return folder


def answers(folder, pairs, tokenizer=None):
    """Ids and logits that sentence-transformers gives."""
    model = CrossEncoder(str(folder), device="cpu")
    if tokenizer is not None:
        model[0].processor = tokenizer
    seen = []
    hook = lambda module, args, kwargs: seen.append((args or [kwargs["input_ids"]])[0][0].tolist())
    model[0].model.model.register_forward_pre_hook(hook, with_kwargs=True)
    logits = [float(model.predict([pair], show_progress_bar=False)[0]) for pair in pairs]
    assert len(seen) == len(pairs)
    return seen, logits, type(model.tokenizer).__name__


def make(name):
    folder = make_model(name)
    pairs = [[query, text] for query in QUERIES for text in TEXTS]
    ids, logits, found = answers(folder, pairs)
    with tempfile.TemporaryDirectory() as other:
        # The same files, and a class that leaves them alone.
        shutil.copytree(folder, other, dirs_exist_ok=True)
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (causal.Path(other) / "tokenizer_config.json").write_text(json.dumps(settings))
        as_saved, _, plain = answers(other, pairs)
    differ = sum(a != b for a, b in zip(ids, as_saved))
    assert plain == "TokenizersBackend" and differ >= LEAST, (name, plain, differ)
    fixture = dict(
        versions={package: version(package) for package in ("sentence-transformers", "transformers", "tokenizers", "torch")},
        pairs=pairs, ids=ids, logits=logits)
    path = causal.HERE / f"{name}.json"
    path.write_text(json.dumps(fixture, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {found}, {differ} of {len(pairs)} pairs differ from `tokenizer.json`, "
          f"logits from {min(logits):.3f} to {max(logits):.3f}, {size} and {path.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append")
    torch.set_num_threads(1)
    for name in parser.parse_args().only or KINDS:
        make(name)
