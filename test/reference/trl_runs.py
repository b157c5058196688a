"""What the scripts that run TRL's trainers share: a tokenizer, and answers and rewards from a script instead of sampled ones."""
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import GRPOTrainer

VOCABULARY = 61
disable_progress_bars()


def tokenizer():
    """Words are the model's tokens."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>")


def prompts_of(prompts):
    return Dataset.from_list([dict(prompt="".join(f" w{i}" for i in prompt)) for prompt in prompts])


class Script:
    """Batch after batch of answers (completion, reward)."""

    def __init__(self, batches):
        self.batches, self.drawn = batches, 0

    def completions(self):
        self.drawn += 1
        return [answer["completion"] for answer in self.batches[self.drawn - 1]]

    def reward(self, prompts, **_):
        return [answer["reward"] for answer in self.batches[self.drawn - 1]]


def given_answers(trainer_class):
    """The trainer with `script`, a Script, in place of generation."""

    class Given(trainer_class):
        def _generate_single_turn(self, *_):
            completions = self.script.completions()
            return (completions, None) if issubclass(trainer_class, GRPOTrainer) else completions

    return Given
