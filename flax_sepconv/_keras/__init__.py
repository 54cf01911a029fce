"""Keras's way of saying what a layer is, turned into this library's and back.

    objects.py        the base of the dataclasses that stand for Keras's objects, and the checks of their fields
    identifiers.py    a name, a config, an object or a callable becomes one hashable object, and is written back
    layer_config.py   the entries of a layer's `get_config()` become arguments of a `SeparableConv1DConfig`, and back
    stft.py           the kernels of Keras's `STFT` initializer

`initializers`, `regularizers`, `constraints` and `activations` use the first two; nothing here imports Keras.
"""
