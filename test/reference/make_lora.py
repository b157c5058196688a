"""LoRA against peft: adapters with random A and B in peft's own directory form, and the gradients of every A and B.

adapters/<model>/           adapter_config.json and adapter_model.safetensors
<model>-lora.safetensors    tokens, offsets, logProb, entropy, upstream gradients, grad.<name>.lora_A / .lora_B (temperature 1)
"""
import json
import shutil

import torch
from peft import LoraConfig, get_peft_model

from common import HERE, MODELS, load_causal_lm, pack, save_json, save_tensors, statistics

CASES = {
    "gpt2": dict(r=3, lora_alpha=7, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    "llama": dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "mistral": dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "down_proj"]),
    "qwen2": dict(r=2, lora_alpha=4, target_modules=["v_proj", "o_proj", "up_proj"]),
    "qwen3": dict(r=2, lora_alpha=5, target_modules=["q_proj", "k_proj", "v_proj", "gate_proj"]),
    "gpt_neox": dict(r=3, lora_alpha=6, target_modules=["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
}


def with_random_adapter(name, seed):
    """The model with a LoRA adapter whose A and B are both random (a zero B would hide the gradient of A)."""
    options = CASES[name]
    model = get_peft_model(load_causal_lm(MODELS / name), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                width = 1 / parameter.shape[1] ** 0.5
                values = torch.randn(parameter.shape, generator=generator) * 0.5 * width  # float32, as the file holds it
                parameter.copy_(values)
    return model


def short_name(key):
    """base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight -> transformer.h.0.attn.c_attn.lora_A"""
    return key.removeprefix("base_model.model.").removesuffix(".default.weight")


def make_config_reproducible(path, name):
    """peft writes a set in random order and the absolute path of the base model."""
    config = json.loads(path.read_text())
    targets = config["target_modules"]
    targets = targets if isinstance(targets, str) else sorted(targets)
    save_json(path, config | {"target_modules": targets, "base_model_name_or_path": f"models/{name}"})


def make(name, seed):
    model = with_random_adapter(name, seed)
    directory = HERE / "adapters" / name
    shutil.rmtree(directory, ignore_errors=True)
    model.float().save_pretrained(directory)
    model.double()
    (directory / "README.md").unlink(missing_ok=True)
    make_config_reproducible(directory / "adapter_config.json", name)

    tokens, offsets = pack([1, 3, 21, 8], model.config.vocab_size, seed + 1)
    generator = torch.Generator().manual_seed(seed + 2)
    upstream = {key: torch.randn(len(tokens), generator=generator) for key in ("logProb", "entropy", "lse")}
    out = statistics(model, tokens, offsets)
    sum((upstream[key].double() * out[key]).sum() for key in upstream).backward()
    gradients = {f"grad.{short_name(key)}": p.grad for key, p in model.named_parameters() if p.requires_grad}
    save_tensors(HERE / f"{name}-lora.safetensors", {
        "tokens": tokens, "offsets": offsets, **{key: out[key] for key in upstream},
        **{f"d{key[0].upper()}{key[1:]}": value for key, value in upstream.items()}, **gradients})


if __name__ == "__main__":
    make("gpt2", 41)
    make("llama", 45)
    for i, family in enumerate(["mistral", "qwen2", "qwen3", "gpt_neox"]):
        make(family, 141 + 4 * i)
