"""The opponent of gpt2-lora.ts: forward + backward of a GPT-2-small shape in PyTorch.

usage: gpt2_lora.py MODEL_DIR [--targets attention|all|none] [--precision float32|autocast|bfloat16] [--threads 2] [--compile]
--targets: LoRA r 16, alpha 32 on c_attn ("attention"), on c_attn, c_proj and c_fc ("all"), or full training ("none").
Every input line {"tokens": [[...], ...]}: forward, mean token cross-entropy and backward, no optimizer.
"""
import torch
from peer import arguments, autocast, load, serve
from peft import LoraConfig, get_peft_model

TARGETS = {"attention": ["c_attn"], "all": ["c_attn", "c_proj", "c_fc"]}

parser = arguments()
parser.add_argument("--targets", choices=[*TARGETS, "none"], default="all")
options = parser.parse_args()
model = load(options)
if options.targets != "none":
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0,
                                             target_modules=TARGETS[options.targets], fan_in_fan_out=True))
model.train()
run = torch.compile(model) if options.compile else model


def prepare(request):
    model.zero_grad(set_to_none=True)
    return torch.tensor(request["tokens"])


def step(ids):
    with autocast(options):
        loss = run(input_ids=ids, labels=ids).loss
    loss.backward()
    return lambda: {"loss": loss.item()}


serve(prepare, step)
