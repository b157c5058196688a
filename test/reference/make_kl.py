"""KL divergences over the whole vocabulary: mistral with its adapter as the policy, qwen2 (another width, the same vocabulary) as
the reference, one temperature in both.

kl.safetensors   tokens, offsets, and by direction "reverse", KL(policy || reference), and "forward": <direction>.kl, .upstream,
                 .grad.<name>.lora_A / .lora_B; and of the policy without its adapter .base.kl, .base.grad.<parameter>
"""
import torch
import torch.nn.functional as F
from peft import PeftModel

from common import HERE, MODELS, load_causal_lm, pack, save_tensors, split
from make_lora import short_name

TEMPERATURE = 0.7
BASE_PARAMETERS = ["lm_head.weight", "model.layers.0.self_attn.q_proj.weight"]


def log_probs(model, sequence, temperature):
    """[length - 1, vocabulary]: row t is what token t + 1 is predicted with."""
    logits = model(input_ids=sequence.long().unsqueeze(0)).logits[0, :-1]
    return F.log_softmax(logits / temperature, dim=-1)


def divergence(policy, reference, tokens, offsets, direction, temperature=TEMPERATURE):
    """[N]: of what token t was predicted with, 0 at first tokens."""
    parts = []
    for sequence in split(tokens, offsets.tolist()):
        p = log_probs(policy, sequence, temperature)
        with torch.no_grad():
            q = log_probs(reference, sequence, temperature)
        # F.kl_div(input, target) is KL(target || input).
        kl = F.kl_div(q, p, reduction="none", log_target=True) if direction == "reverse" \
            else F.kl_div(p, q, reduction="none", log_target=True)
        parts += [torch.zeros(1, dtype=kl.dtype), kl.sum(-1)]
    return torch.cat(parts)


def load_policy(adapter):
    model = load_causal_lm(MODELS / "mistral")
    if not adapter:
        return model
    return PeftModel.from_pretrained(model, HERE / "adapters" / "mistral", is_trainable=True).double()


def main():
    reference = load_causal_lm(MODELS / "qwen2")
    tokens, offsets = pack([1, 3, 21, 8], reference.config.vocab_size, 311)
    generator = torch.Generator().manual_seed(312)
    out = {"tokens": tokens, "offsets": offsets}
    for direction in ("reverse", "forward"):
        upstream = torch.randn(len(tokens), generator=generator)
        out[f"{direction}.upstream"] = upstream
        for adapter in (True, False):
            policy = load_policy(adapter)
            kl = divergence(policy, reference, tokens, offsets, direction)
            (upstream.double() * kl).sum().backward()
            part = direction if adapter else f"{direction}.base"
            out[f"{part}.kl"] = kl
            for key, parameter in policy.named_parameters():
                if parameter.grad is not None and (adapter or key in BASE_PARAMETERS):
                    out[f"{part}.grad.{short_name(key) if adapter else key}"] = parameter.grad
    save_tensors(HERE / "kl.safetensors", out)


if __name__ == "__main__":
    main()
