"""Per-token statistics of packed sequences, and the gradient of every parameter under random upstream gradients.

<model>-statistics.safetensors: tokens, offsets, t1.*, t0.7.* (logProb, entropy, lse at temperatures 1 and 0.7)
<model>-gradients.safetensors:  also head.weight/head.bias, value, the upstream gradients dLogProb/dEntropy/dLse/dValue and
                                grad.<name> for every named parameter, at temperature 0.7.
The upstream gradients are not zero at the sequences' first tokens, where logProb, entropy and lse are constants.
"""
import torch

from common import HERE, MODELS, load_causal_lm, pack, save_tensors, statistics

LENGTHS = [1, 2, 7, 33, 5, 16]


def temperatures(model, tokens, offsets):
    with torch.no_grad():
        return {f"t{t:g}.{key}": value for t in (1.0, 0.7) for key, value in
                statistics(model, tokens, offsets, t).items() if key != "value"}


def make(name, seed):
    model = load_causal_lm(MODELS / name)
    tokens, offsets = pack(LENGTHS, model.config.vocab_size, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    head = torch.nn.Linear(model.config.hidden_size, 1, dtype=torch.float64)
    head.weight.data = draw(1, model.config.hidden_size).double() * 0.3
    head.bias.data = draw(1).double()
    upstream = {key: draw(len(tokens)) for key in ("logProb", "entropy", "lse", "value")}

    out = statistics(model, tokens, offsets, 0.7, head)
    sum((upstream[key].double() * out[key]).sum() for key in upstream).backward()
    gradients = {f"grad.{key}": p.grad for key, p in model.named_parameters()}
    save_tensors(HERE / f"{name}-gradients.safetensors", {
        "tokens": tokens, "offsets": offsets, "value": out["value"],
        "head.weight": head.weight, "head.bias": head.bias,
        "headGrad.weight": head.weight.grad, "headGrad.bias": head.bias.grad,
        **{f"d{key[0].upper()}{key[1:]}": value for key, value in upstream.items()},
        **temperatures(model, tokens, offsets), **gradients}, temperature=0.7)


def make_statistics(name, seed):
    model = load_causal_lm(MODELS / name)
    tokens, offsets = pack(LENGTHS, model.config.vocab_size, seed)
    save_tensors(HERE / f"{name}-statistics.safetensors",
                 {"tokens": tokens, "offsets": offsets, **temperatures(model, tokens, offsets)})


make("gpt2", 31)
make("llama", 33)
make_statistics("micro-llama-bf16", 35)
make_statistics("micro-llama-f16", 37)
make_statistics("micro-llama", 39)
for i, name in enumerate(["mistral", "qwen2", "qwen3", "gpt_neox", "gpt_neox-sequential-f16"]):
    make(name, 131 + 2 * i)
for i, name in enumerate(["llama3-bf16", "yarn-f16", "yarn-bf16", "linear-bf16"]):
    make_statistics(name, 151 + i)
