"""Paragraphs of documentation in the standard library's own files, labelled with the package they are from."""

import ast
import collections
import pathlib
import re
import sysconfig
from collections.abc import Iterator

import numpy as np

# Packages that every distribution of Python has whole.
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")
VOCABULARY, LENGTH, SHORTEST = 4000, 48, 6


def paragraphs(package: str) -> Iterator[tuple[str, ...]]:
    """The words of each paragraph in the docstrings of a package of the standard library."""
    for file in sorted((pathlib.Path(sysconfig.get_path("stdlib")) / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                    words = re.findall(r"[a-z]+", paragraph.lower())
                    yield tuple(word for word in words if word not in PACKAGES)


def texts(seed: int) -> dict[str, np.ndarray]:
    """Tokens `(texts, LENGTH)`, padded with 0 in front, and labels, a fifth of them to test."""
    labels = {
        words: i for i, name in enumerate(PACKAGES) for words in paragraphs(name) if len(words) >= SHORTEST
    }
    order = np.random.default_rng(seed).permutation(len(labels))
    samples = [list(labels.items())[i] for i in order]
    test, train = samples[: len(samples) // 5], samples[len(samples) // 5 :]
    counts = collections.Counter(word for words, _ in train for word in words)
    ids = {word: 1 + i for i, (word, _) in enumerate(counts.most_common(VOCABULARY - 1))}
    arrays = {}
    for part, chosen in (("train", train), ("test", test)):
        arrays[f"{part}_tokens"] = np.zeros((len(chosen), LENGTH), np.int32)
        arrays[f"{part}_labels"] = np.array([label for _, label in chosen], np.int32)
        for row, (words, _) in zip(arrays[f"{part}_tokens"], chosen, strict=True):
            known = [ids[word] for word in words if word in ids][:LENGTH]
            row[LENGTH - len(known) :] = known
    return arrays
