"""The transformer of GGUF's `llama`, `qwen2` and `qwen3`, read by two models on one KV: the full model reads
everything once, the twin reads only what stands behind the prompt, with the full model's keys and values
of the prompt in front (OverFill, COLM 2025). Heads, KV heads, head_dim and layers are the same in both."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NORMS = ("attn_norm", "ffn_norm")
HEAD_NORMS = ("attn_q_norm", "attn_k_norm")  # qwen3's
PROJECTIONS = ("attn_q", "attn_k", "attn_v")  # with biases: qwen2's


@dataclass
class Shape:
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope_base: float
    rope_halves: bool  # RoPE turns elements i and i + head_dim / 2 together, as qwen's files lie; else 2i and 2i + 1


def rms_norm(x, weight, eps):
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * weight).to(x.dtype)


class Rope:
    def __init__(self, shape, factors, n, device):
        rate = shape.rope_base ** (-torch.arange(0, shape.head_dim, 2).double() / shape.head_dim)
        if factors is not None:
            rate = rate / factors.double().cpu()
        angle = torch.outer(torch.arange(n).double(), rate)
        self.cos, self.sin = (f(angle).float().to(device) for f in (torch.cos, torch.sin))

    def at(self, positions):
        """[batch, 1, tokens, head_dim / 2] each."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x, turn, halves):
    cos, sin = turn
    pair = (2, -1) if halves else (-1, 2)
    at = -2 if halves else -1
    a, b = x.float().view(*x.shape[:-1], *pair).unbind(at)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), at).flatten(-2).to(x.dtype)


def attend(q, k, v, mask):
    """mask [batch, 1, queries, keys], True: may look. K and V serve a group of heads each."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (k, v))
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    score = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    return torch.softmax(score.masked_fill(~mask, float("-inf")), -1).to(v.dtype) @ v


def weights_of(w, i):
    layer = {part: w[f"blk.{i}.{part}.weight"] for part in MATRICES + NORMS}
    layer |= {part: w.get(f"blk.{i}.{part}.weight") for part in HEAD_NORMS}
    return layer | {f"{part}.bias": w.get(f"blk.{i}.{part}.bias") for part in PROJECTIONS}


def project(shape, w, part, h, turn):
    """h [batch, tokens, hidden] to heads [batch, heads, tokens, head_dim]; queries and keys are turned."""
    bias = w[f"{part}.bias"]
    y = F.linear(h, w[part], None if bias is None else bias.to(h.dtype))
    y = y.view(*h.shape[:2], -1, shape.head_dim).transpose(1, 2)
    if part == "attn_v":
        return y
    norm = w[f"{part}_norm"]
    return rotate(y if norm is None else rms_norm(y, norm, shape.eps), turn, shape.rope_halves)


def layer(shape, w, x, turn, mask, before):
    """One layer of weights w over x [batch, tokens, hidden]; before: keys and values in front of its own,
    or None. Returns the new x and its own (k, v)."""
    h = rms_norm(x, w["attn_norm"], shape.eps)
    q, k, v = (project(shape, w, part, h, turn) for part in PROJECTIONS)
    keys, values = (k, v) if before is None else (
        torch.cat((before[0], k), 2), torch.cat((before[1], v), 2))
    y = attend(q, keys, values, mask).transpose(1, 2).flatten(2)
    x = x + F.linear(y, w["attn_output"])
    h = rms_norm(x, w["ffn_norm"], shape.eps)
    y = F.silu(F.linear(h, w["ffn_gate"])) * F.linear(h, w["ffn_up"])
    return x + F.linear(y, w["ffn_down"]), (k, v)


def head(w):
    return w["output.weight"] if "output.weight" in w else w["token_embd.weight"]


def read_all(shape, w, rope, tokens):
    """The full model over padded rows tokens [batch, n]. Returns the normed last states and KV of each
    layer; padding stands behind, so causality keeps it out of sight."""
    n = tokens.shape[1]
    turn = rope.at(torch.arange(n, device=tokens.device).expand_as(tokens))
    mask = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril().expand(
        tokens.shape[0], 1, n, n)
    x = F.embedding(tokens, w["token_embd.weight"])
    kv = []
    for i in range(shape.layers):
        x, own = layer(shape, weights_of(w, i), x, turn, mask, None)
        kv.append(own)
    return rms_norm(x, w["output_norm.weight"], shape.eps), kv


def read_behind(shape, w, rope, tokens, starts, kv, recompute=False):
    """The twin over tokens [batch, n], row b at positions starts[b] and on, behind the first starts[b]
    tokens of kv (starts of 0: alone). Returns the normed last states."""
    n = tokens.shape[1]
    own = torch.arange(n, device=tokens.device)
    turn = rope.at(starts[:, None] + own)
    causal = (own[:, None] >= own).expand(tokens.shape[0], n, n)
    most = int(starts.max())
    prompt = torch.arange(most, device=tokens.device)[None, None] < starts[:, None, None]
    mask = torch.cat((prompt.expand(-1, n, -1), causal), 2).unsqueeze(1)
    x = F.embedding(tokens, w["token_embd.weight"])
    for i in range(shape.layers):
        before = (kv[i][0][:, :, :most], kv[i][1][:, :, :most]) if most else None
        run = lambda x, i=i, before=before: layer(shape, weights_of(w, i), x, turn, mask, before)[0]
        x = checkpoint(run, x, use_reentrant=False) if recompute else run(x)
    return rms_norm(x, w["output_norm.weight"], shape.eps)
