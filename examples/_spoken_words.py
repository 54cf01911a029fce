"""Speech to spot words in: words that eSpeak NG speaks in many voices, one after another, in noise."""

import ctypes
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import espeakng_loader
import numpy as np

RATE = 22050  # samples per second, eSpeak's own
KEYWORDS = ("computer", "lights", "music", "stop")
_OTHERS = """
    compute commuter complete pewter company light lie lots mice nights museum muse mystic use news stomp top step shop
    star apple window garden seven number river orange table hundred yellow morning always people question water little
    paper father kitchen answer nothing hello
"""
OTHERS = tuple(_OTHERS.split())  # half of them begin or sound like a keyword

# Variants of American English. No training hears those that are for tests.
_VOICES = """
    Alex Andrea Annie Denis Diogo Gene Henrique Hugo Lee Mario Michael Mike Nguyen Reed Storm adam anika antonio aunty
    belinda benjamin boris caleb david edward f1 f2 f3 grandma ian iven john linda m1 m2 m3 m4 max michel norbert pablo
    paul rob sandro steph travis victor
"""
_TEST_VOICES = "Alicia Jacky Marco RicishayMax ed f4 f5 gustave iven2 m5 m6 quincy robert shelby steph2 zac"
VOICES, TEST_VOICES = tuple(_VOICES.split()), tuple(_TEST_VOICES.split())


class Speech(NamedTuple):
    """A recording, and what is said in it when."""

    sound: np.ndarray  # (samples,), mostly between -1 and 1
    words: list[tuple[str, int, int]]  # a word, its first sample, and the one after its last


@functools.cache
def _espeak() -> ctypes.CDLL:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    path = str(pathlib.Path(espeakng_loader.get_data_path())).encode()
    # Sound is given to the callback from within the call: from a thread, each word would wait 20 ms for it.
    synchronous, buffer_length, options = 2, 0, 0
    rate = library.espeak_Initialize(synchronous, buffer_length, path, options)
    if rate != RATE:
        raise RuntimeError(f"eSpeak NG gives {rate} samples per second; this program takes {RATE}.")
    return library


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def say(word: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """Speaks a word, `speed` in words per minute and `pitch` from 0 to 100, without silence around it."""
    library, heard = _espeak(), []

    @_CALLBACK
    def hear(samples, count, _):
        if samples and count:
            heard.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32))
        return 0

    library.espeak_SetSynthCallback(hear)
    text = word.encode()
    rate_parameter, pitch_parameter, absolute, utf8 = 1, 3, 0, 1
    failed = (
        library.espeak_SetVoiceByName(f"en-us+{voice}".encode())
        or library.espeak_SetParameter(rate_parameter, speed, absolute)
        or library.espeak_SetParameter(pitch_parameter, pitch, absolute)
        or library.espeak_Synth(text, len(text) + 1, 0, 1, 0, utf8, None, None)
        or library.espeak_Synchronize()
    )
    if failed or not heard:
        raise RuntimeError(f"eSpeak NG did not speak {word!r} with the voice {voice!r}.")
    sound = np.concatenate(heard)
    (loud,) = np.nonzero(abs(sound) > 0.02 * abs(sound).max())
    sound = sound[loud[0] : loud[-1] + 1]
    return 0.1 * sound / np.sqrt(np.mean(sound**2))


def vocabulary(voices: Sequence[str], rng: np.random.Generator, others: int) -> list[tuple[str, np.ndarray]]:
    """Every keyword twice and `others` of the other words by each voice, each at a speed and pitch of its own."""
    return [
        (word, say(word, voice, int(rng.integers(120, 200)), int(rng.integers(30, 70))))
        for voice in voices
        for word in [*KEYWORDS, *KEYWORDS, *rng.choice(OTHERS, others, replace=False)]
    ]


def speech(
    words: Sequence[tuple[str, np.ndarray]], rng: np.random.Generator, count: int, longest_gap: float = 0.5
) -> Speech:
    """Some of the words one after another, with gaps in seconds between them, louder and softer, in noise."""
    pieces, places, here = [], [], 0
    for index in rng.integers(len(words), size=count):
        word, sound = words[index]
        gap = np.zeros(int(RATE * rng.uniform(0.1, longest_gap)), np.float32)
        here += len(gap)
        places.append((word, here, here + len(sound)))
        here += len(sound)
        pieces += [gap, sound * 10 ** rng.uniform(-0.4, 0.2)]
    sound = np.concatenate([*pieces, np.zeros(int(RATE * rng.uniform(0.1, longest_gap)), np.float32)])
    # As much noise in each octave as in the next, 10 to 30 decibels below the words.
    spectrum = np.fft.rfft(rng.normal(size=len(sound)))
    noise = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(len(spectrum))), len(sound))
    noise *= 0.1 * 10 ** rng.uniform(-1.5, -0.5) / noise.std()
    return Speech((sound + noise).astype(np.float32), places)
