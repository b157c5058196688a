/**
 * Splits HH-RLHF's pairs into training and held-out conversations; `npx tsx examples/hh-rlhf/make-data.ts` writes them to
 * runs/hh-rlhf/data, the same bytes each time.
 *
 * - pairs.jsonl, held-out-pairs.jsonl: {prompt, chosen, rejected}. Pairs that begin with the same question are on one side.
 * - prompts.jsonl, held-out-prompts.jsonl: the dialogues up to the last answer, as far as an answer to them fits the model's context.
 */
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { loadPreferences, type PreferenceRow, splitDataset, Tokenizer } from "../../lib/index.ts";

const shared = fileURLToPath(new URL("../../../shared", import.meta.url));
const MODEL = join(shared, "models/stories260k");
const PAIRS = join(shared, "data/hh-rlhf/harmless-test.jsonl.gz");
const HELD_OUT_SHARE = 0.15;
const SEED = 1;
/** The context has 512 tokens, and an answer may have 64. */
const MAX_PROMPT_TOKENS = 440;

/** "\n\nHuman: …", the part that several dialogues may have in common. */
function firstQuestion({ prompt }: PreferenceRow): string {
  return (prompt as string).split("\n\nAssistant:")[0] as string;
}

function lines(rows: readonly object[]): string {
  return rows.map((row) => `${JSON.stringify(row)}\n`).join("");
}

/** Writes the four files. Throws where the model or the pairs are not there. */
export async function writeData(directory: string): Promise<void> {
  for (const needed of [MODEL, PAIRS])
    if (!existsSync(needed))
      throw new Error(`${needed} is not there; examples/hh-rlhf/README.md says what is needed`);
  const tokenizer = await Tokenizer.load(MODEL);
  const pairs = await loadPreferences(PAIRS);
  const split = splitDataset(pairs, { evalFraction: HELD_OUT_SHARE, seed: SEED, groupOf: firstQuestion });
  mkdirSync(directory, { recursive: true });
  for (const [prefix, rows] of [
    ["", split.train],
    ["held-out-", split.eval],
  ] as const) {
    const prompts = [...new Set(rows.map(({ prompt }) => prompt as string))];
    const fitting = prompts.filter((prompt) => tokenizer.encode(prompt).length <= MAX_PROMPT_TOKENS);
    writeFileSync(join(directory, `${prefix}pairs.jsonl`), lines(rows));
    writeFileSync(join(directory, `${prefix}prompts.jsonl`), lines(fitting.map((prompt) => ({ prompt }))));
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href)
  await writeData(fileURLToPath(new URL("../../runs/hh-rlhf/data", import.meta.url)));
