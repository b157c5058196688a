import { loadUnpaired } from "../data/labelled.ts";
import { loadPreferences } from "../data/preferences.ts";
import { loadRewardData } from "../data/reward-data.ts";
import { loadSft } from "../data/sft.ts";
import { type Split, splitDataset } from "../data/split.ts";
import type { RowTokenizer, Tokenized } from "../data/tokenize.ts";
import { tokenizeInSlices } from "../data/tokenize-slices.ts";
import type {
  Dataset,
  PreferenceFormat,
  PreferenceRow,
  RewardRow,
  SftRow,
  UnpairedRow,
} from "../data/types.ts";
import type { KtoStage, RewardStage, SftStage } from "./schema.ts";
import { describeReport } from "./settings.ts";

export const DEFAULT_EVAL_FRACTION = 0.05;

/** Where the data of a stage lies and how it is divided. */
type DataSettings = Pick<
  RewardStage,
  "data_path" | "eval_data_path" | "eval_fraction" | "max_rows" | "seed" | "duplicates" | "on_bad_row"
>;

/** Rows to train on and rows held out: from a file of their own, or a share of the training file. */
export async function trainAndEval<Row>(
  settings: DataSettings,
  load: (path: string | readonly string[], limit?: number) => Promise<Dataset<Row>>,
  groupOf: (row: Row) => unknown,
  log: (text: string) => void,
): Promise<Split<Row>> {
  const rows = await load(settings.data_path, settings.max_rows);
  log(`  ${describeReport(rows.report)}`);
  if (settings.eval_data_path !== undefined) {
    const held = await load(settings.eval_data_path);
    log(`  held-out ${describeReport(held.report)}`);
    return { train: [...rows], eval: [...held] };
  }
  const evalFraction = settings.eval_fraction ?? DEFAULT_EVAL_FRACTION;
  const split = splitDataset(rows, { evalFraction, seed: settings.seed ?? 0, groupOf });
  if (split.eval.length > 0) log(`  ${split.train.length} rows to train on, ${split.eval.length} held out`);
  return split;
}

/** A split tokenised for a trainer. */
export interface TokenizedSplit<Example> {
  readonly trainData: Tokenized<Example>;
  readonly evalData?: Tokenized<Example>;
}

/** Tokenises both sides of a split while the event loop goes on. */
export async function tokenizeSplit<Row, Example>(
  data: { readonly train: readonly Row[]; readonly eval: readonly Row[] },
  rowTokenizer: RowTokenizer<Row, Example>,
  signal: AbortSignal | undefined,
): Promise<TokenizedSplit<Example>> {
  const trainData = await tokenizeInSlices(data.train, rowTokenizer, { signal });
  if (data.eval.length === 0) return { trainData };
  return { trainData, evalData: await tokenizeInSlices(data.eval, rowTokenizer, { signal }) };
}

/** The data of an SFT stage. Examples with the same prompt are kept on one side, so that the held-out ones are unseen. */
export function sftData(settings: SftStage, log: (text: string) => void): Promise<Split<SftRow>> {
  const { format, duplicates, on_bad_row: onBadRow } = settings;
  return trainAndEval(
    settings,
    (path, limit) => loadSft(path, { format, duplicates, onBadRow, limit }),
    groupOfSft,
    log,
  );
}

/** What examples have in common that must not be on both sides of a split: the prompt, of a conversation its first question. */
export function groupOfSft(row: SftRow): unknown {
  if (!("messages" in row)) return row.prompt === "" ? row.response : row.prompt;
  const question = row.messages.findIndex((message) => message.role !== "system");
  return row.messages.slice(0, question + 1);
}

/** The data of a reward stage; answers to one prompt are kept on one side. */
export function rewardData(settings: RewardStage, log: (text: string) => void): Promise<Split<RewardRow>> {
  const { format, ties, duplicates, on_bad_row: onBadRow, split_seed: seed = settings.seed } = settings;
  const load = (path: string | readonly string[], limit?: number): Promise<Dataset<RewardRow>> =>
    loadRewardData(path, { format, ties, duplicates, onBadRow, limit });
  return trainAndEval({ ...settings, seed }, load, (row) => row.prompt, log);
}

/** The data of a stage that learns from pairs; pairs of one prompt are kept on one side. */
export function preferenceData(
  settings: DataSettings & { readonly format?: PreferenceFormat | "auto" },
  log: (text: string) => void,
): Promise<Split<PreferenceRow>> {
  const { format, duplicates, on_bad_row: onBadRow } = settings;
  const load = (path: string | readonly string[], limit?: number): Promise<Dataset<PreferenceRow>> =>
    loadPreferences(path, { format, duplicates, onBadRow, limit });
  return trainAndEval(settings, load, (row) => row.prompt, log);
}

/** The data of a KTO stage; answers to one prompt are kept on one side. */
export function unpairedData(settings: KtoStage, log: (text: string) => void): Promise<Split<UnpairedRow>> {
  const { format, duplicates, on_bad_row: onBadRow } = settings;
  const load = (path: string | readonly string[], limit?: number): Promise<Dataset<UnpairedRow>> =>
    loadUnpaired(path, { format, duplicates, onBadRow, limit });
  return trainAndEval(settings, load, (row) => row.prompt, log);
}
