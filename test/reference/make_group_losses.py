"""TRL's own GRPO and RLOO losses on random log-probs, and their advantages of given rewards: group-losses.json.

GRPOTrainer._compute_loss and RLOOTrainer._compute_loss run unchanged, each with a stand-in for `self` (settings alone) whose log-probs
are given: one per token of a right-padded answer, the leaf of the gradient. The rows are one of two minibatches; the tokens of
both, which dapo and cispo divide by, are given too. Advantages come from the trainers' own _generate_and_score_completions, with
answers and rewards that are given (normalised ones of RLOO: make_group_trajectories.py).
"""
import tempfile
import types
from collections import defaultdict

import torch
import trl
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from common import HERE, MODELS, load_causal_lm, save_json
from trl_runs import Script, given_answers, prompts_of, tokenizer

LENGTHS = [4, 1, 6, 3, 5, 2]
MAX_COMPLETION_LENGTH = 9
ALL_TOKENS, MINIBATCHES = 50, 2  # of the generation batch that the rows are one minibatch of
generator = torch.Generator().manual_seed(505)
rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)

width = max(LENGTHS)
mask = torch.tensor([[int(t < n) for t in range(width)] for n in LENGTHS])
policy = (-0.05 - 2 * rand(len(LENGTHS), width)).requires_grad_()
old = policy.detach() + 0.3 * randn(len(LENGTHS), width)
reference = policy.detach() + 0.4 * randn(len(LENGTHS), width)
advantages = randn(len(LENGTHS))


def packed(padded):
    """The rows' tokens end to end."""
    return [float(f"{padded[row, t]:.9g}") for row, n in enumerate(LENGTHS) for t in range(n)]


class Accelerator:
    num_processes = 1
    reduce = staticmethod(lambda tensor, reduction: tensor)
    gather = staticmethod(lambda tensor: tensor)


def stand_in(**settings):
    """What the loss of a trainer reads of `self`."""
    args = types.SimpleNamespace(use_bias_correction_kl=settings.get("weigh_kl", False), delta=None, steps_per_generation=MINIBATCHES)
    return types.SimpleNamespace(
        accelerator=Accelerator(), model=types.SimpleNamespace(training=True), args=args, _metrics=dict(train=defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
        current_gradient_accumulation_steps=1, max_completion_length=MAX_COMPLETION_LENGTH, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, use_vllm=False, aux_loss_enabled=False, _entropy_bonus_enabled=False, **settings)


def run(trainer, inputs, **settings):
    self = stand_in(**settings)
    ids = torch.zeros_like(mask)
    loss = trainer._compute_loss(self, None, dict(
        prompt_ids=ids[:, :1], prompt_mask=mask[:, :1], completion_ids=ids, completion_mask=mask, advantages=advantages,
        num_items_in_batch=torch.tensor(ALL_TOKENS), **inputs))
    kept = ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean")
    return dict(settings=settings, loss=loss.item(), gradient=packed(torch.autograd.grad(loss, policy)[0]),
                metrics={key: self._metrics["train"][key][-1] for key in kept if key in self._metrics["train"]})


def away_from(edges, log_ratio):
    distance = min((log_ratio.exp() - edge).abs().min().item() for edge in edges)
    assert distance > 1e-3, "a ratio lies on a clipping edge: float32 could fall on its other side; change the seed"


def grpo(loss_type, **changes):
    settings = dict(loss_type=loss_type, importance_sampling_level="token", beta=0.0, epsilon_low=0.2, epsilon_high=0.2) | changes
    change = (policy.detach() - old) * mask
    if settings["importance_sampling_level"] == "sequence":
        change = change.sum(1) / mask.sum(1)
    away_from([settings["epsilon_high"]] if loss_type == "cispo" else [1 - settings["epsilon_low"], 1 + settings["epsilon_high"]], change)
    return run(GRPOTrainer, dict(old_per_token_logps=old, ref_per_token_logps=reference), **settings)


def rloo(**changes):
    settings = dict(epsilon_low=0.2, epsilon_high=0.2) | changes
    away_from([1 - settings["epsilon_low"], 1 + settings["epsilon_high"]], ((policy.detach() - old) * mask).sum(1))
    return run(RLOOTrainer, dict(old_logps=(old * mask).sum(1)), **settings)


def advantages_of(trainer_class, config_class, rewards, group, **settings):
    """What the trainer makes of the rewards of groups of answers to len(rewards) / group prompts."""
    script = Script([[dict(completion=[5], reward=reward) for reward in rewards]])
    with tempfile.TemporaryDirectory() as directory:
        config = config_class(output_dir=directory, per_device_train_batch_size=len(rewards), num_generations=group, report_to=[],
                              use_cpu=True, bf16=False, gradient_checkpointing=False, log_level="error", beta=0.0, **settings)
        prompts = [[3 + i] for i in range(len(rewards) // group)]
        trainer = given_answers(trainer_class)(model=load_causal_lm(MODELS / "micro-llama"), args=config, reward_funcs=script.reward,
                                               train_dataset=prompts_of(prompts), processing_class=tokenizer())
        trainer.script = script
        trainer.model.train()
        rows = [row for row in trainer.train_dataset for _ in range(group)]
        output = trainer._generate_and_score_completions(rows)
    return dict(rewards=rewards, group=group, settings=settings, advantages=[float(a) for a in output["advantages"]])


REWARDS = [1.5, -0.25, 0.75, 3.0, 0.5, 0.5, 0.5, 0.5, -2.0, 7.5, 0.0, 1.0]
clip_high = dict(epsilon_high=0.28)
kl = dict(beta=0.07)
weighed = dict(kl, weigh_kl=True)
sequence = dict(importance_sampling_level="sequence", epsilon_low=0.05, epsilon_high=0.08)
save_json(HERE / "group-losses.json", dict(
    trl=trl.__version__,
    batch=dict(lengths=LENGTHS, logProb=packed(policy.detach()), oldLogProb=packed(old), refLogProb=packed(reference),
               advantage=[float(f"{a:.9g}") for a in advantages], allTokens=ALL_TOKENS, minibatches=MINIBATCHES,
               maxNewTokens=MAX_COMPLETION_LENGTH),
    grpo=[grpo(loss_type, **settings) for loss_type in ("grpo", "bnpo", "dapo", "dr_grpo")
          for settings in ({}, clip_high, kl, clip_high | weighed, sequence, sequence | kl, sequence | weighed)]
    + [grpo("cispo", epsilon_high=high, **settings) for high in (1.25, 5.0) for settings in ({}, kl, weighed)]
    + [grpo("cispo", importance_sampling_level="sequence", epsilon_high=1.03, **settings) for settings in ({}, kl, weighed)],
    rloo=[rloo(), rloo(**clip_high), rloo(epsilon_low=0.5, epsilon_high=0.5), rloo(epsilon_low=0.05, epsilon_high=0.1)],
    advantages=dict(
        grpo=[advantages_of(GRPOTrainer, GRPOConfig, REWARDS, group, scale_rewards=scale)
              for group in (2, 4, 6) for scale in ("group", "batch", "none")],
        rloo=[advantages_of(RLOOTrainer, RLOOConfig, REWARDS, group) for group in (2, 4, 6)])))
