"""One PPO update from fixed rollouts, in plain PyTorch float64: 2 epochs x 4 minibatches on one policy with a shared value head.

Three cases: "linear" (value head hidden -> 1), "mlp" (hidden -> hidden -> 1, tanh; temperature 0.7, gamma < 1, entropy bonus) and
"kl" (linear head; the KL over the whole vocabulary as the penalty in the reward, and of the starting point in the loss).
ppo-<case>.safetensors  tokens, offsets, promptLengths, scores, refLogProb, head.* before; per token [N] oldLogProb, oldValue,
                        divergence ("kl" alone), reward, advantage (whitened), return; final.<name> of every policy weight and final.head.* after
ppo.json                settings, and each minibatch's rollouts and metrics
Value and advantage of response token t stand at index t (the value is the head on hidden state t-1). The gradient is that of
policyLoss + valueCoefficient*valueLoss - entropyCoefficient*entropy + klLossCoefficient*divergence, each a mean over the minibatch's response tokens.
"""
import copy

import torch

from common import HERE, MODELS, gradient_norm, load_causal_lm, save_json, save_tensors, statistics
from make_kl import divergence

PROMPTS, RESPONSES = [3, 5, 2, 4, 3, 6, 2, 4], [7, 1, 12, 5, 9, 3, 11, 8]
# Which rollouts each minibatch holds, per epoch: what node-rlhf's PPOTrainer draws in its first step with seed 0.
ORDER = [[[0, 5], [4, 3], [1, 7], [2, 6]], [[1, 6], [3, 2], [7, 4], [0, 5]]]
COMMON = dict(klCoefficient=0.05, clipRange=0.2, valueClipRange=0.2, valueLossCoefficient=0.1,
              learningRate=1e-3, betas=[0.9, 0.999], eps=1e-8, weightDecay=0.0, maxGradNorm=1.0)
CASES = {
    "linear": dict(COMMON, temperature=1.0, gamma=1.0, lambda_=0.95, entropyCoefficient=0.0),
    "mlp": dict(COMMON, temperature=0.7, gamma=0.97, lambda_=0.9, entropyCoefficient=0.01),
    "kl": dict(COMMON, temperature=0.8, gamma=1.0, lambda_=0.95, entropyCoefficient=0.0, klEstimator="full",
               klLossCoefficient=8.0, klLossDirection="forward"),
}


def value_head(kind, hidden, generator):
    layers = [torch.nn.Linear(hidden, 1)]
    if kind == "mlp":
        layers = [torch.nn.Linear(hidden, hidden), torch.nn.Tanh(), *layers]
    head = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return head.double()


def sample_rollouts(model, temperature, generator):
    """Prompts of random tokens and responses sampled from the policy itself."""
    sequences = []
    for prompt, response in zip(PROMPTS, RESPONSES):
        ids = torch.randint(3, model.config.vocab_size, (prompt,), generator=generator)
        for _ in range(response):
            with torch.no_grad():
                logits = model(ids[None]).logits[0, -1] / temperature
            ids = torch.cat([ids, torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)])
        sequences.append(ids.to(torch.int32))
    return sequences


def advantages_of(rewards, values, gamma, lambda_):
    """GAE over one answer: the value beyond the last token is 0."""
    out, running, after = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        running = rewards[t] + gamma * after - values[t] + gamma * lambda_ * running
        out[t], after = running, values[t]
    return out


class Rollouts:
    """Packed sequences and, for each, the slice of its response tokens."""

    def __init__(self, sequences):
        self.sequences = sequences

    def offsets(self, rows):
        return torch.tensor([0, *torch.tensor([len(self.sequences[r]) for r in rows]).cumsum(0).tolist()], dtype=torch.int32)

    def tokens(self, rows):
        return torch.cat([self.sequences[r] for r in rows])

    def response_mask(self, rows):
        return torch.cat([torch.arange(len(self.sequences[r])) >= PROMPTS[r] for r in rows])

    def gather(self, per_token, rows):
        start = self.offsets(range(len(self.sequences))).tolist()
        return torch.cat([per_token[start[r] : start[r + 1]] for r in rows])


def evaluate(model, head, rollouts, rows, temperature):
    """logProb, entropy and value of every token [n]; the value of token t is read at t-1."""
    out = statistics(model, rollouts.tokens(rows), rollouts.offsets(rows), temperature, head)
    return out["logProb"], out["entropy"], torch.cat([out["value"].new_zeros(1), out["value"][:-1]])


def prepare(model, head, rollouts, options, generator):
    """Scores, rewards with the KL penalty, GAE, returns, and advantages whitened over all response tokens."""
    rows = list(range(len(PROMPTS)))
    mask, offsets = rollouts.response_mask(rows), rollouts.offsets(rows).tolist()
    with torch.no_grad():
        old, _, value = evaluate(model, head, rollouts, rows, options["temperature"])
    old, value = old * mask, value * mask
    reference = (old + 0.3 * torch.randn(len(old), generator=generator).double()) * mask
    reference = reference.float().double()
    scores = torch.randn(len(rows), generator=generator).double()
    penalty, measured = old - reference, {}
    if options.get("klEstimator") == "full":
        penalty = (0.3 * torch.randn(len(old), generator=generator)).abs().double() * mask
        measured["divergence"] = penalty
    reward = -options["klCoefficient"] * penalty * mask
    advantage = torch.zeros_like(reward)
    for r in rows:
        begin, end = offsets[r] + PROMPTS[r], offsets[r + 1]
        reward[end - 1] += scores[r]
        advantage[begin:end] = advantages_of(reward[begin:end], value[begin:end], options["gamma"], options["lambda_"])
    returns = advantage + value
    active = advantage[mask]
    advantage = (advantage - active.mean()) * torch.rsqrt(active.var(unbiased=True) + 1e-8) * mask
    return dict(oldLogProb=old, refLogProb=reference, oldValue=value, reward=reward, advantage=advantage,
                **{"return": returns}, **measured), scores


def minibatch_step(model, start, head, rollouts, rows, data, options, optimizer, parameters):
    mask = rollouts.response_mask(rows)
    old, old_value, advantage, returns = (rollouts.gather(data[k], rows)[mask] for k in ("oldLogProb", "oldValue", "advantage", "return"))
    log_prob, entropy, value = (x[mask] for x in evaluate(model, head, rollouts, rows, options["temperature"]))
    clip, value_clip = options["clipRange"], options["valueClipRange"]
    ratio = (log_prob - old).exp()
    unclipped, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    policy_loss = torch.max(unclipped, clipped).mean()
    bounded = old_value + (value - old_value).clamp(-value_clip, value_clip)
    value_loss = 0.5 * torch.max((value - returns) ** 2, (bounded - returns) ** 2).mean()
    loss = policy_loss + options["valueLossCoefficient"] * value_loss - options["entropyCoefficient"] * entropy.mean()
    kl = divergence(model, start, rollouts.tokens(rows), rollouts.offsets(rows), options.get("klLossDirection", "reverse"),
                    options["temperature"])[mask].mean()
    loss = loss + options.get("klLossCoefficient", 0.0) * kl
    optimizer.zero_grad()
    loss.backward()
    norm = gradient_norm(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, options["maxGradNorm"])
    optimizer.step()
    edges = torch.cat([(ratio - 1).abs() - clip, (value - old_value).abs() - value_clip]).abs()
    assert edges.min() > 1e-4, "a token lies on a clipping edge: float32 could fall on its other side; change the seed"
    measured = dict(divergence=kl.item()) if "klLossCoefficient" in options else {}
    return dict(rollouts=rows, **measured, policyLoss=policy_loss.item(), valueLoss=value_loss.item(), entropy=entropy.mean().item(),
                approxKl=0.5 * (log_prob - old).square().mean().item(), clipFraction=(clipped > unclipped).double().mean().item(),
                valueClipFraction=((bounded - returns) ** 2 > (value - returns) ** 2).double().mean().item(), gradNorm=norm)


def make(kind, seed):
    options = CASES[kind]
    generator = torch.Generator().manual_seed(seed)
    model = load_causal_lm(MODELS / "micro-llama")
    start = copy.deepcopy(model)
    head = value_head("mlp" if kind == "mlp" else "linear", model.config.hidden_size, generator)
    before = {f"head.{k}": v.detach().clone() for k, v in head.named_parameters()}
    rollouts = Rollouts(sample_rollouts(model, options["temperature"], generator))
    data, scores = prepare(model, head, rollouts, options, generator)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options["learningRate"], betas=options["betas"], eps=options["eps"],
                                  weight_decay=options["weightDecay"])
    minibatches = []
    for epoch in ORDER:
        for rows in epoch:
            minibatches.append(minibatch_step(model, start, head, rollouts, rows, data, options, optimizer, parameters))
    rows = list(range(len(PROMPTS)))
    save_tensors(HERE / f"ppo-{kind}.safetensors", {
        "tokens": rollouts.tokens(rows), "offsets": rollouts.offsets(rows), "promptLengths": torch.tensor(PROMPTS),
        "scores": scores, **data, **before,
        **{f"final.{k}": v for k, v in model.named_parameters()}, **{f"final.head.{k}": v for k, v in head.named_parameters()}})
    return dict(options=options, minibatches=minibatches)


save_json(HERE / "ppo.json", {"linear": make("linear", 93), "mlp": make("mlp", 103), "kl": make("kl", 113)})
