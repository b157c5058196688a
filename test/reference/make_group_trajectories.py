"""Several updates of TRL's GRPO and RLOO trainers on micro-llama, from given answers and rewards: group-trajectories.json.

The trainers run as they are, in float64, on prompts of a tokenizer whose words are the model's tokens; what they would sample and
score comes from a script: the same batches of answers for every case. Per case: TRL's settings, the advantages of every batch, what
was logged at every optimizer step with the loss unrounded, and the log-prob of every answer after the last step, summed over its
tokens. TRL shuffles a batch before it cuts it into minibatches; here the order is the one that node-rlhf draws.
"""
import tempfile

import torch
import trl
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer import grpo_trainer, rloo_trainer

from common import HERE, MODELS, load_causal_lm, save_json
from trl_runs import VOCABULARY, Script, given_answers, prompts_of, tokenizer

BATCHES, PROMPTS, GROUP, MAX_COMPLETION_LENGTH = 4, 2, 4, 12
# The rollouts of each of two minibatches, in the order of node-rlhf's trainers for the first epoch of the first step of seed 0.
ORDER = dict(grpo=[5, 3, 2, 6, 4, 7, 0, 1], rloo=[7, 1, 2, 4, 5, 6, 0, 3])
generator = torch.Generator().manual_seed(606)
integer = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))
words = lambda count: [integer(3, VOCABULARY) for _ in range(count)]
# The prompts of a batch are of one length: behind left padding eager attention is NaN in float64.
prompts = [words(length) for length in (3, 1, 5, 2) for _ in range(PROMPTS)]
batches = [[dict(completion=words(integer(1, MAX_COMPLETION_LENGTH)), reward=round(torch.randn(1, generator=generator).item(), 3))
            for _ in range(PROMPTS * GROUP)] for _ in range(BATCHES)]


def log_prob(model, prompt, completion, temperature):
    """Of an answer behind its prompt, alone."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        log_probs = (model(input_ids=ids).logits / temperature).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return log_probs[len(prompt) - 1 :].sum().item()


def run(trainer_class, config_class, minibatches=1, epochs=1, learning_rate=1e-3, **settings):
    name = "rloo" if trainer_class is RLOOTrainer else "grpo"
    losses, advantages = [], []

    class Recorded(given_answers(trainer_class)):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

        def _generate_and_score_completions(self, *args):
            output = super()._generate_and_score_completions(*args)
            advantages.append([float(a) for a in output["advantages"]])
            return output

    for module in (grpo_trainer, rloo_trainer):
        module.shuffle_sequence_dict = lambda batch: {
            key: value[ORDER[name]] if torch.is_tensor(value) and value.dim() > 0 and minibatches > 1 else value
            for key, value in batch.items()}
    steps = BATCHES * minibatches * epochs
    with tempfile.TemporaryDirectory() as directory:
        config = config_class(
            output_dir=directory, per_device_train_batch_size=PROMPTS * GROUP // minibatches, steps_per_generation=minibatches,
            num_iterations=epochs, num_generations=GROUP, max_completion_length=MAX_COMPLETION_LENGTH, max_steps=steps,
            shuffle_dataset=False, learning_rate=learning_rate, optim="adamw_torch", weight_decay=0.0, max_grad_norm=1.0,
            lr_scheduler_type="constant", logging_steps=1, log_level="error", save_strategy="no", report_to=[], disable_tqdm=True,
            use_cpu=True, bf16=False, gradient_checkpointing=False, **settings)
        script = Script(batches)
        trainer = Recorded(model=load_causal_lm(MODELS / "micro-llama"), args=config, reward_funcs=script.reward,
                           train_dataset=prompts_of(prompts), processing_class=tokenizer())
        trainer.script = script
        trainer.remove_callback(PrinterCallback)
        if config.beta:
            trainer.ref_model = load_causal_lm(MODELS / "micro-llama")
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        assert len(logged) == len(losses) == steps and script.drawn == BATCHES
        model = trainer.model.eval()
    kept = ("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", "reward", "frac_reward_zero_std", "grad_norm")
    kept_settings = ("temperature", "beta", "epsilon", "epsilon_high", "loss_type", "importance_sampling_level", "scale_rewards",
                     "use_bias_correction_kl", "normalize_advantages", "reward_clip_range")
    return dict(
        settings={key: getattr(config, key) for key in kept_settings if hasattr(config, key)}, minibatches=minibatches, epochs=epochs,
        learningRate=learning_rate, advantages=advantages,
        steps=[dict({key: value for key, value in entry.items() if key in kept}, loss=loss) for entry, loss in zip(logged, losses)],
        logProbs=[log_prob(model, prompts[b * PROMPTS + a // GROUP], answer["completion"], config.temperature)
                  for b, batch in enumerate(batches) for a, answer in enumerate(batch)])


grpo = lambda weigh_kl=True, **settings: run(GRPOTrainer, GRPOConfig, use_bias_correction_kl=weigh_kl, **settings)
rloo = lambda **settings: run(RLOOTrainer, RLOOConfig, **{"learning_rate": 1e-4, **settings})
save_json(HERE / "group-trajectories.json", dict(
    trl=trl.__version__, groupSize=GROUP, maxNewTokens=MAX_COMPLETION_LENGTH, prompts=prompts, batches=batches,
    grpo={
        "grpo with a KL": grpo(loss_type="grpo", beta=0.1, epochs=2),
        "grpo with a KL that is not weighed": grpo(loss_type="grpo", beta=0.1, epochs=2, weigh_kl=False),
        "bnpo, two minibatches": grpo(loss_type="bnpo", minibatches=2),
        "dapo, two minibatches, clip-higher": grpo(loss_type="dapo", minibatches=2, epsilon_high=0.28),
        "dapo, two epochs, KL, temperature 0.7, batch scaling": grpo(
            loss_type="dapo", epochs=2, beta=0.05, epsilon_high=0.28, temperature=0.7, scale_rewards="batch"),
        "dr_grpo without scaling": grpo(loss_type="dr_grpo", epochs=2, scale_rewards="none"),
        "GSPO": grpo(loss_type="grpo", importance_sampling_level="sequence", epochs=3, epsilon=0.03, epsilon_high=0.05, learning_rate=2e-4),
        "CISPO": grpo(loss_type="cispo", epochs=3, epsilon_high=1.1, beta=0.02)},
    rloo={
        "three epochs": rloo(epochs=3),
        "two minibatches, no KL": rloo(minibatches=2, beta=0.0, learning_rate=5e-4, epsilon=0.3, epsilon_high=0.5),
        "normalised advantages, clipped rewards, temperature 1.3": rloo(
            epochs=3, normalize_advantages=True, reward_clip_range=(-1.0, 1.0), beta=0.2, temperature=1.3)}))
