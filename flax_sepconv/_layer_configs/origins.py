"""Finds which inputs of a program are the weights that its layers are called with.

`calls` traces a function of a model's variables and follows these through the program: through `jit`, loops, branches
and every operation that only moves an array, or adds or removes axes. The result of any other operation is no longer
the input itself, but is known to be computed from it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from flax_sepconv._layer_configs.calls import call_p, tracing
from flax_sepconv.config import SeparableConv1DConfig


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an array comes from.

    Attributes:
        inputs: the inputs that it is made of, by position among their leaves.
        axes: for an input or a slice of one: the input's axis for each of the array's axes, or `None` for an added
            axis. `None` for an array that was computed.
    """

    inputs: frozenset[int] = frozenset()
    axes: tuple[int | None, ...] | None = None

    def __or__(self, other: "Origin") -> "Origin":
        """Returns the origin of an array that may be either one."""
        return self if self == other else Origin(self.inputs | other.inputs)


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer.

    Attributes:
        config: the layer's arguments.
        origins: the origins of its weights, with their own axes only: none that `vmap` added.
        shapes: the weights' shapes.
    """

    config: SeparableConv1DConfig
    origins: tuple[Origin, ...]
    shapes: tuple[tuple[int, ...], ...]


def calls(function: Callable, variables, args: tuple, kwargs: dict) -> list[Call]:
    """Finds the calls of layers in `function(variables, ...)`, with origins among the leaves of `variables`."""
    call, arrays = of_arrays(function, args, kwargs)
    with tracing(True):
        # A program must return arrays.
        program = jax.make_jaxpr(
            lambda *args: [leaf for leaf in jax.tree.leaves(call(*args)) if isinstance(leaf, jax.Array)]
        )(arrays, variables).jaxpr
    first = len(arrays)
    inputs = [
        Origin(frozenset({i - first}), tuple(range(var.aval.ndim))) if i >= first else Origin()
        for i, var in enumerate(program.invars)
    ]
    found = []
    _follow(program, inputs, found)
    return found


def of_arrays(function: Callable, args: tuple, kwargs: dict) -> tuple[Callable, list]:
    """Makes a function of the arrays in its arguments, which can be traced, and returns it with those arrays.

    Anything else in the arguments, such as `train=False`, stays as it is.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

    def call(arrays, *variables):
        given = dict(zip(places, arrays, strict=True))
        args, kwargs = jax.tree.unflatten(structure, [given.get(i, leaf) for i, leaf in enumerate(leaves)])
        return function(*variables, *args, **kwargs)

    return call, [leaves[i] for i in places]


def _follow(program: Jaxpr, inputs: Sequence[Origin], found: list[Call]) -> list[Origin]:
    """Follows a program to the origins of its outputs, and appends the calls in it to `found`."""
    origins = {}

    def write(variables, values):
        for variable, origin in zip(variables, values, strict=True):
            # A transform that removes axes in a way unknown here, such as `pmap`.
            if origin.axes is not None and len(origin.axes) != getattr(variable.aval, "ndim", None):
                origin = Origin(origin.inputs)
            origins[variable] = origin

    def read(variables):
        return [Origin() if isinstance(v, Literal) else origins.get(v, Origin()) for v in variables]

    write(program.invars, inputs)
    for eqn in program.eqns:
        write(eqn.outvars, _outputs(eqn, read(eqn.invars), found))
    return read(program.outvars)


def _outputs(eqn, inputs: list[Origin], found: list[Call]) -> list[Origin]:
    params = eqn.params
    match eqn.primitive.name:
        case call_p.name:
            return _note(eqn, inputs, found)
        case "scan":
            consts, carry = _scan_sizes(params)
            return _loop(
                _open(params["jaxpr"]),
                inputs[:consts],
                inputs[consts:][:carry],
                inputs[consts + carry :],
                found,
            )
        case "while":
            of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
            carry = inputs[of_test + of_body :]
            out = _loop(_open(params["body_jaxpr"]), inputs[of_test:][:of_body], carry, [], found)
            _follow(_open(params["cond_jaxpr"]), [*inputs[:of_test], *out], found)
            return out
        case "cond":
            branches = [_follow(_open(branch), inputs[1:], found) for branch in params["branches"]]
            return [_either(*origins) for origins in zip(*branches, strict=True)]
        case name if name in _SAME:
            return inputs
        case name if name in _AXES and inputs[0].axes is not None:
            return [Origin(inputs[0].inputs, _AXES[name](inputs[0].axes, eqn))]
    computed = Origin(frozenset().union(*(origin.inputs for origin in inputs)))
    outputs = [computed] * len(eqn.outvars)
    for program in _programs(params.values()):
        if len(program.invars) == len(inputs) and len(program.outvars) == len(
            outputs
        ):  # jit, checkpoint, custom_vjp
            return _follow(program, inputs, found)
        _follow(program, [computed] * len(program.invars), found)
    return outputs


def _scan_sizes(params) -> tuple[int, int]:
    """Returns how many constants and carries a scan has, which JAX 0.12 keeps as parts of a tree."""
    if "ft_in" in params:
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(carry)
    return params["num_consts"], params["num_carry"]


def _open(program) -> Jaxpr:
    """Returns the jaxpr within a closed one; in JAX 0.12 a program may be an open one already."""
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def _note(eqn, inputs: list[Origin], found: list[Call]) -> list[Origin]:
    origins, shapes = [], []
    for origin, var, own in zip(inputs, eqn.invars, eqn.params["own"], strict=True):
        axes = None if origin.axes is None else tuple(origin.axes[axis] for axis in own)
        origins.append(Origin(origin.inputs, axes))
        shapes.append(tuple(var.aval.shape[axis] for axis in own))
    found.append(Call(eqn.params["config"], tuple(origins), tuple(shapes)))
    return inputs


def _loop(body: Jaxpr, consts, carry, xs, found: list[Call]) -> list[Origin]:
    xs = [x if x.axes is None else Origin(x.inputs, x.axes[1:]) for x in xs]
    while True:  # until a further step changes nothing; origins only get less exact, so this ends
        of_body = []
        out = _follow(body, [*consts, *carry, *xs], of_body)
        after = [_either(*pair) for pair in zip(carry, out[: len(carry)], strict=True)]
        if after == carry:
            break
        carry = after
    found.extend(of_body)
    ys = out[len(carry) :]
    return [*carry, *(y if y.axes is None else Origin(y.inputs, (None, *y.axes)) for y in ys)]


def _either(first: Origin, *others: Origin) -> Origin:
    for other in others:
        first |= other
    return first


def _programs(values) -> Iterator[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _programs(value)


# Operations whose outputs are their inputs except for rounding.
_SAME = {
    "convert_element_type", "copy", "copy_p", "device_put", "layout_constraint", "mesh_cast", "name",
    "optimization_barrier", "pcast", "pvary", "reduce_precision", "reshard", "sharding_constraint", "stop_gradient",
}  # fmt: skip


def _broadcast(axes, eqn):
    out: list[Any] = [None] * len(eqn.params["shape"])
    for axis, size, place in zip(
        axes, eqn.invars[0].aval.shape, eqn.params["broadcast_dimensions"], strict=True
    ):
        out[place] = axis if size == eqn.params["shape"][place] else None
    return tuple(out)


def _slice(axes, eqn):
    """Follows one layer's weights as they are cut out of a stack."""
    sizes = zip(eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, strict=True)
    return tuple(axis if before == after else None for axis, (before, after) in zip(axes, sizes, strict=True))


# Operations that move, add or remove axes of their first input.
_AXES: dict[str, Callable] = {
    "transpose": lambda axes, eqn: tuple(axes[i] for i in eqn.params["permutation"]),
    "broadcast_in_dim": _broadcast,
    "squeeze": lambda axes, eqn: tuple(
        axis for i, axis in enumerate(axes) if i not in eqn.params["dimensions"]
    ),
    "slice": _slice,
    "dynamic_slice": _slice,
}
