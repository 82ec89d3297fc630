"""Times one training step of the codec written plainly in PyTorch: forward, losses, backward, AdamW, f32.

    python benches/peers/codec_train.py [--config FILE.json] [--batch 8] [--seconds 1] [--threads 2] [--device cpu]
                                        [--adversarial] [--checkpoint FILE]

With --adversarial the codec is trained against the discriminators of benches/src/bin/codec_train.rs. FILE is what that program saved: the
first step then starts from the same weights and hears the same noise, and its losses are to be the same.
"""

import torch
from peer import arguments, memory, noise, prepare, report, timed
from torch import nn
from torch.nn.utils import weight_norm

from codec import total_loss
from discriminators import Period, means, stack

PERIODS, CHANNELS = [2, 3, 5, 7, 11], [8, 16, 32, 32]
WINDOWS, FILTERS, DILATIONS = [1024, 512, 256], 8, [1, 2, 4]


class Spectrum(nn.Module):
    """EnCodec's DiscriminatorSTFT: whole frames, scaled by the window's energy."""

    def __init__(self, window):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        n = FILTERS
        first = nn.Conv2d(2, n, (3, 9), padding=(1, 4))
        dilated = [weight_norm(nn.Conv2d(n, n, (3, 9), (1, 2), dilation=(d, 1), padding=(d, 4))) for d in DILATIONS]
        self.convs = nn.ModuleList([first, *dilated, weight_norm(nn.Conv2d(n, n, (3, 3), padding=1))])
        self.conv_post = weight_norm(nn.Conv2d(n, 1, (3, 3), padding=1))

    def forward(self, x):
        size = len(self.window)
        z = torch.stft(x[:, 0], size, size // 4, window=self.window, center=False, return_complex=True)
        z = z / self.window.pow(2).sum().sqrt()
        return stack(self, torch.stack([z.real, z.imag], 1).transpose(2, 3), 0.3)


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.discriminators = nn.ModuleList([Period(p, CHANNELS) for p in PERIODS] + [Spectrum(w) for w in WINDOWS])

    def forward(self, x):
        return [d(x) for d in self.discriminators]


def start(modules, path):
    """Takes over the values of a checkpoint: every parameter of these modules, and every buffer."""
    from safetensors.torch import load_file

    saved = {name.removeprefix("value.").replace(".conv.", "."): value for name, value in load_file(path).items()}
    for module in modules:
        module.load_state_dict({name: saved[name] for name in module.state_dict()})


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--adversarial", action="store_true")
    parser.add_argument("--checkpoint")
    args = parser.parse_args()
    config, model, wave = prepare(args)
    judge = Judge().to(args.device) if args.adversarial else None
    if args.checkpoint:
        start([model] + ([judge] if judge else []), args.checkpoint)
        wave = torch.from_numpy(noise(wave.numel()).reshape(wave.shape)).float().to(args.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.8, 0.99))
    learner = torch.optim.AdamW(judge.parameters(), lr=1e-4, betas=(0.8, 0.99)) if judge else None
    seen = []

    def judged(decoded, target):
        """(discriminators' loss, adversarial, features), the last two through what they have learnt from the first."""
        judge.requires_grad_(True)
        learnt = means(judge(target), judge(decoded.detach()))[0]
        learner.zero_grad(set_to_none=True)
        learnt.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 10)
        learner.step()
        judge.requires_grad_(False)
        return (learnt, *means(judge(target), judge(decoded))[1:])

    def step():
        decoded, _, losses = model(wave)
        loss, parts = total_loss(config, decoded, wave, losses)
        parts = {"mel": parts["mel"], "wave": parts["l1"], "commitment": parts["commitment"]}
        if judge:
            parts["discriminator"], parts["adversarial"], parts["feature"] = judged(decoded, wave[..., : decoded.shape[-1]])
            loss = loss + parts["adversarial"] + 2 * parts["feature"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e3)
        optimiser.step()
        seen.append({name: part.item() for name, part in parts.items()})

    rest = memory("VmRSS")
    seconds = timed(step, args.warmup, args.steps, args.device)
    bench = "codec_train_step_adversarial" if judge else "codec_train_step"
    report(bench, config, model, wave, seconds, first=seen[0], memory_at_rest_mib=rest, memory_peak_mib=memory("VmHWM"))


if __name__ == "__main__":
    main()
