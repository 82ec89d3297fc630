"""discriminators: published discriminators of few channels, their maps, losses and gradients.

Modules and DAC's losses are those of `descript-audio-codec` and `encodec`, whose layers only lose channels here; what no package
has (HiFi-GAN's discriminators, audiocraft's losses) is written below as published, HiFi-GAN's first scale weight-normed like the others.

x, y                 real and made waves [B,1,T]
<parameter>          by the module's name of it
map.<d>.<l>          maps of y, images as [B,C,H,W]; the last of a discriminator are its logits
losses               [discriminator's, generator's adversarial, features']
discriminator.<name> gradient of the discriminator's loss: of a parameter, or of `y`
generator.<name>     gradient of adversarial + 2 features, likewise
case                 `config` and `rule` as the engine has them

DAC's wave is whole rows of one period and not of the other, no multiple of a hop; HiFi-GAN's likewise. Float64.

Beside requirements-published.txt it needs descript-audio-codec 1.0.0, encodec 0.1.1 and torchaudio 2.9.1, installed with --no-deps (one
of them asks for an old protobuf) and what `import dac` then misses.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import weight_norm

from dump import Draw, save

RATE = 16000


class Period(nn.Module):
    """HiFi-GAN's DiscriminatorP."""

    def __init__(self, period, channels):
        super().__init__()
        self.period = period
        sizes = list(zip([1] + channels, channels))
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(i, o, (5, 1), (3 if n + 1 < len(sizes) else 1, 1), padding=(2, 0))) for n, (i, o) in enumerate(sizes)
        )
        self.conv_post = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), 1, padding=(1, 0)))

    def forward(self, x):
        b, c, t = x.shape
        if t % self.period != 0:
            x = F.pad(x, (0, self.period - t % self.period), "reflect")
        return stack(self, x.view(b, c, -1, self.period), 0.1)


class Scale(nn.Module):
    """HiFi-GAN's DiscriminatorS."""

    def __init__(self, layers):
        super().__init__()
        self.convs = nn.ModuleList()
        last = 1
        for channels, taps, stride, groups in layers:
            self.convs.append(weight_norm(nn.Conv1d(last, channels, taps, stride, groups=groups, padding=taps // 2)))
            last = channels
        self.conv_post = weight_norm(nn.Conv1d(last, 1, 3, 1, padding=1))

    def forward(self, x):
        return stack(self, x, 0.1)


def stack(module, x, slope):
    maps = []
    for conv in module.convs:
        x = F.leaky_relu(conv(x), slope)
        maps.append(x)
    return maps + [module.conv_post(x)]


class HifiGan(nn.Module):
    def __init__(self, periods, channels, layers, scales):
        super().__init__()
        self.scales = scales
        self.discriminators = nn.ModuleList([Period(p, channels) for p in periods] + [Scale(layers) for _ in range(scales)])

    def forward(self, x):
        periods = self.discriminators[: -self.scales]
        maps = [d(x) for d in periods]
        for d in self.discriminators[-self.scales :]:
            maps.append(d(x))
            x = F.avg_pool1d(x, 4, 2, padding=2)
        return maps


def sums(real, fake):
    """DAC's GANLoss on maps."""
    discriminator = sum((f[-1] ** 2).mean() + ((1 - r[-1]) ** 2).mean() for r, f in zip(real, fake))
    adversarial = sum(((1 - f[-1]) ** 2).mean() for f in fake)
    features = sum(F.l1_loss(b, a.detach()) for r, f in zip(real, fake) for a, b in zip(r[:-1], f[:-1]))
    return discriminator, adversarial, features


def means(real, fake):
    """audiocraft's AdversarialLoss with hinge, and its FeatureMatchingLoss."""
    zero = real[0][-1].new_zeros(1)
    discriminator = sum(-torch.min(r[-1] - 1, zero).mean() - torch.min(-f[-1] - 1, zero).mean() for r, f in zip(real, fake))
    adversarial = sum(-f[-1].mean() for f in fake)
    features = sum(sum(F.l1_loss(b, a.detach()) for a, b in zip(r[:-1], f[:-1])) / (len(f) - 1) for r, f in zip(real, fake))
    return discriminator / len(fake), adversarial / len(fake), features / len(fake)


def write(case, module, config, rule, losses, samples, check=None, gain=1):
    draw = Draw("discriminators", case)
    module = module.double()
    for name, parameter in module.named_parameters():
        if name.endswith("weight_g"):
            values = draw.uniform(0.7, 1.3, *parameter.shape) * gain
        else:
            scale = 0.1 if name.endswith("bias") else parameter[0].numel() ** -0.5
            values = draw.normal(*parameter.shape, scale=scale)
        parameter.data = values
    x = draw.normal(2, 1, samples, scale=0.3)
    y = (0.5 * x + draw.normal(2, 1, samples, scale=0.2) + 0.05).float().double().requires_grad_()
    real, fake = module(x), module(y)
    discriminator, adversarial, features = losses(real, fake)
    if check is not None:
        check(x, y, (discriminator, adversarial, features))
    leaves = {**dict(module.named_parameters()), "y": y}
    tensors = {"x": x, "y": y, "losses": torch.stack([discriminator, adversarial, features])}
    tensors |= dict(module.named_parameters())
    tensors |= {f"map.{d}.{n}": m for d, maps in enumerate(fake) for n, m in enumerate(maps)}
    for name, loss in [("discriminator", discriminator), ("generator", adversarial + 2 * features)]:
        found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        tensors |= {f"{name}.{leaf}": gradient for leaf, gradient in zip(leaves, found)}
    save("discriminators", case, tensors, config=config, rule=rule)


def dac():
    from audiotools import AudioSignal
    from dac.model import discriminator
    from dac.nn.loss import GANLoss

    published, window = discriminator.WNConv2d, AudioSignal.get_window
    widths = {32: 3, 128: 4, 512: 5, 1024: 6}
    narrow = lambda i, o, *args, **kwargs: published(widths.get(i, i), widths.get(o, o), *args, **kwargs)
    discriminator.WNConv2d = narrow

    # In double precision, as everything else.
    class Signal(AudioSignal):
        def __init__(self, wave, *args, **kwargs):
            super().__init__(wave, *args, **kwargs)
            self.audio_data = wave

    AudioSignal.get_window = staticmethod(lambda kind, n, device: torch.hann_window(n, dtype=torch.float64))
    discriminator.AudioSignal = Signal
    module = discriminator.Discriminator(rates=[], periods=[2, 3], fft_sizes=[64, 32], sample_rate=RATE)

    def check(x, y, found):
        # The package's own losses of the same maps.
        theirs, signals = GANLoss(module), (Signal(y, RATE), Signal(x, RATE))
        expected = (theirs.discriminator_loss(*signals), *theirs.generator_loss(*signals))
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected)), (found, expected)

    config = dict(
        normalise=True,
        period=dict(rules="dac", periods=[2, 3], channels=[3, 4, 5, 6, 6], negative_slope=0.1),
        band=dict(windows=[64, 32], bands=discriminator.BANDS, channels=3, negative_slope=0.1),
    )
    write("dac", module, config, dict(form="lsgan", reduction="sum"), sums, 3 * 2 * 31 - 2, check)
    discriminator.WNConv2d, discriminator.AudioSignal, AudioSignal.get_window = published, AudioSignal, window


def encodec():
    from encodec.msstftd import MultiScaleSTFTDiscriminator

    windows = [64, 128, 32]
    published = MultiScaleSTFTDiscriminator(3, n_ffts=windows, hop_lengths=[w // 4 for w in windows], win_lengths=windows)
    for d in published.discriminators:
        d.spec_transform.window = torch.hann_window(d.n_fft, dtype=torch.float64)

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.discriminators = published.discriminators

        def forward(self, x):
            return [maps + [logits] for logits, maps in zip(*published(x))]

    config = dict(stft=dict(windows=windows, filters=3, dilations=[1, 2, 4], negative_slope=0.2))
    write("encodec", Maps(), config, dict(form="hinge", reduction="mean"), means, 16 * 16 + 5, gain=2.5)  # logits on either side of the hinge


def hifi_gan():
    periods, channels, scales = [2, 3], [3, 4, 5], 3
    layers = [[4, 15, 1, 1], [4, 41, 2, 4], [8, 41, 4, 2], [8, 5, 1, 1]]
    config = dict(
        period=dict(rules="hifi-gan", periods=periods, channels=channels, negative_slope=0.1),
        scale=dict(scales=scales, layers=layers, negative_slope=0.1),
    )
    write("hifi_gan", HifiGan(periods, channels, layers, scales), config, dict(form="lsgan", reduction="sum"), sums, 2 * 67)


def make():
    dac()
    encodec()
    hifi_gan()
