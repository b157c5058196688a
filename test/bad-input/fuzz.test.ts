import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { stringify } from "yaml";
import { isRlhfError } from "../../lib/index.ts";
import { readModelConfig } from "../../lib/model/config.ts";
import { readSafetensors } from "../../lib/model/safetensors.ts";
import { readPipeline, SettingsFile } from "../../lib/pipeline/settings-file.ts";
import { temporaryDirectory } from "../data/support.ts";
import { TINY_FAMILIES } from "../support/tiny.ts";
import { writeTensorFile } from "./support.ts";

/** Values that files of strangers hold where something else should stand. */
const anything = fc.oneof(
  fc.jsonValue({ maxDepth: 3 }),
  fc.constantFrom(0, -1, 1.5, 1e20, 2 ** 53, "", null, true, "toString", "__proto__", "constructor"),
);

/** Passes on what is no error of this package with a code other than that of a defect. */
function assertExpected(error: unknown): void {
  if (!isRlhfError(error) || error.code === "ERR_RLHF_INTERNAL") throw error;
}

describe("bad input: files at random end in an error with a code, or are read", () => {
  const directory = temporaryDirectory();

  it("safetensors, and no tensor that is read lies outside its file", async () => {
    const path = join(directory, "x.safetensors");
    const entry = fc.record(
      {
        dtype: fc.oneof(anything, fc.constantFrom("F32", "F16", "BOOL")),
        shape: fc.oneof(anything, fc.array(anything), fc.array(fc.nat(4), { maxLength: 3 })),
        data_offsets: fc.oneof(anything, fc.tuple(fc.nat(40), fc.nat(40))),
      },
      { requiredKeys: [] },
    );
    const names = fc.oneof(fc.string(), fc.constantFrom("a", "b", "__metadata__", "__proto__"));
    const header = fc.dictionary(names, fc.oneof(anything, entry));
    const announced = fc.option(fc.nat(200), { nil: undefined });
    await fc.assert(
      fc.asyncProperty(header, fc.uint8Array({ maxLength: 40 }), announced, async (content, data, length) => {
        writeTensorFile(path, content, data, length);
        try {
          const { entries } = await readSafetensors(path);
          const end = 8 + (length ?? Buffer.byteLength(JSON.stringify(content))) + data.length;
          for (const { offset, bytes } of entries.values()) assert.ok(offset + bytes <= end);
        } catch (error) {
          assertExpected(error);
        }
      }),
      { numRuns: 300 },
    );
  });

  it("config.json", () => {
    const families = Object.values(TINY_FAMILIES);
    const others = ["rope_scaling", "rope_parameters", "rope_theta", "layer_types", "rotary_pct", "n_inner"];
    const keys = [...new Set(families.flatMap((family) => Object.keys(family))), ...others];
    const rope = fc.record(
      {
        rope_type: fc.constantFrom("linear", "yarn", "llama3", 3),
        factor: anything,
        original_max_position_embeddings: anything,
        low_freq_factor: anything,
        high_freq_factor: anything,
      },
      { requiredKeys: [] },
    );
    const changes = fc.dictionary(fc.constantFrom(...keys), fc.oneof(anything, rope), { maxKeys: 4 });
    fc.assert(
      fc.property(fc.constantFrom(...families), changes, (family, more) => {
        try {
          readModelConfig({ ...family, ...more }, "config.json");
        } catch (error) {
          assertExpected(error);
        }
      }),
      { numRuns: 1500 },
    );
  });

  it("pipeline files", async () => {
    const path = join(directory, "x.yaml");
    const keys = [
      "seed",
      "stages",
      "model_path",
      "data_path",
      "output_dir",
      "init",
      "lora_r",
      "loss_type",
      "target_kl",
    ];
    const { value } = fc.letrec((tie) => ({
      value: fc.oneof(
        { maxDepth: 3 },
        anything,
        fc.array(tie("value"), { maxLength: 3 }),
        fc.dictionary(fc.constantFrom(...keys), tie("value"), { maxKeys: 5 }),
      ),
    }));
    const kinds = fc.constantFrom("sft", "ppo", "dpo", "reward", "kto");
    const stage = fc.dictionary(kinds, fc.dictionary(fc.constantFrom(...keys), value), { maxKeys: 2 });
    const settings = fc.record({ stages: fc.array(stage, { maxLength: 3 }) });
    const marks = fc.string({ unit: fc.constantFrom(..."stages:[]{}-&*!|>%@`\n \t\"',#?ab"), maxLength: 60 });
    const texts = fc.oneof(
      settings.map((content) => stringify(content)),
      marks,
    );
    await fc.assert(
      fc.asyncProperty(texts, async (text) => {
        writeFileSync(path, text);
        try {
          await readPipeline(path);
        } catch (error) {
          assertExpected(error);
        }
      }),
      { numRuns: 400 },
    );
    assert.throws(() => SettingsFile.parse("*#a", path).value, { code: "ERR_RLHF_CONFIG" });
  });
});
