"""Times streaming encode and decode of the codec in PyTorch, weight norm folded, f32: one frame a call, state kept between.

    python benches/peers/codec_stream.py [--config FILE.json] [--batch 1] [--steps 200] [--threads 2] [--device cpu]

Before anything is timed, ten frames streamed must give what the same frames give at once.
"""

import types

import torch
import torch.nn.functional as F
from peer import arguments, prepare, report, timed

from codec_model import Conv, ConvTranspose


def conv(self, x):
    if self.padding[0]:
        if self.state is None:
            self.state = x.new_zeros(*x.shape[:2], self.padding[0])
        x = torch.cat([self.state, x], -1)
        self.state = x[..., -self.padding[0]:]
    return F.conv1d(x, self.weight, self.bias, self.stride, 0, self.dilation)


def conv_transpose(self, x):
    y = F.conv_transpose1d(x, self.weight, None, self.stride)
    if self.state is not None:
        y[..., : self.stride] += self.state
    self.state = y[..., -self.stride:]
    return y[..., : -self.stride] + self.bias[:, None]


def stream(model):
    """Every layer keeps what the next frame needs of this one; forgets it when called again."""
    for module in model.modules():
        forward = {Conv: conv, ConvTranspose: conv_transpose}.get(type(module))
        if forward:
            module.state, module.forward = None, types.MethodType(forward, module)


@torch.inference_mode()
def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(batch=1, seconds=4.0, steps=200, warmup=20)
    args = parser.parse_args()
    config, model, wave = prepare(args)
    if not config.causal:
        raise SystemExit("error: a codec that is not causal has no frames to stream")
    model.fold()
    frames = wave.split(config.hop, -1)
    count = min(10, len(frames))
    whole = model.decode(model.encode(wave[..., : count * config.hop]))
    stream(model)
    streamed = torch.cat([model.decode(model.encode(frame)) for frame in frames[:count]], -1)
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-4)
    stream(model)
    place = 0

    def step():
        nonlocal place
        codes = model.encode(frames[place % len(frames)]).cpu()
        model.decode(codes.to(wave.device)).cpu()
        place += 1

    report("codec_stream", config, model, frames[0], timed(step, args.warmup, args.steps, args.device))


if __name__ == "__main__":
    main()
