"""Tells nine speakers apart by two vowels, with a network of three `SeparableConv1D` layers.

    pip install -e '.[examples]'
    python examples/japanese_vowels.py                      # trains, reports and draws, in less than a minute
    python examples/japanese_vowels.py --cross-validate 5   # judges the settings by the training part alone

The Japanese Vowels data (data/README.md) is 270 utterances to train on and 370, from other occasions, to test. An
utterance is 7 to 29 frames of 12 cepstral coefficients. What the program shows of the library:

* layers with regularizers and constraints, and `layer_configs`, which finds them in a model;
* a loss: the cross-entropy plus `regularization_loss` of the parameters;
* an optimizer of optax, `constrained`. `--unconstrained` leaves that out: compare the final tables;
* `lengths`: sequences of many lengths in one array, where padding never reaches a result.

A run that was stopped, even by `kill -9`, goes on from its last checkpoint when the same command is given again. It
ends at the same parameters to the last bit, because all that an epoch draws at random follows from seed and epoch.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import flax_sepconv as fsc

try:
    import orbax.checkpoint as ocp
    from _vowels_report import constrained_kernels, draw
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Column, Table
except ImportError as error:
    sys.exit(f"{error}. This example needs more than the library does: pip install -e '.[examples]'")

from _vowels_data import CHANNELS, LONGEST, PER_SPEAKER, SPEAKERS, Utterances, augmented, load, standardized

# Chosen by --cross-validate 5, as is what the network and `augmented` have for numbers.
EPOCHS, SHORT = 120, 4
BATCH = 27
LEARNING_RATE = 6e-3
SMOOTHING = 0.05


class SpeakerNet(nn.Module):
    """Three separable convolutions, the mean and deviation over time, and a linear read-out.

    The convolutions take the lengths, and both statistics leave out the frames beyond them, so an utterance gets the
    same answer whatever it is padded with, and however far.
    """

    width: int = 64
    dropout: float = 0.2

    @nn.compact
    def __call__(self, frames, lengths, *, train: bool = False):
        """Scores `(utterances, SPEAKERS)` for frames `(utterances, time, channels)` and lengths `(utterances,)`."""
        x = frames
        for layer, depth_multiplier in enumerate((2, 1, 1)):
            y = fsc.SeparableConv1D(
                filters=self.width,
                kernel_size=3,
                padding="same",
                depth_multiplier=depth_multiplier,
                depthwise_regularizer=fsc.regularizers.L1(1e-4),
                pointwise_regularizer=fsc.regularizers.L2(1e-4),
                # Taps of norm 1: a filter says what to listen for, the pointwise kernel how much it counts.
                depthwise_constraint=fsc.constraints.UnitNorm(),
                # The norm over input channels. A pointwise kernel is (1, channels, filters): Keras's default,
                # axis=0, would bound each entry by itself.
                # 0.7 is where the bound works; it was not what cross-validation favoured (1.0, never reached, was).
                pointwise_constraint=fsc.constraints.MaxNorm(0.7, axis=1),
                name=f"conv{layer}",
            )(x, lengths)
            y = nn.gelu(nn.LayerNorm()(y))
            y = nn.Dropout(self.dropout, broadcast_dims=(1,), deterministic=not train)(y)
            x = x + y if layer else y
        real = (jnp.arange(frames.shape[1]) < lengths[:, None])[..., None]
        count = lengths[:, None].astype(x.dtype)
        mean = jnp.where(real, x, 0).sum(axis=1) / count
        variance = jnp.where(real, (x - mean[:, None]) ** 2, 0).sum(axis=1) / count
        voice = jnp.concatenate([mean, jnp.sqrt(variance + 1e-4)], axis=-1)
        return nn.Dense(SPEAKERS)(nn.Dropout(self.dropout, deterministic=not train)(voice))


MODEL = SpeakerNet()
INPUTS = jax.ShapeDtypeStruct((1, LONGEST, CHANNELS), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
CONFIGS = fsc.layer_configs(MODEL, *INPUTS)


class State(NamedTuple):
    """All that a training is between two epochs, and all that a checkpoint holds."""

    epoch: jax.Array
    params: Any
    optimizer: Any
    history: dict[str, jax.Array]  # each (epochs,), not a number where still to come


def training(options: argparse.Namespace, size: int) -> tuple[Callable[..., State], Callable[..., State]]:
    """The two functions that a training on `size` utterances consists of: the first state, and one epoch."""
    steps = size // BATCH
    total = steps * options.epochs
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, max(total // 20, 1), total)
    adam = optax.adam(schedule)
    optimizer = adam if options.unconstrained else fsc.constrained(adam, CONFIGS)
    init_key, epochs_key = jax.random.split(jax.random.key(options.seed))

    @jax.jit
    def start() -> State:
        params = MODEL.init(init_key, *(jnp.ones(each.shape, each.dtype) for each in INPUTS))["params"]
        history = {name: jnp.full(options.epochs, jnp.nan) for name in HISTORY}
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), history)

    def step(carry, batch_and_key):
        params, optimizer_state = carry
        value, gradients = jax.value_and_grad(loss)(params, *batch_and_key)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    @jax.jit
    def epoch(state: State, train: Utterances, test: Utterances) -> State:
        order_key, steps_key = jax.random.split(jax.random.fold_in(epochs_key, state.epoch))
        # Utterances that fill no batch sit this epoch out.
        order = jax.random.permutation(order_key, size)[: steps * BATCH].reshape(steps, BATCH)
        batches = train.pick(order), jax.random.split(steps_key, steps)
        (params, optimizer_state), losses = jax.lax.scan(step, (state.params, state.optimizer), batches)
        now = {"loss": losses.mean(), **score(params, train, "train"), **score(params, test, "test")}
        history = {name: values.at[state.epoch].set(now[name]) for name, values in state.history.items()}
        return State(state.epoch + 1, params, optimizer_state, history)

    return start, epoch


def loss(params, batch: Utterances, key) -> jax.Array:
    """What training makes small: the smoothed cross-entropy of augmented utterances, and the regularizers' terms."""
    augment_key, dropout_key = jax.random.split(key)
    logits = predict(params, augmented(batch, augment_key), dropout_key)
    targets = optax.smooth_labels(jax.nn.one_hot(batch.speakers, SPEAKERS), SMOOTHING)
    return optax.softmax_cross_entropy(logits, targets).mean() + fsc.regularization_loss(params, CONFIGS)


HISTORY = ("loss", "train cross-entropy", "train accuracy", "test cross-entropy", "test accuracy")


def score(params, part: Utterances, name: str) -> dict[str, jax.Array]:
    """Cross-entropy and accuracy on utterances as they are."""
    logits = predict(params, part)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, part.speakers)
    right = logits.argmax(axis=-1) == part.speakers
    return {f"{name} cross-entropy": cross_entropy.mean(), f"{name} accuracy": right.mean()}


@jax.jit
def predict(params, part: Utterances, dropout_key=None) -> jax.Array:
    """Scores `(utterances, SPEAKERS)`; with a key, as in training."""
    training: dict[str, Any] = (
        {} if dropout_key is None else {"train": True, "rngs": {"dropout": dropout_key}}
    )
    logits: Any = MODEL.apply({"params": params}, part.frames, part.lengths, **training)
    return logits


def run(options: argparse.Namespace, console: Console) -> None:
    """Trains, from the last checkpoint if there is one, and reports."""
    claim(options)
    train, test = standardized(load("train"), load("test"))
    start, epoch = training(options, len(train.speakers))
    state = start()
    checkpointing = ocp.CheckpointManagerOptions(
        max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(options.out.absolute() / "checkpoints", options=checkpointing) as checkpoints:
        done = checkpoints.latest_step() or 0
        if done:
            state = checkpoints.restore(done, args=ocp.args.StandardRestore(state))
            what = (
                "is finished: nothing to train" if done == options.epochs else f"goes on after epoch {done}"
            )
            console.print(f"The run in {options.out} {what}.")
        with Progress(console=console) as progress:
            task = progress.add_task("compiling", total=options.epochs, completed=done)
            for number in range(done + 1, options.epochs + 1):
                state = epoch(state, train, test)
                line = f"epoch {number}, loss {state.history['loss'][number - 1]:.3f}"
                progress.update(task, completed=number, description=line)
                if number % options.checkpoint_every == 0 or number == options.epochs:
                    checkpoints.save(number, args=ocp.args.StandardSave(state))
                    progress.print(f"{line}, checkpoint")
    report(state, test, options.out, console)


def claim(options: argparse.Namespace) -> None:
    """Makes `options.out` this run's folder, or refuses one that belongs to a run with other options."""
    mine = {name: getattr(options, name) for name in ("seed", "epochs", "unconstrained")}
    record = options.out / "options.json"
    if record.exists():
        theirs = json.loads(record.read_text())
        others = [f"{name}={theirs[name]}, not {mine[name]}" for name in mine if theirs[name] != mine[name]]
        if others:
            sys.exit(f"{options.out} has a run with {'; '.join(others)}. Choose another folder with --out.")
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        unfinished = record.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(mine))
        os.replace(unfinished, record)


def report(state: State, test: Utterances, out: pathlib.Path, console: Console) -> None:
    """Prints how good the network is and where its kernels are; writes the parameters and the figure."""
    params, history = jax.device_get((state.params, state.history))
    flat: dict[str, Any] = {
        f"{layer}/{name}": params[layer][name] for layer in params for name in params[layer]
    }
    np.savez(out / "params.npz", **flat)
    guesses = np.asarray(predict(params, test)).argmax(axis=-1)
    confusion = np.zeros((SPEAKERS, SPEAKERS), int)
    np.add.at(confusion, (test.speakers, guesses), 1)
    wrong = np.sum(guesses != test.speakers)
    accuracy = 1 - wrong / len(guesses)
    draw(
        out / "figure.png",
        title=f"Nine speakers, two vowels: {accuracy:.1%} of the test utterances are recognized",
        history=history,
        kernels={layer: flat[f"{layer}/depthwise_kernel"] for layer in CONFIGS},
        confusion=confusion,
    )

    columns = (Column("kernel", min_width=22), "allowed", "filters' norms", "room", "at limit", "outside")
    table = Table(*columns, box=SIMPLE_HEAD)
    for kernel in constrained_kernels(params, CONFIGS):
        allowed = f"{'=' if kernel.smallest else '<='} {kernel.largest:g}"
        norms = f"{kernel.norms.min():.3f} to {kernel.norms.max():.3f}"
        numbers = f"{kernel.room:.3f}", f"{kernel.at_limit:.0%}", f"{kernel.outside:.0e}"
        table.add_row(kernel.name, allowed, norms, *numbers)
    console.print(table)
    penalty = fsc.regularization_loss(params, CONFIGS)
    console.print(f"test accuracy   {accuracy:.4f}, {wrong} of {len(guesses)} wrong")
    console.print(f"parameters      {sum(array.size for array in flat.values()):,}")
    console.print(f"loss            {history['loss'][-1]:.4f}, {penalty:.4f} of it from the regularizers")
    console.print(f"written         {out}/params.npz and figure.png")


def cross_validate(options: argparse.Namespace, console: Console) -> None:
    """Trains on all but one part of the training utterances and tests on that one, each in turn.

    A part is a stretch of successive utterances of every speaker. To leave out neighbours together is nearer to
    another occasion, as the test part is, than to leave out a few at random.
    """
    data, parts = load("train"), options.cross_validate
    part_of = np.arange(len(data.speakers)) % PER_SPEAKER * parts // PER_SPEAKER
    start, epoch = training(options, np.sum(part_of != 0))
    scores = []
    with Progress(console=console) as progress:
        task = progress.add_task("compiling", total=parts * options.epochs)
        for part in range(parts):
            train, test = standardized(data.pick(part_of != part), data.pick(part_of == part))
            state = start()
            for _ in range(options.epochs):
                state = epoch(state, train, test)
                progress.update(task, advance=1, description=f"without part {part + 1}")
            scores.append([state.history[name][-1] for name in ("test accuracy", "test cross-entropy")])

    table = Table("held out", "accuracy", "cross-entropy", box=SIMPLE_HEAD)
    for name, row in zip([*range(1, parts + 1), "mean"], [*scores, np.mean(scores, axis=0)], strict=True):
        table.add_row(str(name), *(f"{number:.4f}" for number in row))
    console.print(table)


def parse(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{str(__doc__).splitlines()[0]} A run that was stopped goes on when it is started again."
    )
    add = parser.add_argument
    folds = [k for k in range(2, PER_SPEAKER + 1) if PER_SPEAKER % k == 0]
    add("--seed", type=int, default=0, help="all that is random follows from it (default: %(default)s)")
    add("--epochs", type=int, default=EPOCHS, help="passes over the training part (default: %(default)s)")
    add(
        "--short",
        action="store_const",
        dest="epochs",
        const=SHORT,
        help=f"the same as --epochs {SHORT}, for a trial",
    )
    add("--out", type=pathlib.Path, help="folder for checkpoints and results (default: one under runs/)")
    add("--checkpoint-every", type=int, default=10, metavar="EPOCHS", help="(default: %(default)s)")
    add("--unconstrained", action="store_true", help="leave the constraints out, to see what they do")
    add(
        "--cross-validate",
        type=int,
        choices=folds,
        metavar="K",
        help=f"judge the settings by K parts of the training part, each held out in turn; K is one of {folds}",
    )
    options = parser.parse_args(argv)
    if options.epochs < 1 or options.checkpoint_every < 1:
        parser.error("--epochs and --checkpoint-every must be at least 1")
    if options.out is None:
        end = "-unconstrained" if options.unconstrained else ""
        options.out = pathlib.Path("runs") / f"vowels-seed{options.seed}-epochs{options.epochs}{end}"
    return options


def main(argv=None) -> None:
    """Runs the program."""
    options = parse(argv)
    (cross_validate if options.cross_validate else run)(options, Console())


if __name__ == "__main__":
    main()
