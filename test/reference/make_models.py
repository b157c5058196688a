"""Builds the random tiny models under models/ as Hugging Face directories, as transformers itself saves them."""
import json
import shutil

import torch
from transformers import GPT2ForSequenceClassification, LlamaForSequenceClassification

from common import (LLAMA, MICRO, MODELS, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, gpt2_config, randomise, save_json)


def save(model, name, **options):
    directory = MODELS / name
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory, **options)
    (directory / "generation_config.json").unlink(missing_ok=True)
    return directory


def write_flat_rope_theta(directory):
    """The way transformers 4 wrote it: most published Llama directories look like this."""
    config = json.loads((directory / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    save_json(directory / "config.json", config)


def main():
    save(randomise(GPT2LMHeadModel(gpt2_config()), seed=16), "gpt2")
    save(randomise(LlamaForCausalLM(LlamaConfig(**LLAMA)), seed=12), "llama", max_shard_size="60KB")
    micro_llama = lambda seed: randomise(LlamaForCausalLM(LlamaConfig(**MICRO)), seed)
    write_flat_rope_theta(save(micro_llama(13), "micro-llama"))
    save(micro_llama(14).to(torch.bfloat16), "micro-llama-bf16")
    save(micro_llama(15).to(torch.float16), "micro-llama-f16")

    reward_llama = LlamaForSequenceClassification(LlamaConfig(**dict(MICRO, num_labels=1, pad_token_id=0)))
    save(randomise(reward_llama, seed=21), "reward-llama")
    reward_gpt2 = GPT2ForSequenceClassification(
        gpt2_config(n_layer=2, n_embd=24, n_head=2, vocab_size=67, n_positions=40, num_labels=1, pad_token_id=0))
    save(randomise(reward_gpt2, seed=22), "reward-gpt2")


main()
