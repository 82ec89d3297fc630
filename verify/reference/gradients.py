"""gradients: of published codecs, by PyTorch's autograd; their small models are those of mimi/weights and encodec/weights.

gradients/encodec.safetensors   transformers' EncodecModel: `input` [B,1,T]; `probe` and `wave` [B,1,T'], decoder(encoder(input)) with
                                nothing between; the gradient of sum(probe wave) / elements(wave) with respect to every parameter, under
                                the name that a checkpoint has it by, weight norms folded. What the quantiser has is zero: a file of
                                them is loaded as the model itself is
gradients/mimi.safetensors      moshi's MimiModel in training mode, weight-normed, all codebooks: `input`, `wave` [B,1,T], `codes` [B,K,F],
                                `loss.l1` and `loss.commitment`; `grad.NAME` of 10 l1 + 0.5 commitment for every parameter; `after.NAME`, the
                                moving averages of the codebooks after this batch
"""

import json

import torch
from safetensors.torch import load_file, safe_open
from torch.nn.utils import parametrize
from transformers import EncodecModel, MimiConfig

import mimi
from dump import GOLDEN, Draw, save


def fold(model):
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")


def zeros(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def write(case, model, run, samples, names, state):
    draw = Draw("gradients", case)
    source = draw.normal(2, 1, samples, scale=0.3)
    wave = run(source)
    probe = draw.normal(*wave.shape)
    (probe * wave).mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    save("gradients", case, {"input": source, "probe": probe, "wave": wave, **state(names(found))})


def trained_mimi():
    """moshi's module in training mode, float64, and an input."""
    path = GOLDEN / "mimi" / "weights" / "kyutai.safetensors"
    with safe_open(path, "pt") as file:
        config = MimiConfig(**json.loads(file.metadata()["config"]))
    model, folded = mimi.kyutai(config, norm="weight_norm"), load_file(path)
    state = {}
    for name, tensor in model.state_dict().items():
        whole = name.removesuffix("_g").removesuffix("_v")
        weight = next(folded[n] for n in (whole, *(whole.replace(new, old) for new, old in mimi.RENAMES)) if n in folded)
        state[name] = weight.flatten(1).norm(dim=1)[:, None, None] if name.endswith("weight_g") else weight
    model.load_state_dict(state)
    model = model.double().train()
    for p in model.parameters():
        p.requires_grad_(True)
    return model, Draw("gradients", "mimi").normal(2, 1, 30 * model.frame_size, scale=0.3)


def make_mimi():
    model, source = trained_mimi()
    latent = model._to_framerate(model.encoder_transformer(model.encoder(source))[0])
    found = model.quantizer(latent, model.frame_rate)
    wave = model.decoder(model.decoder_transformer(model._to_encoder_framerate(found.x))[0])
    distance = torch.nn.functional.l1_loss(wave, source)
    (10 * distance + 0.5 * found.penalty).backward()
    state = mimi.original(model.state_dict())
    averages = {f"after.{name}": state[name] for name in state if "cluster_usage" in name or "embedding_sum" in name}
    gradients = mimi.original({f"grad.{name}": p.grad for name, p in model.named_parameters()})
    save("gradients", "mimi", {"input": source, "wave": wave, "codes": found.codes, "loss.l1": distance,
                               "loss.commitment": found.penalty, **averages, **gradients})


def make_encodec():
    folder = GOLDEN / "encodec" / "weights" / "24khz"
    model = EncodecModel.from_pretrained(folder).double().train()
    fold(model)
    write("encodec", model, lambda x: model.decoder(model.encoder(x)), 7 * 40, dict, lambda found: zeros(model.state_dict()) | found)


def make():
    make_mimi()
    make_encodec()
