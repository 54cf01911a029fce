"""Translates Keras's descriptions of layers into this library's, and back.

    objects.py        the base of the dataclasses that stand for Keras's objects, and the checks of their fields
    identifiers.py    turns a name, a config, an object or a callable into one hashable object, and writes it back
    layer_config.py   turns the entries of `get_config()` into arguments of a `SeparableConv1DConfig`, and back
    stft.py           the kernels of Keras's `STFT` initializer
    unknown.py        initializers in files that this library does not have

`initializers`, `regularizers`, `constraints` and `activations` use the first two; nothing here imports Keras.
"""
