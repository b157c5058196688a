/**
 * Makes the mini-world's data, the same bytes for the same seed; `npx tsx examples/mini-world/make-data.ts` writes it to
 * runs/mini-world/data.
 *
 * - pretrain.jsonl: the world's facts as text, and the words of questions and answers, but no answer that belongs to a question.
 * - sft.jsonl: answers of mixed quality: a little more than half are right.
 * - preferences.jsonl: pairs that come in mirrored twos. Of two questions, each is answered with its own right answer (chosen)
 *   and with the other's (rejected), in the same words. So every answer is chosen exactly as often as it is rejected, and
 *   nothing but its fit to the question tells which.
 * - prompts.jsonl: questions alone.
 * - held-out-….jsonl: the same questions in phrasings that none of the others has.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Random } from "../../lib/data/random.ts";
import { type Category, promptOf, type Question, questions, sameContent, say, statements } from "./world.ts";

const TEXTS = 3000;
const DEMONSTRATIONS = 4800;
const RIGHT_SHARE = 0.55;
const MIRRORED = 1200;
const HELD_OUT_DEMONSTRATIONS = 96;
const HELD_OUT_MIRRORED = 120;
const HELD_OUT_PROMPTS_PER_CATEGORY = 48;

type Phrasings = "seen" | "heldOut";

const of = (category: Category): Question[] => questions.filter((question) => question.category === category);
const facts = of("helpfulness");
const unknowable = of("honesty");
const harmful = of("harmlessness");

const ask = (random: Random, question: Question, which: Phrasings): string =>
  promptOf(random.pick(question[which]));

/** Another question whose right answer would be a wrong one here, of the same topic as often as the kinds of questions allow. */
function rival(random: Random, question: Question): Question {
  const pool = random.pick([facts, facts, unknowable, harmful]);
  const wrong = pool.filter((other) => !sameContent(other.right, question.right));
  const near = wrong.filter((other) => other.topic === question.topic);
  return random.pick(near.length > 0 ? near : wrong.length > 0 ? wrong : facts);
}

/** Two texts of statements, then one of unrelated lines of talk, from which the words of the later stages are known. */
function texts(random: Random): object[] {
  const sentence = (): string => random.pick(statements);
  const asked = (): string => `Question: ${random.pick(random.pick(questions).seen)}`;
  const answered = (): string => `Answer:${say(random, random.pick(questions).right)}`;
  return Array.from({ length: TEXTS }, (_, index) => ({
    text: index % 3 < 2 ? [sentence(), sentence(), sentence()].join(" ") : [answered(), asked()].join("\n"),
  }));
}

function demonstrations(random: Random, count: number, which: Phrasings): object[] {
  return Array.from({ length: count }, (_, index) => {
    const question = random.pick([facts, unknowable, harmful][index % 3] as Question[]);
    const answered = random.uniform() < RIGHT_SHARE ? question : rival(random, question);
    return { prompt: ask(random, question, which), response: say(random, answered.right) };
  });
}

/** An answer that fits the prompt and one that does not. */
export interface Pair {
  readonly prompt: string;
  readonly chosen: string;
  readonly rejected: string;
}

function preferences(random: Random, count: number, which: Phrasings): Pair[] {
  return Array.from({ length: count }, (_, index) => {
    const first = random.pick([facts, facts, unknowable, harmful][index % 4] as Question[]);
    const second = rival(random, first);
    const [one, other] = [say(random, first.right), say(random, second.right)];
    return [
      { prompt: ask(random, first, which), chosen: one, rejected: other },
      { prompt: ask(random, second, which), chosen: other, rejected: one },
    ];
  }).flat();
}

/** The pairs of held-out-preferences.jsonl. */
export function heldOutPairs(seed = 0): Pair[] {
  return preferences(new Random(seed, "held-out preferences"), HELD_OUT_MIRRORED, "heldOut");
}

function prompts(list: readonly Question[], which: Phrasings): string[] {
  return list.flatMap((question) => question[which].map(promptOf));
}

function promptRows(list: readonly string[]): object[] {
  return list.map((prompt) => ({ prompt }));
}

/** The prompts of held-out-prompts.jsonl, as many of each category. */
export function heldOutPrompts(seed = 0): string[] {
  const random = new Random(seed, "held-out prompts");
  return [facts, unknowable, harmful].flatMap((list) =>
    random.shuffle(prompts(list, "heldOut")).slice(0, HELD_OUT_PROMPTS_PER_CATEGORY),
  );
}

/** The contents of all data files by name. */
export function makeData(seed = 0): Record<string, string> {
  const rows: Record<string, object[]> = {
    "pretrain.jsonl": texts(new Random(seed, "pretrain")),
    "sft.jsonl": demonstrations(new Random(seed, "sft"), DEMONSTRATIONS, "seen"),
    "held-out-sft.jsonl": demonstrations(
      new Random(seed, "held-out sft"),
      HELD_OUT_DEMONSTRATIONS,
      "heldOut",
    ),
    "preferences.jsonl": preferences(new Random(seed, "preferences"), MIRRORED, "seen"),
    "held-out-preferences.jsonl": heldOutPairs(seed),
    "prompts.jsonl": promptRows(new Random(seed, "prompts").shuffle(prompts(questions, "seen"))),
    "held-out-prompts.jsonl": promptRows(heldOutPrompts(seed)),
  };
  const lines = (list: readonly object[]): string => list.map((row) => `${JSON.stringify(row)}\n`).join("");
  return Object.fromEntries(Object.entries(rows).map(([name, list]) => [name, lines(list)]));
}

/** Writes the data files into `directory`. */
export function writeData(directory: string, seed = 0): void {
  mkdirSync(directory, { recursive: true });
  for (const [name, text] of Object.entries(makeData(seed))) writeFileSync(join(directory, name), text);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  writeData(fileURLToPath(new URL("../../runs/mini-world/data", import.meta.url)));
}
