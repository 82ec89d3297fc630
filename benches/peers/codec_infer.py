"""Times offline encode and decode of the codec in PyTorch, weight norm folded, f32; audio seconds per second.

    python benches/peers/codec_infer.py [--config FILE.json] [--batch 1] [--seconds 10] [--threads 2] [--device cpu]
"""

import torch
from peer import arguments, prepare, report, timed


@torch.inference_mode()
def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(batch=1, seconds=10.0)
    args = parser.parse_args()
    config, model, wave = prepare(args)
    model.fold()
    codes = model.encode(wave)
    for bench, step in [("codec_encode", lambda: model.encode(wave)), ("codec_decode", lambda: model.decode(codes)),
                        ("codec_roundtrip", lambda: model.decode(model.encode(wave)))]:
        report(bench, config, model, wave, timed(step, args.warmup, args.steps, args.device))


if __name__ == "__main__":
    main()
