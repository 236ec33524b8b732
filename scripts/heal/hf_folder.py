"""Hugging Face folders in and out: config.json and safetensors, whose names and order of rows become
those of GGUF files. The tokenizer, and what else lies there, is copied as it is."""

import json
import math
import os
import shutil

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from files import as_floats
from model import PROJECTIONS, Shape

LAYER_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
GLOBAL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LLAMAS = ("LlamaForCausalLM", "MistralForCausalLM")
QWENS = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")


def gguf_name(name):
    """Of a weight or bias, or None if there is none of that name."""
    part, _, end = name.rpartition(".")
    if part in GLOBAL_NAMES and end == "weight":
        return f"{GLOBAL_NAMES[part]}.weight"
    pieces = part.split(".", 3)
    if pieces[:2] != ["model", "layers"] or len(pieces) < 4:
        return None
    known = LAYER_NAMES.get(pieces[3])
    is_known = known and (end == "weight" or end == "bias" and known in PROJECTIONS)
    return f"blk.{pieces[2]}.{known}.{end}" if is_known else None


def to_pairs(w, heads):
    """RoPE turns rows i and i + head_dim / 2 of a head together; GGUF's llama wants them next to each other."""
    return w.view(heads, 2, -1, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def to_halves(w, heads):
    return w.view(heads, -1, 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def rope_factors(rope, head_dim, base):
    """What frequencies are divided by, [head_dim / 2], or None: transformers' modeling_rope_utils.py."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise ValueError(f"RoPE scaling: default, linear or llama3 expected, found {kind}")
    factor = torch.full((head_dim // 2,), float(rope["factor"]))
    if kind == "linear":
        return factor
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] / (
        2 * math.pi * base ** (torch.arange(0, head_dim, 2) / head_dim))
    smooth = ((turns - low) / (high - low)).clamp(0, 1)  # 0: scaled, 1: as it was
    return 1 / ((1 - smooth) / factor + smooth)


class Folder:
    """As files.Model."""

    def __init__(self, path):
        self.path = path
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            self.config = c = json.load(f)
        architecture = (c.get("architectures") or [None])[0]
        if architecture not in LLAMAS + QWENS:
            raise ValueError(f"{path}/config.json: architectures: {architecture}, healing knows "
                             f"{', '.join(LLAMAS + QWENS)}")
        rope = {"rope_theta": 10000.0, **c, **(c.get("rope_parameters") or {})}
        if rope.get("partial_rotary_factor", 1) != 1:
            raise ValueError(f"{path}/config.json: partial_rotary_factor: healing turns whole heads only")
        heads = c["num_attention_heads"]
        self.shape = Shape(
            layers=c["num_hidden_layers"], hidden=c["hidden_size"], mlp=c["intermediate_size"], heads=heads,
            kv_heads=c.get("num_key_value_heads") or heads, head_dim=c.get("head_dim") or c["hidden_size"] // heads,
            eps=c.get("rms_norm_eps", 1e-6), rope_base=rope["rope_theta"], rope_halves=architecture in QWENS)
        self.rope_factors = rope_factors(c.get("rope_parameters") or c.get("rope_scaling") or {},
                                         self.shape.head_dim, self.shape.rope_base)
        self.names = {}  # of GGUF: of this folder
        self.weights = {}
        for shard in self._shards():
            with safe_open(os.path.join(path, shard), framework="pt") as tensors:
                for name in tensors.keys():
                    self._take(name, tensors)

    def _shards(self):
        index = os.path.join(self.path, "model.safetensors.index.json")
        if not os.path.exists(index):
            return ["model.safetensors"]
        with open(index, encoding="utf-8") as f:
            return sorted(set(json.load(f)["weight_map"].values()))

    def _take(self, name, tensors):
        known = gguf_name(name)
        if known is None and name.endswith(".rotary_emb.inv_freq"):
            return  # old versions of transformers saved what follows from the configuration
        if known is None:
            raise ValueError(f"{self.path}: {name}: no part of a model that healing knows")
        if known == "output.weight" and self.config.get("tie_word_embeddings"):
            return
        self.names[known] = name
        self.weights[known] = self._rows(known, tensors.get_tensor(name).float(), to_pairs)

    def _rows(self, known, w, order):
        heads = {"attn_q": self.shape.heads, "attn_k": self.shape.kv_heads}.get(known.split(".")[-2])
        return order(w, heads).contiguous() if heads and not self.shape.rope_halves else w

    def scales(self, name, kind):
        return None  # floats lie on no grid

    def write(self, out, tensors, notes):
        """As files.Model.write. What a grid rounded becomes F32, which holds its values exactly."""
        os.makedirs(out, exist_ok=True)
        for name in os.listdir(self.path):
            source = os.path.join(self.path, name)
            if "safetensors" not in name and os.path.isfile(source):
                shutil.copyfile(source, os.path.join(out, name))
        dtype = "dtype" if "dtype" in self.config else "torch_dtype"  # of transformers 5, and before
        with open(os.path.join(out, "config.json"), "w", encoding="utf-8") as f:
            json.dump({**self.config, dtype: "float32"}, f, indent=1)
        path = os.path.join(out, "model.safetensors")
        save_file({self.names[name]: self._rows(name, as_floats(*value), to_halves)
                   for name, value in tensors.items()}, path + ".part", {"format": "pt", **notes})
        os.replace(path + ".part", path)
