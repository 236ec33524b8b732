"""A twin that is noise: a copy of a GGUF file with the pieces of every layer's matrices in random order, so sizes,
types and the distribution of weights stay and what they compute does not."""
import pathlib
import random
import struct

SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of GGUF value types
PIECE = 512  # elements that stay together: no part of a row of 576
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 30: (1, 2)}


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, form):
        value, = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self):
        n = self.number("Q")
        self.at += n
        return bytes(self.data[self.at - n:self.at]).decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            of, n = self.number("I"), self.number("Q")
            return [self.value(of) for _ in range(n)]
        self.at += SCALARS[kind]
        return bytes(self.data[self.at - SCALARS[kind]:self.at])


def tensors(data):
    """(name, elements, type, offset in the file) of every tensor (GGUF 3)."""
    r = Reader(data)
    r.at = 8
    n_tensors, n_keys = r.number("Q"), r.number("Q")
    alignment = 32
    for _ in range(n_keys):
        key = r.text()
        value = r.value(r.number("I"))
        if key == "general.alignment":
            alignment = int.from_bytes(value, "little")
    found = []
    for _ in range(n_tensors):
        name, n = r.text(), 1
        for _ in range(r.number("I")):
            n *= r.number("Q")
        found.append((name, n, r.number("I"), r.number("Q")))
    begin = (r.at + alignment - 1) // alignment * alignment
    return [(name, n, kind, begin + offset) for name, n, kind, offset in found]


def write_noise_twin(model: pathlib.Path, out: pathlib.Path, seed: int):
    data = bytearray(model.read_bytes())
    shuffle = random.Random(seed).shuffle
    for name, n, kind, offset in tensors(data):
        if not name.startswith("blk.") or name.endswith("norm.weight"):
            continue
        n_elements, n_bytes = BLOCKS[kind]
        n_piece = PIECE // n_elements * n_bytes
        end = offset + n // PIECE * n_piece
        pieces = [bytes(data[at:at + n_piece]) for at in range(offset, end, n_piece)]
        shuffle(pieces)
        data[offset:end] = b"".join(pieces)
    out.write_bytes(data)
