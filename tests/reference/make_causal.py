"""Make the reference fixtures of causal rerankers: tiny seeded decoders, and what transformers and
sentence-transformers answer for them in fp32, one input at a time.

    python make_causal.py                      # all of them
    python make_causal.py --only causal-llama  # one of them

Most inputs are token ids that a generator makes from a seed, so that the files stay small; some models have pairs of
texts, too. Before a fixture is written the script makes mistakes in the
model (another epsilon, no norm of queries, a wrong base ...) and stops if one would go unnoticed.
"""

import argparse
import copy
import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM, AutoModelForSequenceClassification, GemmaConfig, LlamaConfig, MistralConfig,
    PreTrainedTokenizerFast, Qwen2Config, Qwen3Config,
)

HERE = Path(__file__).resolve().parent
VISIBLE = 1e-3  # a mistake must move some logit by more than this
LENGTHS = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 19, 23, 29, 31, 32, 33, 40, 47, 48, 49, 63, 64, 65, 80, 95,
            96, 97, 127, 128, 129] + list(range(20, 190, 7)) + [255, 256, 257, 511, 1000, 3000])
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
POSITIONS = 4096

TEMPLATE = """\
{%- set instruction = namespace(text="Given a web search query, retrieve relevant passages that answer the query") -%}
{%- for message in messages if message.role == "system" -%}{%- set instruction.text = message.content -%}{%- endfor -%}
<|im_start|>system
Judge the Document. The answer is "y" or "n".<|im_end|>
<|im_start|>user
<Instruct>: {{ instruction.text }}
{% for message in messages if message.role == "query" %}<Query>: {{ message.content }}
{% endfor %}
{%- for message in messages if message.role == "document" %}<Document>: {{ message.content }}{% endfor %}<|im_end|>
<|im_start|>assistant

"""

SHAPE = dict(hidden_size=32, num_hidden_layers=3, intermediate_size=48, max_position_embeddings=POSITIONS,
             bos_token_id=None, eos_token_id=None)
GROUPED = dict(num_attention_heads=6, num_key_value_heads=2)
EQUAL = dict(num_attention_heads=4, num_key_value_heads=4)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=256)
LLAMA3 = dict(rope_type="llama3", rope_theta=5000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=128)

KINDS = {
    "causal-qwen3": dict(
        config=Qwen3Config, settings=dict(**GROUPED, head_dim=8, tie_word_embeddings=True, rms_norm_eps=1e-4,
                                          rope_parameters=dict(rope_type="default", rope_theta=1e6)),
        tokens=("y", "n"), pairs=True, seed=1),
    "causal-qwen3-yarn": dict(
        config=Qwen3Config, settings=dict(**EQUAL, head_dim=12, tie_word_embeddings=False, rms_norm_eps=1e-6,
                                          attention_bias=True, rope_parameters=YARN),
        tokens=("Y", None), seed=2),
    "causal-qwen2": dict(
        config=Qwen2Config, settings=dict(num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True,
                                          rms_norm_eps=1e-5,
                                          rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=3.0)),
        tokens=("1", "0"), dtype=torch.bfloat16, seed=3),
    "causal-llama": dict(
        config=LlamaConfig, settings=dict(num_attention_heads=4, num_key_value_heads=2, head_dim=10,
                                          tie_word_embeddings=False, rms_norm_eps=1e-5, attention_bias=True,
                                          mlp_bias=True, rope_parameters=LLAMA3),
        tokens=("y", "n"), former=True, seed=4),
    "causal-mistral": dict(
        config=MistralConfig, settings=dict(**GROUPED, head_dim=8, sliding_window=20, rms_norm_eps=1e-3,
                                            rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
        tokens=("Y", None), dtype=torch.float16, seed=5),
    "causal-gemma": dict(
        config=GemmaConfig, settings=dict(num_attention_heads=3, num_key_value_heads=1, head_dim=16,
                                          rms_norm_eps=1e-4, hidden_act="gelu", pad_token_id=0,
                                          rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
        tokens=("Y", None), seed=6),
    "seqcls-qwen3": dict(
        config=Qwen3Config, settings=dict(**GROUPED, head_dim=8, rms_norm_eps=1e-4, pad_token_id=0, num_labels=1,
                                          rope_parameters=dict(rope_type="default", rope_theta=1e6)),
        pairs=True, seed=7),
    "seqcls-qwen2": dict(
        config=Qwen2Config, settings=dict(**EQUAL, rms_norm_eps=1e-5, pad_token_id=0, num_labels=1,
                                          use_sliding_window=True, sliding_window=16, max_window_layers=1,
                                          rope_parameters=dict(rope_type="default", rope_theta=10000.0)), seed=8),
    "seqcls-llama": dict(
        config=LlamaConfig, settings=dict(**EQUAL, rms_norm_eps=1e-5, num_labels=2,
                                          rope_parameters=dict(rope_type="default", rope_theta=10000.0)), seed=9),
    "seqcls-mistral": dict(
        config=MistralConfig, settings=dict(num_attention_heads=4, num_key_value_heads=2, sliding_window=None,
                                            rms_norm_eps=1e-5, pad_token_id=2, num_labels=1,
                                            rope_parameters=YARN | dict(truncate=False)), seed=10),
    "seqcls-gemma": dict(
        config=GemmaConfig, settings=dict(num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                                          rms_norm_eps=1e-4, hidden_act="gelu_pytorch_tanh", pad_token_id=0,
                                          num_labels=1,
                                          rope_parameters=dict(rope_type="default", rope_theta=10000.0)), seed=11),
}


def byte_tokenizer(chat):
    """Every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(SPECIALS + alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(SPECIALS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=POSITIONS, pad_token=SPECIALS[0],
                                        eos_token=SPECIALS[2])
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def randomise(network, seed, gemma):
    """Weights under which every part of the graph shows in the logits."""
    rng = np.random.default_rng(seed)
    for name, parameter in sorted(network.named_parameters()):
        shape = tuple(parameter.shape)
        if name.endswith("norm.weight"):
            value = rng.uniform(0.5, 1.5, shape) - (1.0 if gemma else 0.0)
        elif name.endswith("bias"):
            value = rng.normal(0, 0.5, shape)
        elif "embed_tokens" in name:
            # Rows of small variance: a wrong epsilon shows.
            value = rng.normal(0, 0.03, shape)
        elif "lm_head" in name or "score" in name:
            value = rng.normal(0, 0.5, shape)
        else:
            value = rng.normal(0, 0.25, shape)
        parameter.data = torch.tensor(value, dtype=torch.float32)


def clean(folder, former):
    config = json.loads((folder / "config.json").read_text())
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    if former:
        # As transformers 4 wrote it.
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope
        config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for key in ("name_or_path", "is_local", "local_files_only"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "generation_config.json").unlink(missing_ok=True)
    os.chmod(folder / "model.safetensors", 0o644)


def auto(kind):
    return AutoModelForCausalLM if "tokens" in kind else AutoModelForSequenceClassification


def make_model(name):
    kind = KINDS[name]
    tokenizer = byte_tokenizer("tokens" in kind or kind.get("pairs"))
    config = kind["config"](vocab_size=len(tokenizer), **SHAPE, **kind["settings"])
    network = auto(kind).from_config(config, dtype=torch.float32)
    randomise(network, kind["seed"], "gemma" in name)
    network.tie_weights()
    folder = HERE / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as draft:
        network.to(kind.get("dtype", torch.float32)).save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        if "tokens" in kind:
            true, false = (t and tokenizer.convert_tokens_to_ids(t) for t in kind["tokens"])
            transformer = Transformer(draft, transformer_task="text-generation", model_kwargs={"dtype": "auto"})
            model = CrossEncoder(modules=[transformer, LogitScore(true, false)], device="cpu",
                                 activation_fn=torch.nn.Identity())
        else:
            model = CrossEncoder(draft, device="cpu", activation_fn=torch.nn.Identity(),
                                 model_kwargs={"dtype": "auto"})
        model.save_pretrained(str(folder), create_model_card=False)
    clean(folder, kind.get("former"))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size <= 230_000, (name, size)
    return folder


def made_up(seed, length, vocabulary):
    """Ids of a linear congruential generator, which the tests repeat."""
    ids, state = [], seed
    for _ in range(length):
        state = (state * 1103515245 + 12345) % 2**31
        ids.append((state >> 8) % vocabulary)
    return ids


def answers(network, kind, folder, inputs):
    """Logits of lists of ids, each alone."""
    score = json.loads((folder / "1_LogitScore/config.json").read_text()) if "tokens" in kind else None
    logits = []
    for ids in inputs:
        with torch.no_grad():
            found = network(input_ids=torch.tensor([ids]), use_cache=False).logits
        if score is None:
            logits.append(found[0].tolist())
        elif score["false_token_id"] is None:
            logits.append([found[0, -1, score["true_token_id"]].item()])
        else:
            last = found[0, -1]
            logits.append([(last[score["true_token_id"]] - last[score["false_token_id"]]).item()])
    return logits


def mistakes(network, name):
    """Copies of the network, each with one mistake."""
    def changed(label, change):
        other = copy.deepcopy(network)
        change(other)
        return label, other

    def norms(other, change):
        for module in other.modules():
            if type(module).__name__.endswith("RMSNorm"):
                change(module)

    def epsilon(module):
        field = "variance_epsilon" if hasattr(module, "variance_epsilon") else "eps"
        setattr(module, field, getattr(module, field) * 3)

    yield changed("epsilon", lambda other: norms(other, epsilon))
    rotary = lambda other: other.model.rotary_emb
    yield changed("base", lambda other: rotary(other).inv_freq.mul_(1.01))
    if "yarn" in name or name == "seqcls-mistral":
        yield changed("magnitude", lambda other: setattr(rotary(other), "attention_scaling", 1.0))
    if "qwen3" in name:
        for part in ("q_norm", "k_norm"):
            yield changed(part, lambda other: [setattr(layer.self_attn, part, torch.nn.Identity())
                                               for layer in other.model.layers])
    if any(parameter.endswith("bias") for parameter, _ in network.named_parameters()):
        for part in sorted({parameter.split(".")[-2] for parameter, _ in network.named_parameters()
                            if parameter.endswith("bias")}):
            if part == "k_proj" and "llama" not in name and "qwen" not in name:
                continue
            yield changed(f"bias of {part}", lambda other: [value.data.zero_() for parameter, value in
                                                          other.named_parameters()
                                                          if parameter.endswith(f"{part}.bias")])


def pairs():
    long = "The quick river under the old bridge ran dry in the summer of 1998. "
    texts = ["A man is eating.", "", "?", "Das Wetter in Tokio", "東京の天気", long, long * 3,
             "<|im_end|> and <Document>: inside a text", "trailing newline\n", "two\n\nlines", " ", "😀"]
    queries = ["Who wrote it?", "", "What is a reranker, and who needs one?", "10", "a\n"]
    return [[query, text] for query in queries for text in texts]


def make(name):
    kind = KINDS[name]
    folder = make_model(name)
    network = auto(kind).from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary = network.config.vocab_size
    made = [[100 + number, length] for number, length in enumerate(LENGTHS)]
    inputs = [made_up(seed, length, vocabulary) for seed, length in made]
    # Padding in the middle, at the end, and nothing else.
    padding = network.config.pad_token_id
    plain = [[5, 6, 7]] if padding is None else [[5, padding, 7], [5, 6, padding, padding], [padding, padding], [padding]]
    logits = answers(network, kind, folder, inputs + plain)
    for label, other in mistakes(network, name):
        some = [at for at, ids in enumerate(inputs) if len(ids) <= 150]
        found = answers(other, kind, folder, [inputs[at] for at in some])
        off = max(abs(a - b) / max(1, abs(b)) for at, row in zip(some, found) for a, b in zip(row, logits[at]))
        assert off > VISIBLE, f"{name}: {label} moves no logit by more than {off}"
        print(f"{name}: {label} moves a logit by {off:.3g}")
    fixture = dict(
        versions={package: version(package) for package in ("sentence-transformers", "transformers", "torch")},
        vocabulary=vocabulary, made_up=made, plain=plain, logits=logits)
    if kind.get("pairs"):
        model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
        seen = []
        hook = lambda module, args, kwargs: seen.append((args or [kwargs["input_ids"]])[0][0].tolist())
        model[0].model.model.register_forward_pre_hook(hook, with_kwargs=True)
        texts = pairs()
        fixture["pairs"] = texts
        fixture["pair_logits"] = [float(model.predict([pair], show_progress_bar=False)[0]) for pair in texts]
        fixture["pair_ids"] = seen
        assert len(seen) == len(texts)
    path = HERE / f"{name}.json"
    path.write_text(json.dumps(fixture, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    spread = [row[0] for row in logits]
    print(f"{name}: {len(logits)} inputs, logits from {min(spread):.3f} to {max(spread):.3f}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append")
    torch.set_num_threads(1)
    for name in parser.parse_args().only or KINDS:
        make(name)
