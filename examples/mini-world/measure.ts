/** Measures policies of the mini-world on phrasings that training never showed. */
import { encodePrompt, encodeSequence } from "../../lib/data/encode.ts";
import { CausalLM, packSequences, RewardModel, Tokenizer } from "../../lib/index.ts";
import { grade, type Scores, scoresOf } from "./grade.ts";

/** How a policy answers. */
export interface Measurement extends Scores {
  readonly reward: number;
  /** Mean over answers of log π(answer) − log π_SFT(answer), in nats. */
  readonly kl: number;
  /** Distinct pairs of neighbouring tokens as a share of all pairs. */
  readonly distinct2: number;
  /** Tokens per answer, with the one that ends it. */
  readonly length: number;
  readonly answers: readonly { readonly prompt: string; readonly answer: string; readonly right: boolean }[];
}

interface Sampled {
  readonly prompt: string;
  readonly promptLength: number;
  /** Prompt and answer. */
  readonly tokens: Int32Array;
  readonly answer: string;
}

const MAX_NEW_TOKENS = 32;

async function sample(
  model: CausalLM,
  tokenizer: Tokenizer,
  prompts: readonly string[],
  seed: number,
): Promise<Sampled[]> {
  const encoded = prompts.map((prompt) => encodePrompt(tokenizer, prompt));
  const generated = await model.generate(encoded, {
    maxNewTokens: MAX_NEW_TOKENS,
    temperature: 1,
    seed,
    stop: [...tokenizer.endTokenIds],
  });
  return generated.map(({ tokens }, index) => {
    const prompt = encoded[index] as Int32Array;
    return {
      prompt: prompts[index] as string,
      promptLength: prompt.length,
      tokens: Int32Array.from([...prompt, ...tokens]),
      answer: tokenizer.decode(tokens),
    };
  });
}

/** The log-probability of each answer. */
async function logProbs(model: CausalLM, samples: readonly Sampled[]): Promise<number[]> {
  const batch = packSequences(samples);
  using pass = await model.forward(batch, { grad: false });
  const logProb = await pass.logProb();
  return samples.map((_, index) => {
    let sum = 0;
    for (let t = batch.offsets[index] as number; t < (batch.offsets[index + 1] as number); t++)
      if (batch.mask[t] !== 0) sum += logProb[t] as number;
    return sum;
  });
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function distinctPairs(answers: readonly Int32Array[]): number {
  const pairs = answers.flatMap((tokens) =>
    Array.from(tokens.subarray(1), (token, index) => `${tokens[index]} ${token}`),
  );
  return new Set(pairs).size / pairs.length;
}

export interface MeasureOptions {
  /** Directories of models. */
  readonly policy: string;
  readonly sft: string;
  readonly reward: string;
  readonly prompts: readonly string[];
  readonly answersPerPrompt: number;
  readonly seed: number;
}

/** Samples answers at temperature 1, as the policy was trained, and grades them by program and by the reward model. */
export async function measure(options: MeasureOptions): Promise<Measurement> {
  const tokenizer = await Tokenizer.load(options.policy);
  using policy = await CausalLM.load(options.policy, { device: "cpu", trainable: "none" });
  using sft = await CausalLM.load(options.sft, { device: "cpu", trainable: "none" });
  using reward = await RewardModel.load(options.reward, { device: "cpu" });
  const prompts = options.prompts.flatMap((prompt) =>
    new Array<string>(options.answersPerPrompt).fill(prompt),
  );
  const samples = await sample(policy, tokenizer, prompts, options.seed);
  const grades = samples.map(({ prompt, answer }) => grade(prompt, answer));
  const own = await logProbs(policy, samples);
  const before = await logProbs(sft, samples);
  const answerTokens = samples.map(({ tokens, promptLength }) => tokens.subarray(promptLength));
  return {
    ...scoresOf(grades),
    reward: mean([...(await reward.score(samples.map(({ tokens }) => tokens)))]),
    kl: mean(own.map((logProb, index) => logProb - (before[index] as number))),
    distinct2: distinctPairs(answerTokens),
    length: mean(answerTokens.map(({ length }) => length)),
    answers: samples.map(({ prompt, answer }, index) => ({
      prompt,
      answer,
      right: grades[index]?.right ?? false,
    })),
  };
}

/** The share of held-out pairs, by category, in which the reward model rates the chosen answer higher. */
export async function rewardAccuracy(
  directory: string,
  pairs: readonly { readonly prompt: string; readonly chosen: string; readonly rejected: string }[],
): Promise<Scores> {
  const tokenizer = await Tokenizer.load(directory);
  using model = await RewardModel.load(directory, { device: "cpu" });
  const score = (side: "chosen" | "rejected"): Promise<ArrayLike<number>> =>
    model.score(pairs.map((pair) => encodeSequence(tokenizer, pair.prompt, pair[side]).tokens));
  const [chosen, rejected] = [await score("chosen"), await score("rejected")];
  return scoresOf(
    pairs.map(({ prompt, chosen: answer }, index) => ({
      category: grade(prompt, answer).category,
      right: (chosen[index] as number) > (rejected[index] as number),
    })),
  );
}
