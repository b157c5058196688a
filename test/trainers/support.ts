import assert from "node:assert/strict";
import { join } from "node:path";
import { CausalLM, type SFTTrainer, type SftRow, type Tokenizer, trainTokenizer } from "../../lib/index.ts";
import type { Trainer } from "../../lib/trainers/trainer.ts";
import { TINY_LLAMA, withTemporaryDirectory } from "../support/tiny.ts";

const NAMES = ["Ann", "Ben", "Cleo", "Dan"];
const THINGS = ["a red ball", "two eggs", "the old map", "a warm coat", "some tea"];

export const sftRows: SftRow[] = NAMES.flatMap((name) =>
  THINGS.map((thing) => ({ prompt: `${name} wants`, response: ` ${thing}.` })),
);

export const preferenceRows: { prompt: string; chosen: string; rejected: string }[] = NAMES.flatMap((name) =>
  THINGS.map((thing) => ({
    prompt: `${name} wants`,
    chosen: ` ${thing}, please.`,
    rejected: ` ${thing}, now!`,
  })),
);

export const prompts: string[] = NAMES.map((name) => `${name} wants`);

/** Bytes and a few merges, so that texts are short sequences. */
export function tinyTokenizer(): Tokenizer {
  const texts = preferenceRows.flatMap((row) => [row.prompt + row.chosen, row.prompt + row.rejected]);
  return trainTokenizer(texts, { vocabSize: 320, modelMaxLength: 64 });
}

/** A Llama of random weights for `tinyTokenizer`. */
export function tinyModel(
  tokenizer: Tokenizer,
  trainable: "all" | "none" = "all",
  seed = 7,
): Promise<CausalLM> {
  const config = {
    ...TINY_LLAMA,
    vocab_size: tokenizer.vocabSize,
    eos_token_id: tokenizer.eosTokenId,
    initializer_range: 0.1,
  };
  return CausalLM.create(config, { trainable, seed, device: "cpu" });
}

/** All weights of a model, by name. */
export async function weightsOf(model: CausalLM): Promise<Map<string, Float32Array>> {
  const weights = new Map<string, Float32Array>();
  for (const { name } of model.parameters()) weights.set(name, await model.readParameter(name));
  return weights;
}

/** Every weight the same, bit for bit. */
export async function assertSameWeights(actual: CausalLM, expected: CausalLM): Promise<void> {
  const [ours, theirs] = [await weightsOf(actual), await weightsOf(expected)];
  assert.deepEqual([...ours.keys()], [...theirs.keys()]);
  for (const [name, values] of ours) assert.deepEqual(values, theirs.get(name), name);
}

/** One step, an interruption, and the rest by another trainer end in the bits of a run left alone. */
export async function assertResumes(
  start: (outputDir: string) => Promise<{ model: CausalLM; trainer: Pick<Trainer, "steps" | "dispose"> }>,
): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const run = async (name: string, interrupt = false): Promise<CausalLM> => {
      const { model, trainer } = await start(join(directory, name));
      const controller = new AbortController();
      const steps = trainer.steps({ signal: controller.signal });
      await steps.next();
      if (interrupt) {
        controller.abort();
        await assert.rejects(steps.next(), { code: "ERR_RLHF_ABORTED" });
      } else for await (const _ of steps);
      trainer.dispose();
      return model;
    };
    using _half = await run("cut", true);
    using resumed = await run("cut");
    using whole = await run("whole");
    await assertSameWeights(resumed, whole);
  });
}

/** The largest difference of two models' weights, relative to the largest weight. */
export async function weightDistance(a: CausalLM, b: CausalLM): Promise<number> {
  const [ours, theirs] = [await weightsOf(a), await weightsOf(b)];
  let distance = 0;
  let size = 0;
  for (const [name, values] of ours) {
    const other = theirs.get(name) as Float32Array;
    values.forEach((value, i) => {
      distance = Math.max(distance, Math.abs(value - (other[i] as number)));
      size = Math.max(size, Math.abs(value));
    });
  }
  return distance / size;
}

/** The losses of fine-tuning's steps; with `after` it is cut off behind so many. */
export async function lossesOf(trainer: SFTTrainer, after?: number): Promise<number[]> {
  const losses: number[] = [];
  const controller = new AbortController();
  try {
    for await (const { step, metrics } of trainer.steps({ signal: controller.signal })) {
      losses.push(metrics["loss"] as number);
      if (step + 1 === after) controller.abort();
    }
  } catch (error) {
    assert.ok(controller.signal.aborted, String(error));
  }
  return losses;
}
