import { describePlace } from "../data/readers.ts";
import type { TokenizeReport } from "../data/tokenize.ts";
import type { DataReport, PreferenceCounts } from "../data/types.ts";
import type { LoadOptions } from "../model/model-options.ts";
import type { LoraSettings } from "../trainers/settings.ts";
import { camelCase, type RewardStage } from "./schema.ts";

/** Keys that the pipeline itself acts on; all others are settings of the trainer. */
const PIPELINE_KEYS = [
  "model_path",
  "adapter_path",
  "init",
  "data_path",
  "eval_data_path",
  "eval_fraction",
  "max_rows",
  "duplicates",
  "streaming",
  "prompts_path",
  "eval_prompts_path",
  "reward_model_path",
  "reward_module",
  "environment_module",
  "reward_url",
  "reward_headers",
  "reward_batch_size",
  "reward_concurrency",
  "reward_timeout",
  "reward_retries",
  "reward_cache",
  "ref_model_path",
  "output_dir",
  "format",
  "on_bad_row",
  "device",
  "dtype",
  "compute",
  "freeze_base",
  "steps_per_epoch",
  "stop",
  "ties",
  "split_seed",
  "members",
  "combine",
  "kappa",
] as const;

/** Keys of the adapter to train: lora_rank_pattern is the trainer's lora.rankPattern. */
const LORA = "lora_";
type LoraKey = `${typeof LORA}${string}`;

type PipelineKey = (typeof PIPELINE_KEYS)[number];

/** A YAML key as a setting of the TypeScript API: learning_rate → learningRate. */
type CamelCase<Key extends string> = Key extends `${infer Head}_${infer Tail}`
  ? `${Head}${Capitalize<CamelCase<Tail>>}`
  : Key;

/** The settings of a stage that are its trainer's. */
type TrainerSettings<Stage> = {
  readonly [Key in Exclude<keyof Stage & string, PipelineKey | LoraKey> as CamelCase<Key>]: Stage[Key];
};

/** The settings of a stage that are its adapter's. */
type AdapterSettings<Stage> = {
  readonly [Key in keyof Stage as Key extends `${typeof LORA}${infer Rest}`
    ? CamelCase<Rest>
    : never]: Stage[Key];
};

/** A stage whose every key is one of the pipeline's or a setting of the trainer's, with a value that the trainer takes. */
type Fitting<Stage, Config> = [keyof TrainerSettings<Stage>, keyof AdapterSettings<Stage>] extends [
  keyof Config,
  keyof LoraSettings,
]
  ? [TrainerSettings<Stage>, AdapterSettings<Stage>] extends [Config, LoraSettings]
    ? Stage
    : never
  : never;

/**
 * The settings of a stage that are its trainer's, in camelCase. What was left out stays out: trainers know their defaults. A
 * YAML key that the trainer does not have, or has with other values, does not compile.
 */
export function trainerConfig<Stage extends object, Config extends object>(
  settings: Fitting<Stage, Config>,
): Config {
  const pipelineKeys: ReadonlySet<string> = new Set(PIPELINE_KEYS);
  const own = Object.entries(settings).filter(
    ([key, value]) => !pipelineKeys.has(key) && value !== undefined,
  );
  const camelCased = (entries: [string, unknown][]): object =>
    Object.fromEntries(entries.map(([key, value]) => [camelCase(key), value]));
  const config = camelCased(own.filter(([key]) => !key.startsWith(LORA)));
  const lora = own.filter(([key]) => key.startsWith(LORA));
  if (lora.length === 0) return config as Config;
  return {
    ...config,
    lora: camelCased(lora.map(([key, value]) => [key.slice(LORA.length), value])),
  } as Config;
}

/** The steps that num_epochs and steps_per_epoch make together; undefined without steps_per_epoch. */
export function stepsOfEpochs(settings: {
  readonly num_epochs?: number;
  readonly steps_per_epoch?: number;
}): number | undefined {
  const { num_epochs: epochs = 1, steps_per_epoch: perEpoch } = settings;
  return perEpoch === undefined ? undefined : Math.max(1, Math.round(perEpoch * epochs));
}

/** How a stage loads the model that it trains: the base gets gradients unless an adapter is trained in its place. */
export function loadOptions(
  settings: Pick<
    RewardStage,
    "device" | "dtype" | "compute" | "lora_r" | "freeze_base" | "recompute_layers" | "memory_budget"
  > & { readonly adapter_path?: string },
): LoadOptions {
  const { device, dtype, compute, lora_r: rank, adapter_path: adapter, freeze_base: freezeBase } = settings;
  const { recompute_layers: recomputeLayers, memory_budget: memoryBudget } = settings;
  const full = rank === undefined && adapter === undefined && !freezeBase;
  return { device, dtype, compute, trainable: full ? "all" : "none", recomputeLayers, memoryBudget };
}

/** What tokenising did, in one line. */
export function describeTokenized(report: TokenizeReport): string {
  const parts = [`${report.examples} examples of ${report.tokens} tokens`];
  if (report.truncated > 0) parts.push(`${report.truncated} cut at max_length`);
  if (report.dropped > 0) parts.push(`${report.dropped} left out as too long`);
  if (report.identical) parts.push(`${report.identical} left out because their answers are the same tokens`);
  if (report.boundaryMerges > 0)
    parts.push(`${report.boundaryMerges} with prompt and response tokenised apart`);
  return `training on ${parts.join(", ")}`;
}

/** Rows that the counts of preferences tell of. */
function droppedPairs(counts: PreferenceCounts | undefined): number {
  return counts ? counts.differingPrompts + counts.emptyReply + counts.identical : 0;
}

/** What was read, in one line. */
export function describeReport(report: DataReport): string {
  const parts = [`${report.rowsKept} of ${report.rowsRead} rows`];
  if (report.badRows > 0) {
    const first = report.firstBadRows[0];
    parts.push(`${report.badRows} bad (first: ${first ? `${describePlace(first)}: ${first.reason}` : ""})`);
  }
  const others = report.droppedRows - droppedPairs(report.preferences);
  if (others > 0) {
    const first = report.firstDroppedRows[0];
    parts.push(`${others} left out${first ? ` (first: ${describePlace(first)} ${first.reason})` : ""}`);
  }
  const pairs = report.preferences;
  if (pairs) {
    parts.push(`${pairs.multiTurn} with several turns`);
    if (pairs.differingPrompts > 0) parts.push(`${pairs.differingPrompts} with differing prompts left out`);
    if (pairs.emptyReply > 0) parts.push(`${pairs.emptyReply} with an empty reply left out`);
    if (pairs.identical > 0) parts.push(`${pairs.identical} with equal answers left out`);
  }
  return `data: ${parts.join(", ")}`;
}
