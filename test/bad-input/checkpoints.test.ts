import assert from "node:assert/strict";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CausalLM, PPOTrainer, type RewardFunction, SFTTrainer, silentProgress } from "../../lib/index.ts";
import { findCheckpoint } from "../../lib/trainers/checkpoint.ts";
import { temporaryDirectory } from "../data/support.ts";
import { prompts, sftRows, tinyModel, tinyTokenizer, weightsOf } from "../trainers/support.ts";
import { assertRefused } from "./support.ts";

const tokenizer = tinyTokenizer();
const progress = silentProgress;

describe("bad input: checkpoints and rewards", () => {
  const directory = temporaryDirectory();
  const run = join(directory, "run");
  const config = { maxSteps: 2, saveSteps: 1, batchSize: 4 };
  let trained: Map<string, Float32Array>;

  async function train(
    outputDir: string,
    more: object = {},
    compute: "float32" | "bfloat16" = "float32",
  ): Promise<Map<string, Float32Array>> {
    using first = await tinyModel(tokenizer);
    using model = await CausalLM.create(
      { ...first.hfConfig, ...more },
      { trainable: "all", seed: 7, device: "cpu", compute },
    );
    using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config, outputDir });
    const before = await weightsOf(model);
    try {
      await trainer.train({ progress });
    } catch (error) {
      assert.deepEqual(await weightsOf(model), before, "a checkpoint that is refused changes nothing");
      throw error;
    }
    return await weightsOf(model);
  }

  before(async () => {
    trained = await train(run);
  });

  let count = 0;
  /** A copy of the run whose newest checkpoint has something wrong. */
  function damaged(file: string, damage: (bytes: Buffer) => string | Uint8Array): string {
    const copy = join(directory, `copy-${count++}`);
    cpSync(run, copy, { recursive: true });
    const path = join(copy, "checkpoint-2", file);
    writeFileSync(path, damage(readFileSync(path)));
    return copy;
  }
  const manifest = (more: object) => (bytes: Buffer) =>
    JSON.stringify({ ...(JSON.parse(bytes.toString("utf8")) as object), ...more });

  const unusable: [string, string, (bytes: Buffer) => string | Uint8Array][] = [
    ["a step of text", "trainer.json", manifest({ step: "two" })],
    ["a step below 0", "trainer.json", manifest({ step: -1 })],
    ["no settings", "trainer.json", manifest({ settings: null })],
    ["no optimizer's steps", "trainer.json", manifest({ optimizerSteps: undefined })],
    ["a version to come", "trainer.json", manifest({ version: 2 })],
    ["a list for a manifest", "trainer.json", () => "[]"],
    ["tensors whose header is damaged", "state.safetensors", (bytes) => bytes.fill(0xff, 8, 200)],
    ["tensors that break off", "state.safetensors", (bytes) => bytes.subarray(0, -1)],
  ];
  for (const [what, file, damage] of unusable)
    it(`a checkpoint with ${what} is passed over, and the run ends as it did`, async () => {
      const copy = damaged(file, damage);
      assert.equal((await findCheckpoint(copy))?.state.step, 1);
      assert.deepEqual(await train(copy), trained);
    });

  const others: [string, object, RegExp][] = [
    [
      "with more layers",
      { num_hidden_layers: 3 },
      /checkpoint-2: .*has other weights than the one that the run began with/,
    ],
    [
      "that is narrower",
      { intermediate_size: 16 },
      /checkpoint-2: .*has other weights than the one that the run began with/,
    ],
  ];
  for (const [what, more, message] of others)
    it(`refuses to go on with a model ${what}: ERR_RLHF_CHECKPOINT`, async () => {
      const copy = damaged("trainer.json", (bytes) => bytes);
      await assertRefused(() => train(copy, more), "ERR_RLHF_CHECKPOINT", message);
      assert.equal((await findCheckpoint(copy))?.state.step, 2, "the checkpoints stay");
    });

  it("refuses to go on in another compute, and says that it is that", () =>
    assertRefused(
      () =>
        train(
          damaged("trainer.json", (bytes) => bytes),
          {},
          "bfloat16",
        ),
      "ERR_RLHF_CHECKPOINT",
      /checkpoint-2: this run cannot go on from it: compute was float32 and is bfloat16\. Use/,
    ));

  it("refuses to go on from another trainer's checkpoint: ERR_RLHF_CHECKPOINT", () =>
    assertRefused(
      () => train(damaged("trainer.json", manifest({ trainer: "dpo" }))),
      "ERR_RLHF_CHECKPOINT",
      /checkpoint-2: .*it is of dpo, not of sft\. Use .*another outputDir, or resume: false/,
    ));

  it("refuses an output directory that is a file: ERR_RLHF_IO", async () => {
    const file = join(directory, "file");
    writeFileSync(file, "kept");
    await assertRefused(() => train(file), "ERR_RLHF_IO", /file: cannot be locked: EEXIST/);
    assert.equal(readFileSync(file, "utf8"), "kept");
  });

  describe("a reward function", () => {
    const wrong: [string, () => unknown, RegExp][] = [
      ["throws nothing in particular", () => Promise.reject(undefined), /failed: undefined; response/],
      ["gives text", () => "1", /finite number, got '1'; response/],
      ["gives a list", () => [1], /must return a finite number/],
      ["gives a bigint", () => 1n, /must return a finite number/],
      [
        "gives an object without text",
        () => Object.create(null) as object,
        /must return a finite number, got \[Object/,
      ],
      ["gives a symbol", () => Symbol("s"), /must return a finite number/],
      ["gives more than float32 holds", () => 1e300, /finite number, got 1e\+300/],
    ];
    for (const [what, reward, message] of wrong)
      it(`that ${what} ends the step, not the model: ERR_RLHF_REWARD`, async () => {
        using model = await tinyModel(tokenizer);
        const before = await weightsOf(model);
        const options = { model, tokenizer, prompts, config: { maxNewTokens: 3, batchSize: 2 } };
        using trainer = new PPOTrainer({ ...options, reward: reward as RewardFunction });
        await assertRefused(() => trainer.trainStep(), "ERR_RLHF_REWARD", message);
        const after = await weightsOf(model);
        for (const [name, values] of before) assert.deepEqual(after.get(name), values, name);
      });
  });
});
