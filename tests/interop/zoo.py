"""Small Keras models that hold `SeparableConv1D` in every way a model can, for any Keras from 2.13 on.

    models(keras) -> {name: model}      `keras` is the module: keras, tf_keras or tf.keras

As a program it writes each of them, in each format its Keras has, with an input and the output of every
layer of interest beside them. That is how the files of older versions in `data` were made:

    pip install 'keras==3.3.3' ... && python zoo.py keras data/keras-3.3.3 nested
"""

import json
import pathlib
import sys

import numpy as np

LENGTH, CHANNELS = 12, 3


def models(keras):
    """Every model by name. Weights are random everywhere, biases too, so that none can pass for another's."""
    registered = getattr(keras, "saving", keras.utils).register_keras_serializable
    layers = keras.layers

    @registered(package="zoo")
    class BothWays(layers.Layer):
        """A wrapper like `Bidirectional`: two layers in its config, under other names in the object."""

        def __init__(self, layer, backward_layer, **kwargs):
            super().__init__(**kwargs)
            self.forward_layer, self.backward_layer = layer, backward_layer

        def build(self, shape):
            for each in (self.forward_layer, self.backward_layer):
                if not each.built:
                    each.build(shape)
                    each.built = True
            self.built = True

        def call(self, x):
            return self.forward_layer(x) - self.backward_layer(x[:, ::-1])

        def get_config(self):
            written = keras.saving.serialize_keras_object
            mine = {"layer": written(self.forward_layer), "backward_layer": written(self.backward_layer)}
            return {**super().get_config(), **mine}

        @classmethod
        def from_config(cls, config):
            made = keras.saving.deserialize_keras_object
            return cls(made(config.pop("layer")), made(config.pop("backward_layer")), **config)

    @registered(package="zoo")
    class Written(keras.Model):
        """A model of one's own whose config holds its layers, some of them in a list."""

        def __init__(self, separable, blocks, **kwargs):
            super().__init__(**kwargs)
            self.separable, self.blocks, self.out = separable, blocks, layers.Dense(1)

        def call(self, x):
            x = self.separable(x)
            for block in self.blocks:
                x = block(x)
            return self.out(x)

        def get_config(self):
            written = keras.saving.serialize_keras_object
            name = {"name": self.name}
            return {**name, "separable": written(self.separable), "blocks": [*map(written, self.blocks)]}

        @classmethod
        def from_config(cls, config):
            made = keras.saving.deserialize_keras_object
            return cls(made(config["separable"]), [*map(made, config["blocks"])], name=config["name"])

    @registered(package="zoo")
    class Opaque(keras.Model):
        """A model of one's own whose config holds none of its layers."""

        def __init__(self, filters, **kwargs):
            super().__init__(**kwargs)
            self.filters = filters
            self.hidden = layers.SeparableConv1D(filters, 3)

        def call(self, x):
            return self.hidden(x)

        def get_config(self):
            return {"filters": self.filters}

    def inputs(*shape, **kwargs):
        return layers.Input(shape=shape or (LENGTH, CHANNELS), **kwargs)

    def separable(*args, **kwargs):
        return layers.SeparableConv1D(*args, **{"bias_initializer": "random_normal"} | kwargs)

    def sequential():
        return keras.Sequential(
            [
                inputs(),
                separable(
                    4, 3, activation="relu", depthwise_regularizer="l2", pointwise_constraint="max_norm"
                ),
                layers.BatchNormalization(),
                separable(5, 4, padding="same", depth_multiplier=2, use_bias=False, name="no_bias"),
                layers.Dropout(0.5),
                separable(2, 2, strides=2, activation="tanh"),
                layers.GlobalAveragePooling1D(),
                layers.Dense(2),
            ]
        )

    def functional():
        x = inputs()
        left = layers.SeparableConvolution1D(4, 3, padding="same", name="left")(x)
        right = separable(4, 3, padding="same", dilation_rate=2, name="right")(x)
        y = layers.Add()([left, right])
        y = layers.Reshape((LENGTH, 4, 1))(y)
        y = layers.SeparableConv2D(4, 3, padding="same")(y)
        y = layers.Reshape((LENGTH, 16))(y)
        y = layers.Conv1D(4, 3)(y)
        y = separable(3, 1, name="last")(y)
        return keras.Model(x, [y, layers.GlobalMaxPooling1D()(right)])

    def block(name, filters, prefix, inner=None):
        x = inputs(LENGTH, CHANNELS)
        y = separable(CHANNELS, 3, padding="same", name=f"{prefix}first")(x)
        y = inner(y) if inner else y
        y = separable(filters, 3, padding="same", name=f"{prefix}second")(y)
        return keras.Model(x, y, name=name)

    def nested():
        innermost = block("innermost", CHANNELS, "deep_")
        sequence = keras.Sequential(
            [inputs(), separable(CHANNELS, 2, padding="same", name="only")], name="sequence"
        )
        x = inputs()
        y = separable(CHANNELS, 3, padding="same", name="first")(x)
        y = block("inner", CHANNELS, "inner_", innermost)(y)
        y = sequence(y)
        y = block("inner_2", CHANNELS, "other_")(y)
        y = separable(2, 3, name="second")(y)
        return keras.Model(x, y, name="outer")

    def same_names():
        # In a file of Keras's own format nothing is addressed by name, so these need not differ.
        x = inputs()
        y = block("inner", CHANNELS, "")(x)
        y = separable(CHANNELS, 3, padding="same", name="first")(y)
        y = block("inner_2", CHANNELS, "")(y)
        return keras.Model(x, y)

    def frozen():
        # The weights of a nested model are written trainable ones first.
        inner = keras.Sequential(
            [inputs(), *(separable(CHANNELS, 3, padding="same", name=f"s{i}") for i in range(4))],
            name="inner",
        )
        inner.layers[0].trainable = inner.layers[2].trainable = False
        outer = keras.Sequential([inputs(), inner, separable(2, 3, trainable=False, name="s4")])
        return outer

    def shared():
        one = separable(CHANNELS, 3, padding="same", name="one")
        inner = keras.Sequential(
            [inputs(), one, separable(CHANNELS, 2, padding="same", name="other")], name="inner"
        )
        before = separable(CHANNELS, 3, padding="same", name="before")
        return keras.Sequential([inputs(), before, one, inner, separable(2, 3, name="after")])

    def twice():
        one = separable(CHANNELS, 3, padding="same", name="one")
        two = block("inner", CHANNELS, "inner_")
        x = inputs()
        return keras.Model(x, one(two(one(two(x)))))

    def time_distributed():
        x = inputs(2, LENGTH, CHANNELS)
        y = layers.TimeDistributed(separable(4, 3, name="within"), name="each")(x)
        sequence = keras.Sequential(
            [inputs(LENGTH - 2, 4), separable(3, 3, name="a"), separable(2, 3, name="b")], name="sequence"
        )
        return keras.Model(x, layers.TimeDistributed(sequence, name="each_sequence")(y))

    def both_ways():
        x = inputs()
        y = BothWays(
            separable(4, 3, padding="same", name="ahead"),
            separable(4, 3, padding="same", name="back"),
            name="both",
        )(x)
        y = layers.Bidirectional(layers.LSTM(2, return_sequences=True))(y)
        return keras.Model(x, separable(3, 3, name="last")(y))

    def written():
        blocks = [separable(3, 3, padding="same", name="b0"), separable(3, 3, padding="same", name="b1")]
        model = Written(separable(3, 3, name="first"), blocks, name="mine")
        model(np.zeros((1, LENGTH, CHANNELS), "float32"))
        return model

    def opaque():
        model = Opaque(3)
        model(np.zeros((1, LENGTH, CHANNELS), "float32"))
        return model

    def policy(name):
        return lambda: keras.Sequential(
            [inputs(), separable(4, 3, dtype=name, name="first"), separable(3, 3, dtype=name, name="second")]
        )

    def trained():
        model = keras.Sequential(
            [inputs(), separable(4, 3), layers.GlobalAveragePooling1D(), layers.Dense(1)]
        )
        model.compile("adam", keras.losses.MeanSquaredError())
        generator = np.random.default_rng(0)
        model.fit(generator.normal(size=(8, LENGTH, CHANNELS)), generator.normal(size=(8, 1)), verbose=0)
        return model

    def causal():
        return keras.Sequential([inputs(), separable(4, 3, padding="causal", strides=2, name="first")])

    makers = {
        each.__name__: each
        for each in (
            *(sequential, functional, nested, same_names, frozen, shared, twice, time_distributed),
            *(both_ways, written, opaque, trained),
        )
    }
    for name in ("mixed_float16", "float16", "bfloat16", "float64"):
        makers[name] = policy(name)
    if version(keras).startswith("2"):
        makers["causal"] = causal
    return makers


def version(keras):
    """Keras's version; `tf.keras` does not tell under its own name."""
    return getattr(keras, "__version__", None) or __import__("keras").__version__


def separable_layers(model):
    """Every live SeparableConv1D of a model by the names on the way to it, at the first of its places."""
    found, seen = {}, set()

    def visit(layer, names):
        if id(layer) in seen:
            return
        seen.add(id(layer))
        if type(layer).__name__ == "SeparableConv1D":
            found["/".join(names)] = layer
        for child in children(layer):
            visit(child, [*names, child.name])

    visit(model, [])
    return found


def children(layer):
    """The layers that a layer holds itself."""
    if hasattr(layer, "_flatten_layers"):
        try:
            return list(layer._flatten_layers(recursive=False, include_self=False))
        except TypeError:  # Keras 3 has a function of that name with other arguments
            pass
    return list(getattr(layer, "layers", layer._layers))


def calls(layers, seed=0):
    """An input and the layer's output for each of `layers`, as `path:x` and `path:y`."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for path, layer in layers.items():
        channels = layer.get_weights()[0].shape[1]
        arrays[f"{path}:x"] = x = generator.normal(size=(2, LENGTH, channels)).astype("float32")
        arrays[f"{path}:y"] = np.asarray(layer(x.astype(layer.compute_dtype)), "float64")
    return arrays


def main(module, out, *names):
    keras = __import__("tensorflow").keras if module == "tf.keras" else __import__(module)
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    makers = models(keras)
    for stem in dict.fromkeys(name.partition(".")[0] for name in names or makers):
        keras.backend.clear_session()
        try:
            model = makers[stem]()
        except Exception as error:
            print(stem, "cannot be made:", type(error).__name__, str(error)[:100])
            continue
        for each in [name[len(stem) :] for name in names if name.startswith(f"{stem}.")] or [".keras", ".h5"]:
            try:
                model.save(out / f"{stem}{each}", **({"save_format": "tf"} if each == ".tf" else {}))
            except Exception as error:
                (out / f"{stem}{each}").unlink(missing_ok=True)
                print(stem, each, "cannot be saved:", type(error).__name__, str(error)[:100])
        np.savez_compressed(out / f"{stem}.npz", **calls(separable_layers(model)))
    (out / "made_with.json").write_text(json.dumps({"module": module, "version": version(keras)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
