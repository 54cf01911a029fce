"""The layers that are measured, each from a published model or task, and what each must cost at the least.

Channels, filters, kernels, strides and dilations are the source's; batch and length are those of a training step
that the source describes, made smaller where a step would take seconds. Where a source's convolution is dense, the
separable layer of the same geometry stands for it.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from flax_sepconv._types import Padding
from flax_sepconv._window import output_length, padding_amounts


@dataclasses.dataclass(frozen=True)
class Shape:
    """One layer and the input it gets.

    `suite` is the group it is reported with, `source` where it comes from.
    """

    name: str
    batch: int
    length: int
    channels: int
    filters: int
    kernel_size: int
    multiplier: int = 1
    strides: int = 1
    dilation: int = 1
    padding: Padding = "same"
    suite: str = "layers"
    source: str = ""
    gradient: bool = True

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros before and after the sequence."""
        return padding_amounts(self.length, self.kernel_size, self.strides, self.padding, self.dilation)

    @property
    def output_length(self) -> int:
        """Number of windows."""
        return output_length(self.length, self.kernel_size, self.strides, self.padding, self.dilation)

    @property
    def wide(self) -> int:
        """Channels between the two kernels."""
        return self.channels * self.multiplier

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of a problem, in Keras's layout."""
        return {
            "x": (self.batch, self.length, self.channels),
            "depthwise_kernel": (self.kernel_size, self.channels, self.multiplier),
            "pointwise_kernel": (1, self.wide, self.filters),
            "bias": (self.filters,),
            "cotangent": (self.batch, self.output_length, self.filters),
        }

    def flops(self, mode: str) -> int:
        """Multiplications and additions by the definition, those with padding left out.

        With gradients it is three times the forward pass: each of the two steps has a gradient to its input and
        one to its kernel. A method that is not the sum itself (Fourier, say) may need fewer.
        """
        low = self.pads[0]
        starts = np.arange(self.output_length) * self.strides - low
        first = np.maximum(-(starts // self.dilation), 0)  # the first tap at or after sample 0
        last = np.minimum((self.length - 1 - starts) // self.dilation, self.kernel_size - 1)
        taps = int(np.maximum(last - first + 1, 0).sum())
        depthwise = 2 * self.batch * taps * self.wide
        pointwise = 2 * self.batch * self.output_length * self.wide * self.filters
        return (depthwise + pointwise) * (1 if mode == "forward" else 3)

    def bytes(self, mode: str) -> int:
        """Float32 traffic that no method avoids: every argument read once, every result written once."""
        sizes = {name: math.prod(shape) for name, shape in self.array_shapes().items()}
        y = sizes.pop("cotangent")
        arguments = sum(sizes.values())
        return 4 * (arguments + y) * (1 if mode == "forward" else 2)

    def describe(self) -> str:
        """The shape in short: batch, length, channels → filters, and what differs from the defaults."""
        text = f"{self.batch}, {self.length}, {self.channels}→{self.filters}, k{self.kernel_size}"
        for letter, value in (("m", self.multiplier), ("s", self.strides), ("d", self.dilation)):
            text += f" {letter}{value}" * (value != 1)
        return text + f" {self.padding}" * (self.padding != "same")


def parse(text: str) -> Shape:
    """A shape from `B,L,C,F,K[,M,S,D[,padding]]`."""
    parts = [part.strip() for part in text.split(",")]
    padding: Any = parts.pop().lower() if parts and parts[-1].isalpha() else "same"
    if padding not in ("same", "valid", "causal"):
        raise ValueError(f"the padding must be 'same', 'valid' or 'causal'; got {padding!r}.")
    if not 5 <= len(parts) <= 8 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"a shape must be B,L,C,F,K[,M,S,D[,padding]], such as 8,1024,64,64,5; got {text!r}."
        )
    shape = Shape(text, *map(int, parts), padding=padding, source="--shape")
    if shape.output_length < 1:
        raise ValueError(f"the output of {text!r} would be empty.")
    return shape


LAYERS = (
    # Kriman et al. 2019, QuartzNet 15x5 (speech): blocks B1, B3, B5 and the layers around them, 16 s of audio.
    Shape("quartznet-c1", 8, 1600, 64, 256, 33, strides=2, source="QuartzNet C1"),
    Shape("quartznet-b1", 8, 800, 256, 256, 33, source="QuartzNet B1"),
    Shape("quartznet-b3", 4, 800, 512, 512, 51, source="QuartzNet B3"),
    Shape("quartznet-b5", 4, 800, 512, 512, 75, source="QuartzNet B5"),
    Shape("quartznet-c2", 2, 800, 512, 512, 87, dilation=2, source="QuartzNet C2"),
    # Majumdar, Ginsburg 2020, MatchboxNet 3x2x64 (keywords): 1.28 s at 100 frames a second.
    Shape("matchboxnet-b1", 128, 128, 128, 64, 13, source="MatchboxNet B1"),
    Shape("matchboxnet-b2", 128, 128, 64, 64, 15, source="MatchboxNet B2"),
    Shape("matchboxnet-c2", 64, 128, 64, 128, 29, dilation=2, source="MatchboxNet C2"),
    # Zhang et al. 2017, DS-CNN (keywords on microcontrollers), large: 276 channels, batch 100, over time.
    Shape("dscnn-large", 100, 49, 276, 276, 3, source="DS-CNN-L"),
    # Google's text classification guide, sepCNN: embeddings of 200, 500 words, two blocks.
    Shape("sepcnn-text-1", 64, 500, 200, 64, 3, source="sepCNN, first block"),
    Shape("sepcnn-text-2", 64, 166, 64, 128, 3, source="sepCNN, second block"),
    # Hannun et al. 2019 (arrhythmia): kernels of 16. Ribeiro et al. 2020 (12-lead ECG): 17, downsampling by 4.
    Shape("ecg-hannun", 16, 2048, 64, 64, 16, source="Hannun et al. 2019"),
    Shape("ecg-12-lead", 16, 4096, 12, 64, 17, source="Ribeiro et al. 2020, first layer"),
    Shape("ecg-stride", 16, 1024, 128, 196, 17, strides=4, source="Ribeiro et al. 2020, downsampling"),
    # Anguita et al. 2013, UCI-HAR (9 sensor channels, windows of 128); Ordóñez, Roggen 2016 (113 channels, 24 steps).
    Shape("har", 64, 128, 9, 64, 5, multiplier=4, source="UCI-HAR"),
    Shape("opportunity", 100, 24, 113, 64, 5, multiplier=2, padding="valid", source="DeepConvLSTM"),
    # Lawhern et al. 2018, EEGNet-8,2: its separable convolution.
    Shape("eegnet", 64, 32, 16, 16, 16, source="EEGNet"),
    # Rahimian et al. 2019, XceptionTime (surface EMG): the widest of its separable branches.
    Shape("xceptiontime", 32, 200, 64, 64, 39, source="XceptionTime"),
    # Zhou, Troyanskaya 2015, DeepSEA: one-hot DNA, 320 motifs of 8.
    Shape("dna-motifs", 64, 1000, 4, 320, 8, multiplier=8, padding="valid", source="DeepSEA"),
    # Gulati et al. 2020, Conformer: its convolution module, medium k31 (as in ESPnet) and large k32.
    Shape("conformer-m", 16, 400, 256, 256, 31, source="Conformer M"),
    Shape("conformer-l", 8, 400, 512, 512, 32, source="Conformer L"),
    # Gu, Dao 2023, Mamba 130M: causal k4 over 1536 channels, then x_proj to 48 + 2 * 16.
    Shape("mamba-130m", 1, 2048, 1536, 80, 4, padding="causal", source="Mamba 130M"),
    # Luo, Mesgarani 2019, Conv-TasNet: H = 512, B = 128, P = 3, its largest dilations.
    Shape("convtasnet", 2, 1600, 512, 128, 3, dilation=64, source="Conv-TasNet"),
    # Bai et al. 2018, TCN: word-level Penn Treebank sizes, third level and on.
    Shape("tcn", 16, 400, 150, 150, 7, dilation=8, padding="causal", source="TCN"),
    # Stoller et al. 2018, Wave-U-Net: 24 more filters a level, k15, decimated by 2.
    Shape("waveunet", 4, 16384, 24, 48, 15, strides=2, source="Wave-U-Net, level 2"),
    # Raw audio at 16 kHz, one second, as in Speech Commands (Warden 2018), into a wide front end.
    Shape("audio-1s", 1, 16000, 64, 64, 15, source="Speech Commands front end"),
    Shape("audio-m2", 4, 16000, 16, 64, 9, multiplier=2, source="Speech Commands front end"),
)

LONG = (
    # Romero et al. 2021, CKConv, and Poli et al. 2023, Hyena: kernels as long as a sequence.
    Shape("long-k257", 8, 2048, 64, 64, 257, suite="long", source="CKConv"),
    Shape("long-k1024", 4, 4096, 64, 64, 1024, suite="long", padding="causal", source="Hyena"),
    Shape("long-k4096", 1, 8192, 64, 64, 4096, suite="long", padding="causal", source="Hyena"),
)

DILATION = tuple(
    Shape(f"dilation-{d}", 16, 1024, 64, 64, 3, dilation=d, suite="dilation", source="jax #26266")
    for d in (1, 2, 4, 8, 16, 32, 64)
)

# One more output step at batch 1: one window without padding, which this library takes as a step of a stream.
LATENCY = tuple(
    Shape(
        f"step-{name}",
        1,
        k,
        c,
        f,
        k,
        padding="valid",
        suite="latency",
        source=f"one step of {name}",
        gradient=False,
    )
    for name, c, f, k in (
        ("matchboxnet", 64, 64, 15),
        ("mamba-130m", 1536, 80, 4),
        ("quartznet-b1", 256, 256, 33),
        ("conformer-l", 512, 512, 32),
    )
)

SHAPES = (*LAYERS, *LONG, *DILATION, *LATENCY)
