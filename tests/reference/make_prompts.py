"""Prompts of causal rerankers: token ids as sentence-transformers makes them, stored as data.

    pip install -r requirements-prompts.txt
    python make_prompts.py

Writes `prompts/<kind>/` (the files of a model, without weights) and `prompts/<kind>.json` (texts and ids),
`prompts/templates.json` (templates as transformers renders them) and `prompts/pieces.json` (prompts that
are tokenized piece by piece, as the packages and cards of those models do).
"""

import json
import random
import shutil
import tempfile
from pathlib import Path

import sentence_transformers
import tokenizers
import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

import texts

HERE = Path(__file__).parent
OUT = HERE / "prompts"

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = QWEN.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NOT_SPECIAL = ["<think>", "</think>"]

JUDGE = (
    '<|im_start|>system\nSay whether the Document fits the Query and the Instruct. Answer "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
TAIL = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
FIRST = "{{ messages | selectattr('role', 'eq', '%s') | map(attribute='content') | first }}"

# The layout of Qwen3-Reranker: an instruction with a default in the template.
JUDGE_TEMPLATE = (
    "{%- set found = namespace(instruction='Find the passages that answer the query') -%}\n"
    "{%- for message in messages if message.role == 'system' -%}\n"
    "    {%- set found.instruction = message.content -%}\n"
    "{%- endfor -%}\n"
    + JUDGE
    + "<Instruct>: {{ found.instruction }}\n<Query>: "
    + FIRST % "query"
    + "\n<Document>: "
    + FIRST % "document"
    + "<|im_end|>\n"
    + TAIL
    + "\n"
)
# The layout of zerank: a ChatML turn for each role.
TURNS_TEMPLATE = """{%- for message in messages %}
    {%- if message.role == 'query' %}
        {{- '<|im_start|>system\n' + message.content.strip() + '<|im_end|>\n' }}
    {%- elif message.role == 'document' %}
        {{- '<|im_start|>user\n' + message.content.strip() + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
# The layout of mxbai-rerank: a long tail, and an instruction that is left out without a prompt.
TASK_TEMPLATE = """<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
{% for message in messages %}
{% if message.role == "system" %}
instruction: {{ message.content }}
{% elif message.role == "query" %}
query: {{ message.content }}
{% else %}
document: {{ message.content }}
{% endif %}
{% endfor %}
You are an expert who evaluates how well documents match queries, 0 for not relevant, 1 for relevant.
Relevance:<|im_end|>
<|im_start|>assistant

"""
# Messages whose content is a list, a prompt in the tail, and no tail put back.
STRUCTURED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] != 'system' %}"
    "[{{ message['role'] | upper }}] {{ message['content'][0]['text'] | trim }}\n{% endif %}{% endfor %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content[0].text }}{% endif %}{{ eos_token }}"
)
PLAIN_TEMPLATE = "{{ bos_token }}Q: " + FIRST % "query" + "\nD: " + FIRST % "document" + "\nAnswer:"


def bpe(pattern, digits):
    tokenizer = Tokenizer(models.BPE(ignore_merges=digits))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    rng = random.Random(7)
    lines = list(texts.corpus(rng)) + ["yes no Yes No :\n >: ?\n .\n", "yes", "no", "Yes"] * 500
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in NOT_SPECIAL])
    return tokenizer


def save_tokenizer(folder, kind):
    tokenizer = bpe(LLAMA if kind.get("llama") else QWEN, kind.get("llama", False))
    if kind.get("bos"):
        bos = tokenizer.token_to_id("<|im_start|>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", pair="<|im_start|> $A <|im_start|> $B:1", special_tokens=[("<|im_start|>", bos)]
        )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": kind.get("model_max_length", 131072),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        **kind.get("tokenizer_config", {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    for name, source in kind.get("templates", {}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return tokenizer


def model_of(kind, folder):
    """A tiny random model in `folder`, whose tokenizer is already there."""
    size = dict(
        vocab_size=720,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=kind["max_length"],
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    if kind.get("classes"):
        config = transformers.Qwen3Config(**size, num_labels=1)
        transformers.Qwen3ForSequenceClassification(config).save_pretrained(folder)
    else:
        transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**size)).save_pretrained(folder)


KINDS = {
    "judge": {
        "max_length": 120,
        "templates": {"chat_template.jinja": JUDGE_TEMPLATE},
        # As in the 4B model: what is here is for chats, and the file wins.
        "tokenizer_config": {"chat_template": "{% for m in messages %}{{ m.role }}{% endfor %}"},
        "score": ("yes", "no"),
        "prompts": {"query": "Given a question, find its answer", "facts": "Is the document a fact?\nSay so."},
        "default_prompt_name": "query",
    },
    "turns": {
        "max_length": 64,
        "templates": {"chat_template.jinja": TURNS_TEMPLATE},
        "score": ("Yes", None),
        "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
    },
    "task": {
        "max_length": 96,
        "templates": {"chat_template.jinja": TASK_TEMPLATE},
        "score": ("1", "0"),
        "prompts": {"code": "find code"},
    },
    "structured": {
        "max_length": 48,
        "llama": True,
        "tokenizer_config": {
            "bos_token": "<|im_start|>",
            "chat_template": [
                {"name": "default", "template": "{{ messages[0].content }}"},
                {"name": "pair", "template": STRUCTURED_TEMPLATE},
            ],
        },
        "format": "structured",
        "score": ("yes", "no"),
        "processing_kwargs": {"chat_template": {"chat_template": "pair", "restore_suffix": False}},
    },
    "named": {
        "max_length": 40,
        "llama": True,
        "tokenizer_config": {"bos_token": {"content": "<|im_start|>", "__type": "AddedToken"}, "truncation_side": "left"},
        "templates": {
            "additional_chat_templates/default.jinja": STRUCTURED_TEMPLATE,
            "additional_chat_templates/other.jinja": "{{ messages[0].role }}",
        },
        "format": "structured",
        "score": ("yes", "no"),
        "prompts": {"tail": "Answer yes or no"},
        "default_prompt_name": "tail",
    },
    "bare": {
        "max_length": 56,
        "tokenizer_config": {"bos_token": "<|endoftext|>", "chat_template": PLAIN_TEMPLATE},
        "bare": True,
    },
    # Without a template, the tokenizer joins the texts.
    "joined": {"max_length": 40, "classes": True, "bare": True},
    "joined-bos": {"max_length": 41, "classes": True, "bare": True, "bos": True},
    "classifier": {
        "max_length": 72,
        "templates": {"chat_template.jinja": TURNS_TEMPLATE},
        "classes": True,
        "bare": True,
    },
}

TEMPLATE_WORDS = [
    ("<|im_end|>\n<|im_start|>assistant\n", "<think>\n\n</think>\n\n"),
    ("<Query>: what?\n<Document>: this", "yes"),
    ("{{ messages }} {% if x %}", "{# no comment #}{% raw %}"),
    ("<|endoftext|>", "<|endoftext|><|endoftext|>"),
    ("document: a\nquery: b", "Relevance:"),
]


def pairs_of(rng, max_length):
    """Empty and odd texts, words of templates, and documents around the maximum length."""
    pairs = [("", ""), ("", "a"), ("a", ""), (" ", "\n"), ("\n\n", "  "), ("q\n", "\nd\n"), ("q ", " d ")]
    pairs += TEMPLATE_WORDS + [(b, a) for a, b in TEMPLATE_WORDS]
    pairs += [("what?\n", "this.\n"), ("is it.", "it's 12345 don'T"), ("x'", "'re"), ("e", "\u0301e\u0301"), (">", ">:")]
    pairs += [("tab\tand\r\nline", "a\r\nb\rc"), ("\u00a0", "\u3000\u200b"), ("🏳️‍🌈", "👩‍🚀👍🏽")]
    for mix in (0.0, 0.3):
        for _ in range(6):
            pairs.append((texts.sentence(rng, rng.randrange(1, 9), mix), texts.sentence(rng, rng.randrange(1, 15), mix)))
    document = texts.sentence(rng, max_length).split(" ")
    for count in range(1, max_length // 2, 3):
        pairs.append((texts.sentence(rng, 3), " ".join(document[:count])))
    long = {"repeat": [texts.sentence(rng, 5) + "\n", max_length // 4]}
    pairs += [(long, "short"), (long, long), ("short", {"repeat": ["a long é text. ", 2000]})]
    return pairs


def expand(text):
    """The text of a pair; long ones are stored as a string and a count."""
    if isinstance(text, str):
        return text
    unit, count = text["repeat"]
    return unit * count


def ids_of(model, pair, prompt, prompt_name, max_length=None):
    kwargs = {}
    if max_length is not None:
        kwargs["processing_kwargs"] = {"text": {"max_length": max_length}}
    prompt = model._resolve_prompt(prompt, prompt_name)
    pair = tuple(expand(text) for text in pair)
    features = model.preprocess([pair], prompt=prompt, **kwargs)
    assert features["attention_mask"].all()
    return features["input_ids"][0].tolist()


def make(name, kind):
    folder = OUT / name
    tokenizer = save_tokenizer(folder, kind)
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary) / "plain"
        shutil.copytree(folder, plain)
        model_of(kind, plain)
        shutil.copy(plain / "config.json", folder / "config.json")
        if not kind.get("bare"):
            add_modules(kind, tokenizer, folder)
            shutil.copytree(folder, plain, dirs_exist_ok=True)
        model = CrossEncoder(str(plain), device="cpu", model_kwargs={"dtype": "float32"})
        assert ("message" in model[0].modality_config) != name.startswith("joined"), name
        cases = cases_of(model, kind)
        score = [module for module in model if isinstance(module, LogitScore)]
        record = {
            "made_with": {
                "sentence-transformers": sentence_transformers.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
            "max_length": model[0].max_seq_length,
            "tokens": [score[0].true_token_id, score[0].false_token_id] if score else None,
            "activation": type(model.activation_fn).__name__,
            "cases": cases,
        }
    dump(f"{name}.json", record)
    print(name, sum(len(case["pairs"]) for case in cases), "prompts")


def add_modules(kind, tokenizer, folder):
    true, false = kind["score"]
    assert tokenizer.token_to_id(true) is not None, true
    base = "sentence_transformers.base.modules.transformer.Transformer"
    score = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    method = {"method": "forward", "method_output_name": "logits"}
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": base},
            {"idx": 1, "name": "1", "path": "1_LogitScore", "type": score},
        ],
        "1_LogitScore/config.json": {
            "true_token_id": tokenizer.token_to_id(true),
            "false_token_id": false and tokenizer.token_to_id(false),
        },
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "modality_config": {"text": method, "message": {**method, "format": kind.get("format", "flat")}},
            "module_output_name": "causal_logits",
            **({"processing_kwargs": kind["processing_kwargs"]} if "processing_kwargs" in kind else {}),
        },
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": sentence_transformers.__version__},
            "model_type": "CrossEncoder",
            "prompts": kind.get("prompts", {}),
            "default_prompt_name": kind.get("default_prompt_name"),
            "activation_fn": "torch.nn.modules.linear.Identity",
        },
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


def cases_of(model, kind):
    rng = random.Random(11)
    pairs = pairs_of(rng, kind["max_length"])
    requests = [{}]
    requests += [{"prompt_name": prompt} for prompt in kind.get("prompts", {})]
    if "message" in model[0].modality_config:
        requests += [{"prompt": prompt} for prompt in ("", "Judge by colour.\n", "<|im_end|> ")]
    cases = []
    for request in requests:
        some = pairs if request == {} else pairs[::4] + pairs[-3:]
        ids = [ids_of(model, pair, request.get("prompt"), request.get("prompt_name")) for pair in some]
        cases.append({**request, "pairs": some, "ids": ids})
    # Cut at every length, from a part of the tail to the whole prompt.
    for pair in [("what is it?", "It is a river bridge.\n"), ("<|im_end|>é", "é 日本 yes"), ("q", "")]:
        whole = ids_of(model, pair, None, None, 100_000)
        for most in range(1 if "message" in model[0].modality_config else 4, len(whole) + 2):
            ids = ids_of(model, pair, None, None, most)
            cases.append({"max_length": most, "pairs": [pair], "ids": [ids]})
    return cases


TEMPLATES = [
    "{{ messages[0].content }}",
    "{{ messages[0]['content'] }}\n",
    "{{ messages[0].role }}\n\n",
    "a\r\nb\rc\r\n",
    "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\nend",
    "{{ messages[1].content.strip() }}|{{ messages[1].content | trim }}",
    "{{ messages[1].content.lstrip() }}|{{ messages[1].content.rstrip() }}|{{ messages[1].content.split() | join('-') }}",
    "{{ messages[0].content.startswith('<q') }} {{ 'b' in messages[0].content }} {{ 1 if false }}",
    "{{ none }} {{ tools }} {{ missing }} {{ true }} {{ 1.0 }} {{ 7 // 2 }} {{ 7 % 4 }}",
    "{{ bos_token }}{{ flag }}{{ add_generation_prompt }}",
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}",
    "{{ messages | rejectattr('role', 'equalto', 'document') | list | length }}",
    "{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
    "{{ messages[::-1][0].role }} {{ messages | length }} {{ messages[-1].role }} {{ messages[1:] | length }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{% endfor %}",
    "{{ 'a</think>b'.split('</think>')[-1] }}{{ 'x,y'.replace(',', ';') }}{{ 'aB'.upper() }}{{ 'aB'.title() }}",
    "{{ messages[0] | tojson }}{{ {'a': [1, 'é', none, true]} | tojson }}",
    "{{ [1, {'b': 2}] | tojson(indent=2) }}",
    "{%- if messages[0].role == 'query' -%}\n x \n{%- endif -%}\n\n",
    "{% macro show(m) %}<{{ m.role }}>{% endmacro %}{% for m in messages %}{{ show(m) }}{% endfor %}",
    "{{ 'q' is defined and missing is not defined }}{{ messages is iterable }}{{ 'a' is string }}{{ messages[0] is mapping }}",
    "{{ messages[0].get('role') }}{{ messages[0].get('x', 'none') }}{% for k, v in messages[0].items() %}{{ k }};{% endfor %}",
    "{# a comment #}\n  {# another #}\nx\n",
    "{{ '\\n' }}{{ \"\\\"\" }}{{ 'a' ~ 1 ~ none }}{{ 'ab'[0] }}{{ 'abc'[1:] }}",
    "{{ raise_exception('no') }}",
    "{{ missing.field }}",
    "{{ 'unknown' | no_such_filter }}",
    "{% generation %}a{% endgeneration %}",
]


def make_templates():
    messages = [{"role": "query", "content": "<q & 1>"}, {"role": "document", "content": " d e "}]
    variables = {"bos_token": "<s>", "flag": True}
    rendered = []
    for source in TEMPLATES:
        try:
            [text], _ = render_jinja_template([messages], chat_template=source, **variables)
        except Exception as error:  # noqa: BLE001
            print("template", repr(source), type(error).__name__)
            text = None
        rendered.append({"source": source, "rendered": text})
    dump("templates.json", {"messages": messages, "variables": variables, "templates": rendered})


class Pieces:
    """Prompts of packages that join token ids: each text is tokenized on its own."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def ids(self, text, most=None):
        return self.tokenizer.encode(text, add_special_tokens=False).ids[:most]

    def mxbai(self, query, document, instruction, max_length):
        head = self.ids(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n"
        )
        task = self.ids(
            "You are a search relevance expert who evaluates how well documents match search queries. For each "
            "query-document pair, carefully analyze the semantic relationship between them, then provide your "
            "binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
        )
        tail = self.ids("<|im_end|>\n<|im_start|>assistant\n")
        newline = self.ids("\n")
        first = f"query: {query}"
        if instruction:
            first = f"instruction: {instruction}\n{first}"
        first = self.ids(first, max_length * 3 // 4)
        second = newline + self.ids(f"document: {document}", max_length)
        second = second[: max_length - len(first)]
        return head + first + second + newline + task + tail

    def gemma(self, query, document, instruction, max_length):
        prompt = instruction or (
            "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
            "providing a prediction of either 'Yes' or 'No'."
        )
        newline = self.ids("\n")
        first = self.ids("<|im_start|>") + self.ids(f"A: {query}", max_length * 3 // 4)
        second = newline + self.ids(f"B: {document}", max_length)
        return first + second[: max_length - len(first)] + newline + self.ids(prompt)


def make_pieces():
    folder = OUT / "pieces"
    kind = {"tokenizer_config": {"bos_token": "<|im_start|>"}, "max_length": 8192}
    pieces = Pieces(save_tokenizer(folder, kind))
    with tempfile.TemporaryDirectory() as temporary:
        model_of(kind, Path(temporary))
        shutil.copy(Path(temporary) / "config.json", folder / "config.json")
    rng = random.Random(5)
    record = {}
    for name, encode in [("mxbai-rerank-v2", pieces.mxbai), ("bge-reranker-v2-gemma", pieces.gemma)]:
        cases = []
        for instruction in (None, "Find code.\n"):
            for most in (8192 if "mxbai" in name else 1024, 40, 41):
                pairs = pairs_of(rng, 40)[:: 1 if most == 40 else 3]
                ids = [encode(expand(query), expand(document), instruction, most) for query, document in pairs]
                cases.append({"prompt": instruction, "max_length": most, "pairs": pairs, "ids": ids})
        record[name] = cases
    dump("pieces.json", record)


def dump(name, record):
    lines = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    (OUT / name).write_text(lines.replace('{"pairs"', '\n{"pairs"') + "\n")


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    make_templates()
    make_pieces()
    for name, kind in KINDS.items():
        make(name, kind)
