"""The two front ends in PyTorch: audio [b, s] in [-1, 1] to features [b, f, t]."""

import math

import torch
import torch.nn.functional as F
from torch import nn

SAMPLE_RATE, FFT, HOP, MELS = 16_000, 512, 160, 64


def mel_filters(low_hz: float, high_hz: float) -> torch.Tensor:
    """HTK's triangular filters [mels, bins], linear in mel."""

    def mel(hertz: torch.Tensor) -> torch.Tensor:
        return 2595 * torch.log10(1 + hertz / 700)

    bins = mel(torch.arange(FFT // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / FFT)
    low, high = mel(torch.tensor([low_hz, high_hz], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, MELS + 2, dtype=torch.float64)
    widths = edges.diff()
    rising = (bins - edges[:-2, None]) / widths[:-1, None]
    falling = (edges[2:, None] - bins) / widths[1:, None]
    return torch.minimum(rising, falling).clamp(min=0).float()


class MFCC(nn.Module):
    """TensorFlow's MFCC as TC-ResNet uses it: 64 filters, 40 coefficients, 98 frames.

    Windows of 30 ms; the DCT-II has the factor sqrt(2 / mels) in every row.
    """

    window: torch.Tensor
    filters: torch.Tensor
    dct: torch.Tensor

    def __init__(self, coefficients: int = 40):
        super().__init__()
        self.length = 480
        # stft would centre a shorter window in its frame; zeros behind it instead.
        window = F.pad(torch.hann_window(self.length), (0, FFT - self.length))
        order = torch.arange(coefficients, dtype=torch.float64)[:, None]
        place = torch.arange(MELS, dtype=torch.float64) + 0.5
        dct = torch.cos(math.pi / MELS * order * place) * math.sqrt(2 / MELS)
        self.register_buffer("window", window)
        self.register_buffer("filters", mel_filters(80.0, 7600.0))
        self.register_buffer("dct", dct.float())

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """[b, s] to [b, 40, t]."""
        spectrum = torch.stft(
            F.pad(audio, (0, FFT - self.length)),
            FFT,
            HOP,
            window=self.window,
            center=False,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        energies = torch.matmul(self.filters, power)
        return torch.matmul(self.dct, torch.log(energies + 1e-6))


class LogMel(nn.Module):
    """Kaldi's filter bank as ConvMixer uses it: 64 filters, 98 frames, normalised.

    Windows of 25 ms without their mean, pre-emphasised, under a symmetric Hann window.
    The mean of the whole clip is not taken off first: that of each window is.
    """

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self):
        super().__init__()
        self.length = 400
        window = torch.hann_window(self.length, periodic=False)
        self.register_buffer("window", window)
        self.register_buffer("filters", mel_filters(20.0, 8000.0).T.contiguous())

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """[b, s] to [b, 64, t]."""
        frames = audio.unfold(-1, self.length, HOP)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        frames = (frames - 0.97 * before) * self.window
        spectrum = torch.fft.rfft(frames, n=FFT)
        power = spectrum.real.square() + spectrum.imag.square()
        energies = torch.matmul(power, self.filters)
        log = energies.clamp(min=torch.finfo(torch.float32).eps).log()
        return ((log + 8.522078) / (2 * 4.0515576)).transpose(1, 2)


def create(name: str) -> nn.Module:
    """The front end "mfcc" or "log_mel"."""
    return {"mfcc": MFCC, "log_mel": LogMel}[name]()


def to_float(audio: torch.Tensor) -> torch.Tensor:
    """int16 audio as float32 in [-1, 1]."""
    return audio.float() / 32768
