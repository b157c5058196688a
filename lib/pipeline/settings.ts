import type { DataReport } from "../data/types.ts";
import { camelCase } from "./schema.ts";

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
  "head",
  "steps_per_epoch",
  "lora_r",
  "lora_alpha",
  "lora_target_modules",
]);

/** The settings of a stage that are its trainer's, in camelCase. What was left out stays out: trainers know their defaults. */
export function trainerConfig(settings: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const entries = Object.entries(settings).filter(
    ([key, value]) => !PIPELINE_KEYS.has(key) && value !== undefined,
  );
  return Object.fromEntries(entries.map(([key, value]) => [camelCase(key), value]));
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
