"""The work of scripts/make-model: shapes, a vocabulary that tokenises, and random weights as a stream.

Blocks of quantised types are not made by rounding floats but drawn as they lie in the file, with a scale that gives
each matrix the spread 1 / sqrt(inputs), so that activations stay finite through all layers, and a mean of zero."""
import argparse
import json
import math
import pathlib
import struct
import sys
import zlib

import numpy as np

CHUNK = 1 << 22  # elements at a time
SHARD_BYTES = 2 << 30
ALIGNMENT = 32

LLAMA = dict(arch="llama", vocab=128256, theta=500000.0, eps=1e-5, context=131072, tied=True, rope_factor=32.0, head_dim=128,
             kv_heads=8, bias=False, qk_norm=False)
QWEN = dict(arch="qwen2", vocab=151936, theta=1000000.0, eps=1e-6, context=32768, tied=True, rope_factor=None, head_dim=128,
            bias=True, qk_norm=False)
SHAPES = {
    "llama-3.2-1b": LLAMA | dict(layers=16, hidden=2048, mlp=8192, heads=32, head_dim=64),
    "llama-3.2-3b": LLAMA | dict(layers=28, hidden=3072, mlp=8192, heads=24),
    "llama-3.1-8b": LLAMA | dict(layers=32, hidden=4096, mlp=14336, heads=32, tied=False, rope_factor=8.0),
    "qwen2.5-1.5b": QWEN | dict(layers=28, hidden=1536, mlp=8960, heads=12, kv_heads=2),
    "qwen3-0.6b": QWEN | dict(arch="qwen3", layers=28, hidden=1024, mlp=3072, heads=16, kv_heads=8, bias=False, qk_norm=True,
                              context=40960),
}
# int((1 - ratio) * width), nothing rounded, as the authors' pruning does it.
for name, ratio in (("llama-3.2-1b", 0.45), ("llama-3.2-3b", 0.45), ("llama-3.1-8b", 0.43)):
    full = SHAPES[name]
    SHAPES[name + "-pruned"] = full | {key: int((1 - ratio) * full[key]) for key in ("hidden", "mlp")}

# type: GGUF number, elements and bytes of a block
TYPES = {"f32": (0, 1, 4), "f16": (1, 1, 2), "q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q5_0": (6, 32, 22), "q5_1": (7, 32, 24),
         "q8_0": (8, 32, 34), "q4_k": (12, 256, 144), "q5_k": (13, 256, 176), "q6_k": (14, 256, 210), "bf16": (30, 1, 2)}
DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


# ---- the vocabulary: byte-level BPE whose merges make pairs of letters, then pairs of pairs

def byte_alphabet():
    """GPT-2's: printable bytes stand for themselves, the others for characters from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in plain)
    table = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [table[b] for b in range(256)]


def vocabulary(shape):
    """tokens, merges, specials {id: text}"""
    llama = shape["arch"] == "llama"
    n_text = 128000 if llama else 151643
    letters = "abcdefghijklmnopqrstuvwxyz"
    first = [a + b for a in "\u0120" + letters for b in letters]
    second = [a + b for a in letters for b in letters]
    tokens = byte_alphabet() + first
    merges = [(p[0], p[1]) for p in first]
    n_pairs = len(first) * len(second)
    for i in range(n_text - len(tokens)):
        at = i * 104729 % n_pairs  # prime, so all differ and every beginning is there
        left, right = first[at // len(second)], second[at % len(second)]
        tokens.append(left + right)
        merges.append((left, right))
    if llama:
        specials = {128000 + i: f"<|reserved_special_token_{i}|>" for i in range(256)} | {
            128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128006: "<|start_header_id|>",
            128007: "<|end_header_id|>", 128009: "<|eot_id|>"}
    else:
        specials = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}
    return tokens, merges, specials


TEMPLATES = {
    "llama": "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
             "+ message['content'] + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
             "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "qwen": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}


def special_ids(shape):
    return (128000, 128009) if shape["arch"] == "llama" else (151643, 151645)  # bos, eos


# ---- the tensors

def tensor_list(shape, hidden, mlp):
    """(GGUF name, rows or None for a vector, columns, kind), widths as they are stored."""
    q, kv, dim = shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"], shape["head_dim"]
    out = [("token_embd.weight", shape["vocab"], hidden, "matrix")]
    for layer in range(shape["layers"]):
        rows = [("attn_norm.weight", None, hidden, "norm"), ("attn_q.weight", q, hidden, "matrix"),
                ("attn_k.weight", kv, hidden, "matrix"), ("attn_v.weight", kv, hidden, "matrix"),
                ("attn_output.weight", hidden, q, "matrix"), ("ffn_norm.weight", None, hidden, "norm"),
                ("ffn_gate.weight", mlp, hidden, "matrix"), ("ffn_up.weight", mlp, hidden, "matrix"),
                ("ffn_down.weight", hidden, mlp, "matrix")]
        if shape["bias"]:
            rows += [("attn_q.bias", None, q, "bias"), ("attn_k.bias", None, kv, "bias"), ("attn_v.bias", None, kv, "bias")]
        if shape["qk_norm"]:
            rows += [("attn_q_norm.weight", None, dim, "norm"), ("attn_k_norm.weight", None, dim, "norm")]
        out += [(f"blk.{layer}.{name}", *rest) for name, *rest in rows]
    out.append(("output_norm.weight", None, hidden, "norm"))
    if not shape["tied"]:
        out.append(("output.weight", shape["vocab"], hidden, "matrix"))
    return out


def halves(x):
    return np.asarray(x, np.float32).astype(np.float16)


def blocks_of(kind, rng, n, std):
    """n random blocks of a quantised type as uint8 [n][bytes]; std: of the values."""
    size = TYPES[kind][2]
    out = rng.integers(0, 256, (n, size), np.uint8)
    sign = rng.choice(np.float32([-1, 1]), n)

    def put(at, values):
        out[:, at:at + 2] = halves(values).view(np.uint8).reshape(n, 2)

    if kind == "q8_0":  # int8 evenly spread over -128..127
        put(0, sign * std / 73.9)
    elif kind in ("q4_0", "q5_0"):  # d (q - half of the range)
        put(0, sign * std / (4.64 if kind == "q4_0" else 9.25))
    elif kind in ("q4_1", "q5_1"):  # d q + m
        spread, middle = (4.61, 7.5) if kind == "q4_1" else (9.23, 15.5)
        put(0, sign * std / spread)
        put(2, -sign * middle * std / spread)
    elif kind == "q6_k":  # d scale (q - 32), sixteen scales
        out[:, 192:208] = rng.choice(np.int8([-40, -32, -24, 24, 32, 40]), (n, 16)).view(np.uint8)
        put(208, np.full(n, std / (18.5 * 32.7)))
    else:  # q4_k, q5_k: d scale q - dmin min; eight scales and mins of six bits, here equal
        spread, middle = (4.61, 7.5) if kind == "q4_k" else (9.23, 15.5)
        scale = rng.integers(24, 41, (n, 8), np.uint8)
        put(0, np.full(n, std / (spread * 32.4)))
        put(2, np.full(n, middle * std / (spread * 32.4)))
        high = (scale[:, 4:] >> 4) << 6
        out[:, 4:8] = scale[:, :4] | high
        out[:, 8:12] = scale[:, :4] | high
        out[:, 12:16] = (scale[:, 4:] & 15) | (scale[:, 4:] & 15) << 4
    return out


def floats_as(kind, x):
    if kind == "f16":
        return halves(x).view(np.uint8)
    if kind == "bf16":
        return ((x.view(np.uint32) + 0x8000) >> 16).astype(np.uint16).view(np.uint8)
    return x.view(np.uint8)


def rows_of(kind, rng, n, columns, true_columns, std):
    """n random rows; what is behind the true width is zero."""
    if TYPES[kind][1] == 1:
        x = (rng.random((n, columns), np.float32) - np.float32(0.5)) * np.float32(std * math.sqrt(12))
        x[:, true_columns:] = 0
        return floats_as(kind, x)
    block, size = TYPES[kind][1:]
    out = blocks_of(kind, rng, n * columns // block, std).reshape(n, columns // block, size)
    if true_columns < columns:  # also what stands before the padding in its block: blocks are drawn whole
        out[:, true_columns // block:] = 0
    return out


def stream(tensor, kind, seed, hidden, mlp):
    """The bytes of a tensor, piece by piece; hidden and mlp are the true widths."""
    name, rows, columns, what = tensor
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    if what != "matrix":
        x = rng.standard_normal(columns, np.float32)
        x = 1 + np.float32(0.05) * x if what == "norm" else np.float32(0.1) * x
        if what == "norm":
            x[hidden:] = 0
        yield floats_as(kind, x).tobytes()
        return
    is_down, is_out = name.endswith("ffn_down.weight"), name.endswith("attn_output.weight")
    true_columns = mlp if is_down else columns if is_out else hidden
    true_rows = hidden if is_down or is_out else mlp if ".ffn_" in name else rows
    std = (0.5 if is_down or is_out else 1) / math.sqrt(true_columns)
    step = max(1, CHUNK // columns)
    row_bytes = columns // TYPES[kind][1] * TYPES[kind][2]
    for begin in range(0, true_rows, step):
        n = min(step, true_rows - begin)
        yield rows_of(kind, rng, n, columns, true_columns, std).tobytes()
    yield bytes(row_bytes * (rows - true_rows))


# ---- GGUF

class Metadata:
    U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5

    def __init__(self):
        self.data, self.n = bytearray(), 0

    @staticmethod
    def text(s):
        raw = s.encode()
        return struct.pack("<Q", len(raw)) + raw

    def put(self, key, kind, value):
        self.n += 1
        self.data += self.text(key) + struct.pack("<I", kind)
        self.data += self.text(value) if kind == self.STRING else struct.pack({4: "<I", 6: "<f", 7: "<?"}[kind], value)

    def put_array(self, key, kind, items):
        self.n += 1
        self.data += self.text(key) + struct.pack("<IIQ", self.ARRAY, kind, len(items))
        self.data += b"".join(map(self.text, items)) if kind == self.STRING else np.asarray(items, "<i4").tobytes()


def metadata_of(name, shape, hidden_stored, mlp_stored):
    m, arch = Metadata(), shape["arch"]
    tokens, merges, specials = vocabulary(shape)
    m.put("general.architecture", m.STRING, arch)
    m.put("general.name", m.STRING, f"random weights in the shape of {name}")
    for key, value in (("block_count", shape["layers"]), ("context_length", shape["context"]),
                       ("embedding_length", hidden_stored), ("feed_forward_length", mlp_stored),
                       ("attention.head_count", shape["heads"]), ("attention.head_count_kv", shape["kv_heads"]),
                       ("attention.key_length", shape["head_dim"]), ("attention.value_length", shape["head_dim"]),
                       ("rope.dimension_count", shape["head_dim"]), ("vocab_size", shape["vocab"])):
        m.put(f"{arch}.{key}", m.U32, value)
    m.put(f"{arch}.attention.layer_norm_rms_epsilon", m.F32, shape["eps"])
    m.put(f"{arch}.rope.freq_base", m.F32, shape["theta"])
    if hidden_stored != shape["hidden"]:
        m.put("overfill.norm_width", m.U32, shape["hidden"])
    m.put("tokenizer.ggml.model", m.STRING, "gpt2")
    m.put("tokenizer.ggml.pre", m.STRING, "llama-bpe" if arch == "llama" else "qwen2")
    texts = tokens + [specials.get(i, f"[PAD{i}]") for i in range(len(tokens), shape["vocab"])]
    kinds = [1] * len(tokens) + [3 if i in specials else 5 for i in range(len(tokens), shape["vocab"])]
    m.put_array("tokenizer.ggml.tokens", m.STRING, texts)
    m.put_array("tokenizer.ggml.token_type", m.I32, kinds)
    m.put_array("tokenizer.ggml.merges", m.STRING, [f"{a} {b}" for a, b in merges])
    bos, eos = special_ids(shape)
    m.put("tokenizer.ggml.bos_token_id", m.U32, bos)
    m.put("tokenizer.ggml.eos_token_id", m.U32, eos)
    m.put("tokenizer.ggml.add_bos_token", m.BOOL, arch == "llama")
    m.put("tokenizer.chat_template", m.STRING, TEMPLATES["llama" if arch == "llama" else "qwen"])
    m.put("general.quantization_version", m.U32, 2)
    return m


def rope_divisors(shape):
    """Llama 3's slowing of long wavelengths, as GGUF carries it: what each frequency is divided by."""
    out = []
    for i in range(shape["head_dim"] // 2):
        turns = 8192 * shape["theta"] ** (-2 * i / shape["head_dim"]) / (2 * math.pi)
        smooth = min(max((turns - 1) / (4 - 1), 0), 1)
        out.append(1 / ((1 - smooth) / shape["rope_factor"] + smooth))
    return np.float32(out)


def padded(n):
    return (n + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def write_gguf(name, shape, kind, seed, path, progress):
    number, block, size = TYPES[kind]
    stored = {key: -(-shape[key] // block) * block for key in ("hidden", "mlp")}
    tensors = tensor_list(shape, stored["hidden"], stored["mlp"])
    meta = metadata_of(name, shape, stored["hidden"], stored["mlp"])
    table, at, plan = bytearray(), 0, []
    if shape["rope_factor"]:
        tensors.append(("rope_freqs.weight", None, shape["head_dim"] // 2, "rope"))
    for tensor_name, rows, columns, what in tensors:
        is_matrix = what == "matrix"
        n_bytes = (rows or 1) * (columns // block * size if is_matrix else 4 * columns)
        dims = (columns, rows) if rows else (columns,)
        table += Metadata.text(tensor_name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number if is_matrix else 0, at)
        plan.append(n_bytes)
        at = padded(at + n_bytes)
    with open(path, "wb") as out:
        out.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), meta.n) + meta.data + table)
        out.write(bytes(padded(out.tell()) - out.tell()))
        for tensor, n_bytes in zip(tensors, plan):
            begin = out.tell()
            if tensor[3] == "rope":
                out.write(rope_divisors(shape).tobytes())
            else:
                for piece in stream(tensor, kind if tensor[3] == "matrix" else "f32", seed, shape["hidden"], shape["mlp"]):
                    out.write(piece)
            assert out.tell() - begin == n_bytes, tensor
            out.write(bytes(padded(n_bytes) - n_bytes))
            progress(n_bytes / at)


# ---- a Hugging Face folder

HF_NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def hf_name(name):
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
             "output.weight": "lm_head.weight"}
    if name in whole:
        return whole[name]
    _, layer, part, end = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}.{end}"


def write_config(name, shape, kind, folder):
    llama, bos_eos = shape["arch"] == "llama", special_ids(shape)
    config = {"architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[shape["arch"]]],
              "model_type": shape["arch"], "hidden_act": "silu", "hidden_size": shape["hidden"], "intermediate_size": shape["mlp"],
              "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv_heads"],
              "head_dim": shape["head_dim"], "max_position_embeddings": shape["context"], "rms_norm_eps": shape["eps"],
              "rope_theta": shape["theta"], "vocab_size": shape["vocab"], "tie_word_embeddings": shape["tied"],
              "bos_token_id": bos_eos[0], "eos_token_id": bos_eos[1],
              "torch_dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[kind],
              "_name_or_path": f"random weights in the shape of {name}"}
    if shape["rope_factor"]:
        config["rope_scaling"] = {"rope_type": "llama3", "factor": shape["rope_factor"], "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokens, merges, specials = vocabulary(shape)
    split = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
             r"|\s*[\r\n]+|\s+(?!\S)|\s+") % ("{1,3}" if llama else "")
    bos, eos = (specials[i] for i in bos_eos)
    tokenizer = {"version": "1.0", "truncation": None, "padding": None,
                 "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                                   "special": True} for i, t in specials.items()],
                 "normalizer": None,
                 "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                     {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
                     {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
                 "post_processor": {"type": "TemplateProcessing",
                                    "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                                    "special_tokens": {bos: {"id": bos, "ids": [bos_eos[0]], "tokens": [bos]}}} if llama else None,
                 "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                 "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                           "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                           "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [list(m) for m in merges]}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "chat_template": TEMPLATES["llama" if llama else "qwen"]}
    if llama:
        settings["bos_token"] = bos
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def write_folder(name, shape, kind, seed, folder, progress):
    if kind not in DTYPES:
        sys.exit(f"make-model: --type {kind}: a folder holds f32, f16 or bf16; name a .gguf file for the others")
    folder.mkdir(parents=True, exist_ok=True)
    write_config(name, shape, kind, folder)
    size = TYPES[kind][2]
    shards, total = [[]], 0
    for tensor in tensor_list(shape, shape["hidden"], shape["mlp"]):
        n_bytes = (tensor[1] or 1) * tensor[2] * size
        if shards[-1] and sum(n for _, n in shards[-1]) + n_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append((tensor, n_bytes))
        total += n_bytes
    index = {}
    for i, shard in enumerate(shards, 1):
        file_name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for (tensor_name, rows, columns, _), n_bytes in shard:
            index[hf_name(tensor_name)] = file_name
            header[hf_name(tensor_name)] = {"dtype": DTYPES[kind], "shape": [rows, columns] if rows else [columns],
                                            "data_offsets": [at, at + n_bytes]}
            at += n_bytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file_name, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for tensor, n_bytes in shard:
                for piece in stream(tensor, kind, seed, shape["hidden"], shape["mlp"]):
                    out.write(piece)
                progress(n_bytes / total)
            assert out.tell() == 8 + len(text) + at
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1))


def show_progress():
    done = 0.0

    def add(share):
        nonlocal done
        before, done = done, done + share
        if int(done * 10) > int(before * 10):
            print(f"{min(done, 1):.0%}", file=sys.stderr, flush=True)
    return add


def main():
    parser = argparse.ArgumentParser(prog="make-model")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--type", choices=TYPES, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write = write_gguf if args.out.suffix == ".gguf" else write_folder
    write(args.shape, SHAPES[args.shape], args.type, args.seed, args.out, show_progress())


if __name__ == "__main__":
    main()
