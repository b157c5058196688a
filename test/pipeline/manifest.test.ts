import assert from "node:assert/strict";
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { hashOfValue } from "../../lib/pipeline/fingerprint.ts";
import { markBegun, markComplete, stageKey, stageState } from "../../lib/pipeline/manifest.ts";
import { loadRewardModule } from "../../lib/pipeline/reward-module.ts";
import { runPipeline } from "../../lib/pipeline/run.ts";
import { camelCase, type SftStage, type Stage, stageSchemas } from "../../lib/pipeline/schema.ts";
import { stepsOfEpochs, trainerConfig } from "../../lib/pipeline/settings.ts";
import type { SFTConfig } from "../../lib/trainers/sft.ts";
import { temporaryDirectory, writeText } from "../data/support.ts";

describe("pipelines", () => {
  it("refuse to write over a model that a stage reads, or over another stage's result", async () => {
    const sft = (output: string, model = "base"): Stage => ({
      kind: "sft",
      settings: { model_path: model, data_path: "none.jsonl", output_dir: output },
    });
    const refused = { code: "ERR_RLHF_CONFIG" };
    const cases: [Stage[], RegExp][] = [
      [[sft("models/../base")], /output_dir is model_path too/],
      [[sft("out"), sft("./out")], /is that of the sft stage too/],
    ];
    for (const [stages, message] of cases)
      await assert.rejects(runPipeline(stages, { log: () => {} }), { ...refused, message });
    assert.ok(!existsSync("out"));
  });

  it("refuse an input that is not there, or that a later stage makes, before any stage runs", async () => {
    const directory = temporaryDirectory();
    const inTemporary = (name: string): string => join(directory, name);
    writeText(directory, "data.jsonl", '{"text":"a"}\n');
    const sft = (output: string, settings: object): Stage => ({
      kind: "sft",
      settings: { data_path: inTemporary("data.jsonl"), output_dir: inTemporary(output), ...settings },
      at: `pipeline.yaml:${output}`,
    });
    const first = sft("1", { init: { family: "llama" } });
    const cases: [Stage[], string, RegExp][] = [
      [
        [first, sft("2", { model_path: inTemporary("1") }), sft("3", { model_path: inTemporary("11") })],
        "ERR_RLHF_IO",
        /^pipeline\.yaml:3: sft: model_path: .*11: there is no such file or directory$/,
      ],
      [
        [first, sft("2", { model_path: inTemporary("1"), eval_data_path: inTemporary("dta.jsonl") })],
        "ERR_RLHF_IO",
        /eval_data_path: .*dta\.jsonl: there is no such/,
      ],
      [
        [sft("2", { model_path: inTemporary("1/best") }), first],
        "ERR_RLHF_CONFIG",
        /^pipeline\.yaml:2: sft: model_path: .* is made by the sft stage that follows; put that one first$/,
      ],
      [
        [sft("2", { model_path: inTemporary("2/best") })],
        "ERR_RLHF_CONFIG",
        /is in the stage's own output_dir$/,
      ],
    ];
    for (const [stages, code, message] of cases) {
      await assert.rejects(runPipeline(stages, { log: () => {} }), { code, message });
      assert.ok(!existsSync(inTemporary("1")));
    }
  });
});

describe("stage manifests", () => {
  const directory = temporaryDirectory();
  const model = join(directory, "model");
  const output = join(directory, "out");
  const data = join(directory, "data.jsonl");

  const stage = (more: object = {}, where = output): Stage => ({
    kind: "sft",
    settings: { model_path: model, data_path: data, output_dir: where, seed: 1, ...more },
  });

  beforeEach(() => {
    mkdirSync(model, { recursive: true });
    writeText(model, "config.json", "{}");
    writeText(model, "model.safetensors", "weights");
    writeText(directory, "data.jsonl", '{"text":"a"}\n');
    rmSync(output, { recursive: true, force: true });
  });

  it("keys depend on settings and on what the inputs hold, not on where anything lies", async () => {
    const key = await stageKey(stage());
    assert.deepEqual(await stageKey(stage({}, join(directory, "elsewhere"))), key);
    writeText(directory, "copy.jsonl", '{"text":"a"}\n');
    assert.deepEqual(await stageKey(stage({ data_path: join(directory, "copy.jsonl") })), key);
    assert.notDeepEqual(await stageKey(stage({ seed: 2 })), key);
    assert.deepEqual(await stageKey(stage({ save_steps: 5, eval_steps: 3, logging_steps: 2 })), key);
    writeText(directory, "data.jsonl", '{"text":"b"}\n');
    assert.notDeepEqual(await stageKey(stage()), key);
  });

  it("keys of a model count its files, but not what its run wrote about itself", async () => {
    const key = await stageKey(stage());
    writeText(model, "metrics.jsonl", "{}");
    mkdirSync(join(model, "checkpoint-5"), { recursive: true });
    assert.deepEqual(await stageKey(stage()), key);
    writeText(model, "model.safetensors", "WEIGHTS");
    assert.notDeepEqual(await stageKey(stage()), key);
  });

  it("a missing input is an error that names it", async () => {
    await assert.rejects(stageKey(stage({ model_path: join(directory, "none") })), {
      code: "ERR_RLHF_IO",
      message: /none: cannot be read/,
    });
  });

  it("a stage is new, begun, complete, and begun again when a result is missing or cut off", async () => {
    const key = await stageKey(stage());
    assert.equal((await stageState(output, key)).state, "new");
    await markBegun(output, key, true);
    assert.equal((await stageState(output, key)).state, "begun");
    writeText(output, "model.safetensors", "result");
    await markComplete(output, key, { "eval/loss": 1.5 });
    assert.deepEqual(await stageState(output, key), { state: "complete", summary: { "eval/loss": 1.5 } });
    const other = await stageKey(stage({ seed: 2 }));
    assert.equal((await stageState(output, other)).state, "new");
    writeText(output, "model.safetensors", "resu");
    assert.equal((await stageState(output, key)).state, "begun");
    rmSync(join(output, "model.safetensors"));
    assert.equal((await stageState(output, key)).state, "begun");
  });

  it("checkpoints of another run of ours are removed, those of this run and of others are kept", async () => {
    const key = await stageKey(stage());
    const checkpoint = join(output, "checkpoint-5");
    mkdirSync(checkpoint, { recursive: true });
    assert.deepEqual(await markBegun(output, key, true), []);
    assert.ok(existsSync(checkpoint), "the directory was not ours");
    assert.deepEqual(await markBegun(output, key, false), []);
    assert.ok(existsSync(checkpoint), "the run goes on");
    assert.deepEqual(await markBegun(output, await stageKey(stage({ seed: 2 })), true), ["checkpoint-5"]);
    assert.ok(!existsSync(checkpoint), "the settings are others");
  });

  it("hashes do not depend on the order of keys", () => {
    assert.equal(
      hashOfValue({ a: 1, b: { c: 2, d: [3, 4] } }),
      hashOfValue({ b: { d: [3, 4], c: 2 }, a: 1 }),
    );
    assert.notEqual(hashOfValue([3, 4]), hashOfValue([4, 3]));
  });
});

describe("settings for trainers", () => {
  it("are camelCase, without the pipeline's own keys and without what was left out", () => {
    const stage: SftStage = {
      model_path: "m",
      data_path: "d",
      output_dir: "o",
      learning_rate: 1,
      eval_fraction: 0.1,
      seed: undefined,
      loss_on: "all",
    };
    assert.deepEqual(trainerConfig<SftStage, SFTConfig>(stage), { learningRate: 1, lossOn: "all" });
  });

  it("gather LoRA's", () => {
    const stage: SftStage = {
      data_path: "d",
      output_dir: "o",
      lora_r: 4,
      lora_alpha: 8,
      lora_target_modules: ["q_proj"],
    };
    const lora = { r: 4, alpha: 8, targetModules: ["q_proj"] };
    assert.deepEqual(trainerConfig<SftStage, SFTConfig>(stage), { lora });
  });

  it("turn epochs and steps per epoch into steps", () => {
    assert.equal(stepsOfEpochs({ num_epochs: 3, steps_per_epoch: 5 }), 15);
    assert.equal(stepsOfEpochs({ steps_per_epoch: 5 }), 5);
    assert.equal(stepsOfEpochs({ num_epochs: 3 }), undefined);
  });

  it("are spelt one way: no two keys of a stage have the same camelCase form", () => {
    for (const schema of Object.values(stageSchemas)) {
      const names = Object.keys(schema.shape).map(camelCase);
      assert.equal(new Set(names).size, names.length);
    }
  });
});

describe("reward modules", () => {
  const directory = temporaryDirectory();

  it("are imported for their default export", async () => {
    const reward = await loadRewardModule(
      writeText(directory, "good.mjs", "export default (p, r) => p.length + r.length;\n"),
    );
    assert.ok(typeof reward === "function");
    const { signal } = new AbortController();
    assert.equal(await reward("ab", "c", { row: { prompt: "ab" }, finishReason: "stop", signal }), 3);
  });

  it("that are missing, broken or export no function are errors that name the file", async () => {
    const cases: [string, RegExp][] = [
      [join(directory, "none.mjs"), /none\.mjs: the reward module cannot be imported/],
      [
        writeText(directory, "broken.mjs", "export default ("),
        /broken\.mjs: the reward module cannot be imported/,
      ],
      [
        writeText(directory, "number.mjs", "export default 5;\n"),
        /number\.mjs: the reward module must have a default export/,
      ],
    ];
    for (const [file, message] of cases)
      await assert.rejects(loadRewardModule(file), { code: "ERR_RLHF_REWARD", message });
  });
});
