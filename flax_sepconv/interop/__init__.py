"""To and from other libraries: their layers, their weights, their files.

    interop.keras           Keras's files, read and written without Keras; live layers
    interop.torch           the state dict of a depthwise and a pointwise `Conv1d`
    interop.safetensors     parameters and configs in a file that every framework reads

Each module is imported on first use, and none with `flax_sepconv`. Keras and PyTorch are needed only by `to_layer` and
`to_state_dict`, which make their objects.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flax_sepconv.interop import keras, safetensors, torch

__all__ = ["keras", "safetensors", "torch"]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in __all__:
            return importlib.import_module(f"flax_sepconv.interop.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
