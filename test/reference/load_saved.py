"""Loads what node-rlhf saved with transformers and peft, and prints its log-probs: the interchange proof, run by hand.

usage: load_saved.py DIR                      a causal language model or a …ForSequenceClassification directory
       load_saved.py DIR --base BASE_DIR      a PEFT adapter directory on its base model
       … --tokens 5,9,12 [--temperature 1]
       … --text TEXT                          in place of --tokens: tokenised by the directory's tokenizer, special tokens parsed
       load_saved.py --cases FILE             all that save_models.ts wrote: fails where a value differs by more than 1e-5
Prints one JSON line {"tokens", "kind", "logProbs"} (0 for the first token, as `node-rlhf logprobs` does) or {"tokens", "kind", "reward"}.
"""
import argparse
import json

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from common import load_causal_lm, statistics


def load(directory, base):
    if base is None:
        architecture = AutoConfig.from_pretrained(directory).architectures[0]
        if architecture.endswith("ForSequenceClassification"):
            return AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval(), "SEQ_CLS"
        return load_causal_lm(directory, torch.float32), "CAUSAL_LM"
    if PeftConfig.from_pretrained(directory).task_type == "SEQ_CLS":
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        return PeftModel.from_pretrained(model, directory).eval(), "SEQ_CLS"
    return PeftModel.from_pretrained(load_causal_lm(base, torch.float32), directory).eval(), "CAUSAL_LM"


def reward_in_batch(model, tokens):
    """The score of a sequence alone; fails where it is another in a batch with a longer one, padded at its end."""
    alone = model(input_ids=tokens[None].long()).logits[0, 0].item()
    if model.config.pad_token_id is None:  # an adapter on a base that has none, with which transformers refuses batches
        return alone
    batch = torch.stack([torch.cat([tokens, tokens[:2]]), torch.cat([tokens, tokens.new_full((2,), model.config.pad_token_id)])])
    mask = torch.ones_like(batch)
    mask[1, -2:] = 0
    padded = model(input_ids=batch.long(), attention_mask=mask).logits[1, 0].item()
    if abs(padded - alone) > 1e-5 * max(1.0, abs(alone)):
        raise SystemExit(f"the score is {alone} alone and {padded} in a padded batch; is pad_token_id {model.config.pad_token_id} right?")
    return alone


def compute(directory, base, tokens, temperature):
    """{"kind"} with "logProbs" or "reward" of one sequence, in float32 as the files are."""
    tokens = torch.tensor(tokens, dtype=torch.int32)
    model, kind = load(directory, base)
    with torch.no_grad():
        if kind == "SEQ_CLS":
            return {"kind": kind, "reward": reward_in_batch(model, tokens)}
        offsets = torch.tensor([0, len(tokens)], dtype=torch.int32)
        return {"kind": kind, "logProbs": statistics(model, tokens, offsets, temperature)["logProb"].tolist()}


def compare_tokens(case):
    """Fails where the directory's tokenizer and chat template give other tokens, or another mask over what the assistant says."""
    tokenizer = AutoTokenizer.from_pretrained(case["directory"])
    theirs = tokenizer.apply_chat_template(case["messages"], return_dict=True, return_assistant_tokens_mask=True)
    # node-rlhf leaves out what a template writes after the last end of turn.
    length = len(case["tokens"])
    found = (theirs["input_ids"][:length], theirs["assistant_masks"][:length])
    if found != (case["tokens"], case["lossMask"]):
        raise SystemExit(f"{case['directory']}: tokens and mask are {found}, expected {case['tokens']}, {case['lossMask']}")


def compare(path):
    """Prints the largest relative difference of every case; exits with 1 if one is over 1e-5."""
    worst = 0.0
    for case in json.loads(open(path).read()):
        result = compute(case["directory"], case.get("base"), case["tokens"], 1.0)
        pairs = zip(result["logProbs"], case["logProbs"]) if "logProbs" in case else [(result["reward"], case["reward"])]
        difference = max(abs(theirs - ours) / max(1.0, abs(theirs)) for theirs, ours in pairs)
        worst = max(worst, difference)
        if "messages" in case:
            compare_tokens(case)
        print(f"{difference:.1e}  {result['kind']:10s} {case['directory']}")
    raise SystemExit(worst > 1e-5)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("directory", nargs="?")
    arguments.add_argument("--base")
    arguments.add_argument("--tokens", default="5,9,12,7")
    arguments.add_argument("--text")
    arguments.add_argument("--temperature", type=float, default=1.0)
    arguments.add_argument("--cases")
    options = arguments.parse_args()
    if options.cases:
        compare(options.cases)
    if not options.directory:
        arguments.error("name a directory, or --cases FILE")
    tokens = [int(t) for t in options.tokens.split(",")]
    if options.text is not None:
        tokens = AutoTokenizer.from_pretrained(options.directory)(options.text)["input_ids"]
    print(json.dumps({"tokens": tokens, **compute(options.directory, options.base, tokens, options.temperature)}))


main()
