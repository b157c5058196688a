/**
 * What keeping weights in bfloat16 alone costs in learning: supervised fine-tuning of stories260k on HH-RLHF's chosen answers, all
 * weights, the same data and seed for
 *
 * - float32,
 * - bfloat16, whose updates are rounded stochastically (`dtype: "bfloat16"`),
 * - bfloat16 rounded to the nearest after every step, which the library does not offer.
 *
 *   npx tsx bench/rounding.ts [--steps 300] [--learning-rate 1e-4] [--seeds 3]
 *
 * Prints one JSON line per run: mean loss per token of the held-out answers at first and at last.
 */
import { parseArgs } from "node:util";
import { CausalLM, loadPreferences, SFTTrainer, type SftRow, splitDataset, Tokenizer } from "../lib/index.ts";

const { values: given } = parseArgs({
  options: {
    steps: { type: "string", default: "300" },
    "learning-rate": { type: "string", default: "1e-4" },
    seeds: { type: "string", default: "3" },
    shared: { type: "string", default: "../shared" },
  },
});
const model = `${given.shared}/models/stories260k`;
const tokenizer = await Tokenizer.load(model);
const pairs = await loadPreferences(`${given.shared}/data/hh-rlhf/harmless-test.jsonl.gz`);
const answers = pairs.map(({ prompt, chosen }) => ({ prompt, response: chosen }) as SftRow);
const { train, eval: heldOut } = splitDataset(answers, { evalFraction: 0.1, seed: 1 });

/** Rounds every matrix of a float32 model to the nearest number of bfloat16, ties to even. */
async function roundToNearest(trained: CausalLM): Promise<void> {
  for (const { name, shape } of trained.parameters()) {
    if (shape.length < 2) continue;
    const values = await trained.readParameter(name);
    const words = new Uint32Array(values.buffer);
    words.forEach((word, i) => {
      words[i] = (word + 0x7fff + ((word >>> 16) & 1)) & 0xffff0000;
    });
    await trained.writeParameter(name, values);
  }
}

async function run(kind: "float32" | "stochastic" | "nearest", seed: number): Promise<void> {
  const dtype = kind === "stochastic" ? "bfloat16" : "float32";
  using trained = await CausalLM.load(model, { trainable: "all", dtype });
  const maxSteps = Number(given.steps);
  const config = {
    ...{ maxSteps, batchSize: 8, maxLength: 256, seed, evalSteps: maxSteps },
    ...{ learningRate: Number(given["learning-rate"]), schedule: "constant" as const },
  };
  const evalData = heldOut.slice(0, 100);
  using trainer = new SFTTrainer({ model: trained, tokenizer, trainData: train, evalData, config });
  const first = await trainer.evaluate();
  if (kind === "nearest") await roundToNearest(trained);
  let last: number | undefined;
  for await (const { metrics } of trainer.steps()) {
    if (kind === "nearest") await roundToNearest(trained);
    last = metrics["eval/loss"] as number | undefined;
  }
  const losses = { before: first["eval/loss"], after: last };
  console.log(
    JSON.stringify({ weights: kind, seed, learningRate: config.learningRate, steps: maxSteps, ...losses }),
  );
}

for (let seed = 0; seed < Number(given.seeds); seed++)
  for (const kind of ["float32", "stochastic", "nearest"] as const) await run(kind, seed);
