"""Updates of REINFORCE++ and REINFORCE++-baseline (Hu 2025) on micro-llama in plain PyTorch float64: reinforce.json.

Four batches of given answers with given rewards, two passes over each, one optimizer step per pass. Per token t of an answer:
reward r_t = -beta * (log pi_old - log pi_ref), plus at the last token the answer's reward (less the mean of its prompt's answers in the
"group" case); advantage A_t = sum of gamma^(i-t) * r_i over i >= t, then (A - mean) / sqrt(variance + 1e-8) over all tokens of the
batch, unbiased; loss = mean over the batch's tokens of max(-A*ratio, -A*clip(ratio)). Written from the paper, with loops.
"""
import torch

from common import HERE, MODELS, gradient_norm, load_causal_lm, save_json

GROUP, PROMPT_LENGTHS, VOCABULARY = 4, (3, 1, 5, 2), 61
CASES = {
    "batch": dict(klCoefficient=0.1, gamma=1.0, temperature=1.0, clipRange=0.2, clipRangeHigh=0.2, learningRate=1e-3, groupSize=1),
    "group": dict(klCoefficient=0.05, gamma=0.9, temperature=0.7, clipRange=0.15, clipRangeHigh=0.28, learningRate=1e-3,
                  groupSize=GROUP),
}
generator = torch.Generator().manual_seed(707)
integer = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))
words = lambda count: [integer(3, VOCABULARY) for _ in range(count)]


def draw_batch(prompt_length):
    prompts = [words(prompt_length), words(prompt_length + 1)]
    return [dict(prompt=prompt, completion=words(integer(1, 12)), reward=round(torch.randn(1, generator=generator).item(), 3))
            for prompt in prompts for _ in range(GROUP)]


def log_probs(model, answer, temperature):
    """Of each token of one answer behind its prompt, alone."""
    ids = torch.tensor([answer["prompt"] + answer["completion"]])
    log_softmax = (model(input_ids=ids).logits[0, :-1] / temperature).log_softmax(-1)
    return log_softmax.gather(1, ids[0, 1:, None])[len(answer["prompt"]) - 1 :, 0]


def advantages_of(batch, old, reference, options, baseline):
    """One list per answer."""
    scores = [answer["reward"] for answer in batch]
    if baseline == "group":
        means = [sum(scores[g : g + GROUP]) / GROUP for g in range(0, len(scores), GROUP)]
        scores = [score - means[i // GROUP] for i, score in enumerate(scores)]
    returns = []
    for score, new, ref in zip(scores, old, reference):
        rewards = [-options["klCoefficient"] * (a - b) for a, b in zip(new.tolist(), ref.tolist())]
        rewards[-1] += score
        returns.append([sum(options["gamma"] ** (i - t) * rewards[i] for i in range(t, len(rewards))) for t in range(len(rewards))])
    every = [value for each in returns for value in each]
    mean = sum(every) / len(every)
    variance = sum((value - mean) ** 2 for value in every) / (len(every) - 1)
    return [[(value - mean) / (variance + 1e-8) ** 0.5 for value in each] for each in returns]


def update(model, optimizer, batch, old, advantages, options):
    losses, clipped, tokens = [], [0, 0], 0
    optimizer.zero_grad()
    for answer, before, advantage in zip(batch, old, advantages):
        ratio = (log_probs(model, answer, options["temperature"]) - before).exp()
        low, high = 1 - options["clipRange"], 1 + options["clipRangeHigh"]
        weight = torch.tensor(advantage, dtype=torch.float64)
        losses.append(torch.max(-weight * ratio, -weight * ratio.clamp(low, high)).sum())
        clipped[0] += int(((ratio < low) & (weight < 0)).sum())
        clipped[1] += int(((ratio > high) & (weight > 0)).sum())
        tokens += len(advantage)
        edges = torch.cat([ratio - low, ratio - high]).abs()
        assert edges.min() > 1e-4, "a token lies on a clipping edge: float32 could fall on its other side; change the seed"
    loss = sum(losses) / tokens
    loss.backward()
    norm = gradient_norm(model.parameters())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return dict(loss=loss.item(), gradNorm=norm, clipFractionLow=clipped[0] / tokens, clipFractionHigh=clipped[1] / tokens)


def run(baseline, batches):
    options = CASES[baseline]
    model, start = load_causal_lm(MODELS / "micro-llama"), load_causal_lm(MODELS / "micro-llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=options["learningRate"], weight_decay=0.0)
    every, steps = [], []
    for batch in batches:
        with torch.no_grad():
            old = [log_probs(model, answer, options["temperature"]) for answer in batch]
            reference = [log_probs(start, answer, options["temperature"]) for answer in batch]
        advantages = advantages_of(batch, old, reference, options, baseline)
        every.append([value for each in advantages for value in each])
        steps += [update(model, optimizer, batch, old, advantages, options) for _ in range(2)]
    with torch.no_grad():
        after = [log_probs(model, answer, options["temperature"]).sum().item() for batch in batches for answer in batch]
    return dict(options=options, advantages=every, steps=steps, logProbs=after)


batches = [draw_batch(length) for length in PROMPT_LENGTHS]
save_json(HERE / "reinforce.json", dict(batches=batches, cases={baseline: run(baseline, batches) for baseline in CASES}))
