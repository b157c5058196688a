"""TRL's own losses on random log-probs: preference-losses.json.

DPOTrainer._compute_loss, KTOTrainer._compute_loss and the get_batch_loss_metrics of ORPOTrainer and CPOTrainer run unchanged, each
with a stand-in for `self` (settings alone) and models that return given logits. Those logits are made from one log-prob per token,
the leaf of the gradient: the token's logit is its log-prob, the rest of the mass is spread over the other tokens, and every row is
shifted by a random number, which is its logsumexp.
"""
import os
import types
from collections import defaultdict

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import trl
import torch
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl import DPOTrainer, KTOTrainer

from common import HERE, save_json

VOCABULARY = 5
PROMPTS = [2, 1, 3, 2, 1]
ANSWERS = [(3, 5), (4, 2), (1, 6), (4, 4), (2, 3)]  # tokens of chosen and rejected
generator = torch.Generator().manual_seed(303)
rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)

chosen_lengths = [p + c for p, (c, _) in zip(PROMPTS, ANSWERS)]
rejected_lengths = [p + r for p, (_, r) in zip(PROMPTS, ANSWERS)]


def rounded(values):
    return [float(f"{value:.9g}") for value in values]


class Sequences:
    """Right-padded rows of random tokens, with the policy's and the reference's log-prob of each."""

    def __init__(self, lengths, answers, first_token=0, drift=0.4):
        self.lengths, self.width = lengths, max(lengths)
        self.ids = torch.randint(1, VOCABULARY, (len(lengths), self.width), generator=generator)
        self.ids[:, 0] = first_token
        self.attention = torch.tensor([[int(t < n) for t in range(self.width)] for n in lengths])
        self.completion = torch.tensor([[int(n - a <= t < n) for t in range(self.width)] for n, a in zip(lengths, answers)])
        self.policy = (-0.05 - 2 * rand(len(lengths), self.width)).requires_grad_()
        self.reference = (self.policy.detach() + drift * randn(len(lengths), self.width)).clamp(max=-0.01)
        self.shares = torch.softmax(randn(len(lengths), self.width, VOCABULARY), -1)
        self.shift = randn(len(lengths), self.width)

    def logits(self, log_prob):
        """logits[t-1] predict token t: log_prob at its id, and what is left of the mass elsewhere."""
        others = self.shares.scatter(-1, self.ids[..., None], 0)
        others = others / others.sum(-1, keepdim=True) * (1 - log_prob.exp())[..., None]
        logits = torch.where(torch.nn.functional.one_hot(self.ids, VOCABULARY).bool(), log_prob[..., None],
                             others.clamp(min=1e-300).log()) + self.shift[..., None]
        return torch.cat([logits[:, 1:], logits[:, :1]], 1)

    def packed(self, padded, order):
        """The rows' real tokens end to end, in the given order of rows."""
        return torch.cat([padded[row, : self.lengths[row]] for row in order]).tolist()


class Model(torch.nn.Module):
    """Returns the logits of the batch whose first token it is given."""

    is_gradient_checkpointing = False

    def __init__(self, which, dtype, *batches):
        super().__init__()
        self.which, self.dtype, self.batches = which, dtype, {int(b.ids[0, 0]): b for b in batches}

    def forward(self, input_ids=None, *args, **kwargs):
        batch = self.batches[int(input_ids[0, 0])]
        return types.SimpleNamespace(logits=batch.logits(getattr(batch, self.which)).to(self.dtype))


class Accelerator:
    device = torch.device("cpu")
    gather = gather_for_metrics = staticmethod(lambda tensor: tensor)


def trainer(cls, dtype, batches, **settings):
    """What the loss of a trainer reads of `self`."""
    self = types.SimpleNamespace(
        accelerator=Accelerator(), model=Model("policy", dtype, *batches), ref_model=Model("reference", dtype, *batches),
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=settings.pop("discopop_tau", 0.05)),
        _metrics=dict(train=defaultdict(list)), _total_train_tokens=0, _tp_size=1, aux_loss_enabled=False,
        precompute_ref_logps=False, use_liger_kernel=False, is_encoder_decoder=False, padding_value=0, pad_token_id=0)
    self.__dict__.update(settings)
    for name in ("_compute_kl_logps", "concatenated_forward", "odds_ratio_loss", "cpo_loss"):
        if hasattr(cls, name):
            setattr(self, name, types.MethodType(getattr(cls, name), self))
    for name in ("concatenated_inputs", "get_batch_logps"):
        if hasattr(cls, name):
            setattr(self, name, getattr(cls, name))
    return self


def gradient(loss, batch, order):
    return rounded(batch.packed(torch.autograd.grad(loss, batch.policy)[0], order))


pairs = len(PROMPTS)
rows = Sequences(chosen_lengths + rejected_lengths, [c for c, _ in ANSWERS] + [r for _, r in ANSWERS])
interleaved = [row for p in range(pairs) for row in (p, pairs + p)]


def dpo(loss_type, weights=None, dtype=torch.float64, **settings):
    loss_types = loss_type if isinstance(loss_type, list) else [loss_type]
    defaults = dict(beta=0.3, label_smoothing=0.0, ld_alpha=None, use_weighting=False, f_divergence_type="reverse_kl",
                    f_alpha_divergence_coef=0.5)
    self = trainer(DPOTrainer, dtype, [rows], loss_types=loss_types, loss_weights=weights or [1.0] * len(loss_types),
                   **{**defaults, **settings})
    inputs = dict(input_ids=rows.ids, attention_mask=rows.attention, completion_mask=rows.completion)
    loss = DPOTrainer._compute_loss(self, self.model, inputs, False)
    keys = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"]
    return dict(losses=loss_types, weights=self.loss_weights, settings={**defaults, **settings, "discopop_tau": self.args.discopop_tau},
                loss=loss.item(), gradient=gradient(loss, rows, interleaved),
                metrics={key: self._metrics["train"][key][-1] for key in keys})


def labels_of(batch):
    return torch.where(batch.completion == 1, batch.ids, -100)


def paired_inputs():
    inputs = {}
    for name, part in (("chosen", slice(0, pairs)), ("rejected", slice(pairs, None))):
        inputs[f"{name}_input_ids"] = rows.ids[part]
        inputs[f"{name}_attention_mask"] = rows.attention[part]
        inputs[f"{name}_labels"] = labels_of(rows)[part]
    return inputs


def orpo(beta):
    self = trainer(ORPOTrainer, torch.float64, [rows], beta=beta)
    loss, metrics = ORPOTrainer.get_batch_loss_metrics(self, self.model, paired_inputs())
    return dict(beta=beta, loss=loss.item(), gradient=gradient(loss, rows, interleaved),
                metrics={key: value for key, value in metrics.items() if not key.startswith("logits/")})


def cpo(loss_type, **settings):
    defaults = dict(beta=0.2, alpha=0.0, cpo_alpha=1.0, label_smoothing=0.0, simpo_gamma=0.5)
    self = trainer(CPOTrainer, torch.float64, [rows], loss_type=loss_type, **{**defaults, **settings})
    loss, metrics = CPOTrainer.get_batch_loss_metrics(self, self.model, paired_inputs())
    return dict(type=loss_type, settings={**defaults, **settings}, loss=loss.item(), gradient=gradient(loss, rows, interleaved),
                metrics={key: value for key, value in metrics.items() if not key.startswith("logits/")})


def kto(loss_type, label, drift, **settings):
    answers = [3, 2, 4, 1]
    main = Sequences([p + a for p, a in zip(PROMPTS, answers)], answers)
    rotated = answers[1:] + answers[:1]
    kl = Sequences([p + a for p, a in zip(PROMPTS, rotated)], rotated, first_token=1)
    with torch.no_grad():
        kl.reference += drift
        kl.reference.clamp_(max=-0.01)
    defaults = dict(beta=0.2, desirable_weight=1.0, undesirable_weight=1.0)
    self = trainer(KTOTrainer, torch.float64, [main, kl], loss_type=loss_type, calculate_KL=loss_type == "kto",
                   **{**defaults, **settings})
    inputs = dict(input_ids=main.ids, attention_mask=main.attention, completion_mask=main.completion,
                  KL_input_ids=kl.ids, KL_attention_mask=kl.attention, KL_completion_mask=kl.completion, label=torch.tensor(label))
    loss = KTOTrainer._compute_loss(self, self.model, inputs, False)
    order = range(len(answers))
    packed = lambda batch, values: rounded(batch.packed(values, order))
    describe = lambda batch: dict(lengths=batch.lengths, mask=batch.packed(batch.completion, order),
                                  logProb=packed(batch, batch.policy.detach()), refLogProb=packed(batch, batch.reference))
    return dict(type=loss_type, settings={**defaults, **settings}, label=label, main=describe(main), mismatched=describe(kl),
                loss=loss.item(), gradient=gradient(loss, main, order),
                metrics={key: values[-1] for key, values in self._metrics["train"].items()
                         if key == "kl" or key.startswith(("rewards/", "logps/"))})


with torch.no_grad():
    # Row t of the logits predicts token t + 1; here index t describes token t, as in the engine.
    logits = rows.logits(rows.policy)
    at_token = lambda values: torch.cat([values[:, -1:], values[:, :-1]], 1)
    lse, lse_half = at_token(torch.logsumexp(logits, -1)), at_token(torch.logsumexp(2 * logits, -1))

margin_losses = ["sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm"]
smoothing = lambda name: dict(label_smoothing=0.1) if name in ("exo_pair", "robust", "aot", "aot_unpaired") else {}
cases = [dpo(name, **smoothing(name)) for name in margin_losses + ["nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
                                                                   "apo_zero", "apo_down", "sft"]]
cases += [dpo(name, f_divergence_type=divergence, **smoothing(name))
          for name in margin_losses for divergence in ("forward_kl", "js_divergence")]
cases += [dpo("sigmoid", dtype=torch.float32, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=alpha)
          for alpha in (0.5, 2.0, 1.0)]
cases += [dpo(["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]), dpo("sigmoid", ld_alpha=0.5), dpo("ipo", ld_alpha=0.25, beta=0.1),
          dpo("sigmoid", use_weighting=True), dpo(["bco_pair", "apo_zero"], [0.5, 2.0], use_weighting=True),
          dpo("discopop", discopop_tau=0.5), dpo("exo_pair", label_smoothing=1e-3)]

save_json(HERE / "preference-losses.json", dict(
    trl=trl.__version__,
    batch=dict(lengths=[rows.lengths[row] for row in interleaved], mask=rows.packed(rows.completion, interleaved),
               logProb=rounded(rows.packed(rows.policy.detach(), interleaved)),
               refLogProb=rounded(rows.packed(rows.reference, interleaved)),
               lse=rounded(rows.packed(lse, interleaved)), lseHalf=rounded(rows.packed(lse_half, interleaved))),
    dpo=cases, orpo=[orpo(0.1), orpo(0.5)],
    cpo=[cpo("sigmoid"), cpo("sigmoid", label_smoothing=0.2, cpo_alpha=0.5), cpo("hinge"), cpo("ipo", cpo_alpha=0.0),
         cpo("simpo", cpo_alpha=0.0, beta=2.0), cpo("simpo", cpo_alpha=0.3, beta=2.0, label_smoothing=0.1, simpo_gamma=1.0)],
    kto=[kto("kto", [True, False, True, True], -0.3), kto("kto", [False, True, False, True], 0.5, beta=0.1),
         kto("kto", [True, False, False, True], -0.1, desirable_weight=1.5, undesirable_weight=0.7),
         kto("kto", [True, True, True, True], -0.2), kto("apo_zero_unpaired", [True, False, False, True], 0.0)]))
