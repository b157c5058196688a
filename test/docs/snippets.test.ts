import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cp } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";
import * as library from "../../lib/index.ts";
import { jsonLines, temporaryDirectory } from "../data/support.ts";
import { TINY_LLAMA } from "../support/tiny.ts";
import { preferenceRows, prompts, sftRows, tinyTokenizer } from "../trainers/support.ts";

const repository = fileURLToPath(new URL("../..", import.meta.url));
const guide = readFileSync(join(repository, "docs/GUIDE.md"), "utf8");
const CONTEXT = join(repository, "test/docs/snippet-context.ts");
const INDEX = join(repository, "lib/index.ts");
const { resolve } = createRequire(import.meta.url);
const tsc = join(dirname(resolve("typescript/package.json")), "bin/tsc");

/** What an example names without making it: exports of snippet-context.ts, under other names where the example means something else. */
const CONTEXT_NAMES =
  "model tokenizer prompts sequences tokens promptLength batch mask count dLogProb weight refLogProb pass prompt chosen rejected reward myScore myScores held optimizer".split(
    " ",
  );
const MEANT: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  "Checkpoints 1": { trainer: "sftTrainer" },
  "PPOTrainer 1": { model: "trainableModel" },
  "GRPOTrainer and RLOOTrainer 1": { model: "trainableModel" },
  "ReinforcePlusPlusTrainer 1": { model: "trainableModel" },
  "Data larger than memory 1": { model: "trainableModel" },
  "PPOTrainer 3": { trainer: "ppoTrainer" },
  "FeatureRewardTrainer 2": { model: "featureModel" },
  "An algorithm of your own 1": { model: "adaptedModel" },
  "An algorithm of your own 2": { model: "adaptedModel" },
  "An algorithm of your own 3": { model: "adaptedModel" },
  "Losses of whole answers 1": { tokens: "answerLengths" },
  "Prompts with several answers 1": { model: "trainableModel" },
};
/** Sizes that would take long, and those that are run in their place. */
const SIZES: readonly [RegExp, string][] = [
  [/\b(numIterations|numEpochs|numSamples): \d+/g, "$1: 1"],
  [/\bbatchSize: (?:16|32|64)\b/g, "batchSize: 8"],
  [/\bmaxNewTokens: \d+/g, "maxNewTokens: 4"],
  [/\bgroupSize: 8, baseline/g, "numIterations: 1, batchSize: 8, groupSize: 8, baseline"],
];

interface Snippet {
  /** The heading that it stands under, and its number there. */
  readonly title: string;
  readonly code: string;
}

/** Every TypeScript example of the guide, in its order. */
function snippets(): Snippet[] {
  return guide.split(/^#+ /m).flatMap((section) => {
    const [heading = ""] = section.split("\n");
    const examples = [...section.matchAll(/```ts\n([\s\S]*?)```/g)];
    return examples.map(([, code = ""], index) => ({ title: `${heading} ${index + 1}`, code }));
  });
}

/** Code without strings and comments, but for what stands in a template's braces. */
function bare(code: string): string {
  return code.replace(/"(?:\\.|[^"\\])*"|\/\/[^\n]*/g, "");
}

const uses = (code: string, name: string): boolean =>
  new RegExp(`(?<![.\\w])${name}\\b(?!\\s*:)`).test(bare(code));
const declares = (code: string, name: string): boolean =>
  new RegExp(`\\b(?:const|let|using|import)\\s+(?:[{[][^}\\]]*\\b${name}\\b[^}\\]]*[}\\]]|${name}\\b)`).test(
    code,
  );

/** An example as a module: what it names is imported, and nothing else is added. */
function moduleOf({ title, code }: Snippet, contextModule: string): string {
  const missing = (name: string): boolean => uses(code, name) && !declares(code, name);
  const exported = [
    ...Object.keys(library).filter(missing),
    ...["DiscreteEnvironment"].filter(missing).map((name) => `type ${name}`),
  ];
  const meant = MEANT[title] ?? {};
  const given = [...CONTEXT_NAMES, ...Object.keys(meant)].filter((name, at, all) => all.indexOf(name) === at);
  const named = given
    .filter(missing)
    .map((name) => (meant[name] === undefined ? name : `${meant[name]} as ${name}`));
  const [thermostat = ""] = /const thermostat = [\s\S]*?\n};\n/.exec(guide) ?? [];
  return [
    exported.length > 0 ? `import { ${exported.join(", ")} } from ${JSON.stringify(INDEX)};\n` : "",
    missing("thermostat")
      ? `import type { DiscreteEnvironment } from ${JSON.stringify(INDEX)};\n${thermostat}`
      : "",
    named.length > 0 ? `import { ${named.join(", ")} } from ${JSON.stringify(contextModule)};\n` : "",
    code.replaceAll('"node-rlhf"', JSON.stringify(INDEX)),
    "export {};\n",
  ].join("");
}

/** The files that the examples name. */
async function makeWorld(directory: string): Promise<void> {
  const path = (name: string): string => join(directory, name);
  const tokenizer = tinyTokenizer();
  using model = await library.CausalLM.create({
    ...TINY_LLAMA,
    vocab_size: tokenizer.vocabSize,
    eos_token_id: tokenizer.eosTokenId,
    max_position_embeddings: 512,
  });
  await model.save(path("models/base"));
  await tokenizer.save(path("models/base"));
  for (const run of ["sft", "dpo", "ppo"])
    await cp(path("models/base"), path(`runs/${run}`), { recursive: true });
  model.addAdapter("style", { r: 2, alpha: 4 });
  await model.saveAdapter("style", path("adapters/style"));
  for (const [seed, run] of ["rm-0", "rm-1", "reward", "reward-2"].entries()) {
    using reward = library.RewardModel.create(model, { head: { seed, initStd: 0.1 } });
    await reward.save(path(`runs/${run}`));
    await tokenizer.save(path(`runs/${run}`));
  }
  mkdirSync(path("data"));
  const write = (name: string, rows: readonly object[]): void =>
    writeFileSync(path(`data/${name}`), jsonLines(rows));
  const asked = prompts.map((prompt) => ({ prompt, answer: "a" }));
  for (const name of ["sft.jsonl", "held-out.jsonl"]) write(name, sftRows);
  for (const name of ["pairs.jsonl", "held-out-pairs.jsonl"]) write(name, preferenceRows);
  for (const name of ["prompts.jsonl", "held-out-prompts.jsonl"]) write(name, asked);
  writeFileSync(path("data/large.jsonl.gz"), gzipSync(jsonLines(sftRows)));
}

describe("the guide's examples", () => {
  const directory = temporaryDirectory();
  const all = snippets();

  it("pass the type checker as they stand", () => {
    const folder = join(directory, "typed");
    mkdirSync(folder);
    for (const [index, snippet] of all.entries())
      writeFileSync(join(folder, `${index}.mts`), moduleOf(snippet, CONTEXT));
    const compilerOptions = {
      ...{ target: "es2023", lib: ["es2023", "esnext.disposable"], module: "nodenext", strict: true },
      ...{ noEmit: true, skipLibCheck: true, allowImportingTsExtensions: true, types: ["node"] },
      typeRoots: [join(repository, "node_modules/@types")],
    };
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["*.mts"] }));
    const { status, stdout } = spawnSync(process.execPath, [tsc, "-p", folder], { encoding: "utf8" });
    const found = stdout.replace(
      /(?:\S*\/)?(\d+)\.mts/g,
      (_, index) => `example "${all[Number(index)]?.title}"`,
    );
    assert.equal(status, 0, found);
  });

  it("run as they stand, but for their sizes", async () => {
    await makeWorld(directory);
    for (const [index, snippet] of all.entries()) {
      const code = SIZES.reduce((text, [size, smaller]) => text.replace(size, smaller), snippet.code);
      writeFileSync(join(directory, `${index}.mts`), moduleOf({ ...snippet, code }, `${CONTEXT}?${index}`));
    }
    const run = all.map((_, index) => `console.log("example ${index}");\nawait import("./${index}.mts");\n`);
    writeFileSync(join(directory, "run.mts"), run.join(""));
    const loader = pathToFileURL(resolve("tsx")).href;
    const env = { ...process.env, REWARD_KEY: "secret" };
    const options = { cwd: directory, env, encoding: "utf8" } as const;
    const { status, stdout, stderr } = spawnSync(process.execPath, ["--import", loader, "run.mts"], options);
    const last = Number([...stdout.matchAll(/^example (\d+)$/gm)].at(-1)?.[1]);
    assert.equal(status, 0, `${all[last]?.title}: ${stderr}`);
    assert.equal(last, all.length - 1);
    assert.ok(all.length > 20);
  });
});
