"""What suits a CPU, and what suits other devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def by_device(*args: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """`cpu(*args)` on a CPU, `default(*args)` elsewhere: arrays that are the same but for speed.

    Where JAX has nothing else only the first is traced, as both would take 1.05 of the time to
    compile; what is exported from there for another device does as a CPU does.
    """
    if jax.default_backend() == "cpu":
        return cpu(*args)
    return lax.platform_dependent(*args, cpu=cpu, default=default)
