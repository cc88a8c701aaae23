"""Writes the inputs that fuzzing starts from: fuzz/corpus/TARGET/, made of the fixtures of the tests."""

import hashlib
import json
import struct
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus"
MODELS = sorted(path.parent for path in (ROOT / "tests" / "reference" / "models").glob("*/config.json"))
# The files of an input of the target `model`, in its order.
SETTINGS = [
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "4_LayerNorm/config.json",
]


def add(target, content):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(content).hexdigest()).write_bytes(content)


def compact(path):
    text = json.loads(path.read_text())
    return json.dumps(text, ensure_ascii=False, separators=(",", ":")).encode()


def requests():
    for path in sorted((ROOT / "tests" / "compat").glob("*/*.json")):
        request = json.loads(path.read_text())["request"]
        body = request.get("body", "")
        body = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        add("requests", f"{request['path']}\n{body}".encode())


def models():
    formats = ROOT / "tests" / "reference" / "formats"
    for model in [*MODELS, *sorted(formats.iterdir())]:
        files = [model / name for name in SETTINGS]
        add("model", b"\0".join(compact(file) if file.is_file() else b"" for file in files))


def tokenizers():
    """Tokenizers with their first words only, and the special tokens."""
    for model in MODELS:
        path = model / "tokenizer.json"
        saved = json.loads(path.read_text())
        vocabulary = saved["model"].get("vocab")
        if isinstance(vocabulary, dict):
            special = {token["content"] for token in saved["added_tokens"]}
            words = list(vocabulary.items())
            kept = words[:200] + [word for word in words if word[0] in special]
            saved["model"]["vocab"] = dict(kept)
            merges = saved["model"].get("merges")
            if merges:
                saved["model"]["merges"] = []
        elif vocabulary:
            saved["model"]["vocab"] = vocabulary[:200]
        add("tokenizer", json.dumps(saved, ensure_ascii=False, separators=(",", ":")).encode())


def safetensors():
    """A file of every element type with a few tensors, and the head of a real one with zeros behind it."""
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F64": 8}
    for dtype, size in sizes.items():
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in [("a.weight", [2, 3]), ("a.bias", [2]), ("one", []), ("none", [0, 4])]:
            count = size
            for dim in shape:
                count *= dim
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}
            end += count
        text = json.dumps(header).encode()
        add("safetensors", struct.pack("<Q", len(text)) + text + bytes(range(256))[:end].ljust(end, b"\0"))


def onnx():
    for model in MODELS:
        for path in model.glob("**/*.onnx"):
            content = path.read_bytes()
            # The nodes come first; what is cut off is weights.
            add("onnx", content[:16_000])
    # A graph with a name, an initializer that lies in another file, and a node.
    external = b"\x0a\x01\x02\x10\x01\x42\x01w\x6a\x10\x0a\x08location\x12\x04data\x70\x01"
    node = b"\x0a\x01w\x12\x01y\x22\x08Identity"
    graph = (
        b"\x0a" + bytes([len(node)]) + node + b"\x12\x01g" + b"\x2a" + bytes([len(external)]) + external
    )
    add("onnx", b"\x08\x08\x3a" + bytes([len(graph)]) + graph)


def settings():
    text = (ROOT / "config" / "rerankd.toml").read_text()
    add("settings", text.encode())
    # Every setting is there as a comment: with it, and alone.
    lines = [line.removeprefix("#").removeprefix(" ") for line in text.splitlines()]
    values = [line for line in lines if " = " in line and line.split(" = ")[0].replace("_", "").isalnum()]
    for line in values:
        add("settings", f"{line}\n".encode())


def field(number, content):
    """A field of a message that holds text, bytes or another message, below 128 bytes, or a number."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    content = content.encode() if isinstance(content, str) else content
    return bytes([number << 3 | 2, len(content)]) + content


def frame(message):
    return b"\0" + struct.pack(">I", len(message)) + message


def grpc():
    """A message of each form for every method."""
    tensor = field(1, "query") + field(2, "BYTES") + field(3, b"\1")
    parameter = field(4, field(1, "raw_scores") + field(2, field(1, 1)))
    inference = field(1, "any") + field(3, "7") + parameter + field(6, field(1, "scores"))
    messages = [
        field(1, "a query") + field(2, "one") + field(2, "two") + field(3, 1) + field(5, 1) + field(6, 1),
        field(1, "one") + field(1, "two") + field(2, 1) + field(3, 1) + field(4, 1),
        field(1, "a text") + field(2, 1) + field(3, ""),
        field(1, b"\x65\x66\xe8\x07") + field(2, 1),
        inference + field(5, tensor + field(5, field(8, "a query"))),
        inference + field(5, tensor) + field(7, b"\1\0\0\0q"),
    ]
    methods = (ROOT / "crates" / "grpc" / "src" / "method.rs").read_text().count('"/')
    for method in range(methods):
        for message in messages:
            add("grpc", bytes([method]) + frame(message) + frame(message)[: method % 2 * 99])


for make in (requests, grpc, models, tokenizers, safetensors, onnx, settings):
    make()
for folder in sorted(CORPUS.iterdir()):
    print(f"{folder.name}: {len(list(folder.iterdir()))} inputs")
