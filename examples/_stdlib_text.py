"""Pieces of the standard library's own source files, labelled with the package they are from."""

import collections
import pathlib
import re
import sysconfig
from collections.abc import Iterator

import numpy as np

# Packages that every distribution of Python has, of some size.
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")
VOCABULARY, LENGTH, MOST = 4000, 48, 500


def pieces(package: str) -> Iterator[tuple[str, ...]]:
    """The words of a package, `LENGTH` at a time: documentation, comments and code, without the packages' names."""
    for file in sorted((pathlib.Path(sysconfig.get_path("stdlib")) / package).rglob("*.py")):
        if "test" not in file.parts:
            words = re.findall(r"[a-z]+", file.read_text(encoding="utf-8", errors="ignore").lower())
            words = [word for word in words if word not in PACKAGES]
            yield from zip(*[iter(words)] * LENGTH, strict=False)


def texts(seed: int) -> dict[str, np.ndarray]:
    """Tokens `(texts, LENGTH)` and labels of at most `MOST` pieces of each package, a fifth of them to test."""
    rng = np.random.default_rng(seed)
    samples = []
    for label, package in enumerate(PACKAGES):
        every = [*pieces(package)]
        samples += [(every[i], label) for i in rng.permutation(len(every))[:MOST]]
    samples = [samples[i] for i in rng.permutation(len(samples))]
    test, train = samples[: len(samples) // 5], samples[len(samples) // 5 :]
    counts = collections.Counter(word for words, _ in train for word in words)
    # 0 is for words too rare to have a number.
    ids = {word: 1 + i for i, (word, _) in enumerate(counts.most_common(VOCABULARY - 1))}
    arrays = {}
    for part, chosen in (("train", train), ("test", test)):
        arrays[f"{part}_tokens"] = np.array([[ids.get(w, 0) for w in words] for words, _ in chosen], np.int32)
        arrays[f"{part}_labels"] = np.array([label for _, label in chosen], np.int32)
    return arrays
