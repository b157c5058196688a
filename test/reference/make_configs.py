"""What transformers makes of rotary and window settings in every form they have had: configs.json.

Each entry: config (a config.json as published files have it), inverseFrequencies and rotaryScale of the model's rotary embedding
(float32), windows (per layer, 0 for none; [] for none in any layer).
"""
import copy

import torch
from transformers import AutoConfig, AutoModel

from common import HERE, save_json

SIZES = dict(num_hidden_layers=4, hidden_size=64, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1,
             vocab_size=8, max_position_embeddings=128)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(factor=4.0, original_max_position_embeddings=32)

CASES = [
    dict(model_type="llama", rope_theta=500000.0, rope_scaling=None),
    dict(model_type="llama", rope_theta=500000.0, rope_scaling=dict(rope_type="llama3", **LLAMA3)),
    dict(model_type="llama", rope_parameters=dict(rope_type="llama3", rope_theta=20000.0, **LLAMA3)),
    dict(model_type="llama", rope_scaling=dict(type="linear", factor=2.5)),
    dict(model_type="llama", rope_parameters=dict(rope_type="linear", rope_theta=300.0, factor=2.0)),
    dict(model_type="llama", rope_theta=1e6, rope_scaling=dict(type="yarn", **YARN)),
    dict(model_type="llama", rope_scaling=dict(rope_type="yarn", factor=4.0)),
    dict(model_type="llama", rope_scaling=dict(rope_type="yarn", beta_fast=16, beta_slow=2, truncate=False, **YARN)),
    dict(model_type="llama", rope_scaling=dict(rope_type="yarn", mscale=0.8, mscale_all_dim=1.2, **YARN)),
    dict(model_type="llama", rope_scaling=dict(rope_type="yarn", mscale=0.8, **YARN)),
    dict(model_type="llama", rope_scaling=dict(rope_type="yarn", attention_factor=0.7, **YARN)),
    dict(model_type="llama", original_max_position_embeddings=16, rope_scaling=dict(rope_type="yarn", **YARN)),
    dict(model_type="llama", rope_theta=10000.0, rope_scaling=dict(rope_type="yarn", factor=1.0, original_max_position_embeddings=128)),
    dict(model_type="gpt_neox"),
    dict(model_type="gpt_neox", rotary_pct=0.5, rotary_emb_base=500),
    dict(model_type="gpt_neox", rotary_pct=0.35),
    dict(model_type="gpt_neox", rope_parameters=dict(rope_type="default", rope_theta=2000.0, partial_rotary_factor=0.75)),
    dict(model_type="gpt_neox", rotary_pct=1.0, rope_scaling=dict(type="linear", factor=3.0)),
    dict(model_type="mistral", sliding_window=5),
    dict(model_type="mistral", sliding_window=None, head_dim=16),
    dict(model_type="qwen2", use_sliding_window=False, sliding_window=5, max_window_layers=1),
    dict(model_type="qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=2),
    dict(model_type="qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=0),
    dict(model_type="qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=28),
    dict(model_type="qwen3", head_dim=16, rope_theta=1000000, use_sliding_window=True, sliding_window=9,
         layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"]),
    dict(model_type="qwen3"),
]


def windows(config):
    if config.model_type == "mistral":
        types = ["sliding_attention" if config.sliding_window else "full_attention"] * config.num_hidden_layers
    else:
        types = getattr(config, "layer_types", None) or []
    values = [config.sliding_window if kind == "sliding_attention" else 0 for kind in types]
    return values if any(values) else []


def make(case):
    published = dict(SIZES, **case)
    # A copy: transformers completes the dictionaries that it is given.
    options = copy.deepcopy({key: value for key, value in published.items() if key != "model_type"})
    if published["model_type"] == "gpt_neox":
        del options["num_key_value_heads"]
    config = AutoConfig.for_model(published["model_type"], **options)
    with torch.device("meta"):
        rotary_class = type(AutoModel.from_config(config).rotary_emb)
    rotary = rotary_class(config)
    return {"config": published, "inverseFrequencies": rotary.inv_freq.tolist(), "rotaryScale": float(rotary.attention_scaling),
            "windows": windows(config)}


save_json(HERE / "configs.json", [make(case) for case in CASES])
