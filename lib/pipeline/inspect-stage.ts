import { join } from "node:path";
import { type AnyExample, type Inspection, inspectRows } from "../data/inspect.ts";
import { loadUnpaired } from "../data/labelled.ts";
import { loadPreferences } from "../data/preferences.ts";
import { loadPrompts } from "../data/prompts.ts";
import { loadRewardData } from "../data/reward-data.ts";
import { loadSft } from "../data/sft.ts";
import { splitDataset } from "../data/split.ts";
import {
  preferenceRows,
  promptRows,
  type RowTokenizer,
  rewardRows,
  sftRows,
  unpairedRows,
} from "../data/tokenize.ts";
import type { DataReport, Dataset, SftRow } from "../data/types.ts";
import { RlhfError } from "../errors.ts";
import { localModel } from "../hub/hub.ts";
import { readModelConfig } from "../model/config.ts";
import { readJsonIfPresent } from "../model/files.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { PREFERENCE_DEFAULTS } from "../trainers/preference-settings.ts";
import { ROLLOUT_DEFAULTS } from "../trainers/rollout-settings.ts";
import { COMMON_DEFAULTS, fittingMaxLength } from "../trainers/settings.ts";
import { SUPERVISED_DEFAULTS } from "../trainers/supervised.ts";
import { initTokenizer, maxPositionsOf } from "./init-model.ts";
import type { InitConfig, TrainingKind } from "./schema.ts";
import { DEFAULT_EVAL_FRACTION, groupOfSft } from "./stage-data.ts";

/** The settings of a stage that decide what its trainer sees, of whatever kind the stage is. */
export interface InspectSettings {
  readonly model_path?: string;
  readonly init?: InitConfig;
  readonly data_path?: string | readonly string[];
  readonly prompts_path?: string | readonly string[];
  readonly eval_data_path?: string | readonly string[];
  readonly eval_fraction?: number;
  readonly max_rows?: number;
  readonly format?: string;
  readonly duplicates?: "keep" | "drop";
  readonly ties?: "drop" | "keep";
  readonly max_length?: number;
  readonly max_new_tokens?: number;
  readonly overlong?: "truncate" | "truncate-prompt" | "drop";
  readonly loss_on?: "completion" | "all";
  readonly seed?: number;
  readonly split_seed?: number;
  readonly batch_size?: number;
  readonly gradient_accumulation_steps?: number;
  readonly micro_batch_tokens?: number;
}

/** What a stage's trainer sees, and what was read. */
export interface StageInspection {
  readonly stage: TrainingKind;
  readonly data: DataReport;
  readonly maxLength: number;
  readonly trainRows: number;
  readonly evalRows: number;
  readonly training: Inspection;
}

export interface InspectStageOptions {
  readonly examples?: number;
  /** Shows examples drawn at random in place of the first ones. */
  readonly random?: boolean;
}

/** What each kind of stage learns from. */
const DATA_OF_STAGE: Readonly<Record<TrainingKind, "sft" | "prompts" | "reward" | "unpaired" | "pairs">> = {
  sft: "sft",
  reward: "reward",
  ppo: "prompts",
  grpo: "prompts",
  rloo: "prompts",
  "reinforce-plus-plus": "prompts",
  dpo: "pairs",
  kto: "unpaired",
  orpo: "pairs",
  cpo: "pairs",
  simpo: "pairs",
};

function required<Value>(value: Value | undefined, key: string, kind: string): Value {
  if (value !== undefined) return value;
  const flag = `--${key.replaceAll("_", "-")}`;
  throw new RlhfError(
    "ERR_RLHF_USAGE",
    `inspect-data ${kind}: needs ${flag} (or ${key} in the configuration)`,
    {
      key,
    },
  );
}

/** The tokenizer of the stage, and the longest sequence that its model has room for. */
async function openTokenizer(
  settings: InspectSettings,
  kind: TrainingKind,
  train: readonly unknown[],
): Promise<{ tokenizer: Tokenizer; context: number }> {
  const { init } = settings;
  // Only fine-tuning has `init`.
  if (init)
    return { tokenizer: initTokenizer(init, train as readonly SftRow[]), context: maxPositionsOf(init) };
  const directory = await localModel(required(settings.model_path, "model_path", kind));
  const configPath = join(directory, "config.json");
  const config = await readJsonIfPresent(configPath, "ERR_RLHF_MODEL");
  if (!config)
    throw new RlhfError("ERR_RLHF_MODEL", `${configPath}: does not exist; expected a model directory`, {
      directory,
    });
  const { maxPositions } = readModelConfig(config, configPath);
  return { tokenizer: await Tokenizer.load(directory), context: maxPositions };
}

/** Rows to train on; none are held out where held-out data has a file of its own. */
function trainRowsOf<Row>(
  rows: readonly Row[],
  settings: InspectSettings,
  groupOf: (row: Row) => unknown,
): readonly Row[] {
  const { eval_fraction: evalFraction = DEFAULT_EVAL_FRACTION, seed = 0 } = settings;
  return settings.eval_data_path === undefined
    ? splitDataset(rows, { evalFraction, seed, groupOf }).train
    : rows;
}

/** How the data of one kind of stage is read and tokenised. */
interface DataSteps<Row, Example> {
  readonly rows: Dataset<Row>;
  readonly train: readonly Row[];
  /** Tokens that an answer needs beside the sequence. */
  readonly answer?: number;
  readonly rowTokenizer: (tokenizer: Tokenizer, maxLength: number) => RowTokenizer<Row, Example>;
}

async function inspectData<Row, Example extends AnyExample>(
  kind: TrainingKind,
  settings: InspectSettings,
  options: InspectStageOptions,
  { rows, train, answer, rowTokenizer }: DataSteps<Row, Example>,
): Promise<StageInspection> {
  const { tokenizer, context } = await openTokenizer(settings, kind, train);
  const maxLength = fittingMaxLength(settings.max_length, context, answer);
  const accumulation = settings.gradient_accumulation_steps ?? SUPERVISED_DEFAULTS.gradientAccumulationSteps;
  const passes = {
    batchSize: (settings.batch_size ?? SUPERVISED_DEFAULTS.batchSize) * accumulation,
    microBatchTokens: settings.micro_batch_tokens ?? COMMON_DEFAULTS.microBatchTokens,
  };
  const training = await inspectRows(train, rowTokenizer(tokenizer, maxLength), tokenizer, {
    examples: options.examples,
    ...(options.random ? { seed: settings.seed ?? 0 } : {}),
    // What a pass of PPO holds is known when answers have been sampled.
    ...(answer === undefined ? passes : {}),
  });
  const evalRows = rows.length - train.length;
  return { stage: kind, data: rows.report, maxLength, trainRows: train.length, evalRows, training };
}

/**
 * Reads and tokenises the data of a stage as its trainer does. Bad rows are counted and left out here also where they would stop
 * training. Throws what reading, tokenising and opening the tokenizer throw.
 */
export async function inspectStage(
  kind: TrainingKind,
  settings: InspectSettings,
  options: InspectStageOptions = {},
): Promise<StageInspection> {
  const { duplicates, ties, max_rows: limit, overlong, loss_on: lossOn } = settings;
  // The stage's schema has checked the format.
  const load = { duplicates, ties, limit, onBadRow: "skip" as const, format: settings.format as never };
  const data = DATA_OF_STAGE[kind];
  if (data === "prompts") {
    const rows = await loadPrompts(required(settings.prompts_path, "prompts_path", kind), {
      onBadRow: "skip",
    });
    return inspectData(kind, settings, options, {
      rows,
      train: rows,
      answer: settings.max_new_tokens ?? ROLLOUT_DEFAULTS.maxNewTokens,
      rowTokenizer: (tokenizer, maxLength) => promptRows(tokenizer, { maxLength }),
    });
  }
  const path = required(settings.data_path, "data_path", kind);
  if (data === "sft") {
    const rows = await loadSft(path, load);
    return inspectData(kind, settings, options, {
      rows,
      train: trainRowsOf(rows, settings, groupOfSft),
      rowTokenizer: (tokenizer, maxLength) =>
        sftRows(tokenizer, { maxLength, overlong: overlong === "drop" ? "drop" : "truncate", lossOn }),
    });
  }
  if (data === "unpaired") {
    const rows = await loadUnpaired(path, load);
    return inspectData(kind, settings, options, {
      rows,
      train: trainRowsOf(rows, settings, (row) => row.prompt),
      rowTokenizer: (tokenizer, maxLength) =>
        unpairedRows(tokenizer, { maxLength, overlong: overlong === "drop" ? "drop" : "truncate" }),
    });
  }
  if (data === "reward") {
    const rows = await loadRewardData(path, load);
    const { split_seed: seed = settings.seed } = settings;
    return inspectData(kind, settings, options, {
      rows,
      train: trainRowsOf(rows, { ...settings, seed }, (row) => row.prompt),
      rowTokenizer: (tokenizer, maxLength) => rewardRows(tokenizer, { maxLength, overlong }),
    });
  }
  const rows = await loadPreferences(path, load);
  return inspectData(kind, settings, options, {
    rows,
    train: trainRowsOf(rows, settings, (row) => row.prompt),
    rowTokenizer: (tokenizer, maxLength) =>
      preferenceRows(tokenizer, { maxLength, overlong: overlong ?? PREFERENCE_DEFAULTS.overlong }),
  });
}
