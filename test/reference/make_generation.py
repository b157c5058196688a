"""Greedy continuations: generation.json holds prompts and the tokens that transformers' generate adds to them.

For the tiny models two prompts of different lengths, 40 tokens each; for ../shared's stories260k the published continuation of
"Once upon a time", 100 tokens. smallestGap is the least difference between the best and the second logit of any step: where
it is far above float32 rounding, a different token means a different function.
"""
import torch
from tokenizers import Tokenizer

from common import HERE, MODELS, SHARED, load_causal_lm, pack, save_json


def greedy(model, prompt, count):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
                             eos_token_id=None, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    best = torch.stack(out.logits)[:, 0].topk(2).values
    return {"prompt": prompt, "tokens": out.sequences[0, len(prompt) :].tolist(), "smallestGap": float((best[:, 0] - best[:, 1]).min())}


def main():
    result = {}
    for name, seed in (("gpt2", 71), ("llama", 72), ("mistral", 73), ("qwen2", 74), ("qwen3", 75), ("gpt_neox", 76)):
        model = load_causal_lm(MODELS / name)
        prompts = [pack([length], model.config.vocab_size, seed + length)[0].tolist() for length in (1, 9)]
        result[name] = [greedy(model, prompt, 40) for prompt in prompts]
    stories = SHARED / "models" / "stories260k"
    tokenizer = Tokenizer.from_file(str(stories / "tokenizer.json"))
    case = greedy(load_causal_lm(stories), tokenizer.encode("Once upon a time").ids, 100)
    result["stories260k"] = [case | {"text": tokenizer.decode(case["tokens"])}]
    save_json(HERE / "generation.json", result)


main()
