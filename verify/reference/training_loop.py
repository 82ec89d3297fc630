"""training_loop: twenty steps of a tiny codec against discriminators, as PyTorch takes them.

case          `config`: the codec's; `discriminators`, `rule`, `loss`, `optimizer`, `adversary`, `balanced` as the engine has them
value.<name>  parameters at the start, of the codec and of its discriminators; codebooks' averages under their own names
input         [steps,B,1,T]
losses        [steps,7]: mel, wave, adversarial, feature, commitment, codebook, discriminators', unweighted

A step is forward, the discriminators' step on the detached wave, the losses through what they have learnt, the codec's step. With a balancer
(audiocraft's losses/balancer.py, restated) the gradients of the wave are made shares of it; the commitment passes it by. Float64.
"""

from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F

from codec import randomise
from codec_model import Codec, CodecConfig
from discriminators import HifiGan, means, sums
from dump import Draw, leaf, save
from signals import speech
from spectral import multi_scale_mel_loss

STEPS, BATCH, SAMPLES = 20, 2, 320
SHAPE = dict(encoder_widths=[4, 6, 8], decoder_widths=[8, 6, 4], latent=8, codebook_dim=4, codebook_sizes=[32, 16], strides=[2, 4])
PERIODS, CHANNELS, SCALES = [2, 3], [3, 4], 1
LAYERS = [[4, 15, 1, 1], [4, 5, 2, 2]]
DISCRIMINATORS = dict(period=dict(rules="hifi-gan", periods=PERIODS, channels=CHANNELS, negative_slope=0.1),
                      scale=dict(scales=SCALES, layers=LAYERS, negative_slope=0.1))
CASES = {
    "dac": dict(
        config=CodecConfig(**SHAPE, quantizer="factorised", causal=False),
        rule=dict(form="lsgan", reduction="sum"),
        loss=dict(mel=15.0, wave=0.0, adversarial=1.0, feature=2.0, commitment=0.25, codebook=1.0),
        optimizer=dict(learning_rate=1e-4, gamma=0.999996, beta1=0.8, beta2=0.99, weight_decay=0.01, clip=1000.0),
        adversary=dict(learning_rate=1e-4, gamma=0.999996, beta1=0.8, beta2=0.99, weight_decay=0.01, clip=10.0),
        balanced=False,
    ),
    "balanced": dict(
        config=CodecConfig(**SHAPE, quantizer="ema"),
        rule=dict(form="hinge", reduction="mean"),
        loss=dict(mel=2.0, wave=0.1, adversarial=4.0, feature=4.0, commitment=1.0, codebook=1.0),
        optimizer=dict(learning_rate=3e-4, gamma=1.0, beta1=0.5, beta2=0.9, weight_decay=0.0, clip=10.0),
        adversary=dict(learning_rate=3e-4, gamma=1.0, beta1=0.5, beta2=0.9, weight_decay=0.0, clip=10.0),
        balanced=True,
    ),
}


def optimiser(parameters, rules):
    adam = torch.optim.AdamW(parameters, lr=rules["learning_rate"], betas=(rules["beta1"], rules["beta2"]), weight_decay=rules["weight_decay"])
    return adam, torch.optim.lr_scheduler.ExponentialLR(adam, rules["gamma"])


def step(adam, schedule, rules):
    torch.nn.utils.clip_grad_norm_([p for group in adam.param_groups for p in group["params"]], rules["clip"])
    adam.step()
    schedule.step()


class Balancer:
    def __init__(self, decay=0.999, total_norm=1.0):
        self.decay, self.total_norm, self.sums = decay, total_norm, {}

    def gradient(self, losses, weights, wave):
        total = sum(weights[name] for name in losses)
        out = torch.zeros_like(wave)
        for name, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss, wave, retain_graph=True)
            norm = gradient.flatten(1).norm(dim=1).mean()
            value, weight = self.sums.get(name, (0.0, 0.0))
            value, weight = value * self.decay + norm, weight * self.decay + 1
            self.sums[name] = value, weight
            out += weights[name] / total * self.total_norm * gradient / (value / weight + 1e-12)
        return out


def write(case, config, rule, loss, optimizer, adversary, balanced):
    draw = Draw("training_loop", case)
    model = Codec(config).double().train()
    randomise(model, draw)
    judge = HifiGan(PERIODS, CHANNELS, LAYERS, SCALES).double()
    for name, parameter in judge.named_parameters():
        scale = 0.1 if name.endswith("bias") else parameter[0].numel() ** -0.5
        parameter.data = draw.uniform(0.7, 1.3, *parameter.shape) if name.endswith("weight_g") else draw.normal(*parameter.shape, scale=scale)
    start = {f"value.{name}": p.detach().clone() for module in (model, judge) for name, p in module.named_parameters()}
    start |= {name: b.clone() for name, b in model.named_buffers()}
    make = sums if rule["form"] == "lsgan" else means
    (adam, schedule), (adam_d, schedule_d) = optimiser(model.parameters(), optimizer), optimiser(judge.parameters(), adversary)
    balancer, inputs, found = Balancer(), [], []
    for _ in range(STEPS):
        x = leaf(np.stack([speech(draw.rng, SAMPLES, config.sample_rate)[None] for _ in range(BATCH)]))
        wave, _, quantised = model(x)
        real, fake = judge(x), judge(wave.detach())
        discriminator = make(real, fake)[0]
        adam_d.zero_grad()
        discriminator.backward()
        step(adam_d, schedule_d, adversary)
        target = x[..., : wave.shape[-1]]
        _, adversarial, feature = make(judge(target), judge(wave))
        parts = {"mel": multi_scale_mel_loss(wave[:, 0], target[:, 0], config.sample_rate), "wave": F.l1_loss(wave, target),
                 "adversarial": adversarial, "feature": feature}
        weighted = {name: part for name, part in parts.items() if loss[name] > 0}
        bypass = sum(loss[name] * part for name, part in quantised.items())
        adam.zero_grad()
        if balanced:
            gradient = balancer.gradient(weighted, loss, wave)
            bypass.backward(retain_graph=True)
            wave.backward(gradient)
        else:
            (bypass + sum(loss[name] * part for name, part in weighted.items())).backward()
        step(adam, schedule, optimizer)
        inputs.append(x)
        row = [*parts.values(), quantised["commitment"], quantised.get("codebook", torch.zeros(())), discriminator]
        found.append(torch.stack([value.detach().reshape(()).double() for value in row]))
    given = {name: value for name, value in asdict(config).items() if value is not None}
    save("training_loop", case, {"input": torch.stack(inputs), "losses": torch.stack(found), **start}, config=given, rule=rule, loss=loss,
         optimizer=optimizer, adversary=adversary, balanced=balanced, discriminators=DISCRIMINATORS)


def make():
    for case, given in CASES.items():
        write(case, **given)
