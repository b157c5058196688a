/**
 * Makes the quickstart's data, the same bytes for the same seed; `npx tsx examples/quickstart/make-data.ts` writes it to
 * runs/quickstart/data.
 *
 * - pretrain.jsonl: the world's facts as text, and the words of questions and answers, but no answer that belongs to a question.
 * - sft.jsonl: answers of mixed quality, some six in ten of them right.
 * - preferences.jsonl: pairs that come in mirrored twos. Of two questions, each is answered with its own right answer (chosen)
 *   and with the other's (rejected), in the same words. So every answer is chosen exactly as often as it is rejected, and
 *   nothing but its fit to the question tells which.
 * - prompts.jsonl: questions alone.
 * - dev-….jsonl, held-out-….jsonl: the same questions in phrasings that no other file has. Data and settings were chosen on the first;
 *   the second are for the final measurement alone.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Random } from "../../lib/data/random.ts";
import {
  type Category,
  promptOf,
  type Question,
  questions,
  type Split,
  sameContent,
  say,
  statements,
} from "./world.ts";

/** How much data there is. */
export interface Sizes {
  readonly texts: number;
  readonly demonstrations: number;
  /** Mirrored twos of pairs. */
  readonly mirrored: number;
  readonly devDemonstrations: number;
  /** Of the dev and the held-out files. */
  readonly measuredMirrored: number;
  readonly measuredPromptsPerCategory: number;
}

export const SIZES: Sizes = {
  texts: 3000,
  demonstrations: 9600,
  mirrored: 2400,
  devDemonstrations: 96,
  measuredMirrored: 150,
  measuredPromptsPerCategory: 48,
};
const RIGHT_SHARE = 0.65;

const of = (category: Category): Question[] => questions.filter((question) => question.category === category);
const facts = of("helpfulness");
const unknowable = of("honesty");
const harmful = of("harmlessness");

const ask = (random: Random, question: Question, split: Split): string =>
  promptOf(random.pick(question[split]));

/** Another question, from one of some lists, whose right answer would be a wrong one here; of the same topic where there is one. */
function rival(random: Random, question: Question, lists: readonly (readonly Question[])[]): Question {
  const pool = random.pick(lists);
  const wrong = pool.filter((other) => !sameContent(other.right, question.right));
  const near = wrong.filter((other) => other.topic === question.topic);
  return random.pick(near.length > 0 ? near : wrong.length > 0 ? wrong : facts);
}

/** Two texts of statements, then one of unrelated lines of talk, from which the words of the later stages are known. */
function texts(random: Random, count: number): object[] {
  const sentence = (): string => random.pick(statements);
  const asked = (): string => `Question: ${random.pick(random.pick(questions).seen)}`;
  const answered = (): string => `Answer:${say(random, random.pick(questions).right)}`;
  return Array.from({ length: count }, (_, index) => ({
    text: index % 3 < 2 ? [sentence(), sentence(), sentence()].join(" ") : [answered(), asked()].join("\n"),
  }));
}

function demonstrations(random: Random, count: number, split: Split): object[] {
  return Array.from({ length: count }, (_, index) => {
    const question = random.pick([facts, unknowable, harmful][index % 3] as Question[]);
    const answered =
      random.uniform() < RIGHT_SHARE
        ? question
        : rival(random, question, [facts, facts, unknowable, harmful]);
    return { prompt: ask(random, question, split), response: say(random, answered.right) };
  });
}

/** An answer that fits the prompt and one that does not. */
export interface Pair {
  readonly prompt: string;
  readonly chosen: string;
  readonly rejected: string;
}

/**
 * Two thirds of the twos begin with a fact, and most of those set it against another fact of its topic: that is what a reward model is
 * slow to learn, while it tells facts, refusals and "I do not know" apart from few pairs.
 */
function preferences(random: Random, count: number, split: Split): Pair[] {
  const asked = [facts, facts, unknowable, facts, facts, harmful];
  return Array.from({ length: count }, (_, index) => {
    const first = random.pick(asked[index % asked.length] as Question[]);
    const second = rival(random, first, index % 2 === 0 ? [facts] : [facts, unknowable, harmful]);
    const [one, other] = [say(random, first.right), say(random, second.right)];
    return [
      { prompt: ask(random, first, split), chosen: one, rejected: other },
      { prompt: ask(random, second, split), chosen: other, rejected: one },
    ];
  }).flat();
}

function prompts(list: readonly Question[], split: Split): string[] {
  return list.flatMap((question) => question[split].map(promptOf));
}

/** As many prompts of each category, in turn. */
function measuredPrompts(random: Random, perCategory: number, split: Split): string[] {
  const shuffled = [facts, unknowable, harmful].map((list) => random.shuffle(prompts(list, split)));
  return Array.from({ length: perCategory }, (_, index) =>
    shuffled.map((list) => list[index] as string),
  ).flat();
}

function promptRows(list: readonly string[]): object[] {
  return list.map((prompt) => ({ prompt }));
}

/** The contents of all data files by name. */
export function makeData(seed: number, sizes: Sizes = SIZES): Record<string, string> {
  const { measuredMirrored, measuredPromptsPerCategory } = sizes;
  const random = (use: string): Random => new Random(seed, use);
  const measured = (name: string, split: Split): Record<string, readonly object[]> => ({
    [`${name}-preferences.jsonl`]: preferences(random(`${name} preferences`), measuredMirrored, split),
    [`${name}-prompts.jsonl`]: promptRows(
      measuredPrompts(random(`${name} prompts`), measuredPromptsPerCategory, split),
    ),
  });
  const rows: Record<string, readonly object[]> = {
    "pretrain.jsonl": texts(random("pretrain"), sizes.texts),
    "sft.jsonl": demonstrations(random("sft"), sizes.demonstrations, "seen"),
    "dev-sft.jsonl": demonstrations(random("dev sft"), sizes.devDemonstrations, "dev"),
    "preferences.jsonl": preferences(random("preferences"), sizes.mirrored, "seen"),
    "prompts.jsonl": promptRows(random("prompts").shuffle(prompts(questions, "seen"))),
    ...measured("dev", "dev"),
    ...measured("held-out", "heldOut"),
  };
  const lines = (list: readonly object[]): string => list.map((row) => `${JSON.stringify(row)}\n`).join("");
  return Object.fromEntries(Object.entries(rows).map(([name, list]) => [name, lines(list)]));
}

/** Writes the data files into `directory`. */
export function writeData(directory: string, seed = 0, sizes: Sizes = SIZES): void {
  mkdirSync(directory, { recursive: true });
  for (const [name, text] of Object.entries(makeData(seed, sizes)))
    writeFileSync(join(directory, name), text);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  writeData(fileURLToPath(new URL("../../runs/quickstart/data", import.meta.url)));
}
