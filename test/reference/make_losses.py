"""Small random inputs of the losses, with values and gradients from PyTorch's autograd in float64: losses.json.

Also "hand": the worked PPO example and the Bradley-Terry values of the design notes, computed by hand.
"""
import torch
from torch.nn.functional import logsigmoid

from common import HERE, save_json

generator = torch.Generator().manual_seed(101)
draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradients(loss, *inputs):
    return [g.tolist() for g in torch.autograd.grad(loss, inputs)]


def policy_loss(count, clip):
    old, advantage = -draw(count).abs(), draw(count)
    new = (old + 0.3 * draw(count)).requires_grad_()
    ratio = (new - old).exp()
    loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()
    return dict(logProb=new.tolist(), oldLogProb=old.tolist(), advantage=advantage.tolist(), clipRange=clip, loss=loss.item(),
                gradient=gradients(loss, new)[0], approxKl=0.5 * (new - old).square().mean().item(),
                clipFraction=(-advantage * ratio.clamp(1 - clip, 1 + clip) > -advantage * ratio).double().mean().item())


def value_loss(count, clip):
    old, returns = draw(count), draw(count)
    value = (old + 0.3 * draw(count)).requires_grad_()
    bounded = old + (value - old).clamp(-clip, clip)
    loss = 0.5 * torch.max((value - returns) ** 2, (bounded - returns) ** 2).mean()
    return dict(value=value.tolist(), oldValue=old.tolist(), returns=returns.tolist(), clipRange=clip, loss=loss.item(),
                gradient=gradients(loss, value)[0])


def gae(lengths, gamma, lambda_):
    cases = []
    for length in lengths:
        rewards, values = draw(length), draw(length)
        advantages = torch.zeros(length, dtype=torch.float64)
        for t in range(length):  # the definition itself: a discounted sum of the temporal-difference errors
            for s in range(t, length):
                after = values[s + 1] if s + 1 < length else 0.0
                advantages[t] += (gamma * lambda_) ** (s - t) * (rewards[s] + gamma * after - values[s])
        cases.append(dict(rewards=rewards.tolist(), values=values.tolist(), advantages=advantages.tolist(),
                          returns=(advantages + values).tolist()))
    return dict(gamma=gamma, lambda_=lambda_, sequences=cases)


def whiten(count):
    values, mask = draw(count) * 3 + 2, torch.rand(count, generator=generator) < 0.6
    active = values[mask]
    whitened = (values - active.mean()) * torch.rsqrt(active.var(unbiased=True) + 1e-8) * mask
    return dict(values=values.tolist(), mask=mask.int().tolist(), whitened=whitened.tolist())


def bradley_terry(count, margin, centre):
    chosen, rejected = draw(count).requires_grad_(), draw(count).requires_grad_()
    loss = (-logsigmoid(chosen - rejected - margin) + centre * (chosen + rejected) ** 2).mean()
    return dict(chosen=chosen.tolist(), rejected=rejected.tolist(), margin=margin, centre=centre, loss=loss.item(),
                gradients=gradients(loss, chosen, rejected), accuracy=(chosen > rejected).double().mean().item())


save_json(HERE / "losses.json", dict(
    policy=[policy_loss(13, 0.2), policy_loss(40, 0.1)], value=[value_loss(13, 0.2), value_loss(40, 0.1)],
    gae=[gae([1, 2, 9], 1.0, 0.95), gae([5, 17], 0.97, 0.9)], whiten=[whiten(7), whiten(50)],
    bradleyTerry=[bradley_terry(6, 0.0, 0.0), bradley_terry(11, 0.5, 0.01)],
    hand=dict(
        ppo=dict(logProb=[-1, -2, -0.5], refLogProb=[-1.2, -1.5, -0.5], values=[0.1, 0.2, 0.3], score=1, klCoefficient=0.05,
                 gamma=1, lambda_=0.95, k3=[0.018731, 0.148721, 0], advantages=[0.8405, 0.79, 0.7], returns=[0.9405, 0.99, 1],
                 whitened=[0.894578, 0.185004, -1.079583]),
        bradleyTerry=[dict(chosen=1.2, rejected=0.3, margin=0, loss=0.341154), dict(chosen=1.2, rejected=0.3, margin=0.5, loss=0.513015)])))
