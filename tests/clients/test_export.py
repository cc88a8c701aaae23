"""What `rerankd export` writes, in Python's ONNX Runtime: no operator but the standard ones, and the scores
of CrossEncoder."""

import json
import pathlib
import subprocess

import numpy
import onnxruntime
import pytest
from tokenizers import Tokenizer

from conftest import ROOT
from instance import binary

REFERENCE = ROOT / "tests" / "reference"
BATCH = 16


def export(out: pathlib.Path, *flags: str) -> pathlib.Path:
    subprocess.run([binary(), "export", "--out", out, *flags], check=True)
    return out / "onnx" / "model.onnx"


def logits(file: pathlib.Path, ids: list, type_ids: list) -> numpy.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}
    assert {"input_ids", "attention_mask"} <= wanted <= {"input_ids", "attention_mask", "token_type_ids"}
    found = []
    for start in range(0, len(ids), BATCH):
        rows, types = ids[start : start + BATCH], type_ids[start : start + BATCH]
        longest = max(map(len, rows))

        def padded(rows, padding):
            rows = [list(row) + [padding] * (longest - len(row)) for row in rows]
            return numpy.array(rows, dtype=numpy.int64)

        inputs = {
            # Padding is whatever the caller takes for it.
            "input_ids": padded(rows, 1),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
            "token_type_ids": padded(types, 0),
        }
        found.append(session.run(["logits"], {name: inputs[name] for name in wanted})[0])
    return numpy.concatenate(found)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-bert-3-labels", "tiny-modernbert", "tiny-modular", "tiny-mpnet", "tiny-deberta-v3", "tiny-deberta-v2-unshared", "tiny-roberta", "tiny-xlm-roberta"])
def test_a_file_gives_the_logits_of_the_reference(name, tmp_path):
    reference = json.loads((REFERENCE / f"{name}.json").read_text())
    file = export(tmp_path, "--model", str(REFERENCE / "models" / name))
    found = logits(file, reference["ids"], reference["type_ids"])
    assert numpy.abs(found - numpy.array(reference["logits"])).max() <= 1e-4


def test_the_directory_is_all_that_a_program_needs(tmp_path):
    reference = json.loads((REFERENCE / "minilm-l6-rank.json").read_text())
    file = export(tmp_path)
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= {path.name for path in tmp_path.iterdir()}
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(512, strategy="longest_first")
    tokenizer.no_padding()
    pairs = [pair for pair in reference["pairs"] if all(isinstance(text, str) for text in pair)]
    indices = [i for i, pair in enumerate(reference["pairs"]) if all(isinstance(text, str) for text in pair)]
    encoded = tokenizer.encode_batch(pairs)
    found = logits(file, [one.ids for one in encoded], [one.type_ids for one in encoded])
    expected = numpy.array(reference["logits"])[indices]
    assert len(expected) >= 50 and numpy.abs(found - expected).max() <= 1e-4


def test_eight_bits_keep_the_order(tmp_path):
    reference = json.loads((REFERENCE / "minilm-l6-rank.json").read_text())
    file = export(tmp_path, "--precision", "int8")
    assert file.stat().st_size < 25_000_000
    found = logits(file, reference["ids"], reference["type_ids"]).ravel()
    expected = numpy.array(reference["logits"]).ravel()
    ranks = [values.argsort().argsort() for values in (found, expected)]
    assert numpy.corrcoef(*ranks)[0, 1] >= 0.997
