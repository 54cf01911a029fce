"""Spots words in sound while it arrives, with a network of `SeparableConv1D` layers that look ahead.

    pip install -e '.[examples]'
    python examples/stream_audio.py                       # trains, then listens to a recording; within a minute
    python examples/stream_audio.py --listen speech.wav   # listens with what the last run has learnt
    arecord -q -r 22050 -f S16_LE -c 1 -t raw | python examples/stream_audio.py --listen -

The speech is made by eSpeak NG, a synthesizer that comes in a PyPI package: four keywords among other words, in 47
voices to train on and 16 others to test with. What the program shows of the library:

* `lengths`: recordings of many lengths are trained on in one padded array;
* streams: the same network, with `decode=True`, takes 46 milliseconds of sound at a time and gives the scores that it
  gives for the whole recording;
* layers that look ahead, `padding="same"`. `stream_latency` says how late their outputs come, `position` and `lengths`
  keep what comes too early or too late from the next layer, and a residual connection waits for its layer.
"""

import argparse
import contextlib
import pathlib
import sys
import time
import wave
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

import flax_sepconv as fsc

try:
    from _spoken_words import KEYWORDS, RATE, TEST_VOICES, VOICES, Speech, speech, vocabulary
    from _stream_report import Detection, draw, report
    from rich.console import Console
    from rich.progress import Progress
except ImportError as error:
    sys.exit(f"{error}. This example needs more than the library does: pip install -e '.[examples]'")

FRAME, HOP, BANDS = 512, 256, 40  # a frame is 23 ms, and there is one every 12 ms
CHUNK = 4 * HOP  # samples that the stream takes at a time
STEPS, SHORT = 400, 30
BATCH, LEARNING_RATE = 32, 4e-3
RECORDINGS = 480
SAME = 1e-4  # how far a streamed score may be from the whole's, as a logit


class Spotter(nn.Module):
    """Scores `(batch, time, 1 + keywords)` for frames `(batch, time, BANDS)`: nothing, or a keyword that ends here.

    It looks 60 frames back, 0.7 seconds, which is a long word. Three layers look ahead too, to hear how it goes on.
    """

    decode: bool = False
    width: int = 64

    @nn.compact
    def __call__(self, frames, lengths, position=None):
        """In a stream, `position` is the number of the first frame, and `lengths` are those of whole recordings."""
        x, arguments = frames, {} if position is None else {"position": position}
        layers: list[tuple[Any, int, int]] = (
            [("same", 5, 1)]
            + [("causal", 5, dilation) for dilation in (1, 2, 4, 6)]
            + [("same", 5, 1), ("same", 5, 2)]
        )
        for index, (padding, kernel_size, dilation_rate) in enumerate(layers):
            layer = fsc.SeparableConv1D(
                self.width,
                kernel_size,
                padding=padding,
                dilation_rate=dilation_rate,
                decode=self.decode,
                name=f"conv{index}",
            )
            y = nn.gelu(nn.LayerNorm()(layer(x, lengths, **arguments)))
            if self.decode:
                arguments["position"] = layer.config.output_position(arguments["position"])
                x = self._later(x, layer.config.latency, f"past{index}")
            x = x + y if index else y
        return nn.Dense(1 + len(KEYWORDS))(x)

    def _later(self, x, steps, name):
        """`x`, that many time steps late."""
        past = self.variable("cache", name, jnp.zeros, (*x.shape[:-2], steps, x.shape[-1]), x.dtype)
        joined = jnp.concatenate([past.value, x], axis=-2)
        past.value = joined[..., x.shape[-2] :, :]
        return joined[..., : x.shape[-2], :]


FRAMES = jax.ShapeDtypeStruct((1, 64, BANDS), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
LATENCY = fsc.stream_latency(fsc.layer_configs(Spotter(), *FRAMES))  # frames


def mel_bands() -> np.ndarray:
    """Weights `(FRAME // 2 + 1, BANDS)` of frequencies in overlapping bands, even on the mel scale."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequencies = np.arange(FRAME // 2 + 1)[:, None] * RATE / FRAME
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)


MEL, WINDOW = mel_bands(), np.hanning(FRAME).astype(np.float32)


def features(sound: np.ndarray) -> np.ndarray:
    """The logarithmic energy in each band, of all frames that fit: `(frames, BANDS)`, about between -1 and 1."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::HOP]
    energy = abs(np.fft.rfft(frames * WINDOW)) ** 2 @ MEL
    return (0.2 * np.log(energy + 1e-3)).astype(np.float32)


def before(sound: np.ndarray) -> np.ndarray:
    """The sound, with what a first frame reads before it."""
    return np.concatenate([np.zeros(FRAME - HOP, np.float32), sound])


def targets(recording: Speech, frames: int) -> np.ndarray:
    """The class of each frame, `(frames,)`: a keyword's around its end, and -1, for any, from its middle to there."""
    classes = np.zeros(frames, np.int32)
    for word, start, end in recording.words:
        if word in KEYWORDS:
            last = end // HOP
            classes[(start + end) // 2 // HOP : last + 3] = -1
            classes[last - 8 : last + 3] = 1 + KEYWORDS.index(word)
    return classes


def train(options: argparse.Namespace, console: Console) -> Any:
    """Parameters that spot keywords, from recordings that are made for it."""
    rng = np.random.default_rng(options.seed)
    voices = VOICES[:8] if options.short else VOICES
    words = vocabulary(voices, rng, others=14)
    recordings = [
        speech(words, rng, count=int(rng.integers(2, 5)))
        for _ in range(BATCH if options.short else RECORDINGS)
    ]
    heard = [features(before(each.sound)) for each in recordings]
    lengths = np.array([len(each) for each in heard])
    seconds = lengths.sum() * HOP / RATE
    console.print(f"{len(recordings)} recordings by {len(voices)} voices, {seconds / 60:.0f} minutes")
    frames = np.zeros((len(heard), lengths.max(), BANDS), np.float32)
    classes = np.full(frames.shape[:2], -1, np.int32)
    for index, (each, recording) in enumerate(zip(heard, recordings, strict=True)):
        frames[index, : len(each)] = each
        classes[index, : len(each)] = targets(recording, len(each))

    model, steps = Spotter(), SHORT if options.short else STEPS
    params = jax.jit(model.init)(jax.random.key(options.seed), frames[:1], lengths[:1])["params"]
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, steps // 10, steps))

    @jax.jit
    def step(params, state, frames, lengths, classes):
        def loss(params):
            scores: Any = model.apply({"params": params}, frames, lengths)
            losses = optax.softmax_cross_entropy_with_integer_labels(scores, classes.clip(0))
            return jnp.mean(losses, where=classes >= 0)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    with Progress(console=console) as progress:
        task = progress.add_task("compiling", total=steps)
        for number in range(steps):
            batch = rng.choice(len(frames), BATCH, replace=False)
            # Louder, softer, and with a band of frequencies away: one network for many microphones.
            changed = frames[batch] + rng.uniform(-0.3, 0.3, (BATCH, 1, 1)).astype(np.float32)
            bands = np.arange(BANDS) - rng.integers(BANDS, size=(BATCH, 1))
            changed[np.broadcast_to(((bands >= 0) & (bands < 6))[:, None], changed.shape)] = 0
            params, state, value = step(params, state, changed, lengths[batch], classes[batch])
            if number % 10 == 9:
                progress.update(task, completed=number + 1, description=f"cross-entropy {value:.3f}")
    return jax.device_get(params)


def chunks_of(source: str) -> Iterator[np.ndarray]:
    """The sound of a WAV file, or of raw samples from standard input until it ends or Ctrl-C, as it comes."""
    if source == "-":
        with contextlib.suppress(KeyboardInterrupt):
            yield from pieces(lambda: sys.stdin.buffer.read(2 * CHUNK))
        return
    try:
        with wave.open(source) as file:
            form = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if form != (RATE, 1, 2):
                sys.exit(
                    f"{source} has {form[0]} samples per second, {form[1]} channels and {form[2]} bytes a sample; this "
                    f"program takes {RATE}, 1 and 2: ffmpeg -i {source} -ar {RATE} -ac 1 -sample_fmt s16 out.wav"
                )
            yield from pieces(lambda: file.readframes(CHUNK))
    except (OSError, EOFError, wave.Error) as error:
        sys.exit(f"{source} cannot be read as a WAV file: {error}")


def pieces(read: Callable[[], bytes]) -> Iterator[np.ndarray]:
    """16-bit samples as numbers between -1 and 1, as often as there are some to read."""
    for samples in iter(read, b""):
        yield np.frombuffer(samples[: len(samples) // 2 * 2], "<i2").astype(np.float32) / 2**15


class Heard(NamedTuple):
    """What a stream gave."""

    sound: np.ndarray  # (samples,)
    scores: np.ndarray  # (frames, 1 + keywords), logits
    detections: list[Detection]
    milliseconds: np.ndarray  # that each chunk took


def listen(params: Any, chunks: Iterator[np.ndarray], tell: Callable[[Detection], None]) -> Heard:
    """Feeds chunks to the network as they come, and tells each keyword as soon as it is found."""
    model, detect = Spotter(decode=True), Detector()
    silence, going_on = np.zeros(CHUNK, np.float32), np.full(1, np.iinfo(np.int32).max, np.int32)
    first = features(before(silence))[None], going_on, 0
    states = jax.eval_shape(model.init, jax.random.key(0), *first)["cache"]

    @jax.jit
    def step(cache, frames, lengths, position):
        variables = {"params": params, "cache": cache}
        scores, state = model.apply(variables, frames, lengths, position, mutable=["cache"])
        return scores[0], state["cache"]

    def with_end():
        """Each chunk, filled up with silence, and how many frames there are in all, as far as that is known."""
        samples = 0
        for chunk in chunks:
            sounds.append(chunk)
            samples += len(chunk)
            end = going_on if len(chunk) == CHUNK else np.full(1, samples // HOP, np.int32)
            yield np.concatenate([chunk, silence[len(chunk) :]]), end
        for _ in range(-(-LATENCY * HOP // CHUNK)):  # for the last scores
            yield silence, np.full(1, samples // HOP, np.int32)

    cache = jax.tree.map(lambda state: jnp.zeros(state.shape, state.dtype), states)
    past, position = before(silence[:0]), 0
    jax.block_until_ready(step(cache, *first))  # compiles
    sounds, outputs, found, milliseconds = [], [], [], []
    for chunk, lengths in with_end():
        start = time.perf_counter()
        sound = np.concatenate([past, chunk])
        scores, cache = step(cache, features(sound)[None], lengths, position)
        outputs.append(np.asarray(scores))
        milliseconds.append(1e3 * (time.perf_counter() - start))
        past, position = sound[CHUNK:], position + CHUNK // HOP
        for detection in detect(outputs[-1], position * HOP / RATE):
            found.append(detection)
            tell(detection)
    sound = np.concatenate([silence[:0], *sounds])
    scores = np.concatenate(outputs)[LATENCY : LATENCY + len(sound) // HOP]
    return Heard(sound, scores, found, np.array(milliseconds))


class Detector:
    """Finds a keyword where it is likelier than not in three frames, and then none for half a second."""

    def __init__(self) -> None:
        self.streak, self.deaf_until = np.zeros(len(KEYWORDS), int), 0.0

    def __call__(self, scores: np.ndarray, now: float) -> Iterator[Detection]:
        """Takes the next frames' scores, known since `now`, in seconds."""
        for likely in np.asarray(jax.nn.softmax(scores))[:, 1:]:
            self.streak = np.where(likely > 0.5, self.streak + 1, 0)
            if 3 in self.streak and now >= self.deaf_until:
                self.deaf_until = now + 0.5
                best = int(likely.argmax())
                yield Detection(KEYWORDS[best], now, float(likely[best]))


def main(arguments: list[str] | None = None) -> None:
    """Trains and tests, or listens."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add(
        "--listen",
        metavar="WAV",
        help="listen to a WAV file, or to raw 16-bit samples from standard input with -",
    )
    add("--seed", type=int, default=0, help="all that is random follows from it (default: %(default)s)")
    add("--short", action="store_true", help="a little training, to see that everything works")
    add(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("runs/stream_audio"),
        help="folder (default: %(default)s)",
    )
    options, console = parser.parse_args(arguments), Console(highlight=False)
    weights, recording = options.out / "params.npz", options.out / "speech.wav"

    spoken = None
    if options.listen is None:
        params = train(options, console)
        options.out.mkdir(parents=True, exist_ok=True)
        flat: dict[str, Any] = dict(traverse_util.flatten_dict(params, sep="/"))
        np.savez(weights, **flat)
        rng = np.random.default_rng(options.seed + 1)
        spoken = speech(vocabulary(TEST_VOICES, rng, others=8), rng, count=12 if options.short else 100)
        with wave.open(str(recording), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((spoken.sound * 2**15).clip(-(2**15), 2**15 - 1).astype("<i2").tobytes())
    elif not weights.exists():
        sys.exit(f"{weights} is not there yet: run this program without --listen first, with the same --out.")
    with np.load(weights) as arrays:
        params = traverse_util.unflatten_dict(dict(arrays), sep="/")

    ahead, taken = LATENCY * HOP / RATE, CHUNK / RATE
    console.print(
        f"The layers look {LATENCY} frames ahead, {1e3 * ahead:.0f} ms, and sound is taken {1e3 * taken:.0f} ms at a "
        f"time: a score is there at most {1e3 * (ahead + taken):.0f} ms after its frame."
    )
    heard = listen(
        params,
        chunks_of(str(recording) if options.listen is None else options.listen),
        lambda found: console.print(f"{found.time:8.2f} s  {found.word} ({found.score:.2f})"),
    )
    if not len(heard.scores):
        sys.exit("That was less than a frame of sound.")
    whole: Any = jax.jit(Spotter().apply)(
        {"params": params}, features(before(heard.sound))[None], np.full(1, len(heard.scores))
    )
    difference = float(abs(whole[0] - heard.scores).max())
    console.print(
        f"a chunk of {1e3 * taken:.0f} ms took {np.median(heard.milliseconds):.1f} ms (median), "
        f"{heard.milliseconds.max():.1f} at most"
    )
    console.print(f"largest difference between the scores of the stream and of the whole: {difference:.1e}")
    if difference > SAME:
        sys.exit("The stream is not the whole.")
    if spoken:
        console.print(report(spoken.words, heard.detections, RATE))
    likely = np.asarray(jax.nn.softmax(heard.scores))[:, 1:]
    arrival = ((np.arange(len(likely)) + LATENCY) * HOP // CHUNK + 1) * CHUNK / RATE
    figure = options.out / "figure.png"
    draw(
        figure,
        heard.sound,
        RATE,
        spoken.words if spoken else [],
        arrival,
        dict(zip(KEYWORDS, likely.T, strict=True)),
        heard.detections,
    )
    console.print(f"written: {figure}")


if __name__ == "__main__":
    main()
