"""Takes a text classifier from Keras to JAX, trains it further there, and takes it back to Keras.

    pip install -e '.[port]'
    python examples/port_sepcnn.py          # three processes, in about a minute

The classifier is sepCNN of Google's guide to text classification
(developers.google.com/machine-learning/guides/text-classification/step-4): an embedding, blocks of dropout, two
`SeparableConv1D` and pooling, two more of these layers, the mean over time, a read-out. It is smaller than the guide's,
normalizes the output of each pair of these layers, has a regularizer and a constraint too, and starts from larger
kernels: the guide's depthwise ones, within 0.05, let so little through four layers that six epochs learn nothing here.
Its text is the standard library's own files, and its question from which package 48 words are, with the packages' names
struck out.

    --stage keras   builds and trains it in Keras       ─► model.keras
    --stage jax     model.keras ─► the same predictions, without Keras; more training in optax ─► tuned.keras
    --stage check   tuned.keras ─► Keras, with the predictions that JAX made

JAX trains all that Keras did: `load_variables` gives the weights of every layer and the averages of the normalization,
and `save_variables` writes them back.
"""

import argparse
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _stdlib_text import LENGTH, PACKAGES, VOCABULARY, texts

import flax_sepconv as fsc
from flax_sepconv.interop import keras as keras_files

EMBEDDING, BLOCKS, FILTERS, KERNEL_SIZE, POOL_SIZE, DROPOUT = 64, 2, 64, 3, 3, 0.2
MOMENTUM = 0.9  # of the averages: Keras's 0.99 is for longer training
LARGEST_NORM = 1.5
BATCH, LEARNING_RATE = 32, 1e-3  # the guide's rate
SAME = 1e-5  # how far two computations of one probability may be apart


def main(arguments: list[str] | None = None) -> None:
    """Runs one stage here, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", choices=STAGES, help="only this one (default: all, one after the other)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, of Keras and of JAX (default: 0)")
    parser.add_argument("--epochs", type=int, default=2, help="in Keras, and again in JAX (default: 2)")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the files (default: a temporary one)")
    parser.add_argument("--short", action="store_true", help="1 epoch, to see that everything works")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")
    options.epochs = 1 if options.short else options.epochs
    if options.stage:
        if options.out is None:
            parser.error("--stage needs --out, the folder that the stages share")
        options.out.mkdir(parents=True, exist_ok=True)
        STAGES[options.stage](options)
        return
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            shared = ["--seed", str(options.seed), "--epochs", str(options.epochs)]
            shared += ["--out", str(options.out or folder), "--stage", stage]
            code = subprocess.run([sys.executable, __file__, *shared]).returncode
            if code:
                sys.exit(f"Stage {stage} failed.")


# Keras.


def train_in_keras(options: argparse.Namespace) -> None:
    """Builds and trains sepCNN, and leaves the file, the text and the predictions on the test part."""
    import keras  # pyright: ignore[reportMissingImports]

    keras.utils.set_random_seed(options.seed)
    data = texts(options.seed)
    model: Any = sepcnn_in_keras(keras)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), "sparse_categorical_crossentropy")
    model.fit(data["train_tokens"], data["train_labels"], BATCH, options.epochs, verbose=0)
    model.save(options.out / "model.keras")
    predictions = model.predict(data["test_tokens"], verbose=0)
    arrays: Any = data | {"predictions": predictions}
    np.savez(options.out / "data.npz", **arrays)
    print(f"{len(data['train_labels'])} pieces of text to train on, {len(data['test_labels'])} to test.\n")
    print("Keras")
    report(f"after {epochs(options)}", predictions, data["test_labels"])


def sepcnn_in_keras(keras):
    """The guide's network."""
    layers = keras.layers
    separable = functools.partial(
        layers.SeparableConv1D,
        kernel_size=KERNEL_SIZE,
        padding="same",
        activation="relu",
        depthwise_initializer=keras.initializers.RandomUniform(-1.0, 1.0),
        pointwise_initializer="he_uniform",
        bias_initializer="random_uniform",
        depthwise_regularizer=keras.regularizers.L2(1e-4),
        pointwise_constraint=keras.constraints.MaxNorm(LARGEST_NORM, axis=1),
    )

    def two(filters):
        return separable(filters), separable(filters), layers.BatchNormalization(momentum=MOMENTUM)

    network = [keras.Input((LENGTH,), dtype="int32"), layers.Embedding(VOCABULARY, EMBEDDING)]
    for _ in range(BLOCKS - 1):
        network += [layers.Dropout(DROPOUT), *two(FILTERS), layers.MaxPooling1D(POOL_SIZE)]
    network += [*two(2 * FILTERS), layers.GlobalAveragePooling1D()]
    network += [layers.Dropout(DROPOUT), layers.Dense(len(PACKAGES), activation="softmax")]
    return keras.Sequential(network)


def check_in_keras(options: argparse.Namespace) -> None:
    """Loads what JAX wrote, and compares predictions."""
    import keras  # pyright: ignore[reportMissingImports]

    model: Any = keras.saving.load_model(options.out / "tuned.keras")
    with np.load(options.out / "data.npz") as data, np.load(options.out / "tuned.npz") as tuned:
        predictions = model.predict(data["test_tokens"], verbose=0)
        print("\nKeras again, from the file that JAX wrote")
        report("as loaded", predictions, data["test_labels"])
        agree("JAX's", predictions, tuned["predictions"])


# JAX.


class SepCNN(nn.Module):
    """The network in Flax. Its layers have the names that Keras gave them, and so take the weights as they are."""

    configs: tuple[fsc.SeparableConv1DConfig, ...]

    @nn.compact
    def __call__(self, tokens, *, train: bool = False):
        """Scores `(texts, PACKAGES)` for tokens `(texts, LENGTH)`."""

        def two(configs, x, name):
            for config in configs:
                x = fsc.SeparableConv1D.from_config(config)(x)
            # Flax has another epsilon, and its fast variance rounds more.
            norm = nn.BatchNorm(
                not train, momentum=MOMENTUM, epsilon=1e-3, use_fast_variance=False, name=name
            )
            return norm(x)

        x = nn.Embed(VOCABULARY, EMBEDDING, name="embedding")(tokens)
        *blocks, last = zip(self.configs[::2], self.configs[1::2], strict=True)
        name = "batch_normalization"
        for number, configs in enumerate(blocks):
            x = nn.Dropout(DROPOUT, deterministic=not train)(x)
            x = two(configs, x, f"{name}_{number}" if number else name)
            x = nn.max_pool(x, (POOL_SIZE,), (POOL_SIZE,))
        x = two(last, x, f"{name}_{len(blocks)}").mean(axis=1)
        x = nn.Dropout(DROPOUT, deterministic=not train)(x)
        return nn.Dense(len(PACKAGES), name="dense")(x)


def train_in_jax(options: argparse.Namespace) -> None:
    """Loads what Keras wrote, compares predictions, trains every layer, and writes them back."""
    path = options.out / "model.keras"
    with np.load(options.out / "data.npz") as file:
        data = dict(file)
    configs = {name: config for name, (config, _) in keras_files.load(path).items()}
    variables = keras_files.load_variables(path)
    model = SepCNN(tuple(configs.values()))

    @jax.jit
    def predict(variables):
        logits: Any = model.apply(variables, data["test_tokens"])
        return jax.nn.softmax(logits)

    print("\nJAX, from the file that Keras wrote")
    for name, layer in keras_files.layers(path).items():
        if layer.weights:
            print(f"  {name:24} {layer.class_name:20} {sum(map(np.size, layer.weights.values())):7,} weights")
    report("as loaded", predict(variables), data["test_labels"])
    agree("Keras's", predict(variables), data["predictions"])

    optimizer = fsc.constrained(optax.adam(LEARNING_RATE), configs)

    def loss(params, batch_stats, tokens, labels, key):
        variables = {"params": params, "batch_stats": batch_stats}
        result: Any = model.apply(
            variables, tokens, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        logits, updated = result
        data_loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return data_loss + fsc.regularization_loss(params, configs), updated["batch_stats"]

    def step(carry, batch):
        params, batch_stats, state = carry
        gradients, batch_stats = jax.grad(loss, has_aux=True)(params, batch_stats, *batch)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), batch_stats, state), None

    @jax.jit
    def epoch(carry, key):
        order_key, dropout_key = jax.random.split(key)
        steps = len(data["train_labels"]) // BATCH
        order = jax.random.permutation(order_key, len(data["train_labels"]))[: steps * BATCH].reshape(
            steps, BATCH
        )
        tokens, labels = (jnp.asarray(data[f"train_{each}"])[order] for each in ("tokens", "labels"))
        return jax.lax.scan(step, carry, (tokens, labels, jax.random.split(dropout_key, steps)))[0]

    carry = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    for key in jax.random.split(jax.random.key(options.seed), options.epochs):
        carry = epoch(carry, key)
    params, batch_stats, _ = carry
    tuned = {"params": params, "batch_stats": batch_stats}

    report(f"after {epochs(options)} more", predict(tuned), data["test_labels"])
    norms = [jnp.linalg.norm(params[name]["pointwise_kernel"], axis=1).max() for name in configs]
    print(f"  largest norm in a pointwise kernel: {max(norms):.4f}, bounded by {LARGEST_NORM}")
    keras_files.save_variables(path, tuned, options.out / "tuned.keras")
    np.savez(options.out / "tuned.npz", predictions=predict(tuned))
    imported = {"keras", "tf_keras", "tensorflow", "h5py"} & set(sys.modules)
    assert not imported, f"this stage is to do without {imported}"


# Reports.


def report(when: str, probabilities, labels: np.ndarray) -> None:
    """Prints how good predictions are."""
    probabilities = np.asarray(probabilities)
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    print(f"  {when + ':':20} test accuracy {accuracy:.3f}, cross-entropy {loss:.3f}")


def epochs(options: argparse.Namespace) -> str:
    """How long it was trained, in words."""
    return f"{options.epochs} epoch{'s' * (options.epochs != 1)}"


def agree(whose: str, probabilities, others) -> None:
    """Prints how far predictions are from those of somebody else, and exits if that is more than rounding."""
    difference = np.abs(np.asarray(probabilities) - others).max()
    print(f"  largest difference from {whose} predictions: {difference:.1e}")
    if not difference <= SAME:
        sys.exit(f"That is more than {SAME}.")


STAGES = {"keras": train_in_keras, "jax": train_in_jax, "check": check_in_keras}

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings
    main()
