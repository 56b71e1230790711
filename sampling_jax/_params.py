"""Settings of many requests as one pytree, for batches whose rows come and go."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sampling_jax._arguments import MAX_VOCABULARY, Settings, check_setting, from_host
from sampling_jax._checks import check_range, int32
from sampling_jax._meshes import sharded_like

OFF = Settings(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_k", "top_p", "min_p"],
    meta_fields=[],
)
@dataclass(frozen=True, eq=False)
class SamplingParams:
    """The settings of N rows, each an array [N]: `sample(key, logits, **params)`.

    No setting is ever None, so one compiled program serves all requests. It is a pytree:
    `jax.tree.map(lambda a: a[rows], params)` picks rows, and it passes through jit, vmap and scan.

    Attributes:
      temperature: float32 [N]; 1 is off.
      top_k: int32 [N]; 0 is off.
      top_p: float32 [N]; 1 is off.
      min_p: float32 [N]; 0 is off.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from sampling_jax import sample
      >>> params = SamplingParams.stack([{"temperature": 0.7, "top_p": 0.9}, {"top_k": 40}, {}])
      >>> params = params.replace_row(2, {"temperature": 0})
      >>> params.temperature.tolist()
      [0.699999988079071, 1.0, 0.0]
      >>> int(sample(jax.random.key(0), jnp.zeros((3, 100)).at[2, 7].set(1), **params)[2])
      7
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array

    @classmethod
    def stack(cls, requests: Iterable[Mapping[str, ArrayLike | None]]) -> "SamplingParams":
        """The settings of N requests, in their order.

        Args:
          requests: N mappings from the names of settings to numbers; missing or None is off.

        Raises:
          TypeError: requests that are no mappings, a setting of an unknown name or a wrong type.
          ValueError: a setting that is no single number, or a Python or NumPy value out of range.
            Values of JAX arrays are never inspected: bad ones give what they give in `sample`.
        """
        if isinstance(requests, Mapping) or not isinstance(requests, Iterable):
            raise TypeError(
                f"requests must be one mapping for each row, got {type(requests).__name__}; "
                "put it in a list."
            )
        rows = [_row(f"requests[{i}]", request) for i, request in enumerate(requests)]
        columns = zip(*rows, strict=True) if rows else ([] for _ in OFF)
        dtypes = (jnp.float32, jnp.int32, jnp.float32, jnp.float32)
        return cls(*(jnp.array(column, d) for column, d in zip(columns, dtypes, strict=True)))

    def replace_row(
        self, i: ArrayLike, request: Mapping[str, ArrayLike | None]
    ) -> "SamplingParams":
        """The same with another request in row `i`; what this one lacks is off.

        Args:
          i: integer []; a negative one counts from the end. Traced values beyond the rows change
            nothing.
          request: as one of those of `stack`.

        Raises:
          TypeError: i that is no integer, or as `stack`.
          ValueError: a Python or NumPy i beyond the rows, or as `stack`.
        """
        n = self.temperature.shape[0]
        dtype = i.dtype if isinstance(i, np.ndarray | np.generic | jax.Array) else None
        if not jnp.issubdtype(dtype or type(i), jnp.integer):
            got = f"an array of dtype {dtype}" if dtype else type(i).__name__
            raise TypeError(f"i must be an integer, got {got}; pass the number of a row.")
        if np.shape(i) != ():
            raise ValueError(f"i must be one integer, got shape {np.shape(i)}; pass one row.")
        cure = f"there are {n} rows"
        check_range("i", i, lambda i: (i >= -n) & (i < n), f"in [{-n}, {n})", cure)
        result: SamplingParams = _replace_row(self, int32(i), _row("request", request))
        return result

    def keys(self) -> tuple[str, ...]:
        """The names of the settings: with `[]`, all it takes to pass them as `**params`."""
        return Settings._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, name: str) -> Array:
        """The setting of that name, [N]."""
        if name not in Settings._fields:
            raise KeyError(name)
        value: Array = getattr(self, name)
        return value


@jax.jit
@sharded_like("params")
def _replace_row(params: SamplingParams, i: Array, row: Settings) -> SamplingParams:
    old = (jnp.asarray(params[name]) for name in row._fields)  # of NumPy, where nothing is traced
    return SamplingParams(*(value.at[i].set(new) for value, new in zip(old, row, strict=True)))


def _row(where: str, request: Any) -> Settings:
    """One request, checked, with every setting a number of its own dtype."""
    if not isinstance(request, Mapping):
        raise TypeError(
            f"{where} must be a mapping of settings, got {type(request).__name__}; "
            'write {"temperature": 0.7}.'
        )
    unknown = [name for name in request if name not in Settings._fields]
    if unknown:
        raise TypeError(
            f"{where} must have settings among {', '.join(Settings._fields)}, got {unknown[0]!r}; "
            "correct its name, or leave it out."
        )
    return Settings(
        *(
            _number(where, name, off if request.get(name) is None else request[name])
            for name, off in OFF._asdict().items()
        )
    )


def _number(where: str, name: str, value: Any) -> Any:
    try:
        check_setting(name, value, getattr(value, "shape", ()))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from None
    if np.shape(value) != ():
        raise ValueError(
            f"{where}: {name} must be one number, got shape {np.shape(value)}; "
            "make a request for each row."
        )
    if not isinstance(value, jax.Array):
        return from_host(name, value, MAX_VOCABULARY)
    if name != "top_k":
        return value.astype(jnp.float32)
    # Before the comparison, which a narrow integer cannot make; a wide one must not wrap around.
    value = value if value.dtype.itemsize >= 4 else value.astype(jnp.int32)
    return jnp.clip(value, 0, MAX_VOCABULARY).astype(jnp.int32)
