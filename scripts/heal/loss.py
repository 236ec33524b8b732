"""Losses over the whole vocabulary, some rows at a time, so that memory does not grow with the batch.
The gradient is known in closed form and is made in the same pass: for KL(full || twin) it is
softmax(twin) - softmax(full), for cross-entropy softmax(twin) - one_hot(next token)."""

import torch

ROWS = 256


class VocabularyLoss(torch.autograd.Function):
    """states [n, hidden] of the twin, weight [vocabulary, hidden] its head, and the full model's; next
    [n] the tokens that follow. Returns (sum of losses, and of: KL, agreement, NLL, no gradients)."""

    @staticmethod
    def forward(ctx, states, weight, full_states, full_weight, following, objective):
        d_states = torch.empty_like(states)
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        sums = torch.zeros(3, dtype=torch.float64)
        for at in range(0, states.shape[0], ROWS):
            rows = slice(at, at + ROWS)
            s = torch.log_softmax((states[rows] @ weight.T).float(), 1)
            t = torch.log_softmax((full_states[rows] @ full_weight.T).float(), 1)
            p = t.exp()
            target = following[rows, None]
            sums[0] += (p * (t - s)).sum().double().cpu()
            sums[1] += (s.argmax(1) == t.argmax(1)).sum().double().cpu()
            sums[2] -= s.gather(1, target).sum().double().cpu()
            grad = s.exp_()
            if objective == "ce":
                grad.scatter_add_(1, target, torch.full_like(target, -1, dtype=grad.dtype))
            else:
                grad -= p
            grad = grad.to(states.dtype)
            d_states[rows] = grad @ weight
            d_weight += grad.T @ states[rows]
        ctx.save_for_backward(d_states, d_weight.to(weight.dtype))
        loss = (sums[2] if objective == "ce" else sums[0]).float()
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx, d_loss, _):
        d_states, d_weight = ctx.saved_tensors
        return d_states * d_loss, d_weight * d_loss, None, None, None, None


def vocabulary_loss(states, weight, full_states, full_weight, following, objective):
    return VocabularyLoss.apply(states, weight, full_states, full_weight, following, objective)
