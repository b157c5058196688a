"""What the opponents share: arguments, the model, and a loop that answers every JSON line with a JSON line.

Precisions: float32, autocast to bfloat16 over float32 weights, or weights and activations in bfloat16.
"""
import argparse
import json
import os
import resource
import sys
import time
import warnings

warnings.filterwarnings("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def arguments():
    """A parser of MODEL_DIR and the options that all have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--precision", choices=["float32", "autocast", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    return parser


def load(options):
    """The model of options.directory, which is made if absent: GPT-2 124M with random weights, dropout off."""
    if not os.path.exists(os.path.join(options.directory, "config.json")):
        torch.manual_seed(0)
        config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        GPT2LMHeadModel(config).save_pretrained(options.directory)
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(options.directory, dtype=dtype)


def autocast(options):
    return torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "autocast")


def say(message):
    print(json.dumps(message), flush=True)


def say_ready(*more):
    say({"ready": ", ".join([f"torch {torch.__version__}", f"transformers {transformers.__version__}", *more])})


class Clock:
    """Seconds and processor seconds (of all threads) since it was made."""

    def __init__(self):
        self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def read(self):
        return {
            "seconds": time.perf_counter() - self.began,
            "cpuSeconds": time.process_time() - self.cpu_began,
            "peakBytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }


def serve(prepare, work):
    """Says ready; for every line of stdin times work(prepare(line)) and says the time and what work, or a function it returns, returned."""
    say_ready()
    for line in sys.stdin:
        prepared = prepare(json.loads(line))
        clock = Clock()
        result = work(prepared)
        say({**clock.read(), **(result() if callable(result) else result)})
