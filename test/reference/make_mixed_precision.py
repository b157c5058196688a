"""How far PyTorch is from float64 when weights and activations are bfloat16: mixed-precision.json holds, for the statistics and the
gradients of <model>-gradients.safetensors, the relative distances |bfloat16 - float64| / |float64| over all elements.

Logits and values are widened to float32 before anything is made of them, as transformers does for its losses.
"""
import torch
from safetensors import safe_open

from common import HERE, MODELS, hidden_states, load_causal_lm, save_json, split

FAMILIES = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox"]
TEMPERATURE = 0.7


def bfloat16_statistics(model, head, tokens, offsets):
    out = {key: [] for key in ("logProb", "entropy", "lse", "value")}
    for ids in split(tokens, offsets.tolist()):
        hidden = hidden_states(model, ids)
        logits = model.get_output_embeddings()(hidden[:-1]).float() / TEMPERATURE
        lse = torch.logsumexp(logits, -1)
        log_p = logits - lse[:, None]
        zero = logits.new_zeros(1)
        out["logProb"].append(torch.cat([zero, log_p.gather(1, ids[1:, None].long())[:, 0]]))
        out["entropy"].append(torch.cat([zero, -(log_p.exp() * log_p).sum(-1)]))
        out["lse"].append(torch.cat([zero, lse]))
        out["value"].append(head(hidden)[:, 0].float())
    return {key: torch.cat(parts) for key, parts in out.items()}


def distance(actual, expected):
    flat = lambda tensors: torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    exact = flat(expected)
    return float((flat(actual) - exact).norm() / exact.norm())


def measure(name):
    with safe_open(HERE / f"{name}-gradients.safetensors", "pt") as file:
        exact = {key: file.get_tensor(key) for key in file.keys()}
    model = load_causal_lm(MODELS / name, torch.bfloat16)
    head = torch.nn.Linear(model.config.hidden_size, 1, dtype=torch.bfloat16)
    head.weight.data, head.bias.data = exact["head.weight"].bfloat16(), exact["head.bias"].bfloat16()
    out = bfloat16_statistics(model, head, exact["tokens"], exact["offsets"])
    upstream = {key: exact[f"d{key[0].upper()}{key[1:]}"] for key in out}
    sum((upstream[key] * out[key]).sum() for key in out).backward()
    expected = {key: exact["value" if key == "value" else f"t{TEMPERATURE}.{key}"] for key in out}
    names = [key for key, _ in model.named_parameters()]
    return {**{key: distance([out[key]], [expected[key]]) for key in out},
            "gradients": distance([p.grad for _, p in model.named_parameters()], [exact[f"grad.{key}"] for key in names])}


save_json(HERE / "mixed-precision.json", {name: measure(name) for name in FAMILIES})
