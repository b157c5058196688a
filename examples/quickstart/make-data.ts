/**
 * Writes the quickstart's data, the same bytes every time: a small world of questions and answers, where an answer has a
 * content (right or wrong) and a manner (kind, plain or rude). `npx tsx examples/quickstart/make-data.ts` makes the files again.
 *
 * - sft.jsonl shows all three manners, so that a model which imitates it is kind no more often than rude.
 * - preferences.jsonl prefers kind to plain to rude, and right to wrong contents in the same manner.
 * - prompts.jsonl and held-out-prompts.jsonl hold questions alone.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Random } from "../../lib/data/random.ts";

const things = ["hat", "ball", "book", "kite", "key", "cup", "shoe", "lamp", "bag", "map", "coat", "drum"];
const places = [
  "on the chair",
  "under the bed",
  "by the door",
  "in the garden",
  "in the box",
  "on the shelf",
];
const animals = ["cat", "dog", "horse", "rabbit", "duck", "goat", "hen", "mouse"];
const needs = [
  { feeling: "hungry", cure: (animal: string) => `Give the ${animal} some food.` },
  { feeling: "thirsty", cure: (animal: string) => `Give the ${animal} some water.` },
  { feeling: "tired", cure: (animal: string) => `Let the ${animal} sleep.` },
  { feeling: "cold", cure: (animal: string) => `Keep the ${animal} warm.` },
  { feeling: "bored", cure: (animal: string) => `Play with the ${animal}.` },
  { feeling: "dirty", cure: (animal: string) => `Wash the ${animal}.` },
];
const foods = ["soup", "bread", "rice", "cake", "apples", "cheese", "beans", "eggs"];
const tasks = [
  { task: "draw a house", advice: "Take a pencil and begin with the roof." },
  { task: "bake a cake", advice: "Mix flour, eggs and sugar." },
  { task: "fly a kite", advice: "Wait for the wind and run." },
  { task: "plant a tree", advice: "Dig a hole and add water." },
  { task: "learn to swim", advice: "Start where the water is low." },
  { task: "clean a coat", advice: "Use a brush and warm water." },
  { task: "find a friend", advice: "Smile and say your name." },
  { task: "fix a chair", advice: "Turn it over and use some glue." },
];

/** How answers of one manner begin and end. */
export const manners = {
  kind: {
    openings: ["Of course, my friend!", "What a good question!", "I am glad to help."],
    closings: ["Have a lovely day!", "Ask me any time.", "I hope that helps you."],
  },
  plain: { openings: [], closings: [] },
  rude: {
    openings: ["Not you again.", "You should know this.", "I have no time for you."],
    closings: ["Now go away.", "Do not ask again.", "Leave me alone."],
  },
} as const;

type Manner = keyof typeof manners;

/** A question, a right answer to it and a wrong one, without manner. */
interface Exchange {
  readonly prompt: string;
  readonly right: string;
  readonly wrong: string;
}

function otherThan<T>(random: Random, items: readonly T[], item: T): T {
  return random.pick(items.filter((candidate) => candidate !== item));
}

function ask(random: Random): Exchange {
  const exchange = random.pick([askWhere, askFood, askAnimal, askHow])(random);
  return { ...exchange, prompt: `Question: ${exchange.prompt}\nAnswer:` };
}

function askWhere(random: Random): Exchange {
  const thing = random.pick(things);
  const place = random.pick(places);
  return {
    prompt: `Where is my ${thing}?`,
    right: `Your ${thing} is ${place}.`,
    wrong: `Your ${otherThan(random, things, thing)} is ${place}.`,
  };
}

function askFood(random: Random): Exchange {
  const first = random.pick(foods);
  const second = otherThan(random, foods, first);
  const neither = random.pick(foods.filter((food) => food !== first && food !== second));
  return {
    prompt: `Should I eat ${first} or ${second}?`,
    right: `Try the ${random.pick([first, second])}.`,
    wrong: `Try the ${neither}.`,
  };
}

function askAnimal(random: Random): Exchange {
  const animal = random.pick(animals);
  const need = random.pick(needs);
  return {
    prompt: `My ${animal} is ${need.feeling}. What can I do?`,
    right: need.cure(animal),
    wrong: otherThan(random, needs, need).cure(animal),
  };
}

function askHow(random: Random): Exchange {
  const { task, advice } = random.pick(tasks);
  const wrong = random.pick(tasks.filter((other) => other.task !== task)).advice;
  return { prompt: `How do I ${task}?`, right: advice, wrong };
}

/** An answer in a manner: with an opening, a closing or both. */
function say(random: Random, content: string, manner: Manner): string {
  const { openings, closings } = manners[manner];
  if (openings.length === 0) return ` ${content}`;
  const parts = random.integer(3);
  const opening = parts === 1 ? "" : ` ${random.pick<string>(openings)}`;
  const closing = parts === 0 ? "" : ` ${random.pick<string>(closings)}`;
  return `${opening} ${content}${closing}`;
}

function demonstrations(count: number, random: Random): object[] {
  return Array.from({ length: count }, () => {
    const { prompt, right } = ask(random);
    return { prompt, response: say(random, right, random.pick<Manner>(["kind", "plain", "plain", "rude"])) };
  });
}

function preferences(count: number, random: Random): object[] {
  const better: readonly (readonly [Manner, Manner])[] = [
    ["kind", "rude"],
    ["kind", "plain"],
    ["plain", "rude"],
  ];
  return Array.from({ length: count }, () => {
    const { prompt, right, wrong } = ask(random);
    if (random.integer(4) === 0) {
      const manner = random.pick<Manner>(["kind", "plain", "rude"]);
      return { prompt, chosen: say(random, right, manner), rejected: say(random, wrong, manner) };
    }
    const [chosen, rejected] = random.pick(better);
    return { prompt, chosen: say(random, right, chosen), rejected: say(random, right, rejected) };
  });
}

/** Different questions, none of them among `taken`. */
function questions(count: number, random: Random, taken: ReadonlySet<string>): { prompt: string }[] {
  const found = new Set<string>();
  while (found.size < count) {
    const { prompt } = ask(random);
    if (!taken.has(prompt)) found.add(prompt);
  }
  return [...found].map((prompt) => ({ prompt }));
}

/** The contents of all data files by name. */
export function makeData(): Record<string, string> {
  const heldOut = questions(16, new Random(0, "held-out prompts"), new Set());
  const prompts = questions(96, new Random(0, "prompts"), new Set(heldOut.map((row) => row.prompt)));
  const rows: Record<string, object[]> = {
    "sft.jsonl": demonstrations(900, new Random(0, "sft")),
    "preferences.jsonl": preferences(480, new Random(0, "preferences")),
    "prompts.jsonl": prompts,
    "held-out-prompts.jsonl": heldOut,
  };
  const lines = (list: readonly object[]): string => list.map((row) => `${JSON.stringify(row)}\n`).join("");
  return Object.fromEntries(Object.entries(rows).map(([name, list]) => [name, lines(list)]));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const directory = join(dirname(fileURLToPath(import.meta.url)), "data");
  mkdirSync(directory, { recursive: true });
  for (const [name, text] of Object.entries(makeData())) writeFileSync(join(directory, name), text);
}
