"""stft: complex spectra re, im [B,F,frames] of x [B,T] (spectral.stft); dx is the gradient of sum(re dre + im dim)."""

from dump import Draw, grads, save
from spectral import stft

CASES = [(32, 17), (32, 127), (64, 500), (128, 333), (256, 1000), (512, 700), (1024, 1031), (2048, 1500)]


def make():
    for window, samples in CASES:
        case = f"window{window}_t{samples}"
        draw = Draw("stft", case)
        x = draw.normal(2 if window < 1024 else 1, samples, grad=True)
        spectrum = stft(x, window)
        re, im = spectrum.real, spectrum.imag
        dre, dim = draw.normal(*re.shape), draw.normal(*im.shape)
        save("stft", case, {"x": x, "re": re, "im": im, "dre": dre, "dim": dim,
                            **grads((re * dre + im * dim).sum(), x=x)}, window=window, hop=window // 4)
