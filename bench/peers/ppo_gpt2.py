"""The opponent of ppo-gpt2.ts: one PPO iteration per line of stdin, in plain PyTorch with transformers and peft.

usage: ppo_gpt2.py MODEL_DIR [--precision float32|autocast|bfloat16] [--threads 2]
LoRA r 16, alpha 32 on all linears of GPT-2, the reference by the adapter switched off, a linear value head on the policy's hidden states,
whose log-probs and values are measured in one pass; 4 epochs of one minibatch. Input lines are {"tokens": [[...], ...], "newTokens": n}.
"""
import torch
from peer import arguments, autocast, load, serve
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import selective_log_softmax

EPOCHS, BETA = 4, 0.05

options = arguments().parse_args()
torch.manual_seed(0)
policy = get_peft_model(load(options), LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0,
                                                  target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True))
head = torch.nn.Linear(policy.config.n_embd, 1)
torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
trained = [weight for weight in policy.parameters() if weight.requires_grad] + [*head.parameters()]
optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0)


def measure(ids, start):
    """Log-probs of the answers' tokens, and the values of what they follow on."""
    with autocast(options):
        hidden = policy.base_model.model.transformer(ids, use_cache=False).last_hidden_state[:, start - 1 : -1]
        logits = policy.base_model.model.lm_head(hidden)
    return selective_log_softmax(logits, ids[:, start:]).float(), head(hidden.float())[..., 0]


def advantages(rewards, values):
    result, running = torch.zeros_like(rewards), 0
    count = rewards.shape[1]
    for t in reversed(range(count)):
        after = values[:, t + 1] if t + 1 < count else 0.0
        running = rewards[:, t] + after - values[:, t] + 0.95 * running
        result[:, t] = running
    return result


@torch.no_grad()
def experience(prompts, count):
    start = prompts.shape[1]
    with autocast(options):
        ids = policy.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=count,
                              min_new_tokens=count, do_sample=True, temperature=1.0, top_k=0, pad_token_id=0,
                              eos_token_id=None)
    log_probs, values = measure(ids, start)
    with policy.disable_adapter():
        reference, _ = measure(ids, start)
    rewards = -BETA * (log_probs - reference)
    rewards[:, -1] += (ids[:, start:] % 2 == 0).float().mean(1)
    advantage = advantages(rewards, values)
    returns = advantage + values
    return ids, log_probs, values, returns, (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def iterate(given):
    prompts, count = given
    ids, old, values, returns, advantage = experience(prompts, count)
    for _ in range(EPOCHS):
        new, value = measure(ids, prompts.shape[1])
        ratio = (new - old).exp()
        policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
        clipped = values + (value - values).clamp(-0.2, 0.2)
        value_loss = 0.5 * torch.max((value - returns) ** 2, (clipped - returns) ** 2).mean()
        optimizer.zero_grad()
        (policy_loss + 0.1 * value_loss).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return {}


serve(lambda request: (torch.tensor(request["tokens"]), request["newTokens"]), iterate)
