"""A reward model on feature vectors, trained by PyTorch in float64: feature-reward.json."""
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from common import HERE, gradient_norm, save_json

generator = torch.Generator().manual_seed(112)
# Numbers that float32 holds, so that both sides begin with the same ones.
draw = lambda *shape: torch.randn(*shape, generator=generator).double()
STEPS, LEARNING_RATE = 6, 0.02


def make_model(inputs, hidden, layers, activation):
    widths = [inputs] + [hidden] * layers
    modules = [m for a, b in zip(widths, widths[1:]) for m in (nn.Linear(a, b), activation())]
    model = nn.Sequential(*modules, nn.Linear(hidden, 1)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(draw(*p.shape) * 0.5)
    return model


def case(activation, pairs, scored, margins, smoothing, weight):
    model = make_model(5, 7, 2, activation)
    initial = [p.detach().flatten().tolist() for p in model.parameters()]
    chosen, rejected, features, score = draw(pairs, 5) * 3 + 1, draw(pairs, 5) * 3 + 1, draw(scored, 5) * 3 + 1, draw(scored)
    margin = draw(pairs).abs() if margins else torch.zeros(pairs).double()

    def losses():
        delta = (model(chosen) - model(rejected))[:, 0] - margin
        other = (model(rejected) - model(chosen))[:, 0] - margin
        of_pairs = -(1 - smoothing) * logsigmoid(delta) - smoothing * logsigmoid(other)
        return torch.cat([of_pairs, weight * (model(features)[:, 0] - score) ** 2])

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1)
    steps = []
    gradient = None
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        loss = losses().mean()
        loss.backward()
        gradient = gradient or [p.grad.flatten().tolist() for p in model.parameters()]
        norm = gradient_norm(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 0.7)
        optimizer.step()
        steps.append(dict(loss=loss.item(), gradNorm=norm))
    with torch.no_grad():
        prediction = model(features)[:, 0].tolist()
    return dict(activation=activation.__name__.lower(), parameters=initial, chosen=chosen.tolist(), rejected=rejected.tolist(),
                margin=margin.tolist(), features=features.tolist(), score=score.tolist(), labelSmoothing=smoothing, scoreWeight=weight,
                gradient=gradient, steps=steps, prediction=prediction, learningRate=LEARNING_RATE)


save_json(HERE / "feature-reward.json", dict(mixed=case(nn.Tanh, 6, 5, True, 0.1, 0.4), pairs=case(nn.ReLU, 9, 3, False, 0.0, 0.0),
                                             scores=case(nn.ReLU, 0, 11, False, 0.0, 1.0)))
