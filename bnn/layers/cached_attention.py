"""Attention of new tokens to themselves and to those whose keys and values a cache holds."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CachedAttention(nn.Module):
    """softmax(query keys^T / sqrt(features)) values, where each token sees itself and all tokens before it.

    What a decoder calls in its `step`. It has no parameters; it is a module so that `bnn.convert_step` finds it.
    Packed, it changes the caches in place.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, place: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (what the tokens see (N, T, heads, features), keys with the new ones, values with the new ones).

        query, key, value: of T new tokens, (N, T, heads, features). keys, values: the caches, float (N, context, heads,
        features). place: int64 (N, 1), how many tokens of each sequence the caches hold: the new ones follow them.
        IndexError if they are more than the context.
        """
        places = place + torch.arange(query.shape[1], device=place.device)
        rows = torch.arange(len(query), device=place.device)[:, None]
        keys, values = keys.index_put((rows, places), key), values.index_put((rows, places), value)
        end = int(places.max()) + 1
        seen = torch.arange(end, device=place.device) <= places[..., None]
        q, k, v = (x.transpose(1, 2) for x in (query, keys[:, :end], values[:, :end]))
        y = F.scaled_dot_product_attention(q, k, v, seen[:, None])
        return y.transpose(1, 2), keys, values
