"""The mean of several checkpoints, saved in F16 as sentence-transformers saves a CrossEncoder.

    python finish.py --out DIR CHECKPOINT...

`train.py` ends with this, for its last checkpoint. The checkpoints may be of one run or of several that
started from the same head. `evaluate.py` scores what comes out.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

MODEL_TOKENS = 512


def mean(places):
    """The weights of the checkpoints, averaged in F64."""
    total = {}
    for place in places:
        for name, tensor in load_file(Path(place) / "model.safetensors").items():
            total[name] = total.get(name, 0) + tensor.double()
    return {name: (tensor / len(places)).float() for name, tensor in total.items()}


def plain(folder, weights):
    """Writes `weights` under their plain names; some versions of transformers save LayerNorm's as gamma and beta."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, Path(folder) / "model.safetensors",
              metadata={"format": "pt"})


def clean(folder):
    """What a save must not carry: the place it was trained in, and settings of the base's own use."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    config["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text())
    for key in ("name_or_path", "max_length", "stride", "truncation_side", "truncation_strategy",
                "pad_to_multiple_of", "pad_token_type_id", "padding_side", "is_local", "local_files_only"):
        tokenizer.pop(key, None)
    path.write_text(json.dumps(tokenizer, indent=2) + "\n")
    # Padding and truncation are set per call; the base's 128 tokens must not look like a limit.
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["truncation"] = tokenizer["padding"] = None
    path.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / "model.safetensors").chmod(0o644)


def save(out, places, f32=False):
    """Writes the mean of the checkpoints `places` to the folder `out`."""
    model = CrossEncoder(str(places[0]), num_labels=1, max_length=MODEL_TOKENS, device="cpu",
                         model_kwargs={"dtype": torch.float32})
    model.model.load_state_dict(mean(places))
    out = Path(out)
    if f32:
        model.save_pretrained(str(out), create_model_card=False)
    else:
        model.model.half()
        model.save_pretrained(str(out), create_model_card=False)
        clean(out)
    plain(out, model.model.state_dict())
    saved = CrossEncoder(str(out), device="cpu", model_kwargs={"dtype": torch.float32})
    assert saved.max_seq_length == MODEL_TOKENS, saved.max_seq_length


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--f32", action="store_true", help="keep F32, for trials")
    parser.add_argument("checkpoints", nargs="+")
    args = parser.parse_args()
    save(args.out, args.checkpoints, args.f32)


if __name__ == "__main__":
    main()
