"""The specification of this library in plain NumPy: what every token is, to the bit.

From the scaled logit on, everything is an integer, so the order of additions cannot matter and
every way of computing a token gives the same one. It reads from top to bottom.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from sampling_jax._arguments import Settings, check
from sampling_jax._bits import check_key, random_bits

# exp2(-t) / 2 on [0, 1) is c0 - t * (c1 - t * (c2 - ...)): relative error at most 2.5e-7, and
# every value lies in [1/4, 1/2), which fixes the exponent of the float.
EXP2 = tuple(
    np.float32(float.fromhex(coefficient))
    for coefficient in (
        *("0x1.fffffep-2", "0x1.62e38cp-2", "0x1.ebdec4p-4"),
        *("0x1.c4ce96p-6", "0x1.2cd584p-8", "0x1.ea417ap-12"),
    )
)
LOG2_E = np.float32(1.44269504)
GREEDY = np.float32(2.0**-64)  # temperatures up to this take the most likely token
SMALLEST_NORMAL = np.float32(2.0**-126)
HEAVIEST = 2**31 - 2**7  # the weight of a most likely token


def clean(logits: ArrayLike) -> NDArray[np.float32]:
    """float32 logits; NaN counts as -inf, subnormal numbers (and -0) as 0."""
    with np.errstate(over="ignore"):
        x = np.asarray(logits).astype(np.float32)
    x = np.where(np.abs(x) < SMALLEST_NORMAL, np.float32(0), x)
    return np.where(np.isnan(x), np.float32(-np.inf), x)


def weights(x: NDArray[np.float32], temperature: np.float32) -> NDArray[np.uint32]:
    """uint32 weights of one clean row: 2**31 * exp((x - max(x)) / temperature)."""
    top = x.max()
    scale = LOG2_E / temperature if temperature > GREEDY else np.float32(np.inf)
    scale = scale if scale >= SMALLEST_NORMAL else np.float32(0)
    z = np.where(x == top, np.float32(0), (top - x) * scale)
    z = np.where(z < 31, z, np.float32(31))  # NaN too
    whole = np.floor(z)
    t = z - whole
    value: Any = EXP2[5]
    for coefficient in EXP2[4::-1]:
        value = coefficient - value * t
    # A float in [1/4, 1/2) keeps the last bit of its exponent and its mantissa: 2**30 to 2**31.
    mantissa: NDArray[np.uint32] = value.view(np.uint32) << np.uint32(7)
    return mantissa >> whole.astype(np.uint32)


def share(p: float, total: int) -> int:
    """`ceil(p * total)` as an exact integer."""
    numerator, denominator = float(p).as_integer_ratio()
    return -(-numerator * int(total) // denominator)


def kept(
    x: NDArray[np.float32],
    w: NDArray[np.uint32],
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> NDArray[np.bool_]:
    """Bool mask of what one row keeps of its ranking: always a prefix."""
    order = np.argsort(-x, kind="stable")  # logit descending, then token id ascending
    ranked = w[order]
    n = int(np.count_nonzero(x > -np.inf))
    if 0 < top_k < x.size:
        n = min(n, int(top_k))
    if n and top_p < 1:
        running = np.cumsum(ranked[:n], dtype=np.uint64)
        target = max(1, share(max(top_p, 0), running[-1]))
        n = int(np.searchsorted(running, np.uint64(target))) + 1
    if min_p >= SMALLEST_NORMAL:
        light = ranked[:n] < share(min(min_p, 1), HEAVIEST)
        n = int(np.argmax(light)) if light.any() else n
    mask = np.zeros(x.size, bool)
    mask[order[:n]] = True
    return mask


def draw(bits: int, w: NDArray[np.uint32]) -> int:
    """The first token whose running sum of weights exceeds `bits / 2**64` of their total."""
    running = np.cumsum(w, dtype=np.uint64)
    r = int(bits) * int(running[-1]) >> 64
    return int(np.searchsorted(running, np.uint64(r), side="right"))


def rows(logits: ArrayLike, settings: Settings) -> Iterator[tuple[NDArray[Any], ...]]:
    """Each row of a batch in turn: its clean logits, temperature, weights and kept mask."""
    x = clean(logits)
    off = Settings(np.float32(1), np.int64(0), np.float32(1), np.float32(0))
    columns: list[Any] = []
    default: Any
    for value, default in zip(settings, off, strict=True):
        column = np.asarray(default if value is None else value).astype(default.dtype)
        columns.append(np.broadcast_to(column, x.shape[:-1]))
    with np.errstate(all="ignore"):
        for i in np.ndindex(x.shape[:-1]):
            temperature, *filters = (column[i] for column in columns)
            w = weights(x[i], temperature)
            yield x[i], temperature, w, kept(x[i], w, *filters)


def sample(
    key_or_bits: ArrayLike,
    logits: ArrayLike,
    temperature: ArrayLike | None = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    *,
    min_p: ArrayLike | None = None,
) -> NDArray[np.int32]:
    """Token ids int32 [...] of logits [..., V]: `sampling_jax.sample`, written to be read.

    Args:
      key_or_bits: a JAX PRNG key as in `sampling_jax.sample`, or uint64 [...], the random bits
        themselves.
      logits, temperature, top_k, top_p, min_p: as in `sampling_jax.sample`.

    Returns:
      int32 [...], equal to `sampling_jax.sample` for the same key, to the last token.

    Example:
      >>> import numpy as np
      >>> bits = np.array([0, 2**63, 2**64 - 1], np.uint64)
      >>> sample(bits, np.zeros((3, 10)), top_k=5)
      array([0, 2, 4], dtype=int32)
    """
    batch, settings = check(logits, Settings(temperature, top_k, top_p, min_p))
    if getattr(key_or_bits, "dtype", None) == np.uint64:
        bits = np.asarray(key_or_bits)
    else:
        words = np.asarray(random_bits(check_key(key_or_bits, batch), batch), np.uint64)
        bits = (words[..., 0] << np.uint64(32)) | words[..., 1]
    if bits.shape != batch:
        raise ValueError(
            f"uint64 bits must have the batch shape {batch} of the logits, got shape "
            f"{bits.shape}; pass one for each row."
        )
    tokens = []
    for bit, (x, t, w, mask) in zip(bits.ravel(), rows(logits, settings), strict=True):
        token = draw(bit if t > GREEDY else 0, np.where(mask, w, np.uint32(0)))
        tokens.append(token if x.max() > -np.inf else -1)
    return np.array(tokens, np.int32).reshape(batch)
