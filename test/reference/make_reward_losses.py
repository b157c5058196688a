"""Losses of reward models by PyTorch's own functions, values and gradients in float64: reward-losses.json."""
import torch
from torch.nn.functional import cross_entropy, margin_ranking_loss, mse_loss

from common import HERE, save_json

generator = torch.Generator().manual_seed(111)
draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def case(loss, chosen, rejected, answers, **inputs):
    rewards = [r for r in (chosen, rejected, answers) if r is not None]
    return dict(chosen=chosen.tolist(), rejected=rejected.tolist(), answers=[] if answers is None else answers.tolist(),
                loss=loss.item(), gradient=torch.cat(torch.autograd.grad(loss, rewards)).tolist(), **inputs)


def two_class(count):
    """Cross entropy of the classes "chosen is better" and "rejected is better", with probabilities as labels."""
    chosen, rejected = draw(count).requires_grad_(), draw(count).requires_grad_()
    label = torch.tensor([1.0, 0.5, 0.9, 0.0, 0.25] * count, dtype=torch.float64)[:count]
    loss = cross_entropy(torch.stack([chosen, rejected], 1), torch.stack([label, 1 - label], 1))
    return case(loss, chosen, rejected, None, pairLoss="logistic", label=label.tolist())


def log_exp(count):
    chosen, rejected = draw(count).requires_grad_(), draw(count).requires_grad_()
    loss = torch.log(1 + torch.exp(rejected - chosen)).mean()
    return case(loss, chosen, rejected, None, pairLoss="logistic", label=[1.0] * count)


def hinge(count, margin):
    chosen, rejected = draw(count).requires_grad_(), draw(count).requires_grad_()
    loss = margin_ranking_loss(chosen, rejected, torch.ones(count, dtype=torch.float64), margin=margin)
    return case(loss, chosen, rejected, None, pairLoss="hinge", label=[1.0] * count, margin=margin)


def mixed(pairs, answers, weight):
    """Pairs and scored answers in one batch: the mean over both, squared errors weighted."""
    chosen, rejected, single = (draw(n).requires_grad_() for n in (pairs, pairs, answers))
    score = 2 * draw(answers) + 1
    classes = cross_entropy(torch.stack([chosen, rejected], 1), torch.zeros(pairs, dtype=torch.long), reduction="sum")
    loss = (classes + weight * mse_loss(single, score, reduction="sum")) / (pairs + answers)
    return case(loss, chosen, rejected, single, pairLoss="logistic", label=[1.0] * pairs, score=score.tolist(), scoreWeight=weight)


save_json(HERE / "reward-losses.json", dict(twoClass=two_class(11), logExp=log_exp(7), hinge=hinge(13, 1.0), narrowHinge=hinge(13, 0.3),
                                            mixed=mixed(6, 5, 0.4)))
