"""Builds the random tiny models under models/ as Hugging Face directories, as transformers itself saves them."""
import json
import shutil

import torch
from transformers import (GPT2ForSequenceClassification, GPTNeoXForSequenceClassification, LlamaForSequenceClassification, MistralConfig,
                          MistralForSequenceClassification, Qwen2Config, Qwen2ForSequenceClassification, Qwen3Config,
                          Qwen3ForSequenceClassification)

from common import (GPT_NEOX, LLAMA, MICRO, MISTRAL, MODELS, QWEN2, QWEN3, GPT2LMHeadModel, GPTNeoXConfig, LlamaConfig, LlamaForCausalLM,
                    gpt2_config, randomise, save_json, small_models)


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


def rewrite_config(directory, change):
    config = json.loads((directory / "config.json").read_text())
    change(config)
    config["torch_dtype"] = config.pop("dtype")
    del config["transformers_version"]
    save_json(directory / "config.json", config)


def scaling_of_transformers_4(config):
    """rope_theta beside rope_scaling, and no layer_types."""
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config.pop("layer_types", None)
    config["rope_scaling"] = scaling


def yarn_of_the_first_qwens(config):
    """The name of the type is "type", and nothing else is said than the published files say."""
    scaling_of_transformers_4(config)
    config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")


def gpt_neox_of_transformers_4(config):
    rope = config.pop("rope_parameters")
    config["rotary_pct"] = rope["partial_rotary_factor"]
    config["rotary_emb_base"] = int(rope["rope_theta"])
    del config["attention_bias"]


OLDER = {"gpt_neox-sequential-f16": gpt_neox_of_transformers_4, "llama3-bf16": scaling_of_transformers_4,
         "yarn-f16": yarn_of_the_first_qwens}
HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}


def save_small_models():
    for seed, (name, (model_class, config_class, config)) in enumerate(small_models().items(), 101):
        model = randomise(model_class(config_class(**config)), seed)
        directory = save(model.to(HALVES.get(name.split("-")[-1], torch.float32)), name)
        if name in OLDER:
            rewrite_config(directory, OLDER[name])


def save_more_reward_models():
    labelled = dict(num_labels=1, pad_token_id=0)
    save(randomise(MistralForSequenceClassification(MistralConfig(**dict(MISTRAL, **labelled))), seed=24), "reward-mistral")
    save(randomise(Qwen2ForSequenceClassification(Qwen2Config(**dict(QWEN2, **labelled))), seed=25), "reward-qwen2")
    save(randomise(Qwen3ForSequenceClassification(Qwen3Config(**dict(QWEN3, **labelled))), seed=26), "reward-qwen3")


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
    reward_gpt_neox = GPTNeoXForSequenceClassification(GPTNeoXConfig(**dict(GPT_NEOX, num_labels=1, pad_token_id=0)))
    save(randomise(reward_gpt_neox, seed=23), "reward-gpt_neox")
    save_more_reward_models()
    save_small_models()


main()
