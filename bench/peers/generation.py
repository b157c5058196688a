"""The opponent of generation.ts: transformers' generate with its KV cache, sampling at temperature 1 from all tokens.

usage: generation.py MODEL_DIR [--precision float32|autocast|bfloat16] [--threads 2]
Every input line {"tokens": [[...], ...], "newTokens": n} continues the prompts, all of one length, by n tokens. For
{"read": bytes} it times the sum of that many bytes of ones, the fastest of five: what reading the weights once takes at least.
"""
import torch
from peer import Clock, arguments, autocast, load, serve

options = arguments().parse_args()
model = load(options).eval()
torch.manual_seed(0)


def prepare(request):
    if "read" in request:
        return torch.ones(request["read"] // 4), None
    return torch.tensor(request["tokens"]), request["newTokens"]


def sum_seconds(values):
    clock = Clock()
    values.sum()
    return clock.read()["seconds"]


@torch.no_grad()
def work(prepared):
    ids, count = prepared
    if count is None:
        return {"readSeconds": min(sum_seconds(ids) for _ in range(5))}
    with autocast(options):
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                             do_sample=True, temperature=1.0, top_k=0, pad_token_id=0, eos_token_id=None)
    return {"newTokens": out.shape[1] - ids.shape[1]}


serve(prepare, work)
