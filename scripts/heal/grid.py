"""Block types of GGUF as grids to train on: a block of 32 weights has a scale d (and for Q4_1 and Q5_1
a minimum), a weight is one of a few steps of it. `values` is what the kernels will compute with, `pull`
takes the gradient of those values back to the float weights and the scales (straight through the
rounding; Esser et al. 2020, learned step size), `encode` gives the bytes of the file."""

import numpy
import torch

BLOCK = 32
# (lowest code, highest code, has a minimum); value = d * code + minimum
GRIDS = {
    "q4_0": (-8, 7, False),
    "q4_1": (0, 15, True),
    "q5_0": (-16, 15, False),
    "q5_1": (0, 31, True),
    "q8_0": (-127, 127, False),
}
FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# The search for a block's first scale: shares of the one that reaches its largest weight.
SHARES = [0.70 + 0.025 * i for i in range(14)]


def is_known(name):
    return name in GRIDS or name in FLOATS


def as_half(x):
    """Scales are halves in the file."""
    return x.to(torch.float16).to(torch.float32)


def not_zero(d):
    """A block of zeros has a scale too: weights are divided by it."""
    return torch.where(d == 0, torch.full_like(d, 1e-7), d)


def stored_scales(name, data, columns):
    """(scale, minimum or None), [blocks, 1] each, of a file's rows [rows, bytes]. In all types here a block begins
    with them, as halves."""
    blocks = numpy.ascontiguousarray(data.reshape(-1, data.shape[1] // (columns // BLOCK))[:, :4])
    halves = torch.from_numpy(blocks.view("<f2").astype(numpy.float32))
    return not_zero(halves[:, :1]), halves[:, 1:].clone() if GRIDS[name][2] else None


class Grid:
    """Scales of one matrix [rows, columns], columns a multiple of 32. They are kept as the logarithm of
    a factor on the first ones, so that a step of the optimiser is relative."""

    def __init__(self, name, weight, scales=None):
        """scales: of weights that lie on such a grid already, as `stored_scales`; they are kept, where a search
        would look at what the blocks happen to hold."""
        self.name = name
        self.low, self.high, self.has_minimum = GRIDS[name]
        if weight.shape[1] % BLOCK:
            raise ValueError(f"{name}: a row of {weight.shape[1]} weights is no multiple of {BLOCK}")
        w = weight.reshape(-1, BLOCK)
        self.base, self.minimum = (x if x is None else x.to(w.device) for x in scales or self._search(w))
        self.log = torch.zeros_like(self.base)

    def _search(self, w):
        """The scale, and minimum, of least squared error among shares of the widest one."""
        if self.has_minimum:
            bottom = w.min(1, keepdim=True).values.clamp(max=0)
            widest = (w.max(1, keepdim=True).values - bottom) / self.high
        else:
            bottom = None
            at = w.abs().argmax(1, keepdim=True)
            widest = w.gather(1, at) / self.low  # its sign lets the longer side hold the largest
        best = torch.full_like(widest, float("inf"))
        scale, minimum = widest.clone(), bottom.clone() if bottom is not None else None
        for share in SHARES:
            d = not_zero(as_half(widest * share))
            m = as_half(bottom * share) if bottom is not None else None
            error = (self._values(w, d, m) - w).square_().sum(1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            scale = torch.where(better, d, scale)
            if m is not None:
                minimum = torch.where(better, m, minimum)
        return scale, minimum

    def _codes(self, w, d, m):
        x = w / d if m is None else (w - m) / d
        return x.round_().clamp_(self.low, self.high)

    def _values(self, w, d, m):
        codes = self._codes(w, d, m)
        return codes.mul_(d) if m is None else codes.mul_(d).add_(m)

    def parameters(self):
        return [self.log] if self.minimum is None else [self.log, self.minimum]

    def _scales(self):
        d = as_half(self.base * self.log.exp())
        return d, as_half(self.minimum) if self.minimum is not None else None

    def values(self, weight):
        d, m = self._scales()
        return self._values(weight.reshape(-1, BLOCK), d, m).reshape(weight.shape)

    def pull(self, weight, grad):
        """d loss / d values -> (of the weight, [of each parameter])."""
        d, m = self._scales()
        g = grad.reshape(-1, BLOCK)
        w = weight.reshape(-1, BLOCK)
        x = w / d if m is None else (w - m) / d
        codes = x.round().clamp_(self.low, self.high)
        inside = (x >= self.low - 0.5) & (x <= self.high + 0.5)
        to_weight = g * inside
        to_log = (g * (codes - x * inside)).sum(1, keepdim=True).mul_(d)
        grads = [to_log]
        if m is not None:
            grads.append((g * ~inside).sum(1, keepdim=True))
        return to_weight.reshape(weight.shape), grads

    def encode(self, weight):
        """The file's bytes, [rows, bytes of a row]."""
        d, m = self._scales()
        codes = self._codes(weight.detach().reshape(-1, BLOCK), d, m).to(torch.int16).numpy()
        parts = [d.numpy().astype("<f2").view(numpy.uint8)]
        if m is not None:
            parts.append(m.numpy().astype("<f2").view(numpy.uint8))
        if self.name == "q8_0":
            parts.append(codes.astype(numpy.int8).view(numpy.uint8))
        else:
            codes = (codes - self.low).astype(numpy.uint8)
            if self.name.startswith("q5"):  # the fifth bits first, bit i of 32 for weight i
                parts.append(numpy.packbits(codes >> 4, axis=1, bitorder="little"))
            half = BLOCK // 2
            parts.append((codes[:, :half] & 15) | ((codes[:, half:] & 15) << 4))
        return numpy.concatenate(parts, axis=1).reshape(weight.shape[0], -1)
