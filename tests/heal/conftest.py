"""Tests of scripts/heal, run with the Python that has PyTorch (`scripts/heal/run --python` names it)."""
import os
import pathlib
import subprocess
import sys

import numpy
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "heal"))
PROGRAM = pathlib.Path(os.environ.get("OVERFILL_BINARY") or ROOT / "build/cli/overfill")
SHARED = pathlib.Path(os.environ.get("OVERFILL_SHARED") or ROOT.parent / "shared")
VOCABULARY, LAYERS, HIDDEN, MLP, HEADS, KV_HEADS, HEAD_DIM = 96, 2, 64, 96, 4, 2, 16


def write_model(path, seed, hidden=HIDDEN, mlp=MLP, is_tied=True):
    """A random llama of two layers."""
    from gguf import GGUFWriter
    chance = numpy.random.default_rng(seed)
    w = GGUFWriter(str(path), "llama")
    w.add_block_count(LAYERS)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(mlp)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    shapes = {"token_embd": (VOCABULARY, hidden), "output_norm": (hidden,)}
    if not is_tied:
        shapes["output"] = (VOCABULARY, hidden)
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.attn_norm": (hidden,), f"blk.{i}.ffn_norm": (hidden,),
                   f"blk.{i}.attn_q": (HEADS * HEAD_DIM, hidden),
                   f"blk.{i}.attn_k": (KV_HEADS * HEAD_DIM, hidden),
                   f"blk.{i}.attn_v": (KV_HEADS * HEAD_DIM, hidden),
                   f"blk.{i}.attn_output": (hidden, HEADS * HEAD_DIM),
                   f"blk.{i}.ffn_gate": (mlp, hidden), f"blk.{i}.ffn_up": (mlp, hidden),
                   f"blk.{i}.ffn_down": (hidden, mlp)}
    for name, shape in shapes.items():
        value = chance.standard_normal(shape) * (1.5 / shape[-1] ** 0.5 if len(shape) > 1 else 0.1)
        w.add_tensor(name + ".weight", (value + (len(shape) == 1)).astype(numpy.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return str(path)


@pytest.fixture
def documents(tmp_path):
    chance = numpy.random.default_rng(7)
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": 0, "tokens": chance.integers(0, VOCABULARY, n).tolist()}
            for n in chance.integers(40, 90, 40)]
    path.write_text("".join(f"{__import__('json').dumps(r)}\n" for r in rows))
    return str(path)


@pytest.fixture
def recipe(tmp_path):
    def make(**changes):
        import yaml
        value = yaml.safe_load((ROOT / "scripts/heal/recipes/overfill.yaml").read_text())
        value |= {"type": "q4_0", "head_type": "q8_0", "rate": 2e-3, "precision": "f32", "steps": 6}
        value["data"] |= {"max_tokens": 80, "batch_tokens": 200, "min_tokens": 40, "min_prompt": 8,
                          "max_prompt": 24, "min_answer": 8}
        value |= changes
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(value))
        return str(path)
    return make


def overfill(*args):
    done = subprocess.run([str(PROGRAM), *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
