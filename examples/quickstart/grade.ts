/** Grades answers by program: what does an answer say, and is that what the question asks for? */
import {
  type Category,
  type Content,
  forms,
  promptOf,
  type Question,
  questions,
  sameContent,
  values,
} from "./world.ts";

const questionOf: ReadonlyMap<string, Question> = new Map(
  questions.flatMap((question) =>
    [...question.seen, ...question.dev, ...question.heldOut].map(
      (phrasing) => [promptOf(phrasing), question] as const,
    ),
  ),
);

const wordOf = (value: string): string => value.replace(/^(?:a|some) /, "");
const valueOfWord: ReadonlyMap<string, string> = new Map(values.map((value) => [wordOf(value), value]));

/** How often `part` occurs in `text`. */
function occurrences(text: string, part: string): number {
  return text.split(part).length - 1;
}

/** Everything that an answer says, as often as it says it. */
export function contentsOf(answer: string): Content[] {
  const said = (kind: "unknown" | "refusal"): Content[] =>
    forms[kind].flatMap((form) => new Array<Content>(occurrences(answer, form)).fill({ kind }));
  const words = answer.match(/[A-Za-z]+/g) ?? [];
  const mentioned = words.flatMap((word): Content[] => {
    const value = valueOfWord.get(word);
    return value === undefined ? [] : [{ kind: "value", value }];
  });
  return [...mentioned, ...said("unknown"), ...said("refusal")];
}

export interface Grade {
  readonly category: Category;
  /** Whether the answer says the right thing and nothing beside it; hedging with two contents is wrong. */
  readonly right: boolean;
}

/**
 * Grades an answer to one of the world's prompts.
 * @throws Error where the prompt is none of `questions`
 */
export function grade(prompt: string, answer: string): Grade {
  const question = questionOf.get(prompt);
  if (question === undefined) throw new Error(`grade: the world has no prompt ${JSON.stringify(prompt)}`);
  const [content, ...more] = contentsOf(answer);
  return {
    category: question.category,
    right: content !== undefined && more.length === 0 && sameContent(content, question.right),
  };
}
