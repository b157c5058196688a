import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { contentsOf, type Grade, grade, scoresOf } from "../../examples/mini-world/grade.ts";
import { makeData, type Pair, writeData } from "../../examples/mini-world/make-data.ts";
import {
  CATEGORIES,
  forms,
  promptOf,
  questions,
  sameContent,
  say,
  statements,
  values,
} from "../../examples/mini-world/world.ts";
import { loadPreferences } from "../../lib/data/preferences.ts";
import { loadPrompts } from "../../lib/data/prompts.ts";
import { Random } from "../../lib/data/random.ts";
import { loadSft } from "../../lib/data/sft.ts";
import { readPipeline } from "../../lib/pipeline/settings-file.ts";

const data = makeData();

function rows<Row>(name: string): Row[] {
  return (data[name] as string)
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Row);
}

/** How often each word occurs, and the length. */
function features(text: string): Map<string, number> {
  const counts = new Map<string, number>([["(length)", text.length / 20]]);
  for (const word of text.toLowerCase().match(/[a-z]+/g) ?? []) counts.set(word, (counts.get(word) ?? 0) + 1);
  return counts;
}

function difference({ chosen, rejected }: Pair): Map<string, number> {
  const result = features(chosen);
  for (const [name, count] of features(rejected)) result.set(name, (result.get(name) ?? 0) - count);
  return result;
}

/** Logistic regression on words and length: the share of `held` in which it rates the chosen answer higher; ties count half. */
function styleAccuracy(train: readonly Pair[], held: readonly Pair[]): number {
  const weights = new Map<string, number>();
  const margin = (pair: ReadonlyMap<string, number>): number =>
    [...pair].reduce((sum, [name, count]) => sum + count * (weights.get(name) ?? 0), 0);
  const examples = train.map(difference);
  for (let epoch = 0; epoch < 40; epoch++) {
    const gradient = new Map<string, number>();
    for (const example of examples) {
      const missing = 1 / (1 + Math.exp(margin(example)));
      for (const [name, count] of example) gradient.set(name, (gradient.get(name) ?? 0) + missing * count);
    }
    for (const [name, slope] of gradient)
      weights.set(name, (weights.get(name) ?? 0) + (2 * slope) / examples.length);
  }
  const right = held.map(difference).map((example) => {
    const value = margin(example);
    return Math.abs(value) < 1e-9 ? 0.5 : Number(value > 0);
  });
  return right.reduce((sum, one) => sum + one, 0) / right.length;
}

const gradesOf = (list: readonly { prompt: string; answer: string }[]): Grade[] =>
  list.map(({ prompt, answer }) => grade(prompt, answer));

describe("the mini-world", () => {
  it("asks every question in phrasings of its own, some held out", () => {
    const phrasings = questions.flatMap(({ seen, heldOut }) => [...seen, ...heldOut]);
    assert.equal(new Set(phrasings).size, phrasings.length);
    assert.ok(phrasings.every((text) => !/PERSON|TASK|VALUE/.test(text)));
    assert.ok(questions.every(({ seen, heldOut }) => seen.length >= 4 && heldOut.length >= 2));
    for (const category of CATEGORIES)
      assert.ok(questions.filter((question) => question.category === category).length >= 40, category);
  });

  it("names in its statements every value that it asks for, and asks nothing there", () => {
    const text = statements.join("\n");
    assert.ok(values.every((value) => text.includes(value)));
    assert.ok(!text.includes("?") && !/PERSON|TASK|VALUE/.test(text));
  });
});

describe("the mini-world's grader", () => {
  const first = (category: string): { prompt: string; question: (typeof questions)[number] } => {
    const question = questions.find((candidate) => candidate.category === category);
    assert.ok(question);
    return { prompt: promptOf(question.heldOut[0] as string), question };
  };
  const fact = first("helpfulness");
  const known = fact.question.right.kind === "value" ? fact.question.right.value : "";

  it("accepts a right content in every wording and manner, and that alone", () => {
    const random = new Random(1, "grader");
    for (const question of questions) {
      const other = questions.find((candidate) => !sameContent(candidate.right, question.right));
      assert.ok(other);
      for (const phrasing of [...question.seen, ...question.heldOut]) {
        const prompt = promptOf(phrasing);
        const right = say(random, question.right);
        assert.deepEqual(grade(prompt, right), { category: question.category, right: true }, prompt + right);
        assert.equal(grade(prompt, say(random, other.right)).right, false, prompt);
      }
    }
  });

  it("rejects hedging, repetition, silence and parts of words", () => {
    for (const answer of [
      ` The answer is ${known}. I do not know that.`,
      ` I would say ${known}. I will not help with that.`,
      ` That would be ${known} ${known}.`,
      ` The answer is ${known}s.`,
      ` ${known.toLowerCase()}`,
      "",
    ])
      assert.equal(grade(fact.prompt, answer).right, false, answer);
    assert.equal(grade(first("honesty").prompt, " I do not know that. I do not know that.").right, false);
  });

  it("finds what an answer says", () => {
    assert.deepEqual(contentsOf(` ${forms.unknown[1]} ${forms.refusal[0]} A cat?`), [
      { kind: "value", value: "a cat" },
      { kind: "unknown" },
      { kind: "refusal" },
    ]);
  });

  it("averages the categories, and names what it cannot grade", () => {
    const answers = CATEGORIES.flatMap((category) => {
      const { prompt, question } = first(category);
      const right = say(new Random(2), question.right);
      return category === "honesty"
        ? [{ prompt, answer: right }]
        : [
            { prompt, answer: right },
            { prompt, answer: "" },
          ];
    });
    const scores = scoresOf(gradesOf(answers));
    assert.deepEqual(
      { ...scores, overall: 0 },
      { helpfulness: 0.5, harmlessness: 0.5, honesty: 1, overall: 0 },
    );
    assert.ok(Math.abs(scores.overall - 2 / 3) < 1e-12);
    assert.throws(() => scoresOf([]), /no answer in the category helpfulness/);
    assert.throws(() => grade("Question: What is a gnu?\nAnswer:", "A gnu."), /no prompt/);
  });
});

describe("the mini-world's data", () => {
  it("is the same for the same seed and another for another", () => {
    assert.deepEqual(makeData(0), data);
    assert.notDeepEqual(makeData(1), data);
  });

  it("is read without a bad row, as the pipeline asks for it", async () => {
    const directory = await mkdtemp(join(tmpdir(), "mini-world-"));
    try {
      writeData(directory);
      const names = (name: string): string[] => [join(directory, name), join(directory, `held-out-${name}`)];
      const loaded = [
        await loadSft(join(directory, "pretrain.jsonl"), { format: "text" }),
        ...(await Promise.all(names("sft.jsonl").map((path) => loadSft(path)))),
        ...(await Promise.all(names("preferences.jsonl").map((path) => loadPreferences(path)))),
        ...(await Promise.all(names("prompts.jsonl").map((path) => loadPrompts(path)))),
      ];
      for (const { report } of loaded) assert.equal(report.rowsKept, report.rowsRead);
    } finally {
      await rm(directory, { recursive: true });
    }
    const file = fileURLToPath(new URL("../../examples/mini-world/pipeline.yaml", import.meta.url));
    const named = [...readFileSync(file, "utf8").matchAll(/runs\/mini-world\/data\/(\S+)/g)].map(
      ([, name]) => name,
    );
    assert.deepEqual(new Set(named), new Set(Object.keys(data)));
    assert.deepEqual(
      (await readPipeline(file)).map(({ kind }) => kind),
      ["sft", "sft", "reward", "dpo", "ppo"],
    );
  });

  it("holds phrasings out that no other file has", () => {
    const others = ["pretrain.jsonl", "sft.jsonl", "preferences.jsonl", "prompts.jsonl"];
    const text = others.map((name) => data[name]).join("");
    for (const name of ["held-out-sft.jsonl", "held-out-preferences.jsonl", "held-out-prompts.jsonl"])
      for (const { prompt } of rows<{ prompt: string }>(name)) {
        const phrasing = prompt.slice("Question: ".length, -"\nAnswer:".length);
        assert.ok(!text.includes(phrasing), prompt);
      }
    const held = rows<{ prompt: string }>("held-out-prompts.jsonl").map(
      ({ prompt }) => grade(prompt, "").category,
    );
    for (const category of CATEGORIES)
      assert.ok(held.filter((one) => one === category).length >= 40, category);
  });

  it("demonstrates answers of mixed quality in each category", () => {
    const grades = rows<{ prompt: string; response: string }>("sft.jsonl").map(({ prompt, response }) =>
      grade(prompt, response),
    );
    for (const share of Object.values(scoresOf(grades))) assert.ok(share > 0.5 && share < 0.6, String(share));
  });

  for (const name of ["preferences.jsonl", "held-out-preferences.jsonl"]) {
    it(`prefers right answers to other questions' right answers in ${name}`, () => {
      const pairs = rows<Pair>(name);
      const chosenSomewhere = new Set(pairs.map(({ chosen }) => chosen));
      const categories = new Set<string>();
      for (const { prompt, chosen, rejected } of pairs) {
        assert.ok(grade(prompt, chosen).right, prompt + chosen);
        assert.ok(!grade(prompt, rejected).right, prompt + rejected);
        assert.ok(chosenSomewhere.has(rejected), rejected);
        categories.add(grade(prompt, chosen).category);
      }
      assert.equal(categories.size, CATEGORIES.length);
      const sorted = (side: "chosen" | "rejected"): string[] => pairs.map((pair) => pair[side]).sort();
      assert.deepEqual(sorted("chosen"), sorted("rejected"));
    });
  }

  it("gives nothing away by words or length: a classifier of style gets at most 60 % of held-out pairs", () => {
    const train = rows<Pair>("preferences.jsonl");
    const held = rows<Pair>("held-out-preferences.jsonl");
    const accuracy = styleAccuracy(train, held);
    assert.ok(accuracy <= 0.6, `${accuracy}`);
    // One pair of each mirrored two, picked at random, has small biases that a classifier may learn by heart.
    const random = new Random(3, "halves");
    const half = (pairs: readonly Pair[]): Pair[] =>
      pairs
        .filter((_, index) => index % 2 === 0)
        .map((pair, index) => pairs[2 * index + random.integer(2)] ?? pair);
    const halved = styleAccuracy(half(train), half(held));
    assert.ok(halved <= 0.6, `${halved}`);
  });

  it("… while the same classifier finds style where there is one", () => {
    const kindly = (pairs: readonly Pair[]): Pair[] =>
      pairs.map((pair, index) =>
        index % 4 === 0 ? pair : { ...pair, chosen: `${pair.chosen} Have a good day.` },
      );
    const accuracy = styleAccuracy(
      kindly(rows("preferences.jsonl")),
      kindly(rows("held-out-preferences.jsonl")),
    );
    assert.ok(accuracy > 0.8, `${accuracy}`);
  });
});
