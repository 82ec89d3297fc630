"""Times one training step of the codec written plainly in PyTorch: forward, losses, backward, AdamW, f32.

    python benches/peers/codec_train.py [--config FILE.json] [--batch 8] [--seconds 1] [--threads 2] [--device cpu]
"""

import torch
from peer import arguments, prepare, report, timed

from codec import total_loss


def main():
    args = arguments(__doc__.splitlines()[0]).parse_args()
    config, model, wave = prepare(args)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.8, 0.99))
    last = {}

    def step():
        decoded, _, losses = model(wave)
        loss, _ = total_loss(config, decoded, wave, losses)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e3)
        optimiser.step()
        last["loss"] = loss.item()

    seconds = timed(step, args.warmup, args.steps, args.device)
    report("codec_train_step", config, model, wave, seconds, final_loss=last["loss"])


if __name__ == "__main__":
    main()
