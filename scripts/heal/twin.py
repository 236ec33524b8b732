"""The twin in training: float weights, the grids they are rounded to, and the rounded copies that the
forward pass reads."""

import numpy
import torch

from files import FLOATS
from grid import GRIDS, Grid


class Twin:
    def __init__(self, model, kind, head_kind, device, dtype):
        self.shape = model.shape
        self.dtype = dtype
        self.device = device
        self.latent, self.kinds, self.grids = {}, {}, {}
        for name, w in model.weights.items():
            is_matrix = w.dim() == 2
            is_head = name in ("output.weight", "token_embd.weight")
            self.latent[name] = w.to(device).float().clone()
            self.kinds[name] = (head_kind if is_head else kind) if is_matrix else "f32"
            if self.kinds[name] in GRIDS:
                self.grids[name] = Grid(self.kinds[name], self.latent[name], model.scales(name, self.kinds[name]))
        self.seen = {}

    def parameter_groups(self, rate, scale_rate):
        latents = list(self.latent.values())
        scales = [p for grid in self.grids.values() for p in grid.parameters()]
        return [{"params": latents, "lr": rate, "peak": rate},
                {"params": scales, "lr": scale_rate, "peak": scale_rate}]

    @torch.no_grad()
    def see(self, needs_grad=True):
        """The weights as the kernels will have them, anew after each step."""
        for name, w in self.latent.items():
            value = self.grids[name].values(w) if name in self.grids else w
            kind = torch.float32 if w.dim() == 1 else self.dtype
            self.seen[name] = value.to(kind, copy=True).requires_grad_(needs_grad)
        return self.seen

    @torch.no_grad()
    def pull(self):
        """Gradients of what was seen to the float weights and scales."""
        for name, w in self.latent.items():
            grad = self.seen[name].grad
            grad = torch.zeros_like(w) if grad is None else grad.float()
            if name in self.grids:
                w.grad, scales = self.grids[name].pull(w, grad)
                for p, g in zip(self.grids[name].parameters(), scales):
                    p.grad = g
            else:
                w.grad = grad
            self.seen[name].grad = None

    def state(self):
        return {"latent": self.latent,
                "scales": {n: g.parameters() for n, g in self.grids.items()}}

    @torch.no_grad()
    def load(self, state):
        for name, w in self.latent.items():
            w.copy_(state["latent"][name])
        for name, grid in self.grids.items():
            for p, q in zip(grid.parameters(), state["scales"][name]):
                p.copy_(q)

    def tensors(self):
        out = {}
        for name, w in self.latent.items():
            kind = self.kinds[name]
            w = w.detach().cpu()
            if kind in GRIDS:
                out[name] = (kind, self.grids[name].encode(w))
            elif kind == "bf16":
                raise ValueError("bf16: not a type that healing writes; f16 or f32 is")
            else:
                out[name] = (kind, w.to(FLOATS[kind]).numpy().astype(
                    numpy.float16 if kind == "f16" else numpy.float32))
        return out
