import { createHash } from "node:crypto";
import { RlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { KeptWeights } from "./checkpoint.ts";
import { frozenWorkload, referenceAdapter, type TrainerWorkload } from "./memory.ts";
import type { ReferenceSettings } from "./preference-settings.ts";
import { type Network, ReferencePolicy } from "./reference.ts";
import { ReferenceLogProbs, referenceFile } from "./reference-log-probs.ts";
import type { TrainingTarget } from "./target.ts";
import type { TrainOptions } from "./trainer.ts";

/** The examples of a run whose reference is measured before the first step. */
export interface Precomputation<Example> {
  readonly examples: readonly Example[];
  /** Shares examples out to forward passes. */
  readonly microBatches: (examples: readonly Example[]) => Example[][];
  /** Hash of all that decides what is measured, but for the reference itself. */
  readonly key: string;
  readonly outputDir: string | undefined;
}

export interface ReferenceSourceOptions<Example> {
  readonly model: CausalLM;
  readonly target: TrainingTarget;
  /** A reference of the caller's; left out: the policy's starting point. */
  readonly refModel?: CausalLM | undefined;
  readonly settings: ReferenceSettings;
  /** Left out: examples are measured as they come, and remembered. */
  readonly precompute?: Precomputation<Example> | undefined;
  /** Answers of one example; that many log-probs it has. */
  readonly answers: number;
  /** Log-probs of the answers of examples that make one forward pass: example after example. */
  readonly measure: (network: Network, examples: readonly Example[]) => Promise<Float32Array>;
}

/**
 * Where a trainer's reference log-probs come from: the adapter switched off, a copy of an adapter or of the weights, a model of the
 * caller's, or a file of log-probs that were measured before.
 */
export class ReferenceSource<Example extends object> implements Disposable {
  readonly #options: ReferenceSourceOptions<Example>;
  readonly #known: ReferenceLogProbs<Example>;
  #policy: ReferencePolicy | null = null;
  #preparing: Promise<void> | null = null;

  constructor(options: ReferenceSourceOptions<Example>) {
    this.#options = options;
    const { answers } = options;
    this.#known = new ReferenceLogProbs({ answers, measure: (some) => this.measure(some) });
  }

  /** Makes the reference while the policy is still what it starts from. Called again it does nothing, unless it failed. */
  prepare(watch: Pick<TrainOptions, "signal" | "progress">): Promise<void> {
    this.#preparing ??= this.#prepare(watch).catch((error: unknown) => {
      this.#preparing = null;
      throw error;
    });
    return this.#preparing;
  }

  async #prepare({ signal, progress }: Pick<TrainOptions, "signal" | "progress">): Promise<void> {
    const { precompute } = this.#options;
    this.#policy ??= await this.#make();
    if (!precompute) return;
    const { examples, microBatches, key, outputDir } = precompute;
    const fingerprint = createHash("sha256")
      .update(key)
      .update(await this.#policy.fingerprint());
    const file = outputDir === undefined ? undefined : referenceFile(outputDir, fingerprint.digest("hex"));
    const note = (text: string): void => progress?.note(text);
    await this.#known.precompute(examples, { microBatches, file, signal, note });
    // From now on the policy may be another than the one that was measured.
    this.#policy.dispose();
    this.#policy = null;
  }

  #make(): Promise<ReferencePolicy> {
    const { model, target, refModel, settings, precompute } = this.#options;
    if (refModel && !settings.syncRefModel) return Promise.resolve(ReferencePolicy.given(refModel));
    if (refModel) return ReferencePolicy.follower(refModel);
    if (settings.syncRefModel) return ReferencePolicy.follower(model, target);
    return precompute ? ReferencePolicy.asYet(model, target) : ReferencePolicy.startingPoint(model, target);
  }

  /** The policy's workload with what the reference adds to it, and the workload of a reference that is a model of its own. */
  memoryWorkloads(policy: TrainerWorkload): TrainerWorkload[] {
    const { model, target, refModel, settings, precompute } = this.#options;
    const { maxTokens, maxSequences, minSequences } = policy;
    const pass = { maxTokens, maxSequences, minSequences };
    const reference = frozenWorkload({ model: refModel ?? model }, pass);
    const copy = { ...reference, bare: true, trainable: "none" as const };
    if (settings.syncRefModel)
      return [policy, ...(refModel ? [{ model: refModel }] : []), { ...copy, dtype: "float32" as const }];
    if (refModel) return [policy, reference];
    if (precompute) return [policy];
    if (target.kind !== "lora") return [policy, copy];
    return [{ ...policy, adapters: referenceAdapter(model, target) }];
  }

  /** Log-probs of the answers of examples that make one forward pass: example after example. */
  async of(examples: readonly Example[]): Promise<Float32Array> {
    return this.#known.of(examples);
  }

  /** The same, of examples that do not come again and are not remembered. */
  measure(examples: readonly Example[]): Promise<Float32Array> {
    if (!this.#policy)
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        "the reference was measured on trainData and evalData before training and knows no other examples; set precomputeRefLogProbs to false",
      );
    return this.#options.measure(this.#policy.network, examples);
  }

  /** To be called when the policy has been updated: a reference that follows it does so now, if it is time. */
  async updated(steps: number): Promise<void> {
    const { model, target, settings } = this.#options;
    if (!settings.syncRefModel || steps % settings.refModelSyncSteps !== 0) return;
    await this.#policy?.follow(model, target, settings.refModelMixupAlpha);
    this.#known.clear();
  }

  /** What checkpoints have to hold of it. */
  get keptWeights(): readonly KeptWeights[] {
    return this.#options.settings.syncRefModel && this.#policy ? [this.#policy.keptWeights] : [];
  }

  dispose(): void {
    this.#policy?.dispose();
    this.#policy = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Throws ERR_RLHF_ARGUMENT for a reference that cannot be compared with the policy, or, if it is to, cannot follow it. */
export function checkRefModel(
  model: CausalLM,
  refModel: CausalLM | undefined,
  { syncRefModel }: Pick<ReferenceSettings, "syncRefModel">,
): void {
  const problem = refModel && problemOf(model, refModel, syncRefModel);
  if (problem) throw new RlhfError("ERR_RLHF_ARGUMENT", `refModel: ${problem}`);
}

function problemOf(model: CausalLM, refModel: CausalLM, follows: boolean): string | null {
  if (refModel === model)
    return "it is the policy itself, which training changes; leave it out to compare with the policy's starting point";
  if (refModel.vocabSize !== model.vocabSize)
    return `its vocabulary has ${refModel.vocabSize} tokens, the policy's ${model.vocabSize}`;
  if (!follows) return null;
  if (refModel.dtype !== "float32")
    return `with syncRefModel its weights are mixed with the policy's and have to be float32, not ${refModel.dtype}`;
  const shapes = (of: CausalLM): string =>
    JSON.stringify(
      of
        .parameters()
        .filter(({ group }) => group === "base")
        .map(({ name, shape }) => [name, shape]),
    );
  return shapes(refModel) === shapes(model)
    ? null
    : "with syncRefModel its weights are mixed with the policy's and have to have the same names and shapes";
}
