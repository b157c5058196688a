"""The opponent of gpt2-lora.ts: forward + backward of a GPT-2-small shape in PyTorch, one step per line read from stdin.

usage: gpt2_lora.py MODEL_DIR [--targets attention|all|none] [--precision float32|autocast|bfloat16] [--threads 2] [--compile]
MODEL_DIR is made if absent: GPT-2 124M's configuration with transformers' random initial weights (dropout off).
--targets: LoRA r 16, alpha 32 on c_attn ("attention"), on c_attn, c_proj and c_fc ("all"), or full training ("none").
--precision: float32, autocast to bfloat16 over float32 weights, or weights and activations in bfloat16 (trained ones in float32).

Protocol, JSON lines: prints {"ready": versions}; for every input line {"tokens": [[...], ...]} does forward, mean token
cross-entropy and backward (eager, scaled-dot-product attention, no optimizer) and prints {"seconds", "cpuSeconds", "loss"}, cpuSeconds
being the processor time of all its threads.
"""
import argparse
import json
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TARGETS = {"attention": ["c_attn"], "all": ["c_attn", "c_proj", "c_fc"]}


def load(directory, dtype):
    if not os.path.exists(os.path.join(directory, "config.json")):
        torch.manual_seed(0)
        config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        GPT2LMHeadModel(config).save_pretrained(directory)
    return GPT2LMHeadModel.from_pretrained(directory, dtype=dtype)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("directory")
    arguments.add_argument("--targets", choices=[*TARGETS, "none"], default="all")
    arguments.add_argument("--precision", choices=["float32", "autocast", "bfloat16"], default="float32")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--compile", action="store_true")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.directory, torch.bfloat16 if options.precision == "bfloat16" else torch.float32)
    if options.targets != "none":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0,
                                                 target_modules=TARGETS[options.targets], fan_in_fan_out=True))
    model.train()
    run = torch.compile(model) if options.compile else model
    print(json.dumps({"ready": f"torch {torch.__version__}, transformers {transformers.__version__}"}), flush=True)
    for line in sys.stdin:
        ids = torch.tensor(json.loads(line)["tokens"])
        model.zero_grad(set_to_none=True)
        began, cpu_began = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "autocast"):
            loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        print(json.dumps({"seconds": seconds, "cpuSeconds": cpu_seconds, "loss": loss.item()}), flush=True)


main()
