import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { contentsOf, grade } from "../../examples/quickstart/grade.ts";
import { makeData, type Pair, SIZES, writeData } from "../../examples/quickstart/make-data.ts";
import { checkLines, modelLines, sampleLines } from "../../examples/quickstart/print.ts";
import { quickstart } from "../../examples/quickstart/quickstart.ts";
import { halves, styleAccuracy } from "../../examples/quickstart/style.ts";
import {
  CATEGORIES,
  forms,
  promptOf,
  questions,
  sameContent,
  say,
  statements,
  values,
} from "../../examples/quickstart/world.ts";
import { loadPreferences } from "../../lib/data/preferences.ts";
import { loadPrompts } from "../../lib/data/prompts.ts";
import { Random } from "../../lib/data/random.ts";
import { loadSft } from "../../lib/data/sft.ts";
import type { EvaluationReport } from "../../lib/index.ts";
import type { Stage } from "../../lib/pipeline/schema.ts";
import { readPipeline } from "../../lib/pipeline/settings-file.ts";
import { testDevice, withTemporaryDirectory } from "../support/tiny.ts";

const data = makeData(0);

function rows<Row>(name: string): Row[] {
  return (data[name] as string)
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Row);
}

describe("the quickstart's world", () => {
  it("asks every question in phrasings of its own, some held out", () => {
    const phrasings = questions.flatMap(({ seen, dev, heldOut }) => [...seen, ...dev, ...heldOut]);
    assert.equal(new Set(phrasings).size, phrasings.length);
    assert.ok(phrasings.every((text) => !/PERSON|TASK|VALUE/.test(text)));
    assert.ok(
      questions.every(({ seen, dev, heldOut }) => seen.length >= 4 && dev.length >= 2 && heldOut.length >= 2),
    );
    for (const category of CATEGORIES)
      assert.ok(questions.filter((question) => question.category === category).length >= 40, category);
  });

  it("names in its statements every value that it asks for, and asks nothing there", () => {
    const text = statements.join("\n");
    assert.ok(values.every((value) => text.includes(value)));
    assert.ok(!text.includes("?") && !/PERSON|TASK|VALUE/.test(text));
  });
});

describe("the quickstart's grader", () => {
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
      for (const phrasing of [...question.seen, ...question.dev, ...question.heldOut]) {
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

  it("names what it cannot grade", () => {
    assert.throws(() => grade("Question: What is a gnu?\nAnswer:", "A gnu."), /no prompt/);
  });
});

describe("the quickstart's data", () => {
  it("is the same for the same seed and another for another", () => {
    assert.deepEqual(makeData(0), data);
    assert.notDeepEqual(makeData(1), data);
  });

  it("is read without a bad row, as the pipeline asks for it", async () => {
    await withTemporaryDirectory(async (directory) => {
      writeData(directory);
      const path = (name: string): string => join(directory, name);
      const splits = (name: string): string[] => ["", "dev-", "held-out-"].map((split) => path(split + name));
      const loaded = [
        await loadSft(path("pretrain.jsonl"), { format: "text" }),
        ...(await Promise.all(["sft.jsonl", "dev-sft.jsonl"].map((name) => loadSft(path(name))))),
        ...(await Promise.all(splits("preferences.jsonl").map((file) => loadPreferences(file)))),
        ...(await Promise.all(splits("prompts.jsonl").map((file) => loadPrompts(file)))),
      ];
      for (const { report } of loaded) assert.equal(report.rowsKept, report.rowsRead);
    });
    const file = fileURLToPath(new URL("../../examples/quickstart/pipeline.yaml", import.meta.url));
    const named = [...readFileSync(file, "utf8").matchAll(/runs\/quickstart\/data\/(\S+)/g)].map(
      ([, name]) => name,
    );
    assert.deepEqual(new Set(named), new Set(Object.keys(data)));
    const stages = await readPipeline(file);
    assert.deepEqual(
      stages.map(({ kind }) => kind),
      ["sft", "sft", "reward", "dpo", "ppo", "evaluate"],
    );
    for (const { kind, settings } of stages)
      assert.equal(JSON.stringify(settings).includes("held-out-"), kind === "evaluate", kind);
  });

  it("has phrasings for choosing settings and others for the last measurement, none in any other file", () => {
    const names = Object.keys(data);
    for (const split of ["dev-", "held-out-"]) {
      const text = names.filter((name) => !name.startsWith(split)).map((name) => data[name]);
      const own = names.filter((name) => name.startsWith(split));
      assert.ok(own.length >= 2);
      for (const name of own)
        for (const { prompt } of rows<{ prompt: string }>(name)) {
          const phrasing = prompt.slice("Question: ".length, -"\nAnswer:".length);
          assert.ok(!text.join("").includes(phrasing), prompt);
        }
      const asked = rows<{ prompt: string }>(`${split}prompts.jsonl`);
      const held = asked.map(({ prompt }) => grade(prompt, "").category);
      for (const category of CATEGORIES)
        assert.equal(held.filter((one) => one === category).length, 48, category);
      assert.equal(new Set(asked.map(({ prompt }) => prompt)).size, asked.length);
    }
  });

  it("demonstrates answers of mixed quality in each category", () => {
    const grades = rows<{ prompt: string; response: string }>("sft.jsonl").map(({ prompt, response }) =>
      grade(prompt, response),
    );
    for (const category of CATEGORIES) {
      const own = grades.filter((one) => one.category === category);
      const share = own.filter(({ right }) => right).length / own.length;
      assert.ok(own.length > 1000 && share > 0.6 && share < 0.7, `${category} ${share}`);
    }
  });

  for (const name of ["preferences.jsonl", "dev-preferences.jsonl", "held-out-preferences.jsonl"]) {
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
    const random = new Random(3, "halves");
    const halved = styleAccuracy(halves(train, random), halves(held, random));
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

describe("the quickstart's pipeline", () => {
  /** The stages as they are, but for a model and a number of steps that take seconds. */
  function scaledDown(stage: Stage): Stage {
    const settings: Record<string, unknown> = { ...stage.settings, device: testDevice };
    if (settings.init) settings.init = { ...(settings.init as object), hidden_size: 32, num_layers: 1 };
    if (stage.kind === "ppo") Object.assign(settings, { num_iterations: 3, batch_size: 16 });
    else if (stage.kind === "evaluate") Object.assign(settings, { num_samples: 2 });
    else Object.assign(settings, { max_steps: settings.init ? 60 : 20, warmup_steps: 2, batch_size: 16 });
    return { kind: stage.kind, settings } as Stage;
  }

  it("runs from data to report, and reports every check, also those that do not hold", async () => {
    await withTemporaryDirectory(async (directory) => {
      const sizes = {
        ...SIZES,
        texts: 300,
        demonstrations: 300,
        mirrored: 200,
        measuredMirrored: 30,
        measuredPromptsPerCategory: 4,
      };
      const run = (): Promise<EvaluationReport> =>
        quickstart({ directory, seed: 5, sizes, adjust: scaledDown });
      const report = await run();
      assert.deepEqual(
        report.models.map(({ name }) => name),
        ["base", "sft", "dpo", "ppo"],
      );
      assert.deepEqual([report.settings.prompts, report.baseline, report.settings.seed], [12, "sft", 5]);
      for (const { metrics, categories } of report.models) {
        assert.equal(metrics.right?.answers, 24);
        assert.deepEqual(new Set(Object.keys(categories)), new Set(CATEGORIES));
      }
      const check = (name: RegExp): EvaluationReport["checks"][number] => {
        const found = report.checks.filter((one) => name.test(one.name));
        assert.equal(found.length, 1, String(name));
        return found[0] as EvaluationReport["checks"][number];
      };
      assert.equal(report.checks.length, 19);
      assert.ok(report.checks.every(({ figure }) => figure !== null));
      // So small a model has learnt nothing: that is said, and what depends on the data and the losses alone holds.
      assert.equal(check(/^SFT: right answers$/).holds, false);
      assert.equal(check(/^PPO: right answers, above SFT$/).holds, false);
      const first = check(/^DPO: first loss$/);
      assert.ok(first.holds && Math.abs((first.figure ?? 0) - Math.log(2)) < 1e-5, `${first.figure}`);
      assert.ok(check(/^Words and length: held-out pairs they tell$/).holds);
      for (const category of CATEGORIES)
        assert.equal(
          check(new RegExp(`^Reward model: .* ${category}$`)).figure,
          report.rewardAccuracy.reward?.categories[category]?.mean,
        );
      const page = readFileSync(join(directory, "evaluation", "report.html"), "utf8");
      assert.match(page, /<figcaption>policy\/clipfrac_avg<\/figcaption><svg [^>]*>.*<polyline/);
      assert.match(readFileSync(join(directory, "evaluation", "report.md"), "utf8"), /does not hold/);
      const printed = checkLines(report);
      assert.equal(printed.length, report.checks.length);
      for (const [i, { name, holds }] of report.checks.entries())
        assert.ok(printed[i]?.startsWith(`  ${holds ? "holds" : "FAILS"}  ${name} `), printed[i]);
      assert.match(printed.join("\n"), /FAILS {2}SFT: right answers .* \(0\.4 to 0\.7\)/);
      assert.match(
        modelLines(report).join("\n"),
        /base +sft +dpo +ppo\n {2}right answers, helpfulness( +[\d.]+ %){4}\n/,
      );
      assert.match(sampleLines(report).join("\n"), /^ {2}Question: .*\n {4}base (right|wrong) /);
      assert.deepEqual(await run(), report, "a second run finds everything complete");
    });
  });
});
