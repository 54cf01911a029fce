"""Reads the configs of an NNX model's layers from its graph and, if arguments are given, from a call of it."""

from collections.abc import Iterator

import flax.linen as nn
import jax
from flax import errors, nnx
from flax.nnx import bridge

from flax_sepconv import linen
from flax_sepconv._layer_configs.origins import calls
from flax_sepconv._layer_configs.places import (
    Stored,
    configs_of,
    in_order,
    refuse_computed,
    stacked,
    stored_in,
    ways_to_stack,
)
from flax_sepconv._messages import shown
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.nnx import SeparableConv1D

# Wrappers that compute kernels from the stored ones. Not every version of Flax has both.
_NORMS = tuple(getattr(nnx, name) for name in ("SpectralNorm", "WeightNorm") if hasattr(nnx, name))


def is_functional(model) -> bool:
    """Returns whether a model has `init` and `apply`, as Linen's do, and no parameters of its own."""
    return isinstance(model, bridge.Module)


def layer_configs_of_nnx(model, args: tuple, kwargs: dict) -> dict[str, SeparableConv1DConfig]:
    """Returns the configs of an NNX model: a module, or a list, tuple or dict of modules."""
    if not _is_model(model):
        raise TypeError(f"`model` must be a flax.linen or flax.nnx module; got {shown(model)}.")
    graph, state = nnx.split(model)
    stored = stored_in(state)
    called = {}
    if not (args or kwargs):
        _check_initialized(model, stored)
    else:
        if not callable(model):
            raise TypeError(
                f"`layer_configs` with more arguments calls the model; got a {type(model).__name__}, which is not "
                "callable. Leave the arguments out."
            )
        try:
            found = calls(
                lambda state, *args, **kwargs: nnx.merge(graph, state)(*args, **kwargs), state, args, kwargs
            )
        except (errors.ScopeParamNotFoundError, errors.ScopeCollectionNotFound) as error:
            raise ValueError(
                f"`model` must have its parameters: call `lazy_init` of each ToNNX first. {error}"
            ) from None
        called = configs_of(found, stored, root=())
    return in_order({**dict(_read(model, stored, called)), **called}, stored)


def _is_model(model) -> bool:
    if isinstance(model, (list, tuple, dict)):
        return any(isinstance(node, nnx.Pytree) for _, node in nnx.iter_graph(model))
    return isinstance(model, nnx.Pytree)


def _read(model, stored: list[Stored], called) -> Iterator[tuple[str, SeparableConv1DConfig]]:
    """Finds the layers in a model's graph that are not `called`."""
    nodes = [(tuple(map(str, path)), node) for path, node in nnx.iter_graph(model)]
    layers = [(path, node) for path, node in nodes if isinstance(node, SeparableConv1D)]
    norms = [(path, type(node)) for path, node in nodes if isinstance(node, _NORMS)]
    known = {*called, *("/".join(path) for path, _ in layers)}
    for path, layer in layers:
        name = "/".join(path)
        if name in called:
            continue
        for norm in (kind for start, kind in norms if path[: len(start)] == start):
            for weight in layer.config.weights(layer.in_features):
                if weight.name != "bias":
                    refuse_computed(weight, layer.config, name, f"nnx.{norm.__name__}")
        yield name, _stacked(layer, name)
    for path, module in nodes:
        if isinstance(module, nn.Module):
            yield from _read_linen(path[:-1], module, stored, known)


def _check_initialized(model, stored: list[Stored]) -> None:
    for path, node in nnx.iter_graph(model):
        names = tuple(map(str, path))
        if isinstance(node, bridge.ToNNX) and not _is_empty(node.to_nnx__module):
            own = (item.path[len(names)] for item in stored if item.path[: len(names)] == names)
            if all(name.startswith("to_nnx__") for name in own):
                raise ValueError(
                    f"the Linen module at {'/'.join(names)!r} must have its parameters; got none. Call "
                    "`nnx.bridge.lazy_init(model, x)` first, or, if it has none, pass what the model is called with: "
                    "`layer_configs(model, x)`."
                )


def _stacked(layer: SeparableConv1D, path: str) -> SeparableConv1DConfig:
    weights = layer.config.weights(layer.in_features)
    shapes = {weight.name: tuple(getattr(layer, weight.name).shape) for weight in weights}
    return stacked(
        layer.config, ways_to_stack([weight.shape for weight in weights], list(shapes.values())), shapes, path
    )


def _read_linen(node: tuple[str, ...], module: nn.Module, stored: list[Stored], known):
    """Returns the layer that a Linen module is, with its parameters in the NNX module at `node`.

    Layers within a Linen module can be found by a call only.
    """
    shapes = {
        item.path[len(node) :]: item.shape
        for item in stored
        if item.path[: len(node)] == node and not item.path[len(node)].startswith("to_nnx__")
    }
    name = "/".join(node)
    holders = {"/".join((*node, *path[:-1])) for path in shapes if path[-1] == "pointwise_kernel"} - known
    if isinstance(module, linen.SeparableConv1D) and name in holders:
        weights = module.config.weights(in_features=1)
        if all(len(shapes.get((weight.name,), ())) == len(weight.shape) for weight in weights):
            yield name, module.config
            holders.remove(name)
    if holders:
        raise ValueError(
            f"the layers of the Linen module at {name!r}, with weights at {sorted(holders)}, are known by a call only. "
            "Pass what the model is called with, and see that the call reaches them: `layer_configs(model, x)`."
        )


def _is_empty(module: nn.Module) -> bool:
    """Returns whether a module is one of Flax's own without submodules, such as `nn.Dropout`."""
    fields = {name: value for name, value in vars(module).items() if name != "parent"}
    return type(module).__module__.startswith("flax.") and not any(
        isinstance(leaf, nn.Module) for leaf in jax.tree.leaves(fields)
    )
