"""Arrays whose types say how they are sharded: inside of a function a compiler decides that."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax.sharding import NamedSharding, PartitionSpec

Function = TypeVar("Function", bound=Callable[..., Any])


def sharded_like(name: str, but: int = 0) -> Callable[[Function], Function]:
    """For a function to be jitted, of arrays and static keywords: on a mesh with explicit axes its
    results are sharded as the argument `name`, less that one's last axes, so many as `but` says;
    else nothing changes.
    """

    def wrap(function: Function) -> Function:
        place = list(inspect.signature(function).parameters).index(name)

        @functools.wraps(function)
        def wrapped(*arrays: Any, **static: Any) -> Any:
            meshes = (jax.typeof(array).sharding.mesh for array in jax.tree.leaves(arrays))
            mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
            if mesh is None:
                return function(*arrays, **static)
            # Automatic inside, or each of its steps would have to say how it is sharded.
            model = jax.typeof(jax.tree.leaves(arrays[place])[0])
            axes = PartitionSpec(*model.sharding.spec[: model.ndim - but])
            call = jax.sharding.auto_axes(
                function, axes=mesh.explicit_axes, out_sharding=NamedSharding(mesh, axes)
            )
            return call(*arrays, **static)

        return cast(Function, wrapped)

    return wrap
