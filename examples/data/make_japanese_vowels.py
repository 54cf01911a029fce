"""Remakes japanese_vowels.npz from the wheel of the PyPI package `aeon`, which carries the two source files.

    pip download aeon --no-deps
    python examples/data/make_japanese_vowels.py aeon-*.whl

The sources write every number with at most six decimals. The copy holds these as integers, in millionths, so no
digit is lost and nothing depends on how a decimal is rounded to binary; any number that is not a whole number of
millionths stops the script.
"""

import argparse
import decimal
import pathlib
import zipfile

import numpy as np

SOURCE = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_{}.ts"
COPY = pathlib.Path(__file__).with_name("japanese_vowels.npz")


def parse(text: str) -> dict[str, np.ndarray]:
    """The utterances of one `.ts` file: a line each, channels and then the speaker separated by colons."""
    utterances, speakers = [], []
    for line in text.split("@data\n")[1].splitlines():
        *channels, speaker = line.split(":")
        utterances.append(np.array([[millionths(value) for value in c.split(",")] for c in channels]).T)
        speakers.append(int(speaker))
    return {
        "millionths": np.concatenate(utterances).astype(np.int32),  # (frames of all utterances, channels)
        "lengths": np.array([len(frames) for frames in utterances], np.int32),
        "speakers": np.array(speakers, np.int32),
    }


def millionths(value: str) -> int:
    """The integer that `value` is in millionths."""
    scaled = decimal.Decimal(value) * 10**6
    if scaled != int(scaled):
        raise ValueError(f"{value!r} has more than six decimals")
    return int(scaled)


def main(argv=None) -> None:
    """Reads both parts from the wheel and writes the copy beside this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=pathlib.Path, help="path of aeon's wheel")
    parser.add_argument(
        "--to", type=pathlib.Path, default=COPY, help="where the copy goes (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    arrays = {}
    with zipfile.ZipFile(args.wheel) as wheel:
        for part in ("train", "test"):
            text = wheel.read(SOURCE.format(part.upper())).decode()
            arrays |= {f"{part}_{name}": array for name, array in parse(text).items()}
    np.savez_compressed(args.to, **arrays)
    print(f"{args.to}: {args.to.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
