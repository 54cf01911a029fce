"""What to say about a trained network: where its kernels are in their constraints, and one page of pictures."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import flax_sepconv as fsc

BLUE, ORANGE, GREY = "#3465a4", "#d9731a", "#8a8a8a"


class ConstrainedKernel(NamedTuple):
    """The norms of a kernel's filters, and the interval that its constraint allows them."""

    name: str
    norms: np.ndarray
    smallest: float
    largest: float

    @property
    def room(self) -> float:
        """From the largest norm up to the largest allowed; negative where a filter is over it."""
        return float(self.largest - self.norms.max())

    @property
    def at_limit(self) -> float:
        """Share of the filters whose norm is the largest allowed, to a thousandth, or over it."""
        return float(np.mean(self.norms > 0.999 * self.largest))

    @property
    def outside(self) -> float:
        """How far the norm that is farthest out is from what is allowed."""
        return float(max(self.smallest - self.norms.min(), self.norms.max() - self.largest, 0.0))


def constrained_kernels(params: Mapping, configs: Mapping) -> Iterator[ConstrainedKernel]:
    """Every kernel of the layers at the top of `params` whose norms are constrained."""
    for layer, config in configs.items():
        for weight in config.weights(in_features=1):
            match weight.constraint:
                case fsc.constraints.UnitNorm(axis=axis):
                    allowed = 1.0, 1.0
                case fsc.constraints.MaxNorm(max_value=largest, axis=axis):
                    allowed = 0.0, largest
                case _:
                    continue
            norms = np.sqrt(np.sum(params[layer][weight.name] ** 2, axis=axis))
            yield ConstrainedKernel(f"{layer}/{weight.name}", norms, *allowed)


def draw(
    path: pathlib.Path, *, title: str, history: Mapping, kernels: Mapping, confusion: np.ndarray
) -> None:
    """Writes a figure: curves of the training, the depthwise kernels, and who was taken for whom.

    Args:
        path: where to, with a suffix that matplotlib knows.
        title: one line above all.
        history: `(epochs,)` arrays "loss" and, after "train " and "test ", "cross-entropy" and "accuracy".
        kernels: depthwise kernels `(taps, channels, multiplier)` by the layer's name.
        confusion: how many utterances of speaker `i` were taken for speaker `j`, `(speakers, speakers)`.
    """
    figure = Figure(figsize=(13, 10), layout="constrained")
    figure.suptitle(title, fontsize=15)
    panels: Any = figure.subfigures(2, 1, hspace=0.04)
    top, bottom = panels
    left, right = bottom.subfigures(1, 2, width_ratios=(1.5, 1))
    _curves(top.subplots(1, 2), history)
    _kernels(left, kernels)
    _confusion(right.subplots(), confusion)
    figure.savefig(path, dpi=120)


def _curves(axes, history) -> None:
    loss, accuracy = axes
    epochs = 1 + np.arange(len(history["loss"]))
    loss.plot(
        epochs, history["loss"], color=GREY, label="loss in training\n(augmented, smoothed, regularized)"
    )
    for part, color in (("train", BLUE), ("test", ORANGE)):
        right = history[f"{part} accuracy"]
        loss.plot(epochs, history[f"{part} cross-entropy"], color=color, label=f"cross-entropy, {part} part")
        accuracy.plot(epochs, right, color=color, label=f"{part} part, {right[-1]:.1%} at the end")
    loss.set(title="Loss", xlabel="epoch", ylabel="nats per utterance", yscale="log")
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter("")
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="utterances recognized", ylim=(None, 1.01))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    for each in axes:
        each.set_xlim(1, max(len(epochs), 2))
        each.xaxis.get_major_locator().set_params(integer=True)
        each.grid(alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
        each.legend(frameon=False)


def _kernels(figure, kernels) -> None:
    """A row of images, a column for each filter. Filters of later layers stand in the order of their shapes."""
    figure.suptitle("Learnt depthwise kernels: each column is one filter, its three taps from top to bottom")
    limit = max(np.abs(kernel).max() for kernel in kernels.values())
    rows = figure.subplots(len(kernels), 1)
    for index, (axes, (name, kernel)) in enumerate(zip(rows, kernels.items(), strict=True)):
        taps, channels, multiplier = kernel.shape
        filters = kernel.reshape(taps, -1)
        if index == 0:
            label = f"cepstral coefficient of the input, {multiplier} filters each"
            axes.set_xticks((np.arange(channels) + 0.5) * multiplier - 0.5, 1 + np.arange(channels))
            for edge in range(multiplier, channels * multiplier, multiplier):
                axes.axvline(edge - 0.5, color="white", linewidth=3)
        else:
            label = f"{channels} channels, similar filters side by side"
            filters = filters[:, _by_shape(filters)]
            axes.set_xticks([])
        image = axes.imshow(
            filters, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="none"
        )
        axes.set(ylabel=f"{name}\ntap", xlabel=label, yticks=range(taps), yticklabels=range(1, taps + 1))
    figure.colorbar(image, ax=rows, label="weight", fraction=0.03)


def _by_shape(filters: np.ndarray) -> np.ndarray:
    """An order in which neighbours look alike: by the angle in the plane of the two main directions."""
    centred = filters - filters.mean(axis=1, keepdims=True)
    plane = np.linalg.svd(centred, full_matrices=False)[0][:, :2].T @ centred
    return np.argsort(np.arctan2(plane[1], plane[0]))


def _confusion(axes, confusion) -> None:
    speakers = len(confusion)
    share = confusion / confusion.sum(axis=1, keepdims=True)
    wrong = np.where(np.eye(speakers), np.nan, share)
    axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(np.nanmax(wrong), 0.1) * 1.5)
    for (i, j), count in np.ndenumerate(confusion):
        if count:
            axes.text(j, i, count, ha="center", va="center", color=BLUE if i == j else "black", weight="bold")
    places, names = np.arange(speakers), 1 + np.arange(speakers)
    axes.set_title(f"Test utterances: {np.trace(confusion)} of {confusion.sum()} recognized")
    axes.set(xlabel="taken for speaker", ylabel="spoken by speaker")
    axes.set(xticks=places, yticks=places, xticklabels=names, yticklabels=names)
