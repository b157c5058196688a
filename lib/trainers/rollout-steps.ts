import { epochBatches } from "../data/batching.ts";
import type { TokenizedPrompt } from "../data/types.ts";
import { type AnswerScores, type RewardSource, scoreAnswers } from "../rewards/reward.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { GroupSettings } from "./group-settings.ts";
import type { Network } from "./reference.ts";
import type { Rollout, RolloutBatch } from "./rollouts.ts";

/**
 * The prompts after so many that were drawn before, in a new order each time through or as given. They follow from the number alone,
 * so a resumed run finds the same.
 */
export function promptsAfter(
  prompts: readonly TokenizedPrompt[],
  drawn: number,
  count: number,
  { shufflePrompts, seed }: Pick<GroupSettings, "shufflePrompts" | "seed">,
): TokenizedPrompt[] {
  const all = prompts.length;
  const orders = new Map<number, Int32Array>();
  return Array.from({ length: count }, (_, i) => {
    const epoch = Math.floor((drawn + i) / all);
    const place = (drawn + i) % all;
    if (!shufflePrompts) return prompts[place] as TokenizedPrompt;
    const order = orders.get(epoch) ?? (epochBatches(all, all, seed, epoch)[0] as Int32Array);
    orders.set(epoch, order);
    return prompts[order[place] as number] as TokenizedPrompt;
  });
}

/** The settings that decide what is sampled. */
type SamplingSettings = Pick<
  GroupSettings,
  "maxNewTokens" | "minNewTokens" | "temperature" | "topP" | "seed" | "stop" | "stopStrings"
>;

/** Samples an answer to each prompt, the first of them from random stream `firstStream`. */
export async function sampleRollouts(
  { model, adapter }: Network,
  tokenizer: Tokenizer,
  prompts: readonly TokenizedPrompt[],
  firstStream: number,
  settings: SamplingSettings,
): Promise<Rollout[]> {
  const { maxNewTokens, minNewTokens, temperature, topP, seed, stop, stopStrings } = settings;
  const ends = model.eosTokenIds.length > 0 ? model.eosTokenIds : tokenizer.endTokenIds;
  const generations = await model.generate(
    prompts.map((prompt) => prompt.tokens),
    {
      maxNewTokens,
      minNewTokens,
      temperature,
      topP,
      seed,
      firstStream,
      stop: stop ?? ends,
      stopStrings,
      adapter,
      tokenizer,
    },
  );
  return generations.map(({ tokens: response, text, finishReason }, i) => {
    const { tokens: prompt, row } = prompts[i] as TokenizedPrompt;
    const tokens = new Int32Array(prompt.length + response.length);
    tokens.set(prompt);
    tokens.set(response, prompt.length);
    return { row, tokens, promptLength: prompt.length, response: text, finishReason };
  });
}

/** Log-probs of all rollouts' responses, Float32Array[N] over `batch.packed`, a micro-batch at a time. */
export async function measureLogProbs(
  batch: RolloutBatch,
  { model, adapter }: Network,
  { microBatchTokens, temperature }: Pick<GroupSettings, "microBatchTokens" | "temperature">,
): Promise<Float32Array> {
  const logProb = new Float32Array(batch.packed.tokens.length);
  for (const indices of batch.microBatches(
    microBatchTokens,
    batch.rollouts.map((_, index) => index),
  )) {
    using pass = await model.forward(batch.select(indices), { adapter, temperature, predict: "masked" });
    batch.scatter(logProb, indices, await pass.logProb());
  }
  return logProb;
}

/** Scores of rollouts: clipped, then less the penalty for a missing end. */
export async function scoreRollouts(
  reward: RewardSource,
  rollouts: readonly Rollout[],
  settings: GroupSettings,
): Promise<AnswerScores> {
  const { rewardClip, missingEosPenalty, microBatchTokens, normalizeReward: normalize } = settings;
  const { scores, spread } = await scoreAnswers(reward, rollouts, { microBatchTokens, normalize });
  const shaped = scores.map((score, i) => {
    const clipped = rewardClip === null ? score : Math.min(rewardClip, Math.max(-rewardClip, score));
    return clipped - (rollouts[i]?.finishReason === "stop" ? 0 : (missingEosPenalty ?? 0));
  });
  return { scores: shaped, spread };
}
