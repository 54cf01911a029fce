"""examples/stream_audio.py in its short form, and what it hears from standard input."""

import io
import pathlib
import re
import sys
import types
import wave

import numpy as np
import pytest

for package in ("espeakng_loader", "matplotlib", "rich"):
    pytest.importorskip(package, reason="needs pip install -e '.[examples]'")

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
try:
    import stream_audio
finally:
    del sys.path[0]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("stream_audio")


def run(capsys, *arguments):
    stream_audio.main([*map(str, arguments)])
    return capsys.readouterr().out


def differences(text):
    return [float(each) for each in re.findall(r"difference between .*: (\S+)", text)]


def test_trains_and_streams_what_the_whole_gives(out, capsys):
    text = run(capsys, "--short", "--out", out)
    (difference,) = differences(text)
    assert difference <= stream_audio.SAME
    assert "look 8 frames ahead, 93 ms" in text
    assert (out / "figure.png").stat().st_size > 10_000


def test_listens_to_standard_input(out, capsys, monkeypatch):
    """Half of a chunk at its end too."""
    with wave.open(str(out / "speech.wav")) as file:
        raw = file.readframes(20 * stream_audio.CHUNK + stream_audio.CHUNK // 2)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(raw)))
    (difference,) = differences(run(capsys, "--listen", "-", "--out", out))
    assert difference <= stream_audio.SAME


def test_features_of_chunks_are_those_of_the_whole():
    sound = np.random.default_rng(0).normal(size=8 * stream_audio.HOP).astype(np.float32)
    past, chunks = stream_audio.before(sound[:0]), []
    for chunk in np.split(sound, 4):
        joined = np.concatenate([past, chunk])
        chunks.append(stream_audio.features(joined))
        past = joined[len(chunk) :]
    whole = stream_audio.features(stream_audio.before(sound))
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-6)


def test_a_keyword_is_found_once_and_when_it_is_sure():
    detect = stream_audio.Detector()
    sure, none = np.eye(5)[[2]] * 9, np.eye(5)[[0]] * 9
    rows = [none, sure, sure, none, *[sure] * 20]
    (detection,) = [each for now, row in enumerate(rows) for each in detect(row, now)]
    assert (detection.word, detection.time) == (stream_audio.KEYWORDS[1], 6)


def wav(path, rate):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(2000))
    return path


def test_sound_that_cannot_be_taken_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"has 16000 samples per second.*-ar 22050"):
        list(stream_audio.chunks_of(str(wav(tmp_path / "other.wav", 16000))))
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(SystemExit, match=r"text\.wav cannot be read as a WAV file"):
        list(stream_audio.chunks_of(str(tmp_path / "text.wav")))
    with pytest.raises(SystemExit, match="run this program without --listen first"):
        stream_audio.main(["--listen", "-", "--out", str(tmp_path)])
