/**
 * PPO on a real pretrained model: a Llama of 260,000 parameters that writes children's stories learns to write happy ones.
 *
 *   npx tsx examples/happy-words/run.ts [--seed 0] [--lora] [--iterations 60] [--dtype bfloat16]
 *     [--compute bfloat16x3] [--model ../shared/models/stories260k]
 *
 * Prints one JSON line per iteration: mean reward of the 64 answers, KL per answer to the starting point, share of clipped
 * ratios, entropy per token, seconds since the start. β is 0.1; without --lora all weights train, and a separate value model; with
 * it an adapter trains, and values come from a head on the policy's own hidden states.
 */
import { parseArgs } from "node:util";
import {
  CausalLM,
  type ComputeType,
  type PPOConfig,
  PPOTrainer,
  Tokenizer,
  type WeightType,
} from "../../lib/index.ts";
import { happyWords, printIterations, rounded, STARTS } from "./task.ts";

const { values: options } = parseArgs({
  options: {
    seed: { type: "string", default: "0" },
    lora: { type: "boolean", default: false },
    iterations: { type: "string", default: "60" },
    dtype: { type: "string", default: "float32" },
    compute: { type: "string", default: "float32" },
    model: { type: "string", default: "../shared/models/stories260k" },
  },
});

const ROLLOUTS = 64;

const config: PPOConfig = {
  seed: Number(options.seed),
  numIterations: Number(options.iterations),
  batchSize: ROLLOUTS,
  shufflePrompts: false,
  maxNewTokens: 48,
  minNewTokens: 48,
  stop: [],
  numPpoEpochs: 4,
  numMinibatches: 2,
  klCoefficient: 0.1,
  targetKl: null,
  schedule: "linear",
  valueHead: "linear",
  ...(options.lora
    ? {
        learningRate: 1.2e-3,
        lora: { r: 16, alpha: 16, targetModules: "all-linear" },
        valueModel: "shared",
        // The head shares one clipped and normalised update with the policy; at the default weight it learns too slowly.
        valueLossCoefficient: 1,
      }
    : { learningRate: 1.5e-4, valueModel: "separate" }),
};

const tokenizer = await Tokenizer.load(options.model);
using model = await CausalLM.load(options.model, {
  trainable: options.lora ? "none" : "all",
  dtype: options.dtype as WeightType,
  compute: options.compute as ComputeType,
});
// One prompt per iteration, in turn.
const prompts = STARTS.flatMap((start) => new Array<string>(ROLLOUTS).fill(start));
using trainer = new PPOTrainer({ model, tokenizer, reward: happyWords, prompts, config });

await printIterations(trainer, (metrics) => ({
  clipFraction: rounded(metrics["policy/clipfrac_avg"], 4),
  entropy: rounded(metrics["policy/entropy_avg"], 3),
}));
