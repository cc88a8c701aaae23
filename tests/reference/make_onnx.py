"""Make the fixtures of models that come as ONNX files: tiny seeded DeBERTa-v2 and ALBERT, exported with
torch.onnx, and what sentence-transformers answers for them.

    python make_onnx.py

Needs what make_fixtures.py needs, and requirements-onnx.txt.
"""

import json
import random
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import CrossEncoder
from transformers import (
    AlbertConfig, AlbertForSequenceClassification, AlbertTokenizer,
    DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Tokenizer,
)

import make_fixtures as fixtures

HERE = Path(__file__).resolve().parent
OPSET = 17
MAX_LENGTH = 128
# Few and short: what the encoder makes of odd texts is the affair of the other fixtures.
PAIRS = 70


def pieces():
    """The tokens of the XLM-RoBERTa fixture, with the special ones that these two know."""
    saved = json.loads((HERE / "models/tiny-xlm-roberta/tokenizer.json").read_text())
    head = [(token, 0.0) for token in ("<pad>", "[CLS]", "[SEP]", "<unk>")]
    ordinary = [tuple(piece) for piece in saved["model"]["vocab"][4:] if piece[0] != "<mask>"]
    return head + ordinary + [("[MASK]", 0.0)]


def deberta_tokenizer():
    vocab = [("[PAD]" if piece == "<pad>" else "[UNK]" if piece == "<unk>" else piece, score) for piece, score in pieces()]
    return DebertaV2Tokenizer(vocab=vocab, unk_id=3, model_max_length=MAX_LENGTH)


def albert_tokenizer():
    return AlbertTokenizer(vocab=pieces(), unk_id=3, model_max_length=MAX_LENGTH)


SHAPE = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=64, num_labels=1,
             max_position_embeddings=MAX_LENGTH, initializer_range=0.4, layer_norm_eps=1e-7)

KINDS = {
    # Relative positions, shared keys, buckets: what the first of the hub's DeBERTa-v3 rerankers have.
    "tiny-deberta-v2": dict(
        tokenizer=deberta_tokenizer, network=DebertaV2ForSequenceClassification, seed=211,
        config=lambda **more: DebertaV2Config(
            relative_attention=True, position_buckets=16, max_relative_positions=-1, pos_att_type=["p2c", "c2p"],
            share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=2,
            pooler_hidden_size=32, **more)),
    "tiny-albert": dict(
        tokenizer=albert_tokenizer, network=AlbertForSequenceClassification, seed=223,
        config=lambda **more: AlbertConfig(embedding_size=16, num_hidden_groups=1, type_vocab_size=2, **more)),
}


def randomise(network, seed):
    rng = np.random.default_rng(seed)
    for name, parameter in sorted(network.named_parameters()):
        shape = tuple(parameter.shape)
        if "LayerNorm.weight" in name or "layer_norm.weight" in name:
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bias"):
            value = rng.normal(0, 0.3, shape)
        else:
            value = rng.normal(0, 0.4, shape)
        parameter.data = torch.tensor(value, dtype=torch.float32)


def export(network, inputs, path):
    names = list(inputs)
    torch.onnx.export(
        network, args=(), kwargs=dict(inputs), f=str(path), input_names=names, output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}},
        opset_version=OPSET, dynamo=False, do_constant_folding=True)
    model = onnx.load(str(path))
    model.doc_string = ""
    for node in model.graph.node:  # the places in the source that each node came from
        node.doc_string = ""
    onnx.save(model, str(path))


def make(name):
    kind = KINDS[name]
    tokenizer = kind["tokenizer"]()
    config = kind["config"](vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SHAPE)
    config._attn_implementation = "eager"
    network = kind["network"](config).eval()
    randomise(network, kind["seed"])
    folder = HERE / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as draft:
        network.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        model = CrossEncoder(draft, device="cpu", model_kwargs={"attn_implementation": "eager"})
        model.save_pretrained(str(folder), create_model_card=False)
        answers = answer(name, model)
        inputs = model.preprocess([("a river", "under the old bridge"), ("word", "the")])
        inputs = {key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in inputs}
        if "token_type_ids" not in inputs:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        export(model.model, inputs, Path(draft) / "model.onnx")
        fixtures.clean(folder)
        (folder / "model.safetensors").unlink()
        if name == "tiny-albert":
            graph = onnx.load(f"{draft}/model.onnx")
            onnx.save(graph, str(folder / "model.onnx"), save_as_external_data=True, all_tensors_to_one_file=True,
                      location="model.onnx_data", size_threshold=256)
            (folder / "model.onnx_data").chmod(0o644)
        else:
            (folder / "onnx").mkdir()
            shutil.copy(f"{draft}/model.onnx", folder / "onnx/model.onnx")
            quantize_dynamic(f"{draft}/model.onnx", str(folder / "onnx/model_quantized.onnx"),
                             weight_type=QuantType.QInt8)
    (HERE / f"{name}.json").write_text(json.dumps(answers, ensure_ascii=False, separators=(",", ":")) + "\n",
                                       encoding="utf-8")


def answer(name, model):
    rng = random.Random(31)
    pairs = [pair for pair in fixtures.tiny_pairs(model.tokenizer)
             if all(len(fixtures.expand(side)) < 900 for side in pair)]
    pairs = rng.sample(pairs, PAIRS) + [("", ""), ("", "bridge"), (fixtures.repeat("river ", 100), "the bridge")]
    expanded = fixtures.expand_pairs(pairs)
    ids, type_ids = [], []
    for pair in expanded:
        encoded = model.preprocess([pair])
        ids.append(encoded["input_ids"][0].tolist())
        types = encoded.get("token_type_ids")
        type_ids.append(types[0].tolist() if types is not None else [0] * len(ids[-1]))
    logits = fixtures.logits_of(model, expanded)
    alone = np.concatenate([fixtures.logits_of(model, [pair]) for pair in expanded])
    assert logits.std() > 0.1, logits.std()
    prompted = pairs[:4]
    scores = np.asarray(model.predict(expanded, show_progress_bar=False), dtype=np.float32)
    print(f"{name}: {len(pairs)} pairs, logits {logits.min():.3f}..{logits.max():.3f}, padding moves them by "
          f"{np.abs(logits - alone).max():.2g}, longest {max(map(len, ids))}")
    return {
        "model": name,
        "made_with": {package: version(package) for package in
                      ("sentence-transformers", "transformers", "tokenizers", "torch", "onnx", "onnxruntime")},
        "max_length": MAX_LENGTH,
        "pairs": pairs, "ids": ids, "type_ids": type_ids,
        "logits": fixtures.numbers(logits), "scores": fixtures.numbers(scores),
        "prompt": {"prompt": "query: ", "pairs": prompted, "logits": fixtures.numbers(
            fixtures.logits_of(model, fixtures.expand_pairs(prompted), prompt="query: "))},
    }


def make_positions():
    """No model, a sum: each row's ids and a thousand times its positions, of inputs of 32 bits."""
    from onnx import TensorProto, helper

    names = ["input_ids", "attention_mask", "position_ids"]
    nodes = [
        helper.make_node("Mul", ["position_ids", "thousand"], ["moved"]),
        helper.make_node("Add", ["input_ids", "moved"], ["both"]),
        helper.make_node("Mul", ["both", "attention_mask"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "axes"], ["logits"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes, "positions",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "sequence"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
         helper.make_tensor("thousand", TensorProto.INT32, [], [1000])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(HERE / "models/positions.onnx"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in KINDS:
        make(name)
    make_positions()
