/** Compares two policies on prompts that neither was trained on. */
import { encodePrompt } from "../../lib/data/encode.ts";
import { CausalLM, packSequences, RewardModel, Tokenizer } from "../../lib/index.ts";
import { isRight, manners } from "./world.ts";

export interface Answer {
  readonly prompt: string;
  readonly text: string;
  readonly reward: number;
}

/** How a policy does on a set of prompts. */
export interface PolicyReport {
  readonly meanReward: number;
  /** Share of the answers whose content is right. */
  readonly right: number;
  /** Shares of the answers that begin or end kindly, rudely. */
  readonly kind: number;
  readonly rude: number;
  /** Mean over answers of log π(answer) − log π_reference(answer): the KL per answer, in nats. */
  readonly kl: number;
  readonly answers: readonly Answer[];
}

interface Sampled {
  readonly prompt: string;
  readonly promptLength: number;
  /** Prompt and answer. */
  readonly tokens: Int32Array;
  readonly text: string;
}

async function sample(model: CausalLM, tokenizer: Tokenizer, prompts: readonly string[]): Promise<Sampled[]> {
  const encoded = prompts.map((prompt) => encodePrompt(tokenizer, prompt));
  const answers = await model.generate(encoded, {
    maxNewTokens: 40,
    temperature: 1,
    seed: 1,
    stop: [...tokenizer.endTokenIds],
  });
  return answers.map((answer, index) => {
    const prompt = encoded[index] as Int32Array;
    const tokens = Int32Array.from([...prompt, ...answer.tokens]);
    return {
      prompt: prompts[index] as string,
      promptLength: prompt.length,
      tokens,
      text: tokenizer.decode(answer.tokens),
    };
  });
}

/** The log-probability of each answer. */
async function answerLogProbs(model: CausalLM, samples: readonly Sampled[]): Promise<number[]> {
  const batch = packSequences(samples);
  using pass = await model.forward(batch, { grad: false });
  const logProb = await pass.logProb();
  return samples.map((_, index) => {
    let sum = 0;
    for (let t = batch.offsets[index] as number; t < (batch.offsets[index + 1] as number); t++) {
      if (batch.mask[t] !== 0) sum += logProb[t] as number;
    }
    return sum;
  });
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function share(samples: readonly Sampled[], manner: keyof typeof manners): number {
  const phrases: readonly string[] = [...manners[manner].openings, ...manners[manner].closings];
  return mean(samples.map(({ text }) => (phrases.some((phrase) => text.includes(phrase)) ? 1 : 0)));
}

/** Samples `answersPerPrompt` answers to each prompt from the policy in `directory` and measures them. */
export async function reportPolicy(
  directory: string,
  referenceDirectory: string,
  rewardDirectory: string,
  prompts: readonly string[],
  answersPerPrompt: number,
): Promise<PolicyReport> {
  const tokenizer = await Tokenizer.load(directory);
  using policy = await CausalLM.load(directory, { device: "cpu", trainable: "none" });
  using reference = await CausalLM.load(referenceDirectory, { device: "cpu", trainable: "none" });
  using reward = await RewardModel.load(rewardDirectory, { device: "cpu" });
  const samples = await sample(
    policy,
    tokenizer,
    prompts.flatMap((prompt) => new Array<string>(answersPerPrompt).fill(prompt)),
  );
  const rewards = await reward.score(samples.map(({ tokens }) => tokens));
  const own = await answerLogProbs(policy, samples);
  const others = await answerLogProbs(reference, samples);
  return {
    meanReward: mean([...rewards]),
    right: mean(samples.map(({ prompt, text }) => (isRight(prompt, text) ? 1 : 0))),
    kind: share(samples, "kind"),
    rude: share(samples, "rude"),
    kl: mean(own.map((logProb, index) => logProb - (others[index] as number))),
    answers: samples.map(({ prompt, text }, index) => ({ prompt, text, reward: rewards[index] as number })),
  };
}
