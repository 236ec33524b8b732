#!/usr/bin/env python3
"""Makes blocks.bin, what test_tensor.c checks the element types against: random blocks with the
floats that the Python package `gguf` (ggml's own) reads from them, and floats with the bytes that it
writes for them. Run again only to add a type: pip install gguf; ./make_blocks.py blocks.bin

Records, little-endian: u32 type, u32 direction (0 read, 1 write), u32 n elements, u32 n bytes,
the bytes, the n floats."""
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

rng = np.random.default_rng(20260131)
# bytes that hold half floats, in each block; the rest is any bits
HALVES = {T.Q8_0: (34, [0]), T.Q4_0: (18, [0]), T.Q4_1: (20, [0, 2]), T.Q5_0: (22, [0]),
          T.Q5_1: (24, [0, 2]), T.Q2_K: (84, [80, 82]), T.Q3_K: (110, [108]), T.Q4_K: (144, [0, 2]), T.Q5_K: (176, [0, 2]), T.Q6_K: (210, [208])}


def record(out, kind, direction, raw, floats):
    raw, floats = raw.astype(np.uint8).tobytes(), floats.astype("<f4")
    out.write(struct.pack("<4I", int(kind), direction, floats.size, len(raw)))
    out.write(raw + floats.tobytes())


with open(sys.argv[1], "wb") as out:
    for kind, (size, halves) in HALVES.items():
        block = 256 if kind.name.endswith("_K") else 32
        blocks = rng.integers(0, 256, (512 // block, size), dtype=np.uint8)
        for at in halves:
            scale = rng.normal(0, 0.1, len(blocks)).astype("<f2").view(np.uint8).reshape(-1, 2)
            blocks[:, at:at + 2] = scale
        record(out, kind, 0, blocks, quants.dequantize(blocks, kind))
    values = rng.normal(0, 1, 512).astype(np.float32)
    values[64:96] = 0                      # a block of zeros
    values[96:128] = 3.25                  # a block without range
    values[128:160] = np.abs(values[128:160])
    values[160:192] *= 1e-7                # scales below the smallest normal half
    for kind in (T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1):
        record(out, kind, 1, quants.quantize(values, kind).view(np.uint8), values)
