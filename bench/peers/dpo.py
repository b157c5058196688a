"""The opponent of dpo.ts: steps of TRL's DPOTrainer, LoRA r 16, alpha 32 on all linears of GPT-2, the reference by the adapter switched off.

usage: dpo.py MODEL_DIR TOKENIZER_DIR [--precision float32|autocast|bfloat16] [--threads 2]
Every input line {} runs one optimizer step on the next pairs; the first line is {"pairs": [{"prompt", "chosen", "rejected"}, ...],
"batchSize": n}, token ids.
"""
import json
import sys
import tempfile

import torch
import trl
from datasets import Dataset
from peer import Clock, arguments, load, say, say_ready
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

parser = arguments()
parser.add_argument("--tokenizer", required=True)
options = parser.parse_args()
model = load(options)


class TokenizedTrainer(DPOTrainer):
    """Takes pairs that are token ids already."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


class InTurn(TrainerCallback):
    """Lets a step begin when a line comes, and says what it took when it has ended."""

    def on_step_begin(self, args, state, control, **_):
        if not sys.stdin.readline():
            sys.exit(0)
        self.clock = Clock()

    def on_step_end(self, args, state, control, **_):
        say(self.clock.read())


say_ready(f"trl {trl.__version__}")
given = json.loads(sys.stdin.readline())
rows = [{f"{key}_ids": pair[key] for key in ("prompt", "chosen", "rejected")} for pair in given["pairs"]]
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{options.tokenizer}/tokenizer.json",
                                    pad_token="<unk>", eos_token="</s>")
with tempfile.TemporaryDirectory() as directory:
    config = DPOConfig(directory, per_device_train_batch_size=given["batchSize"], num_train_epochs=1, logging_steps=10**6,
                       save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
                       bf16=options.precision == "autocast", gradient_checkpointing=False, learning_rate=5e-6,
                       lr_scheduler_type="constant", beta=0.1, max_length=None, seed=0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, fan_in_fan_out=True,
                      target_modules=["c_attn", "c_proj", "c_fc"])
    TokenizedTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                     peft_config=lora, callbacks=[InTurn()]).train()
