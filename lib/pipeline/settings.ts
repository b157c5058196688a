import type { TokenizeReport } from "../data/tokenize.ts";
import type { DataReport } from "../data/types.ts";
import type { LoadOptions } from "../model/causal-lm.ts";
import { camelCase, type RewardStage } from "./schema.ts";

/** The settings of any stage, by YAML key. */
export type StageSettings = Readonly<Record<string, unknown>>;

/** Keys that the pipeline itself acts on; all others are settings of the trainer. */
const PIPELINE_KEYS: ReadonlySet<string> = new Set([
  "model_path",
  "init",
  "data_path",
  "eval_data_path",
  "eval_fraction",
  "max_rows",
  "prompts_path",
  "reward_model_path",
  "reward_module",
  "output_dir",
  "format",
  "on_bad_row",
  "device",
  "dtype",
  "freeze_base",
  "steps_per_epoch",
  "lora_r",
  "lora_alpha",
  "lora_target_modules",
]);

/** The LoRA settings of a trainer, or nothing when all weights are trained. */
function loraConfig(settings: StageSettings): Record<string, unknown> {
  const { lora_r: r, lora_alpha: alpha, lora_target_modules: targetModules } = settings;
  return r === undefined ? {} : { lora: { r, alpha, targetModules } };
}

/** The steps that num_epochs and steps_per_epoch make together, under the name that the trainer has for them. */
function stepCount(settings: StageSettings, name: "maxSteps" | "numIterations"): Record<string, number> {
  const { steps_per_epoch: perEpoch, num_epochs: epochs } = settings;
  return typeof perEpoch === "number"
    ? { [name]: Math.max(1, Math.round(perEpoch * (typeof epochs === "number" ? epochs : 1))) }
    : {};
}

/**
 * The settings of a stage that are its trainer's, in camelCase. What was left out stays out: trainers know their defaults. An
 * explicit number of steps wins over steps_per_epoch.
 */
export function trainerConfig(
  settings: StageSettings,
  steps: "maxSteps" | "numIterations",
): Record<string, unknown> {
  const own = Object.entries(settings).filter(
    ([key, value]) => !PIPELINE_KEYS.has(key) && value !== undefined,
  );
  const config = Object.fromEntries(own.map(([key, value]) => [camelCase(key), value]));
  // Iterations of PPO have no epochs over data; there num_epochs counts only with steps_per_epoch.
  if (steps === "numIterations") delete config.numEpochs;
  return { ...stepCount(settings, steps), ...config, ...loraConfig(settings) };
}

/** How a stage loads the model that it trains: the base gets gradients unless an adapter is trained in its place. */
export function loadOptions(
  settings: Pick<RewardStage, "device" | "dtype" | "lora_r" | "freeze_base">,
): LoadOptions {
  const { device, dtype, lora_r: rank, freeze_base: freezeBase } = settings;
  return { device, dtype, trainable: rank === undefined && !freezeBase ? "all" : "none" };
}

/** What tokenising did, in one line. */
export function describeTokenized(report: TokenizeReport): string {
  const parts = [`${report.examples} examples of ${report.tokens} tokens`];
  if (report.truncated > 0) parts.push(`${report.truncated} cut at max_length`);
  if (report.dropped > 0) parts.push(`${report.dropped} left out as too long`);
  if (report.boundaryMerges > 0)
    parts.push(`${report.boundaryMerges} with prompt and response tokenised apart`);
  return `training on ${parts.join(", ")}`;
}

/** What was read, in one line. */
export function describeReport(report: DataReport): string {
  const parts = [`${report.rowsKept} of ${report.rowsRead} rows`];
  if (report.badRows > 0) {
    const first = report.firstBadRows[0];
    parts.push(`${report.badRows} bad (first: ${first?.file}:${first?.line}: ${first?.reason})`);
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
