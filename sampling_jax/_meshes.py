"""Arrays whose types say how they are sharded: inside of a function a compiler decides that."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

Function = TypeVar("Function", bound=Callable[..., Any])


def sharded_like(name: str, but: int = 0) -> Callable[[Function], Function]:
    """For a function to be jitted: on a mesh with explicit axes its results are sharded as the
    argument `name`, less that one's last axes, so many as `but` says; else nothing changes.
    """

    def wrap(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            leaves, tree = jax.tree.flatten(bound.args)
            places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Array)]
            meshes = (jax.typeof(leaves[i]).sharding.mesh for i in places)
            mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
            if mesh is None:
                return function(*args, **kwargs)

            def of_arrays(*arrays: Array) -> Any:
                every = list(leaves)
                for i, array in zip(places, arrays, strict=True):
                    every[i] = array
                return function(*jax.tree.unflatten(tree, every))

            # Automatic inside, or each of its steps would have to say how it is sharded.
            model = jax.typeof(jax.tree.leaves(bound.arguments[name])[0])
            axes = PartitionSpec(*model.sharding.spec[: model.ndim - but])
            call = jax.sharding.auto_axes(
                of_arrays, axes=mesh.explicit_axes, out_sharding=NamedSharding(mesh, axes)
            )
            return call(*(leaves[i] for i in places))

        return cast(Function, wrapped)

    return wrap
