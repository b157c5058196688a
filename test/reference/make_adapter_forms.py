"""Adapters in the forms that peft knows, each as peft saves it, and what peft computes with them.

adapters/<case>/       adapter_config.json and adapter_model.safetensors
adapter-forms.json     for every base its tokens and offsets, and for every adapter of it: the scale of B·A by module, log-probs (a
                       sequence classifier: rewards), norms of the gradients of every A and B for an upstream gradient of 1 on each
                       log-prob, and the log-probs of the base after merge_adapter() and after unmerge_adapter(); of
                       llama-patterns also log-probs and gradients with node-rlhf's dropout masks of one seed
"""
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from common import HERE, MODELS, load_causal_lm, pack, save_json, split, statistics
from dropout_masks import row_keys, use_keyed_dropout
from make_lora import make_config_reproducible, short_name

FORMS = {
    "gpt2": {
        "gpt2-all-linear": dict(r=2, lora_alpha=3, target_modules="all-linear", fan_in_fan_out=True),
        "gpt2-second-block": dict(r=4, lora_alpha=4, target_modules=["c_attn", "c_proj"], exclude_modules=["mlp.c_proj"],
                                  layers_to_transform=[1], use_rslora=True, fan_in_fan_out=True),
    },
    "llama": {
        "llama-all-linear": dict(r=2, lora_alpha=5, target_modules="all-linear", use_rslora=True),
        "llama-patterns": dict(r=3, lora_alpha=6, target_modules=r".*\.self_attn\.(q|v)_proj|.*\.(?P<mlp>down|up)_proj",
                               rank_pattern={r"layers\.1\.self_attn.*": 5, "down_proj": 1, "^model.layers.2.self_attn.q_proj": 2},
                               alpha_pattern={"v_proj": 2.5, "1.mlp.up_proj": 9}, lora_dropout=0.1),
    },
}
REWARD = ("reward-llama", "reward-llama-adapter", dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"]))


def randomise_adapter(model, seed):
    """A and B random (a zero B would hide the gradient of A), and a new score head."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 / parameter.shape[1] ** 0.5)


def save_adapter(model, base, name):
    directory = HERE / "adapters" / name
    shutil.rmtree(directory, ignore_errors=True)
    model.float().save_pretrained(directory)
    model.double()
    (directory / "README.md").unlink(missing_ok=True)
    make_config_reproducible(directory / "adapter_config.json", base)
    return directory


def log_probs(model, tokens, offsets):
    return statistics(model, tokens, offsets)["logProb"]


def llama_linears(layers):
    parts = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    return [f"model.layers.{layer}.{part}" for layer in range(layers) for part in parts]


def gradient_norms(model, name):
    return {short_name(key.replace(f".{name}.", ".default.")): p.grad.norm().item()
            for key, p in model.named_parameters() if f".{name}." in key}


def with_dropout(model, name, tokens, offsets, seed):
    """What a training pass computes when it drops what node-rlhf drops."""
    dropouts = use_keyed_dropout(model, name, llama_linears(model.config.num_hidden_layers), seed)
    model.zero_grad()
    log_prob = []
    for ids in split(tokens, offsets.tolist()):
        for dropout in dropouts:
            dropout.keys = row_keys(ids.tolist())
        log_prob.append(log_probs(model, ids, torch.tensor([0, len(ids)], dtype=torch.int32)))
    log_prob = torch.cat(log_prob)
    log_prob.sum().backward()
    return {"seed": seed, "logProb": log_prob.tolist(), "gradientNorms": gradient_norms(model, name)}


def make_forms(base, seed):
    directories = {}
    for i, (name, options) in enumerate(FORMS[base].items()):
        model = get_peft_model(load_causal_lm(MODELS / base), LoraConfig(task_type="CAUSAL_LM", **options))
        randomise_adapter(model, seed + i)
        directories[name] = save_adapter(model, base, name)

    # All of them on one base, switched from pass to pass.
    first, *others = directories
    model = PeftModel.from_pretrained(load_causal_lm(MODELS / base), directories[first], adapter_name=first, is_trainable=True)
    for name in others:
        model.load_adapter(directories[name], adapter_name=name, is_trainable=True)
    model.double().eval()
    tokens, offsets = pack([1, 17, 6], model.config.vocab_size, seed + 9)
    result = {"tokens": tokens.tolist(), "offsets": offsets.tolist(), "adapters": {}}
    for name in directories:
        model.set_adapter(name)
        model.zero_grad()
        out = log_probs(model, tokens, offsets)
        out.sum().backward()
        gradients = gradient_norms(model, name)
        scales = {key.removeprefix("base_model.model."): module.scaling[name]
                  for key, module in model.named_modules() if name in getattr(module, "lora_A", {})}
        model.merge_adapter([name])
        merged = log_probs(model, tokens, offsets)
        model.unmerge_adapter()
        result["adapters"][name] = {"scales": scales, "logProb": out.tolist(), "gradientNorms": gradients,
                                    "merged": merged.tolist(), "unmerged": log_probs(model, tokens, offsets).tolist()}
        if name == "llama-patterns":
            result["adapters"][name]["dropped"] = with_dropout(model, name, tokens, offsets, 2**40 + 7)
    return result


def make_reward(seed):
    base, name, options = REWARD
    model = AutoModelForSequenceClassification.from_pretrained(MODELS / base, dtype=torch.float64)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **options)).eval()
    randomise_adapter(model, seed)
    save_adapter(model, base, name)
    tokens, offsets = pack([3, 17, 6], model.config.vocab_size, seed + 9)
    with torch.no_grad():
        rewards = [model(input_ids=ids[None].long()).logits[0, 0].item() for ids in split(tokens, offsets.tolist())]
    return {"tokens": tokens.tolist(), "offsets": offsets.tolist(), "adapters": {name: {"rewards": rewards}}}


if __name__ == "__main__":
    forms = {base: make_forms(base, 61 + 10 * i) for i, base in enumerate(FORMS)}
    save_json(HERE / "adapter-forms.json", {**forms, REWARD[0]: make_reward(91)})
