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
    """A function to be jitted, whose results are sharded as the argument `name` is, but for so many
    of its last axes, over the explicit axes of a mesh; without any it is called as it is.
    """

    def wrap(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            model = jax.typeof(jax.tree.leaves(arguments[name])[0])
            axes = model.sharding.spec[: model.ndim - but]
            return automatic(lambda arguments: function(**arguments), axes, arguments)

        return cast(Function, wrapped)

    return wrap


def automatic(function: Callable[..., Any], axes: PartitionSpec, *args: Any) -> Any:
    """`function(*args)`, with results whose first axes are sharded over these axes of a mesh.

    Explicit ones are automatic in it: else each of its steps would have to say how it is sharded.
    """
    leaves, tree = jax.tree.flatten(args)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Array)]
    shardings = [jax.typeof(leaves[i]).sharding for i in places]
    meshes = [s.mesh for s in shardings if s.mesh.explicit_axes and any(s.spec)]
    if not meshes:
        return function(*args)

    def of_arrays(*arrays: Array) -> Any:
        every = list(leaves)
        for i, array in zip(places, arrays, strict=True):
            every[i] = array
        return function(*jax.tree.unflatten(tree, every))

    call = jax.sharding.auto_axes(
        of_arrays,
        axes=meshes[0].explicit_axes,
        out_sharding=NamedSharding(meshes[0], PartitionSpec(*axes)),
    )
    return call(*(leaves[i] for i in places))
