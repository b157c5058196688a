/** The quickstart's small world: what is asked, what is answered, and in which manner. */
import type { Random } from "../../lib/data/random.ts";

const colours = ["red", "blue", "green", "black", "white", "old", "new", "big"];
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
const foods = ["soup", "bread", "rice", "cake", "apples", "cheese", "beans", "eggs"];
const needs = [
  { feeling: "hungry", cure: (animal: string) => `Give the ${animal} some food.` },
  { feeling: "thirsty", cure: (animal: string) => `Give the ${animal} some water.` },
  { feeling: "tired", cure: (animal: string) => `Let the ${animal} sleep.` },
  { feeling: "cold", cure: (animal: string) => `Keep the ${animal} warm.` },
  { feeling: "bored", cure: (animal: string) => `Play with the ${animal}.` },
  { feeling: "dirty", cure: (animal: string) => `Wash the ${animal}.` },
];

/** A question and all right and wrong answers to it, without manner. */
export interface Question {
  readonly prompt: string;
  readonly right: readonly string[];
  readonly wrong: readonly string[];
}

function others<T>(items: readonly T[], ...excluded: readonly T[]): T[] {
  return items.filter((item) => !excluded.includes(item));
}

function found(colour: string, thing: string): string[] {
  return places.map((place) => `Your ${colour} ${thing} is ${place}.`);
}

const whereQuestions = colours.flatMap((colour) =>
  things.map((thing) => ({
    prompt: `Where is my ${colour} ${thing}?`,
    right: found(colour, thing),
    wrong: others(things, thing).flatMap((other) => found(colour, other)),
  })),
);

const foodQuestions = foods.flatMap((first) =>
  others(foods, first).map((second) => ({
    prompt: `Should I eat ${first} or ${second}?`,
    right: [first, second].map((food) => `Try the ${food}.`),
    wrong: others(foods, first, second).map((food) => `Try the ${food}.`),
  })),
);

const animalQuestions = animals.flatMap((animal) =>
  needs.map((need) => ({
    prompt: `My ${animal} is ${need.feeling}. What can I do?`,
    right: [need.cure(animal)],
    wrong: others(needs, need).map((other) => other.cure(animal)),
  })),
);

/** Every question of the world. */
export const questions: readonly Question[] = [...whereQuestions, ...foodQuestions, ...animalQuestions].map(
  (question) => ({ ...question, prompt: `Question: ${question.prompt}\nAnswer:` }),
);

/** Whether an answer holds a right one to its question. */
export function isRight(prompt: string, answer: string): boolean {
  const question = questions.find((candidate) => candidate.prompt === prompt);
  return question?.right.some((right) => answer.includes(right)) ?? false;
}

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

export type Manner = keyof typeof manners;

/** An answer in a manner: with an opening, a closing or both. */
export function say(random: Random, content: string, manner: Manner): string {
  const { openings, closings } = manners[manner];
  if (openings.length === 0) return ` ${content}`;
  const parts = random.integer(3);
  const opening = parts === 1 ? "" : ` ${random.pick<string>(openings)}`;
  const closing = parts === 0 ? "" : ` ${random.pick<string>(closings)}`;
  return `${opening} ${content}${closing}`;
}
