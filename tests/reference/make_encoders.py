"""Make the fixtures of encoders that are published with code of their own.

    python make_encoders.py                       # all
    python make_encoders.py --only tiny-gte       # one of them
    python make_encoders.py --published DIR       # also compare with the published code in DIR/gte and DIR/jina

The networks are put together from classes of transformers. They answer first; then their tensors are saved
under the names, and the configuration with the fields, of the published models.
"""

import argparse
import copy
import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import make_fixtures as fixtures
import torch
from safetensors.torch import save_file
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from transformers import (
    BertConfig, BertForSequenceClassification, ModernBertConfig, ModernBertModel, NomicBertConfig,
    NomicBertForSequenceClassification, XLMRobertaConfig, XLMRobertaForSequenceClassification,
)
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.modernbert.modeling_modernbert import ModernBertMLP

LAYERS, INNER = 3, 64


# ---------------------------------------------------------------- Jina's XLM-RoBERTa

JINA_V2 = {
    "_name_or_path": "jina-reranker-v2-base-multilingual",
    "architectures": ["XLMRobertaForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "auto_map": {
        "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModel": "modeling_xlm_roberta.XLMRobertaModel",
        "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification",
    },
    "bos_token_id": 0, "classifier_dropout": None, "emb_pooler": None, "eos_token_id": 2, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 32, "num_labels": 1, "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02, "intermediate_size": INNER, "label2id": {"LABEL_0": 0}, "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514, "num_attention_heads": 4, "num_hidden_layers": LAYERS, "output_past": True,
    "pad_token_id": 1, "position_embedding_type": "absolute", "type_vocab_size": 1, "use_cache": False,
    "use_flash_attn": True,
}


def jina_v2(vocabulary):
    sizes = {key: JINA_V2[key] for key in (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps",
        "max_position_embeddings", "pad_token_id", "type_vocab_size", "num_labels")}
    return XLMRobertaForSequenceClassification(XLMRobertaConfig(vocab_size=vocabulary, **sizes))


def jina_v2_tensors(state):
    out = {}
    for name, tensor in state.items():
        name = name.replace("embeddings.LayerNorm", "emb_ln").replace("encoder.layer.", "encoder.layers.")
        for old, new in (("attention.output.dense", "mixer.out_proj"), ("attention.output.LayerNorm", "norm1"),
                         ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
                         ("output.LayerNorm", "norm2")):
            if "encoder" in name:
                name = name.replace(old, new)
        out[name] = tensor
    return stacked(out, "attention.self.{}", ("query", "key", "value"), "mixer.Wqkv")


def stacked(state, part, names, stack):
    """Replaces the dense layers `names` of every layer by one, whose rows are theirs in order."""
    out = {}
    for name, tensor in state.items():
        hit = next((n for n in names if f".{part.format(n)}." in name), None)
        if hit is None:
            out[name] = tensor
        elif hit == names[0]:
            others = [state[name.replace(part.format(hit), part.format(n))] for n in names]
            out[name.replace(part.format(hit), stack)] = torch.cat(others)
    return out


# ---------------------------------------------------------------- GTE

def gte_config(**fields):
    return {
        "architectures": ["NewForSequenceClassification"],
        "attention_probs_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
            "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel",
            "AutoModelForSequenceClassification": "Alibaba-NLP/new-impl--modeling.NewForSequenceClassification",
        },
        "classifier_dropout": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 32,
        "id2label": {"0": "LABEL_0"}, "initializer_range": 0.02, "intermediate_size": INNER,
        "label2id": {"LABEL_0": 0}, "layer_norm_eps": 1e-12, "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False, "logn_attention_scale": False, "max_position_embeddings": 512,
        "model_type": "new", "num_attention_heads": 4, "num_hidden_layers": LAYERS, "pack_qkv": True,
        "pad_token_id": 0, "position_embedding_type": "rope", "type_vocab_size": 1, "unpad_inputs": False,
        "use_memory_efficient_attention": False, **fields,
    }


# As in gte-multilingual-reranker-base, and as in the English models of version 1.5.
GTE = gte_config(pad_token_id=1, rope_scaling={"factor": 8.0, "type": "ntk"}, rope_theta=20000)
GTE_EN = gte_config(pack_qkv=False, rope_scaling={"factor": 2.0, "type": "ntk", "mixed_b": 0.7}, rope_theta=500000,
                    type_vocab_size=0)


def ntk_frequencies(config):
    """https://kexue.fm/archives/9706, equations 6 and 13."""
    size = config["hidden_size"] // config["num_attention_heads"]
    factor, mixed = config["rope_scaling"]["factor"], config["rope_scaling"].get("mixed_b")
    planes = torch.arange(0, size, 2).float() / size
    if mixed is None:
        return 1.0 / (config["rope_theta"] * factor) ** planes / factor ** (2 / size)
    share = (torch.arange(1, size // 2 + 1).float() / (size / 2)) ** mixed
    return 1.0 / config["rope_theta"] ** planes / factor**share


def without(embeddings, table):
    delattr(embeddings, table)
    setattr(embeddings, table, lambda ids: 0)


def gte(config):
    def build(vocabulary):
        """Nomic's BERT has the same layers, without biases."""
        network = NomicBertForSequenceClassification(NomicBertConfig(
            vocab_size=vocabulary, type_vocab_size=max(config["type_vocab_size"], 1), num_labels=1,
            **{key: config[key] for key in (
                "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
                "max_position_embeddings", "layer_norm_eps", "pad_token_id")}))
        for module in list(network.modules()):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"):
                if hasattr(module, name):
                    dense = getattr(module, name)
                    setattr(module, name, torch.nn.Linear(dense.in_features, dense.out_features))
        network.base_model.rotary_emb.inv_freq = ntk_frequencies(config)
        if config["type_vocab_size"] == 0:
            without(network.base_model.embeddings, "token_type_embeddings")
        return network
    return build


def gte_tensors(config):
    def rename(state):
        out = {}
        for name, tensor in state.items():
            if "token_type" in name and config["type_vocab_size"] == 0:
                continue
            for old, new in (("nomic_bert.layers.", "new.encoder.layer."), ("nomic_bert.encoder.layers.", "new.encoder.layer."),
                             ("nomic_bert.", "new."), ("self_attn.", "attention."),
                             ("post_attention_layernorm", "attn_ln"), ("post_mlp_layernorm", "mlp_ln")):
                name = name.replace(old, new)
            out[name] = tensor
        out = stacked(out, "mlp.{}", ("up_proj", "gate_proj"), "mlp.up_gate_proj")
        if config["pack_qkv"]:
            out = stacked(out, "attention.{}", ("q_proj", "k_proj", "v_proj"), "attention.qkv_proj")
        return out
    return rename


# ---------------------------------------------------------------- JinaBERT

# Six heads, because slopes are irregular where their number is no power of two.
JINA_V1 = {
    "_name_or_path": "jinaai/jina-bert-implementation",
    "architectures": ["JinaBertModel"],
    "attention_probs_dropout_prob": 0.0,
    "attn_implementation": None,
    "auto_map": {
        "AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig",
        "AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel",
        "AutoModelForSequenceClassification":
            "jinaai/jina-bert-implementation--modeling_bert.JinaBertForSequenceClassification",
    },
    "classifier_dropout": None, "emb_pooler": None, "feed_forward_type": "geglu", "gradient_checkpointing": False,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 48, "initializer_range": 0.02,
    "intermediate_size": INNER, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_max_length": 512,
    "model_type": "bert", "num_attention_heads": 6, "num_hidden_layers": LAYERS, "pad_token_id": 1,
    "position_embedding_type": "alibi", "type_vocab_size": 2, "use_cache": True,
}


class AlibiBert(BertForSequenceClassification):
    """BERT with ALiBi in its attention mask, no positions, and the feed-forward network of ModernBERT."""

    def __init__(self, config):
        super().__init__(config)
        glu = ModernBertConfig(hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
                               hidden_activation="gelu", mlp_bias=False)
        for layer in self.bert.encoder.layer:
            layer.intermediate = ModernBertMLP(glu)
            layer.intermediate.Wo = torch.nn.Identity()
        # In a list, so that it is neither saved nor a parameter.
        heads = config.num_attention_heads
        self.slopes = [build_alibi_tensor(torch.ones(1, 2), heads, torch.float32).view(heads, 2)[:, 1]]

    def forward(self, input_ids, attention_mask, token_type_ids=None, **kwargs):
        kind = self.classifier.weight.dtype
        place = torch.arange(input_ids.shape[1])
        distance = (place[:, None] - place).abs().to(kind)
        hidden = (1.0 - attention_mask.to(kind)) * torch.finfo(torch.float32).min
        bias = hidden[:, None, None] - self.slopes[0].to(kind)[:, None, None] * distance
        return super().forward(input_ids, attention_mask=bias, token_type_ids=token_type_ids, **kwargs)


def jina_v1(vocabulary):
    sizes = {key: JINA_V1[key] for key in (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps",
        "max_position_embeddings", "pad_token_id", "type_vocab_size")}
    network = AlibiBert(BertConfig(vocab_size=vocabulary, num_labels=1, attn_implementation="eager", **sizes))
    without(network.bert.embeddings, "position_embeddings")
    return network


def jina_v1_tensors(state):
    out = {}
    for name, tensor in state.items():
        if ".layer." in name:
            name = name.replace("intermediate.Wi", "mlp.gated_layers")
            if ".attention." not in name:
                name = name.replace("output.dense", "mlp.wo").replace("output.LayerNorm", "mlp.layernorm")
        out[name] = tensor
    return out


# ---------------------------------------------------------------- Ettin

def ettin(vocabulary):
    """The modules that the model card lists."""
    network = ModernBertModel(ModernBertConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=INNER, hidden_activation="gelu",
        # Published models have this field, which no class reads.
        position_embedding_type="sans_pos", **fixtures.MODERN))
    behind = [
        Pooling(32, "cls"),
        Dense(32, 32, bias=False, activation_function=torch.nn.GELU()),
        LayerNorm(32),
        Dense(32, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    return network, behind


# ---------------------------------------------------------------- all

KINDS = {
    "tiny-jina-v2": dict(tokenizer=fixtures.unigram, network=jina_v2, config=JINA_V2, tensors=jina_v2_tensors, seed=117),
    "tiny-gte": dict(tokenizer=fixtures.unigram, network=gte(GTE), config=GTE, tensors=gte_tensors(GTE), seed=118),
    "tiny-gte-en": dict(tokenizer=lambda: fixtures.wordpiece(lowercase=True), network=gte(GTE_EN), config=GTE_EN,
                        tensors=gte_tensors(GTE_EN), seed=125, queries=0.5),
    "tiny-jina-v1": dict(tokenizer=fixtures.byte_bpe, network=jina_v1, config=JINA_V1, tensors=jina_v1_tensors,
                         seed=121, queries=0.5),
}


def make(name, published):
    kind = KINDS[name]
    tokenizer = kind["tokenizer"]()
    if kind["config"].get("type_vocab_size") == 0:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    network = kind["network"](len(tokenizer)).eval()
    fixtures.randomise(network, kind["seed"])
    for parameter, weight in network.named_parameters():
        # Attention that hangs on few tokens magnifies rounding.
        if parameter.endswith(("query.weight", "q_proj.weight")):
            weight.data *= kind.get("queries", 1.0)
    folder = fixtures.HERE / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tempfile.TemporaryDirectory() as draft:
        # The encoder that puts pairs together is that of any small BERT; its network is replaced.
        BertForSequenceClassification(BertConfig(
            vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            num_labels=1)).save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        tokenizer.save_pretrained(folder)
        model = CrossEncoder(draft, device="cpu")
    model.tokenizer.model_input_names = tokenizer.model_input_names
    model[0].model = network
    state = kind["tensors"](network.state_dict())
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    config = {**kind["config"], "vocab_size": len(tokenizer)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    fixtures.clean(folder)
    if published and name != "tiny-jina-v2":
        compare(name, published, config, state, model)
    fixtures.write(fixtures.HERE / f"{name}.json", fixtures.answers(folder, plain=False, model=model))


def compare(name, published, config, state, model):
    """The logits of the published code on the same pairs."""
    sys.path.insert(0, str(published))
    # Removed from transformers 5, and used by code from before it in training only.
    import transformers
    for module, names in {"transformers.pytorch_utils": ["find_pruneable_heads_and_indices"],
                          "transformers.onnx": ["OnnxConfig"],
                          "transformers.utils": ["add_code_sample_docstrings", "add_start_docstrings",
                                                 "add_start_docstrings_to_model_forward",
                                                 "replace_return_docstrings"]}.items():
        try:
            found = importlib.import_module(module)
        except ImportError:
            found = sys.modules[module] = type(sys)(module)
        for missing in names:
            if not hasattr(found, missing):
                setattr(found, missing, object if missing == "OnnxConfig" else lambda *a, **k: (lambda f: f))
    if "gte" in name:
        code, settings = importlib.import_module("gte.modeling"), importlib.import_module("gte.configuration").NewConfig
        network = code.NewForSequenceClassification(settings(**{**config, "num_labels": 1}))
    else:
        code = importlib.import_module("jina.modeling_bert")
        settings = importlib.import_module("jina.configuration_bert").JinaBertConfig
        settings = settings(**{**config, "num_labels": 1})
        settings.is_decoder = settings.add_cross_attention = False
        code.JinaBertPreTrainedModel.get_head_mask = lambda self, mask, layers, *_: [None] * layers
        network = code.JinaBertForSequenceClassification(settings)
    lost = network.load_state_dict(state, strict=False)
    assert not lost.unexpected_keys and all("position_ids" in key for key in lost.missing_keys), lost
    pairs = fixtures.expand_pairs(fixtures.tiny_pairs(model.tokenizer))
    worst = 0.0
    # In double precision, where only a mistake makes a difference.
    network, ours = network.eval().double(), copy.deepcopy(model[0].model).double()
    with torch.no_grad():
        for pair in pairs:
            inputs = model.preprocess([pair])
            inputs = {key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in inputs}
            worst = max(worst, (network(**inputs).logits - ours(**inputs).logits).abs().max().item())
    print(f"{name}: {len(pairs)} pairs within {worst:.1e} of the published code")
    assert worst < 1e-5, (name, worst)


def make_ettin():
    tokenizer = fixtures.template_bpe()
    network, behind = ettin(len(tokenizer))
    fixtures.randomise(network, 118)
    fixtures.randomise(torch.nn.Sequential(torch.nn.Identity(), *behind), 119)
    folder = fixtures.HERE / "models" / "tiny-ettin"
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as draft:
        network.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        model = CrossEncoder(modules=[Transformer(draft), *behind], device="cpu", activation_fn=torch.nn.Identity())
        model.save_pretrained(str(folder), create_model_card=False)
    fixtures.clean(folder)
    fixtures.write(fixtures.HERE / "tiny-ettin.json", fixtures.answers(folder, plain=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*KINDS, "tiny-ettin"], help="one of the models")
    parser.add_argument("--published", type=Path, help="a folder with the published code")
    args = parser.parse_args()
    torch.manual_seed(1)
    for name in [args.only] if args.only else [*KINDS, "tiny-ettin"]:
        if name == "tiny-ettin":
            make_ettin()
        else:
            make(name, args.published)


if __name__ == "__main__":
    main()
