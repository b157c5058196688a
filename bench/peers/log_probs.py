"""The opponent of log-probs.ts: log-probabilities of given tokens, forward only, by the function that TRL's trainers use.

usage: log_probs.py MODEL_DIR [--precision float32|autocast|bfloat16] [--threads 2] [--compile]
Every input line is {"tokens": [[...], ...]}.
"""
import torch
from peer import arguments, autocast, load, serve
from trl.trainer.utils import selective_log_softmax

options = arguments().parse_args()
model = load(options).eval()
run = torch.compile(model) if options.compile else model


@torch.no_grad()
def log_probs(ids):
    with autocast(options):
        logits = run(input_ids=ids, use_cache=False).logits
        result = selective_log_softmax(logits[:, :-1], ids[:, 1:])
    return lambda: {"mean": result.float().mean().item()}


serve(lambda request: torch.tensor(request["tokens"]), log_probs)
