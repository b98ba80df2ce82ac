# SPDX-License-Identifier: Apache-2.0
"""Gradients of exact attention, by PyTorch's own operations: for backward="exact"."""

import torch

_LARGEST = 1 << 25  # scores that are in memory at once


def _visible(queries, keys, query_positions, key_positions, left, right, device, rows=None):
    """bool (queries, keys), or None where every query sees every key. rows: which of the queries; None for all. The rule is visible() of
    src/common/visible.h."""
    if left < 0 and right < 0:
        return None
    first_key, key_step = key_positions or (0, 1)
    first_query, query_step = query_positions or (first_key + (keys - queries) * key_step, key_step)
    distance = (first_key + key_step * torch.arange(keys, device=device)) - (
        first_query + query_step * (torch.arange(queries, device=device) if rows is None else rows))[:, None]
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    return seen


def _sequence(grad_out, grad_lse, query, key, value, seen, scale):
    """Of (batch, kv heads, group, queries, dim) and (batch, kv heads, 1, keys, dim), in float32."""
    grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    batch, heads, group, queries, _ = query.shape
    step = max(1, _LARGEST // max(1, batch * heads * group * key.shape[3]))
    for begin in range(0, queries, step):
        rows = slice(begin, begin + step)
        scores = query[..., rows, :] @ key.transpose(-1, -2) * scale
        if seen is not None:
            scores = scores.masked_fill(~seen[..., rows, :], -torch.inf)
        weights = torch.softmax(scores, -1).nan_to_num(0.0)  # a query that sees no key has no weights
        above = grad_out[..., rows, :]
        grad_value += (weights.transpose(-1, -2) @ above).sum(2, keepdim=True)
        grad_weights = above @ value.transpose(-1, -2)
        grad_scores = grad_weights - (weights * grad_weights).sum(-1, keepdim=True)
        if grad_lse is not None:
            grad_scores = grad_scores + grad_lse[..., rows, None]
        grad_scores = weights * grad_scores * scale
        grad_query[..., rows, :] = grad_scores @ key
        grad_key += (grad_scores.transpose(-1, -2) @ query[..., rows, :]).sum(2, keepdim=True)
    return grad_query, grad_key, grad_value


def positions(numbers):
    """As attention() takes them, from what an operator has: first, step, or how many pairs there are and then the pairs."""
    if numbers is None or len(numbers) <= 2:
        return numbers
    return list(zip(numbers[1::2], numbers[2::2]))


def _pair(numbers, sequence):
    """Of a sequence."""
    if numbers is None or len(numbers) <= 2:
        return None if numbers is None else (*numbers, 1)[:2]
    return positions(numbers)[sequence]


def backward(grad_out, grad_lse, query, key, value, layout, causal, window, scale, query_starts, key_starts, query_positions, key_positions):
    """The gradients of query, key and value."""
    left, right = window or (-1, -1)
    if causal:
        right = 0
    order = [layout.index(letter) for letter in "bhsd" if letter in layout]

    def arranged(x):
        x = x.permute(order).float()
        return x if "b" in layout else x[None]

    def restored(x, like):
        x = x if "b" in layout else x[0]
        return torch.empty_like(like).copy_(x.permute([order.index(i) for i in range(len(order))]))

    q, k, v, above = arranged(query), arranged(key), arranged(value), arranged(grad_out)
    batch, heads, _, dim = q.shape
    kv_heads = k.shape[1]
    if heads == 0:
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    grouped = [x.reshape(batch, kv_heads, heads // kv_heads, -1, dim) for x in (q, above)]
    lse = None
    if grad_lse is not None:
        lse = (grad_lse if "b" in layout else grad_lse[None]).reshape(batch, kv_heads, heads // kv_heads, -1)
    scale = dim**-0.5 if scale is None else scale
    gradients = [torch.zeros_like(grouped[0]), torch.zeros_like(k)[:, :, None], torch.zeros_like(v)[:, :, None]]
    q_starts, k_starts = query_starts or [0, q.shape[2]], key_starts or [0, k.shape[2]]
    for i, (q0, q1, k0, k1) in enumerate(zip(q_starts, q_starts[1:], k_starts, k_starts[1:])):
        # Batch entries differ where each has positions of its own.
        sequences = [i] if query_starts or not any(len(p or ()) > 2 for p in (query_positions, key_positions)) else range(batch)
        seen = [_visible(q1 - q0, k1 - k0, _pair(query_positions, s), _pair(key_positions, s), left, right, q.device) for s in sequences]
        seen = None if not seen or seen[0] is None else torch.stack(seen)[:, None, None]
        one = _sequence(grouped[1][..., q0:q1, :], None if lse is None else lse[..., q0:q1], grouped[0][..., q0:q1, :], k[:, :, None, k0:k1],
                        v[:, :, None, k0:k1], seen, scale)
        gradients[0][..., q0:q1, :] = one[0]
        gradients[1][:, :, :, k0:k1] += one[1]
        gradients[2][:, :, :, k0:k1] += one[2]
    grad_query, grad_key, grad_value = gradients[0].reshape(q.shape), gradients[1][:, :, 0], gradients[2][:, :, 0]
    return restored(grad_query, query), restored(grad_key, key), restored(grad_value, value)
