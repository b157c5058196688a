"""Ten steps of TRL's DPO, KTO, ORPO, CPO (and with it SimPO) trainers on micro-llama: preference-trajectories.json.

One more DPO run goes on with an adapter of llama that has been trained before, whose reference TRL copies as the adapter "ref".

The trainers run as they are, in float64, on texts of a tokenizer whose words are the model's tokens, batch after batch in the order
of the data. Per case: TRL's settings, the examples as the trainer tokenised them (tokens and prompt length), what it logged at every
step with the loss unrounded, and the log-prob of every answer after the last step, summed over its tokens.
"""
import os
import tempfile

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
import trl
from datasets import Dataset
from peft import PeftModel
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from common import HERE, MODELS, load_causal_lm, save_json
from trl_runs import VOCABULARY, tokenizer

STEPS, BATCH = 10, 4
generator = torch.Generator().manual_seed(404)
words = lambda low, high: [int(w) for w in torch.randint(3, VOCABULARY, (int(torch.randint(low, high, (1,), generator=generator)),),
                                                          generator=generator)]
text = lambda ids: "".join(f" w{i}" for i in ids)
PAIRS = [dict(prompt=text(words(1, 6)), chosen=text(words(1, 9)), rejected=text(words(1, 9))) for _ in range(3 * BATCH)]
ANSWERS = [dict(prompt=p["prompt"], completion=p["chosen" if i % 3 else "rejected"], label=bool(i % 3)) for i, p in enumerate(PAIRS)]


def examples_of(dataset):
    """Token ids and prompt length of every answer, as the trainer's data set has them."""
    join = lambda row, answer: dict(tokens=row["prompt_ids"] + row[answer], promptLength=len(row["prompt_ids"]))
    from_labels = lambda row, name: dict(tokens=row[f"{name}_input_ids"], promptLength=row[f"{name}_labels"].count(-100))
    rows = list(dataset)
    if "completion_ids" in rows[0]:
        return [dict(join(row, "completion_ids"), label=row["label"]) for row in rows]
    if "chosen_ids" in rows[0]:
        return [dict(chosen=join(row, "chosen_ids"), rejected=join(row, "rejected_ids")) for row in rows]
    return [dict(chosen=from_labels(row, "chosen"), rejected=from_labels(row, "rejected")) for row in rows]


def log_prob(model, answer):
    """Of an answer behind its prompt, alone."""
    ids = torch.tensor([answer["tokens"]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return log_probs[answer["promptLength"] - 1 :].sum().item()


def run(trainer_class, config_class, rows, reference=True, model=None, **settings):
    losses = []

    class Recorded(trainer_class):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

    with tempfile.TemporaryDirectory() as directory:
        config = config_class(
            output_dir=directory, per_device_train_batch_size=BATCH, max_steps=STEPS, train_sampling_strategy="sequential",
            optim="adamw_torch", weight_decay=0.0, max_grad_norm=1.0, lr_scheduler_type="constant", max_length=48,
            logging_steps=1, log_level="error", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
            gradient_checkpointing=False, **settings)
        models_ = dict(model=model or load_causal_lm(MODELS / "micro-llama"))
        if reference:
            models_["ref_model"] = load_causal_lm(MODELS / "micro-llama")
        trainer = Recorded(args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(), **models_)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        assert len(logged) == len(losses) == STEPS
        examples = examples_of(trainer.train_dataset)
        model = trainer.model.eval()
        answers = [e[side] for e in examples for side in ("chosen", "rejected")] if "chosen" in examples[0] else examples
        kept = ("rewards/", "logps/", "kl", "nll_loss", "entropy", "grad_norm", "learning_rate")
        return dict(
            settings={**settings, "beta": config.beta}, batchSize=BATCH,
            betas=[config.adam_beta1, config.adam_beta2], eps=config.adam_epsilon, maxGradNorm=config.max_grad_norm, examples=examples,
            steps=[dict({key: value for key, value in entry.items() if key.startswith(kept)}, loss=loss)
                   for entry, loss in zip(logged, losses)],
            logProbs=[log_prob(model, answer) for answer in answers])


def trained_adapter():
    model = PeftModel.from_pretrained(load_causal_lm(MODELS / "llama"), HERE / "adapters" / "llama", is_trainable=True)
    return model.to(torch.float64)


dpo = lambda **settings: run(DPOTrainer, DPOConfig, PAIRS, learning_rate=2e-3, **settings)
save_json(HERE / "preference-trajectories.json", dict(
    trl=trl.__version__,
    dpo=dict(
        sigmoid=dpo(),
        mixed=dpo(loss_type=["ipo", "bco_pair", "sft"], loss_weights=[0.1, 1.0, 0.5], beta=0.3),
        aot=dpo(loss_type="aot", label_smoothing=0.1, beta=0.2),
        desensitized=dpo(ld_alpha=0.5, use_weighting=True)),
    adapter=run(DPOTrainer, DPOConfig, PAIRS, reference=False, model=trained_adapter(), learning_rate=5e-3),
    kto=run(KTOTrainer, KTOConfig, ANSWERS, learning_rate=2e-3, beta=0.2, desirable_weight=0.75),
    orpo=run(ORPOTrainer, ORPOConfig, PAIRS, reference=False, learning_rate=2e-3),
    cpo=run(CPOTrainer, CPOConfig, PAIRS, reference=False, learning_rate=2e-3),
    simpo=run(CPOTrainer, CPOConfig, PAIRS, reference=False, learning_rate=2e-3, loss_type="simpo", cpo_alpha=0.0, beta=2.0)))
