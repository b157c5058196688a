"""Scores of the two …ForSequenceClassification models: rewards.json holds sequences and the logit at each one's last token."""
import torch
from transformers import AutoModelForSequenceClassification

from common import HERE, MODELS, pack, save_json, split

def make(name, seed):
    model = AutoModelForSequenceClassification.from_pretrained(MODELS / name, dtype=torch.float64, attn_implementation="eager").eval()
    tokens, offsets = pack([1, 4, 19, 11, 30], model.config.vocab_size, seed)
    sequences = split(tokens, offsets.tolist())
    with torch.no_grad():
        scores = [float(model(input_ids=ids[None].long()).logits[0, 0]) for ids in sequences]
    return {"sequences": [ids.tolist() for ids in sequences], "scores": scores}


save_json(HERE / "rewards.json", {"reward-llama": make("reward-llama", 81), "reward-gpt2": make("reward-gpt2", 82),
                                "reward-gpt_neox": make("reward-gpt_neox", 83), "reward-mistral": make("reward-mistral", 84),
                                "reward-qwen2": make("reward-qwen2", 85), "reward-qwen3": make("reward-qwen3", 86)})
