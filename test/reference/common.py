"""What the make_*.py scripts share: random tiny models, and per-token statistics in node-rlhf's index convention."""
import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig,
                          LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM, logging)

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
SHARED = HERE.parents[2] / "shared"

GPT2 = dict(n_layer=2, n_embd=36, n_head=3, n_positions=64, vocab_size=131, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
# Heads x head_dim (48) differs from hidden_size (42), groups of three query heads, widths that fill no SIMD register.
LLAMA = dict(num_hidden_layers=3, hidden_size=42, intermediate_size=72, num_attention_heads=6, num_key_value_heads=2,
             head_dim=8, vocab_size=137, max_position_embeddings=64, tie_word_embeddings=False, rms_norm_eps=1e-5,
             rope_parameters=dict(rope_type="default", rope_theta=50000.0), bos_token_id=1, eos_token_id=2)
# No pad token: PyTorch gives the embedding of a pad token no gradient, where it is sampled like any other too.
# One small model with a tied head, for the runs whose final weights are stored.
MICRO = dict(LLAMA, num_hidden_layers=2, hidden_size=24, intermediate_size=40, num_attention_heads=3, num_key_value_heads=1,
             vocab_size=61, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=10000.0))

# The other families, as small as they can be and still have two layers, grouped queries and every part of their own. Windows
# are shorter than the reference sequences and, like scaled rotary positions, shorter than the context.
SMALL = dict(num_hidden_layers=2, hidden_size=20, intermediate_size=28, num_attention_heads=4, vocab_size=41,
             max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
MISTRAL = dict(SMALL, num_key_value_heads=2, head_dim=6, sliding_window=7)
QWEN2 = dict(SMALL, hidden_size=24, num_key_value_heads=2, use_sliding_window=True, sliding_window=6, max_window_layers=1)
QWEN3 = dict(SMALL, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
             rope_parameters=dict(rope_type="default", rope_theta=1e6))
GPT_NEOX = dict(SMALL, hidden_size=32, rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0,
              original_max_position_embeddings=16)


def small_models():
    """name: (model class, configuration class, configuration) of the families beside gpt2 and llama."""
    return {
        "mistral": (MistralForCausalLM, MistralConfig, MISTRAL),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config, QWEN2),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config, QWEN3),
        "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, GPT_NEOX),
        # Half precision, other forms of the same families, and older forms of their configurations.
        "gpt_neox-sequential-f16": (GPTNeoXForCausalLM, GPTNeoXConfig, dict(GPT_NEOX, use_parallel_residual=False)),
        "llama3-bf16": (LlamaForCausalLM, LlamaConfig, dict(SMALL, head_dim=8, num_key_value_heads=1, rope_parameters=LLAMA3)),
        "yarn-f16": (Qwen2ForCausalLM, Qwen2Config, dict(SMALL, hidden_size=24, num_key_value_heads=1, rope_parameters=YARN)),
        "yarn-bf16": (Qwen3ForCausalLM, Qwen3Config,
                      dict(QWEN3, rope_parameters=dict(YARN, rope_theta=1e6, attention_factor=1.3, beta_fast=8.0, truncate=False))),
        "linear-bf16": (MistralForCausalLM, MistralConfig,
                        dict(MISTRAL, sliding_window=None, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0))),
    }


def gpt2_config(**changes):
    return GPT2Config(**dict(GPT2, **changes))


def randomise(model, seed):
    """Random weights with nothing at its default: norm weights around 1, biases and norm biases around 0, wide matrices."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda p: torch.randn(p.shape, generator=generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.split(".")[-2]
            if name.endswith(".bias"):
                parameter.copy_(0.2 * draw(parameter))
            elif "norm" in leaf or leaf.startswith("ln_"):
                parameter.copy_(1 + 0.3 * draw(parameter))
            elif leaf in ("embed_tokens", "embed_in"):
                parameter.copy_(0.4 * draw(parameter))
            elif leaf in ("wte", "wpe", "lm_head"):
                parameter.copy_(0.25 * draw(parameter))
            else:
                parameter.copy_(draw(parameter) * 1.2 / parameter.shape[-1] ** 0.5)
    return model


def load_causal_lm(directory, dtype=torch.float64):
    """The saved float32 (or half) weights, widened: eager attention, evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()


def split(tokens, offsets):
    return [tokens[offsets[i] : offsets[i + 1]] for i in range(len(offsets) - 1)]


def pack(lengths, vocabulary, seed):
    """Random token ids of several sequences end to end: tokens [N] and offsets [S+1], both int32."""
    generator = torch.Generator().manual_seed(seed)
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    tokens = torch.randint(3, vocabulary, (offsets[-1],), generator=generator)
    return tokens.to(torch.int32), torch.tensor(offsets, dtype=torch.int32)


def hidden_states(model, ids):
    """[length, hidden] after the final norm: what the language-model head and the value head read."""
    backbone = (model.get_base_model() if hasattr(model, "peft_config") else model).base_model
    return backbone(input_ids=ids[None].long()).last_hidden_state[0]


def statistics(model, tokens, offsets, temperature=1.0, head=None):
    """Per-token logProb, entropy, lse [N] (index t describes the prediction of token t; 0 at a sequence's first) and value [N].

    Logits are divided by the temperature first, so lse and entropy are those of the tempered distribution. value[t] is
    `head` on hidden state t. Every sequence runs alone: no padding, no mask.
    """
    out = {key: [] for key in ("logProb", "entropy", "lse", "value")}
    lm_head = model.get_output_embeddings()
    for ids in split(tokens, offsets.tolist()):
        hidden = hidden_states(model, ids)
        logits = lm_head(hidden[:-1]) / temperature
        lse = torch.logsumexp(logits, -1)
        log_p = logits - lse[:, None]
        zero = hidden.new_zeros(1)
        out["logProb"].append(torch.cat([zero, log_p.gather(1, ids[1:, None].long())[:, 0]]))
        out["entropy"].append(torch.cat([zero, -(log_p.exp() * log_p).sum(-1)]))
        out["lse"].append(torch.cat([zero, lse]))
        out["value"].append(head(hidden)[:, 0] if head is not None else hidden.new_zeros(len(ids)))
    return {key: torch.cat(parts) for key, parts in out.items()}


def is_predicted(offsets):
    """True [N] where a token is predicted: everywhere but at the sequences' first tokens."""
    mask = torch.ones(int(offsets[-1]), dtype=torch.bool)
    mask[offsets[:-1].long()] = False
    return mask


def gradient_norm(parameters):
    return float(sum(p.grad.double().square().sum() for p in parameters if p.grad is not None) ** 0.5)


def save_tensors(path, tensors, **scalars):
    """A safetensors file: floats as float32, integers as int32; scalars and lists as JSON strings in its metadata."""
    def narrow(tensor):
        return tensor.detach().to(torch.float32 if tensor.is_floating_point() else torch.int32).contiguous().clone()

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: narrow(t) for name, t in tensors.items()}, path, metadata={k: json.dumps(v) for k, v in scalars.items()})


def save_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
