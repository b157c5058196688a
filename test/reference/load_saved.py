"""Loads what node-rlhf saved with transformers and peft, and prints its log-probs: the interchange proof, run by hand.

usage: load_saved.py DIR                      a causal language model or a …ForSequenceClassification directory
       load_saved.py DIR --base BASE_DIR      a PEFT adapter directory on its base model
       … --tokens 5,9,12 [--temperature 1]
       … --text TEXT                          in place of --tokens: tokenised by the directory's tokenizer, special tokens parsed
Prints one JSON line {"kind", "tokens", "logProbs"} (0 for the first token, as `node-rlhf logprobs` does) or {"kind", "tokens", "reward"}.
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


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("directory")
    arguments.add_argument("--base")
    arguments.add_argument("--tokens", default="5,9,12,7")
    arguments.add_argument("--text")
    arguments.add_argument("--temperature", type=float, default=1.0)
    options = arguments.parse_args()
    ids = [int(t) for t in options.tokens.split(",")]
    if options.text is not None:
        ids = AutoTokenizer.from_pretrained(options.directory)(options.text)["input_ids"]
    tokens = torch.tensor(ids, dtype=torch.int32)
    model, kind = load(options.directory, options.base)
    with torch.no_grad():
        if kind == "SEQ_CLS":
            result = {"reward": model(input_ids=tokens[None].long()).logits[0, 0].item()}
        else:
            offsets = torch.tensor([0, len(tokens)], dtype=torch.int32)
            result = {"logProbs": statistics(model, tokens, offsets, options.temperature)["logProb"].tolist()}
    print(json.dumps({"kind": kind, "tokens": tokens.tolist(), **result}))


main()
