"""A language model of ternary weights and 8-bit inputs: BitNet b1.58's decoder."""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.layers import CachedAttention, QuantLinear
from bnn.models.options import LinearOptions

# Keys and values (N, context, heads, width / heads) of a block.
KeyValueCache = tuple[Tensor, Tensor]
# int64 (N, 1), how many tokens the caches hold, and the cache of each block.
DecoderState = tuple[Tensor, list[KeyValueCache]]


class BitLinearDecoder(nn.Module):
    """A decoder-only transformer whose projections are quantized; embedding and output layer in FP32.

    Input int64 (N, T) with T <= context, output (N, T, num_classes): logits of the token after each. num_classes:
    number of different tokens. context: the longest sequence. width: features of a token. layers, heads: of attention.
    hidden: features within a feed-forward block. SubLN: RMSNorm before the output projections too.

    Each block is x + attention(RMSNorm(x)), then x + feed_forward(RMSNorm(x)), as in BitNet b1.58 2B4T (Ma et al. 2025,
    arXiv:2504.12285, section 2, and its released code): rotary embedding, a gated squared ReLU, no biases, and SubLN
    (Wang et al. 2022, arXiv:2210.06423; in BitNet by Wang et al. 2023, arXiv:2310.11453, section 2). The paper's
    quantizers are AbsmeanTernary and AbsmaxActivation; with FullPrecision it is its own FP32 twin.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(
        self,
        num_classes: int = 256,
        context: int = 256,
        width: int = 256,
        layers: int = 6,
        heads: int = 8,
        hidden: int = 688,
        *,
        eps: float = 1e-5,
        **quantizers: Unpack[LinearOptions],
    ):
        super().__init__()
        if width % heads or width // heads % 2:
            raise ValueError(f"width must be heads times an even number, got width {width} and {heads} heads")
        self.context = context
        self.input_shape = (context,)
        self.embedding = nn.Embedding(num_classes, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, eps, **quantizers) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=eps)
        self.head = nn.Linear(width, num_classes, bias=False)
        cosine, sine = rotation(context, width // heads)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self.apply(_begin)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (N, T, num_classes) of whole sequences (N, T)."""
        length = tokens.shape[1]
        self._check(length)
        x = self.embedding(tokens)
        cosine, sine = self.cosine[:length, None], self.sine[:length, None]
        for block in self._blocks:
            x = block(x, cosine, sine)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def start(self, batch: int) -> DecoderState:
        """Return the state of `batch` sequences before their first token: caches as large as the context."""
        weight = self.embedding.weight
        place = torch.zeros(batch, 1, dtype=torch.int64, device=weight.device)
        return place, [block.attention.start(batch, self.context, weight) for block in self._blocks]

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Return (logits of the tokens (N, T), the state with them); the state holds the tokens before.

        The logits are those that `forward` gives for the whole sequence, within rounding. IndexError if the tokens are
        more than the context. `bnn.convert_step` packs a step of one token.
        """
        place, caches = state
        count = tokens.shape[1]
        places = place if count == 1 else place + torch.arange(count, device=place.device)
        cosine, sine = F.embedding(places, self.cosine)[:, :, None], F.embedding(places, self.sine)[:, :, None]
        x = self.embedding(tokens)
        longer: list[KeyValueCache] = []
        for block, held in zip(self._blocks, caches, strict=True):
            x, grown = block.step(x, cosine, sine, held, place)
            longer.append(grown)
        return self.head(self.norm(x)), (place + count, longer)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        count: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return `tokens` (N, T) followed by `count` more (N, T + count), T >= 1; the most probable ones, or drawn.

        temperature: 0 takes the most probable token each time, others draw from softmax(logits / temperature). What is
        older than `context` is forgotten: at each context's end the later half is read again.
        """
        if tokens.shape[1] < 1:
            raise ValueError("tokens must hold at least one token of each sequence to go on from")
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature!r}")
        state, fresh, held = self.start(len(tokens)), tokens[:, -self.context :], 0
        for _ in range(count):
            if held + fresh.shape[1] > self.context:
                state, held = self.start(len(tokens)), 0
                fresh = tokens[:, -(self.context // 2 + 1) :][:, -self.context :]
            logits, state = self.step(fresh, state)
            held += fresh.shape[1]
            if temperature == 0:
                fresh = logits[:, -1].argmax(1, keepdim=True)
            else:
                fresh = torch.multinomial(F.softmax(logits[:, -1] / temperature, 1), 1, generator=generator)
            tokens = torch.cat([tokens, fresh], 1)
        return tokens

    @property
    def _blocks(self) -> list["Block"]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _check(self, length: int) -> None:
        if length > self.context:
            raise ValueError(f"{length} tokens are more than the context of {self.context}")


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), for tokens (N, T, width)."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, **quantizers: Unpack[LinearOptions]):
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=eps)
        self.attention = Attention(width, heads, eps, **quantizers)
        self.feed_forward_norm = nn.RMSNorm(width, eps=eps)
        self.feed_forward = FeedForward(width, hidden, eps, **quantizers)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Return what the block makes of whole sequences."""
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        return x + self.feed_forward(self.feed_forward_norm(x))

    def step(
        self, x: Tensor, cosine: Tensor, sine: Tensor, cache: KeyValueCache, place: Tensor
    ) -> tuple[Tensor, KeyValueCache]:
        """Return what the block makes of the next tokens, and the cache with them."""
        y, cache = self.attention.step(self.attention_norm(x), cosine, sine, cache, place)
        x = x + y
        return x + self.feed_forward(self.feed_forward_norm(x)), cache


class Attention(nn.Module):
    """Causal self-attention with rotary embedding, and an RMSNorm before the output projection."""

    def __init__(self, width: int, heads: int, eps: float, **quantizers: Unpack[LinearOptions]):
        super().__init__()
        self.heads = heads
        self.query = QuantLinear(width, width, bias=False, **quantizers)
        self.key = QuantLinear(width, width, bias=False, **quantizers)
        self.value = QuantLinear(width, width, bias=False, **quantizers)
        self.norm = nn.RMSNorm(width, eps=eps)
        self.output = QuantLinear(width, width, bias=False, **quantizers)
        self.cached = CachedAttention()

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Return the attention of each token (N, T, width) to itself and those before."""
        query, key, value = (y.transpose(1, 2) for y in self._projected(x, cosine, sine))
        return self._joined(F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2))

    def step(
        self, x: Tensor, cosine: Tensor, sine: Tensor, cache: KeyValueCache, place: Tensor
    ) -> tuple[Tensor, KeyValueCache]:
        """Return the attention of the next tokens to themselves and all before, and the cache with them."""
        y, keys, values = self.cached(*self._projected(x, cosine, sine), *cache, place)
        return self._joined(y), (keys, values)

    def start(self, batch: int, context: int, like: Tensor) -> KeyValueCache:
        """Return the keys and values of no tokens, on the device of a tensor and of its dtype."""
        shape = (batch, context, self.heads, self.query.out_features // self.heads)
        return like.new_zeros(shape), like.new_zeros(shape)

    def _projected(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value (N, T, heads, width / heads)."""
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        return rotated(query, cosine, sine), rotated(key, cosine, sine), value

    def _joined(self, y: Tensor) -> Tensor:
        joined: Tensor = self.output(self.norm(y.flatten(2)))
        return joined


class FeedForward(nn.Module):
    """down(RMSNorm(relu(gate(x))^2 * up(x))) for tokens (N, T, width)."""

    def __init__(self, width: int, hidden: int, eps: float, **quantizers: Unpack[LinearOptions]):
        super().__init__()
        self.gate = QuantLinear(width, hidden, bias=False, **quantizers)
        self.up = QuantLinear(width, hidden, bias=False, **quantizers)
        self.norm = nn.RMSNorm(hidden, eps=eps)
        self.down = QuantLinear(hidden, width, bias=False, **quantizers)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block adds to each token."""
        y: Tensor = self.down(self.norm(F.relu(self.gate(x)) ** 2 * self.up(x)))
        return y


def rotation(length: int, features: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (length, features) of the rotary embedding's angles, the sines' first half negated.

    Feature i and i + features / 2 are a pair, which place t turns by t base^(-2 i / features). Su et al. 2021,
    arXiv:2104.09864, equations 15 and 34, with the pairs of GPT-NeoX and LLaMA's released code.
    """
    rate = base ** (-torch.arange(0, features, 2, dtype=torch.float64) / features)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return angle.cos().repeat(1, 2).float(), torch.cat([-angle.sin(), angle.sin()], 1).float()


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return x (..., features) with each pair of features turned by its place's angle, see `rotation`."""
    return x * cosine + x.roll(x.shape[-1] // 2, -1) * sine


def _begin(module: nn.Module) -> None:
    """Draw the weights of embedding and linear layers from a normal distribution of deviation 0.02."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
