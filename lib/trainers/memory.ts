import type { TokenizedPrompt } from "../data/types.ts";
import type { AdapterOptions } from "../model/adapters.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { ModelWorkload } from "../model/estimate-memory.ts";
import { type RewardSource, rewardModels } from "../rewards/reward.ts";
import type { TrainedPart } from "./checkpoint.ts";
import { type Network, REFERENCE } from "./reference.ts";
import type { RolloutSettings } from "./rollout-settings.ts";
import type { TrainingTarget } from "./target.ts";

/** What a run does with one of its models. */
export type TrainerWorkload = ModelWorkload & { readonly model: CausalLM };

/** The largest forward pass of a run. */
export type LargestPass = Pick<ModelWorkload, "maxTokens" | "maxSequences" | "minSequences">;

/** Forward and backward passes, updates and evaluation of what an optimizer trains. */
export function trainingWorkload({ model, optimizer }: TrainedPart, pass: LargestPass): TrainerWorkload {
  const named = (kind: string): string | undefined =>
    optimizer.groups.find((group) => group.startsWith(kind))?.slice(kind.length);
  return { model, adapter: named("adapter:"), head: named("head:"), evaluates: true, ...pass };
}

/** Forward passes of a model that is not trained. */
export function frozenWorkload({ model, adapter, head }: Network, pass: LargestPass): TrainerWorkload {
  return { model, adapter, head, backward: false, ...pass };
}

/** The frozen copy that a reference keeps of an adapter that training goes on from; none of one that begins. */
export function referenceAdapter(model: CausalLM, target: TrainingTarget): Record<string, AdapterOptions> {
  if (target.kind !== "lora" || target.added || model.adapters.has(REFERENCE)) return {};
  const trained = model.adapters.get(target.adapter);
  return trained ? { [REFERENCE]: trained } : {};
}

/** What a run that samples answers does with the policy, and with the models that are only measured. */
export interface RolloutWorkloads {
  readonly pass: LargestPass;
  readonly policy: TrainerWorkload;
  /** Reward models, and the reference where it is a copy. */
  readonly frozen: readonly TrainerWorkload[];
}

/** @param reference whether the KL to the starting point is measured */
export function rolloutWorkloads(
  model: CausalLM,
  target: TrainingTarget,
  reward: RewardSource,
  {
    maxNewTokens,
    microBatchTokens,
    batchSize,
  }: Pick<RolloutSettings, "maxNewTokens" | "microBatchTokens" | "batchSize">,
  prompts: readonly TokenizedPrompt[],
  { reference }: { readonly reference: boolean },
): RolloutWorkloads {
  const lengths = prompts.map((prompt) => prompt.tokens.length);
  const pass = largestMicroBatch(
    lengths.map((length) => length + maxNewTokens),
    microBatchTokens,
    batchSize,
  );
  const promptTokens = lengths.reduce((longest, length) => Math.max(longest, length), 1);
  const generation = { prompts: batchSize, promptTokens, maxNewTokens };
  const adapters = reference ? referenceAdapter(model, target) : {};
  const frozen: TrainerWorkload[] = [];
  if (reference && target.kind !== "lora")
    frozen.push({ ...frozenWorkload({ model }, pass), bare: true, trainable: "none" });
  for (const member of rewardModels(reward))
    if (member.model !== model) frozen.push({ ...frozenWorkload(member, pass), statistics: false });
  return { pass, policy: { model, adapters, generation, evaluates: true, ...pass }, frozen };
}

/**
 * The largest micro-batch: examples are put together up to `microBatchTokens`, and a longer one goes alone.
 *
 * @param lengths tokens of each example
 * @param together the most examples that are shared out at a time
 */
export function largestMicroBatch(
  lengths: Iterable<number>,
  microBatchTokens: number,
  together: number,
): LargestPass {
  let [longest, total, count] = [1, 0, 0];
  for (const length of lengths) {
    longest = Math.max(longest, length);
    total += length;
    count++;
  }
  const maxTokens = Math.max(longest, Math.min(microBatchTokens, together * longest));
  // A sequence costs four bytes, a token thousands: it is enough to know about how many there are. A pair and its prompt are three.
  const usual = Math.ceil((3 * maxTokens * count) / Math.max(1, total));
  return { maxTokens, maxSequences: Math.min(3 * together, usual), minSequences: 1 };
}
