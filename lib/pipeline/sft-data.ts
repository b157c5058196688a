import { join } from "node:path";
import { streamSft } from "../data/sft.ts";
import { isHeldOut } from "../data/split.ts";
import { TokenDataset, type TokenDatasetOptions } from "../data/token-dataset.ts";
import type { SftRow } from "../data/types.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { StageContext } from "./run.ts";
import type { SftStage } from "./schema.ts";
import { describeReport } from "./settings.ts";
import { DEFAULT_EVAL_FRACTION, groupOfSft } from "./stage-data.ts";

/** The examples of a stage, tokenised; null where none are held out. */
export interface SftDatasets {
  readonly train: TokenDataset;
  readonly eval: TokenDataset | null;
}

/** Where a stage keeps the tokens of data that is streamed. */
export function tokensDirectory(settings: SftStage): string {
  return join(settings.output_dir, "tokens");
}

async function* where<Row>(rows: AsyncIterable<Row>, holds: (row: Row) => boolean): AsyncGenerator<Row> {
  for await (const row of rows) if (holds(row)) yield row;
}

/**
 * Reads, splits and tokenises the data of a stage row by row into files of its output directory, so that neither texts nor tokens
 * have to fit into memory. Held-out rows are found in a second pass. Tokens that a run of the same stage left are taken as they are.
 */
export async function streamSftData(
  settings: SftStage,
  tokenizer: Tokenizer,
  options: TokenDatasetOptions,
  context: StageContext,
): Promise<SftDatasets> {
  const { format, on_bad_row: onBadRow, duplicates, max_rows: limit } = settings;
  const open = (paths: string | readonly string[], most?: number): ReturnType<typeof streamSft> =>
    streamSft(paths, { format, onBadRow, duplicates, limit: most });
  const store = async (name: string, rows: AsyncIterable<SftRow>): Promise<TokenDataset> =>
    TokenDataset.create(rows, tokenizer, {
      ...options,
      directory: join(tokensDirectory(settings), name),
      key: `${context.key} ${name}`,
      signal: context.signal,
    });
  const rows = open(settings.data_path, limit);
  const {
    eval_data_path: evalPath,
    eval_fraction: evalFraction = DEFAULT_EVAL_FRACTION,
    seed = 0,
  } = settings;
  if (evalPath !== undefined)
    return { train: await store("train", rows), eval: await store("eval", open(evalPath)) };
  const split = { evalFraction, seed, groupOf: groupOfSft };
  const train = await store(
    "train",
    where(rows, (row) => !isHeldOut(row, split)),
  );
  if (rows.report.rowsRead > 0) context.log(`  ${describeReport(rows.report)}`);
  if (evalFraction === 0) return { train, eval: null };
  return {
    train,
    eval: await store(
      "eval",
      where(rows, (row) => isHeldOut(row, split)),
    ),
  };
}
