#!/usr/bin/env python3
"""stories.py MODEL.bin TOKENIZER.bin OUT.gguf: llama2.c's stories260K as the GGUF that llama.cpp's
server tests are written for. Layout of both inputs: github.com/karpathy/llama2.c, export.py
(version 0) and tokenizer.py; of the output: ggml's docs/gguf.md."""
import struct
import sys

UINT32, FLOAT32, STRING, ARRAY, INT32 = 4, 6, 8, 9, 5
ALIGNMENT = 32
CONTEXT = 2048  # as in the file that the tests name; the weights saw 512
UNKNOWN, CONTROL, NORMAL, BYTE = 2, 3, 1, 6


def text(s):
    data = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(data)) + data


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def array(name, kind, packed):
    return key(name, ARRAY, struct.pack("<IQ", kind, len(packed)) + b"".join(packed))


def read_vocab(path, n):
    data = open(path, "rb").read()
    at, tokens = 4, []
    for _ in range(n):
        score, length = struct.unpack_from("<fi", data, at)
        tokens.append((data[at + 8:at + 8 + length], score))
        at += 8 + length
    return tokens


def vocab_keys(tokens):
    pieces, kinds = [], []
    for i, (piece, _) in enumerate(tokens):
        is_byte = len(piece) == 6 and piece.startswith(b"<0x")
        kinds.append(UNKNOWN if i == 0 else CONTROL if i < 3 else BYTE if is_byte else NORMAL)
        pieces.append(piece.strip() if i < 3 else piece.replace(b" ", "\u2581".encode()))
    return [
        key("tokenizer.ggml.model", STRING, text("llama")),
        array("tokenizer.ggml.tokens", STRING, [text(p) for p in pieces]),
        array("tokenizer.ggml.scores", FLOAT32, [struct.pack("<f", s) for _, s in tokens]),
        array("tokenizer.ggml.token_type", INT32, [struct.pack("<i", k) for k in kinds]),
        *[key(f"tokenizer.ggml.{name}_token_id", UINT32, struct.pack("<I", i))
          for i, name in enumerate(("unknown", "bos", "eos"))],
    ]


def read_tensors(data, dim, mlp, n_layers, n_heads, n_kv_heads, n_vocab):
    """(name, shape as ggml counts it, bytes), layer by layer out of one array for each matrix."""
    kv = dim * n_kv_heads // n_heads
    groups = [("token_embd", (dim, n_vocab), 0), ("attn_norm", (dim,), 1), ("attn_q", (dim, dim), 1),
              ("attn_k", (dim, kv), 1), ("attn_v", (dim, kv), 1), ("attn_output", (dim, dim), 1),
              ("ffn_norm", (dim,), 1), ("ffn_gate", (dim, mlp), 1), ("ffn_down", (mlp, dim), 1),
              ("ffn_up", (dim, mlp), 1), ("output_norm", (dim,), 0)]
    at = 28
    for name, shape, is_layered in groups:
        n_bytes = 4
        for n in shape:
            n_bytes *= n
        for layer in range(n_layers if is_layered else 1):
            prefix = f"blk.{layer}." if is_layered else ""
            yield f"{prefix}{name}.weight", shape, data[at:at + n_bytes]
            at += n_bytes


def main(model, tokenizer, out):
    data = open(model, "rb").read()
    dim, mlp, n_layers, n_heads, n_kv_heads, n_vocab, _ = struct.unpack_from("<7i", data)
    numbers = {"context_length": CONTEXT, "embedding_length": dim, "block_count": n_layers,
               "feed_forward_length": mlp, "attention.head_count": n_heads,
               "attention.head_count_kv": n_kv_heads, "rope.dimension_count": dim // n_heads,
               "vocab_size": n_vocab}
    keys = [key("general.architecture", STRING, text("llama")),
            key("general.name", STRING, text("stories260K")),
            key("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
            *[key("llama." + name, UINT32, struct.pack("<I", n)) for name, n in numbers.items()],
            *vocab_keys(read_vocab(tokenizer, n_vocab))]
    tensors = list(read_tensors(data, dim, mlp, n_layers, n_heads, n_kv_heads, n_vocab))
    infos, body = b"", b""
    for name, shape, weights in tensors:
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(body))
        body += weights + bytes(-len(weights) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + infos
    with open(out, "wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT) + body)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
