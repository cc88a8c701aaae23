"""Measure causal rerankers of the shape of Qwen3-Reranker-0.6B, with weights from a seed, on one request: a query of 20
tokens and documents of equal length. Needs numpy, torch, transformers and sentence-transformers (requirements-causal.txt
of tests/reference).

    python causal.py model DIR [--layers 28]              # writes the model
    python causal.py torch DIR --tokens 50                # CrossEncoder.predict in fp32, sorted by length
    python causal.py http URL --tokens 50 --name NAME     # a server with a route /rerank

Every run prints a line of JSON, with the seconds of each round, and appends it to `--out FILE`.
"""

import argparse
import json
import os
import random
import time
import urllib.request
from pathlib import Path

TEMPLATE = """\
{%- set instruction = namespace(text="Given a web search query, retrieve relevant passages that answer the query") -%}
{%- for message in messages if message.role == "system" -%}{%- set instruction.text = message.content -%}{%- endfor -%}
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ instruction.text }}
{% for message in messages if message.role == "query" %}<Query>: {{ message.content }}
{% endfor %}
{%- for message in messages if message.role == "document" %}<Document>: {{ message.content }}{% endfor %}<|im_end|>
<|im_start|>assistant
<think>

</think>


"""
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
# How Qwen's tokenizer splits text.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
WORDS = ("river bridge summer winter market signal engine garden window letter silver copper forest island harbor planet "
         "mirror needle candle basket tunnel valley desert meadow rocket ladder hammer pencil blanket kettle").split()
QUERY_TOKENS = 20
SHAPE = dict(hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8, head_dim=128)


def texts(documents, tokens):
    """A query and documents; every word is one token."""
    draw = random.Random(1)
    words = lambda count: " ".join(draw.choice(WORDS) for _ in range(count))
    return words(QUERY_TOKENS), [words(tokens) for _ in range(documents)]


def write_tokenizer(folder):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    raw = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raw.decoder = decoders.ByteLevel()
    corpus = [TEMPLATE, "yes no", "\n\n \n\n\n", " " + " ".join(WORDS), "\n".join(WORDS)] * 10
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    raw.train_from_iterator(corpus, trainer)
    raw.add_special_tokens(SPECIALS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=40960, pad_token=SPECIALS[0],
                                        eos_token=SPECIALS[2])
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return tokenizer


def write_model(folder, layers):
    import torch
    from safetensors.torch import save_file
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder)
    vocabulary = len(tokenizer)
    width, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    heads, kv_heads, size = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"], SHAPE["head_dim"]
    generator = torch.Generator().manual_seed(1)
    def matrix(*shape, deviation=0.02):
        return torch.empty(shape, dtype=torch.float32).normal_(0, deviation, generator=generator).to(torch.bfloat16)
    ones = lambda count: torch.ones(count, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": matrix(vocabulary, width, deviation=1.0), "model.norm.weight": ones(width)}
    for layer in range(layers):
        part = f"model.layers.{layer}."
        tensors |= {
            part + "input_layernorm.weight": ones(width),
            part + "post_attention_layernorm.weight": ones(width),
            part + "self_attn.q_norm.weight": ones(size),
            part + "self_attn.k_norm.weight": ones(size),
            part + "self_attn.q_proj.weight": matrix(heads * size, width),
            part + "self_attn.k_proj.weight": matrix(kv_heads * size, width),
            part + "self_attn.v_proj.weight": matrix(kv_heads * size, width),
            part + "self_attn.o_proj.weight": matrix(width, heads * size),
            part + "mlp.gate_proj.weight": matrix(inner, width),
            part + "mlp.up_proj.weight": matrix(inner, width),
            part + "mlp.down_proj.weight": matrix(width, inner),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write = lambda name, value: (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    write("config.json", dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", num_hidden_layers=layers, vocab_size=vocabulary,
        max_position_embeddings=40960, rms_norm_eps=1e-6, rope_theta=1e6, rope_scaling=None, attention_bias=False,
        hidden_act="silu", tie_word_embeddings=True, sliding_window=None, use_sliding_window=False,
        torch_dtype="bfloat16", bos_token_id=None, eos_token_id=None, **SHAPE))
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    score = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    write("modules.json", [dict(idx=0, name="0", path="", type=kind), dict(idx=1, name="1", path="1_LogitScore", type=score)])
    forward = dict(method="forward", method_output_name="logits")
    write("sentence_bert_config.json", dict(
        transformer_task="text-generation", module_output_name="causal_logits",
        modality_config=dict(text=forward, message=dict(**forward, format="flat"))))
    write("config_sentence_transformers.json", dict(
        model_type="CrossEncoder", activation_fn="torch.nn.modules.linear.Identity", prompts={}, default_prompt_name=None))
    (folder / "1_LogitScore").mkdir(exist_ok=True)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    write("1_LogitScore/config.json", dict(true_token_id=yes, false_token_id=no))


def prompt_tokens(folder, query, documents):
    """Tokens of the prefix that all prompts share, and of all prompts."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    render = lambda text: tokenizer.apply_chat_template(
        [dict(role="query", content=query), dict(role="document", content=text)], tokenize=False)
    ids = [tokenizer(render(text), add_special_tokens=False)["input_ids"] for text in documents]
    prefix = os.path.commonprefix(ids + [tokenizer(render("9"), add_special_tokens=False)["input_ids"]])
    return len(prefix), sum(map(len, ids))


def report(arguments, name, seconds):
    times = sorted(seconds)
    line = dict(name=name, documents=arguments.documents, tokens=arguments.tokens, seconds=[round(s, 3) for s in seconds],
                documents_per_second=round(arguments.documents / times[len(times) // 2], 3))
    print(json.dumps(line), flush=True)
    if arguments.out:
        with open(arguments.out, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


def run_torch(arguments):
    import torch
    from sentence_transformers import CrossEncoder
    torch.set_num_threads(os.cpu_count())
    query, documents = texts(arguments.documents, arguments.tokens)
    print("prefix and all tokens:", *prompt_tokens(arguments.folder, query, documents))
    model = CrossEncoder(str(arguments.folder), device="cpu", model_kwargs=dict(dtype=torch.float32))
    pairs = [(query, text) for text in documents]
    model.predict(pairs[:2], show_progress_bar=False)
    seconds = []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        scores = model.predict(pairs, batch_size=arguments.batch, show_progress_bar=False)
        seconds.append(time.perf_counter() - start)
    print("first scores:", [round(float(score), 4) for score in scores[:4]])
    report(arguments, arguments.name or "sentence-transformers, torch fp32", seconds)


def run_http(arguments):
    query, documents = texts(arguments.documents, arguments.tokens)
    def ask(documents):
        body = json.dumps(dict(query=query, documents=documents, **json.loads(arguments.fields))).encode()
        request = urllib.request.Request(arguments.url + "/rerank", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=3600) as answer:
            return json.load(answer)
    # Also the cost model of a server may follow what it sees.
    for _ in range(2):
        ask(documents[:8])
    seconds = []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        answer = ask(documents)
        seconds.append(time.perf_counter() - start)
    results = sorted(answer["results"], key=lambda result: result["index"])
    print("first scores:", [round(result.get("score", result.get("relevance_score")), 4) for result in results[:4]])
    report(arguments, arguments.name, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    model = commands.add_parser("model")
    model.add_argument("folder", type=Path)
    model.add_argument("--layers", type=int, default=28)
    torch, http = commands.add_parser("torch"), commands.add_parser("http")
    torch.add_argument("folder", type=Path)
    torch.add_argument("--batch", type=int, default=32)
    http.add_argument("url")
    http.add_argument("--fields", default="{}", help="more fields of the body")
    for command in (torch, http):
        command.add_argument("--documents", type=int, default=100)
        command.add_argument("--tokens", type=int, default=50)
        command.add_argument("--rounds", type=int, default=1)
        command.add_argument("--name")
        command.add_argument("--out")
    arguments = parser.parse_args()
    if arguments.command == "model":
        write_model(arguments.folder, arguments.layers)
    else:
        {"torch": run_torch, "http": run_http}[arguments.command](arguments)


if __name__ == "__main__":
    main()
