"""Losses over the whole vocabulary, some rows at a time, so that memory does not grow with the batch.
The gradient is known in closed form and is made in the same pass: for KL(full || twin) it is
softmax(twin) - softmax(full), for cross-entropy softmax(twin) - one_hot(next token)."""

from dataclasses import dataclass

import torch

ROWS = 1024


def compare(own, full, following, is_ce):
    """Logits [n, vocabulary] of both to (the loss's gradient in own, KL, agreement, NLL: sums)."""
    s = torch.log_softmax(own.float(), 1)
    t = torch.log_softmax(full.float(), 1)
    p = t.exp()
    target = following[:, None]
    kl = (p * (t - s)).sum()
    agree = (s.argmax(1) == t.argmax(1)).sum()
    nll = -s.gather(1, target).sum()
    q = s.exp()
    grad = q.scatter_add(1, target, torch.full_like(target, -1, dtype=q.dtype)) if is_ce else q - p
    return grad.to(own.dtype), kl, agree, nll


@dataclass
class Penalties:
    """What is taken from the full model's logits: amounts [k] at rows [k] (ascending) and tokens [k]."""
    rows: torch.Tensor
    tokens: torch.Tensor
    amounts: torch.Tensor

    def take(self, logits, begin):
        """From the logits [n, vocabulary] of the rows from begin on, in place."""
        low, high = torch.searchsorted(
            self.rows, torch.tensor([begin, begin + len(logits)], device=self.rows.device)).tolist()
        part = slice(low, high)
        logits.index_put_((self.rows[part] - begin, self.tokens[part]),
                          -self.amounts[part].to(logits.dtype), accumulate=True)


class VocabularyLoss(torch.autograd.Function):
    """states [n, hidden] of the twin, weight [vocabulary, hidden] its head, and the full model's; next
    [n] the tokens that follow; penalties (or None) lower what the full model would say. Returns (sum of
    losses, and of: KL, agreement, NLL, no gradients)."""

    @staticmethod
    def forward(ctx, states, weight, full_states, full_weight, following, objective, penalties):
        d_states = torch.empty_like(states)
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        sums = torch.zeros(3, dtype=torch.float64)
        for at in range(0, states.shape[0], ROWS):
            rows = slice(at, at + ROWS)
            full = full_states[rows] @ full_weight.T
            if penalties:
                penalties.take(full, at)
            grad, *part = compare(states[rows] @ weight.T, full, following[rows], objective == "ce")
            sums += torch.stack([x.double().cpu() for x in part])
            d_states[rows] = grad @ weight
            d_weight += grad.T @ states[rows]
        ctx.save_for_backward(d_states, d_weight.to(weight.dtype))
        loss = (sums[2] if objective == "ce" else sums[0]).float()
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx, d_loss, _):
        d_states, d_weight = ctx.saved_tensors
        return d_states * d_loss, d_weight * d_loss, None, None, None, None, None


def vocabulary_loss(states, weight, full_states, full_weight, following, objective, penalties=None):
    return VocabularyLoss.apply(states, weight, full_states, full_weight, following, objective, penalties)
