"""GGUF files in and out; Hugging Face folders: hf_folder.py."""

import os

import numpy
import torch
from gguf import GGMLQuantizationType as T
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize

from grid import FLOATS, GRIDS, stored_scales
from model import Shape

TYPES = {name: T[name.upper()] for name in list(GRIDS) + list(FLOATS)}


class Model:
    """A file's weights as floats on the CPU, and what else it says."""

    def __init__(self, path):
        self.path = path
        self.reader = GGUFReader(path)
        arch = self.value("general.architecture")
        if arch not in ("llama", "qwen2", "qwen3"):
            raise ValueError(f"{path}: general.architecture is {arch}, healing knows llama, qwen2 and qwen3")
        get = lambda key, default=None: self.value(f"{arch}.{key}", default)
        heads = get("attention.head_count")
        hidden = get("embedding_length")
        self.shape = Shape(
            layers=get("block_count"), hidden=hidden, mlp=get("feed_forward_length"), heads=heads,
            kv_heads=get("attention.head_count_kv", heads),
            head_dim=get("attention.key_length", hidden // heads),
            eps=get("attention.layer_norm_rms_epsilon"), rope_base=get("rope.freq_base", 10000.0),
            rope_halves=arch != "llama")
        self.types = {t.name: t.tensor_type for t in self.reader.tensors}
        self.stored = {t.name: t.data for t in self.reader.tensors}
        self.weights = {t.name: torch.from_numpy(numpy.array(
            dequantize(t.data, t.tensor_type), dtype=numpy.float32)) for t in self.reader.tensors}
        self.rope_factors = self.weights.pop("rope_freqs.weight", None)

    def scales(self, name, kind):
        """Of a matrix that is of this type already (stored_scales), else None."""
        if self.types[name] != TYPES[kind]:
            return None
        return stored_scales(kind, self.stored[name], self.weights[name].shape[1])

    def value(self, key, default=None):
        field = self.reader.get_field(key)
        if field is None and default is None:
            raise ValueError(f"{self.path}: {key} is missing")
        return default if field is None else field.contents()

    def write(self, out, tensors, notes):
        """This file with these tensors in place of its own: {name: (type's name, numpy bytes or floats)};
        notes: {key: text} about how it was made."""
        path = out + ".part"
        writer = GGUFWriter(path, self.value("general.architecture"))
        for key, field in self.reader.fields.items():
            if key.startswith("GGUF.") or key in notes or key == "general.architecture":
                continue
            kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
            if kind == GGUFValueType.ARRAY and not field.contents():
                continue
            writer.add_key_value(key, field.contents(), kind, sub)
        for key, text in notes.items():
            writer.add_string(key, text)
        for tensor in self.reader.tensors:
            if tensor.name in tensors:
                kind, data = tensors[tensor.name]
                writer.add_tensor(tensor.name, data, raw_dtype=TYPES[kind] if kind in GRIDS else None)
            else:
                writer.add_tensor(tensor.name, tensor.data, raw_shape=tensor.data.shape,
                                  raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(path, out)


def open_model(path):
    """A GGUF file or a Hugging Face folder."""
    if os.path.isdir(path):
        from hf_folder import Folder  # safetensors is for those who have such a folder
        return Folder(path)
    return Model(path)


def as_floats(kind, data):
    """A tensor that `write` takes."""
    return torch.from_numpy(numpy.array(dequantize(data, TYPES[kind]) if kind in GRIDS else data))


def check_pair(full, twin):
    for name in ("layers", "heads", "kv_heads", "head_dim", "rope_base", "rope_halves"):
        a, b = getattr(full.shape, name), getattr(twin.shape, name)
        if a != b:
            raise ValueError(f"{twin.path}: {name} is {b}, {full.path} has {a}; a twin shares its KV")
    rows = [m.weights["token_embd.weight"].shape[0] for m in (full, twin)]
    if rows[0] != rows[1]:
        raise ValueError(f"{twin.path}: {rows[1]} tokens in its vocabulary, {rows[0]} in {full.path}")
