"""node-rlhf's dropout masks, computed anew, for peft's adapters: csrc/ops/dropout.h says which elements are dropped, and the key of a
row is a hash of its sequence's tokens up to it (csrc/model/batch.cc)."""
import torch

MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1


def philox(seed, stream, index):
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words."""
    counter = [index & MASK32, index >> 32, stream & MASK32, stream >> 32]
    key = [seed & MASK32, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(p1 >> 32) ^ counter[1] ^ key[0], p1 & MASK32, (p0 >> 32) ^ counter[3] ^ key[1], p0 & MASK32]
        key = [(key[0] + 0x9E3779B9) & MASK32, (key[1] + 0xBB67AE85) & MASK32]
    return counter


def row_keys(tokens):
    """A 64-bit number for every token of one sequence."""
    keys, key = [], 0
    for token in tokens:
        key = (key + 0x9E3779B97F4A7C15 * (token + 1)) & MASK64
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & MASK64
        key ^= key >> 31
        keys.append(key)
    return keys


class KeyedDropout(torch.nn.Module):
    """Stands in for a layer's torch.nn.Dropout. `keys` are set before each sequence."""

    def __init__(self, probability, seed, layer):
        super().__init__()
        self.probability, self.seed, self.layer, self.keys = probability, seed, layer, None

    def forward(self, x):
        threshold = self.probability * 2.0**32
        rows = [[word >= threshold for group in range((x.shape[-1] + 3) // 4)
                 for word in philox(self.seed, key, (self.layer << 32) + group)][: x.shape[-1]] for key in self.keys]
        return x * torch.tensor(rows, dtype=x.dtype)[None] / (1 - self.probability)


def use_keyed_dropout(model, adapter, layers, seed):
    """Replaces the dropout of every adapted layer; `layers` are all linear layers in the order of the forward pass."""
    replaced = []
    for name, module in model.named_modules():
        if adapter in getattr(module, "lora_A", {}):
            dropout = KeyedDropout(module.lora_dropout[adapter].p, seed, layers.index(name.removeprefix("base_model.model.")))
            module.lora_dropout[adapter] = dropout
            replaced.append(dropout)
    return replaced
