/**
 * Writes the quickstart's data, the same bytes every time; `npx tsx examples/quickstart/make-data.ts` makes the files again.
 *
 * - sft.jsonl shows kind, plain and rude answers, so that a model which imitates it is kind no more often than rude.
 * - preferences.jsonl prefers kind to plain to rude, and right to wrong contents in the same manner.
 * - prompts.jsonl holds questions alone.
 * - The held-out-… files are about questions that none of the others has.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Random } from "../../lib/data/random.ts";
import { type Manner, type Question, questions, say } from "./world.ts";

const HELD_OUT_QUESTIONS = 24;

function demonstrations(from: readonly Question[], count: number, random: Random): object[] {
  return Array.from({ length: count }, () => {
    const { prompt, right } = random.pick(from);
    return {
      prompt,
      response: say(random, random.pick(right), random.pick<Manner>(["kind", "plain", "plain", "rude"])),
    };
  });
}

function preferences(from: readonly Question[], count: number, random: Random): object[] {
  const better: readonly (readonly [Manner, Manner])[] = [
    ["kind", "rude"],
    ["kind", "plain"],
    ["plain", "rude"],
  ];
  return Array.from({ length: count }, () => {
    const { prompt, right, wrong } = random.pick(from);
    if (random.integer(4) === 0) {
      const manner = random.pick<Manner>(["kind", "plain", "rude"]);
      return {
        prompt,
        chosen: say(random, random.pick(right), manner),
        rejected: say(random, random.pick(wrong), manner),
      };
    }
    const [chosen, rejected] = random.pick(better);
    const content = random.pick(right);
    return { prompt, chosen: say(random, content, chosen), rejected: say(random, content, rejected) };
  });
}

/** The contents of all data files by name. */
export function makeData(): Record<string, string> {
  const order = new Random(0, "questions").shuffle(questions);
  const [heldOut, seen] = [order.slice(0, HELD_OUT_QUESTIONS), order.slice(HELD_OUT_QUESTIONS)];
  const prompts = (from: readonly Question[]): object[] => from.map(({ prompt }) => ({ prompt }));
  const rows: Record<string, object[]> = {
    "sft.jsonl": demonstrations(seen, 880, new Random(0, "sft")),
    "held-out-sft.jsonl": demonstrations(heldOut, 72, new Random(0, "held-out sft")),
    "preferences.jsonl": preferences(seen, 420, new Random(0, "preferences")),
    "held-out-preferences.jsonl": preferences(heldOut, 72, new Random(0, "held-out preferences")),
    "prompts.jsonl": prompts(seen),
    "held-out-prompts.jsonl": prompts(heldOut),
  };
  const lines = (list: readonly object[]): string => list.map((row) => `${JSON.stringify(row)}\n`).join("");
  return Object.fromEntries(Object.entries(rows).map(([name, list]) => [name, lines(list)]));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const directory = join(dirname(fileURLToPath(import.meta.url)), "data");
  mkdirSync(directory, { recursive: true });
  for (const [name, text] of Object.entries(makeData())) writeFileSync(join(directory, name), text);
}
