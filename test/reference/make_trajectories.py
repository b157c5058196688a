"""Twenty AdamW steps of PyTorch on fixed batches: the loss and the gradient norm of every step.

trajectories.json: per case the batches (lists of token lists), the learning rate of every step (warm-up, then linear decay),
AdamW's settings, and losses and gradNorms. The loss is the mean negative log-likelihood over all predicted tokens of the
batch; the gradient is clipped to norm 1 as torch.nn.utils.clip_grad_norm_ does it; gradNorms are those before clipping.
Weight decay acts on every trained parameter, as torch.optim.AdamW does with one parameter group.
"""
import torch

from common import HERE, MODELS, gradient_norm, is_predicted, load_causal_lm, pack, save_json, split, statistics
from make_lora import with_random_adapter

STEPS, WARM_UP = 20, 5


def schedule(peak):
    return [peak * min((k + 1) / WARM_UP, (STEPS - k) / (STEPS - WARM_UP)) for k in range(STEPS)]


def run(model, peak, weight_decay, seed):
    batches = [pack(lengths, model.config.vocab_size, seed + i) for i, lengths in enumerate([[9, 2, 20], [13, 13], [5, 1, 8, 17]])]
    parameters = [p for p in model.parameters() if p.requires_grad]
    rates = schedule(peak)
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.99), eps=1e-8, weight_decay=weight_decay)
    losses, norms = [], []
    for step, rate in enumerate(rates):
        tokens, offsets = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = -statistics(model, tokens, offsets)["logProb"][is_predicted(offsets)].mean()
        loss.backward()
        norms.append(gradient_norm(parameters))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
    return {"batches": [[ids.tolist() for ids in split(t, o.tolist())] for t, o in batches], "learningRates": rates,
            "betas": [0.9, 0.99], "eps": 1e-8, "weightDecay": weight_decay, "maxGradNorm": 1.0, "losses": losses, "gradNorms": norms}


def main():
    save_json(HERE / "trajectories.json", {
        "gpt2": run(load_causal_lm(MODELS / "gpt2"), 3e-3, 0.1, 51),
        "llama": run(load_causal_lm(MODELS / "llama"), 3e-3, 0.1, 55),
        "gpt2-lora": run(with_random_adapter("gpt2", 41), 1e-2, 0.0, 61),
        "llama-lora": run(with_random_adapter("llama", 45), 1e-2, 0.05, 65),
    })


main()
