import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { CausalLM, trainTokenizer } from "../../lib/index.ts";
import { TINY_LLAMA, withTemporaryDirectory } from "../support/tiny.ts";

const repository = fileURLToPath(new URL("../..", import.meta.url));
const readme = readFileSync(join(repository, "README.md"), "utf8");

/** The first TypeScript example of the README. */
function example(): string {
  const [, code] = /```ts\n([\s\S]*?)```/.exec(readme) ?? [];
  assert.ok(code, "README.md has a TypeScript example");
  return code;
}

describe("README", () => {
  it("its example runs as it stands, on another directory", async () => {
    await withTemporaryDirectory(async (directory) => {
      const texts = ["Can you help me? Yes, please do.", "Where is the key? Here, please take it."];
      const tokenizer = trainTokenizer(texts, { vocabSize: 280 });
      await tokenizer.save(join(directory, "model"));
      using model = await CausalLM.create({ ...TINY_LLAMA, vocab_size: 300, initializer_range: 0.05 });
      await model.save(join(directory, "model"));
      const code = example()
        .replace('"node-rlhf"', JSON.stringify(join(repository, "lib/index.ts")))
        .replace(/"runs\/quickstart[^"]*"/, JSON.stringify(join(directory, "model")))
        .replace(/"runs\/ppo"/, JSON.stringify(join(directory, "ppo")));
      await writeFile(join(directory, "example.mts"), code);
      const run = spawnSync("node", ["--import", "tsx", join(directory, "example.mts")], {
        cwd: repository,
        encoding: "utf8",
      });
      assert.equal(run.status, 0, run.stderr);
      const steps = run.stdout.trim().split("\n");
      assert.equal(steps.length, 20);
      assert.match(steps[19] as string, /^20 [\d.]+ -?[\d.e-]+$/);
      const config = JSON.parse(await readFile(join(directory, "ppo", "config.json"), "utf8")) as object;
      assert.equal("architectures" in config, true);
    });
  });
});
