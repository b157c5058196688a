/**
 * The task of run.ts without a value function: groups of answers to one prompt are compared with each other.
 *
 *   npx tsx examples/happy-words/groups.ts [--trainer grpo|rloo] [--seed 0] [--iterations 60] [--model ../shared/models/stories260k]
 *
 * Prints one JSON line per iteration: mean reward of the 64 answers, KL per answer to the starting point, share of clipped
 * ratios, seconds since the start. All weights train.
 */
import { parseArgs } from "node:util";
import { CausalLM, GRPOTrainer, RLOOTrainer, Tokenizer } from "../../lib/index.ts";
import { happyWords, printIterations, rounded, STARTS } from "./task.ts";

const { values: options } = parseArgs({
  options: {
    trainer: { type: "string", default: "grpo" },
    seed: { type: "string", default: "0" },
    iterations: { type: "string", default: "60" },
    model: { type: "string", default: "../shared/models/stories260k" },
  },
});

const config = {
  seed: Number(options.seed),
  numIterations: Number(options.iterations),
  batchSize: 64,
  groupSize: 16,
  maxNewTokens: 48,
  minNewTokens: 48,
  stop: [],
  updateEpochs: 2,
  numMinibatches: 2,
  learningRate: 1.5e-4,
  schedule: "linear",
} as const;

const tokenizer = await Tokenizer.load(options.model);
using model = await CausalLM.load(options.model, { trainable: "all" });
const given = { model, tokenizer, reward: happyWords, prompts: STARTS };
using trainer =
  options.trainer === "rloo"
    ? new RLOOTrainer({ ...given, config: { ...config, klCoefficient: 0.1, clipRange: 0.5 } })
    : new GRPOTrainer({ ...given, config: { ...config, klCoefficient: 0.04 } });

await printIterations(trainer, (metrics) => ({
  clipFraction: rounded(
    (metrics["policy/clipfrac_low_avg"] ?? 0) + (metrics["policy/clipfrac_high_avg"] ?? 0),
    4,
  ),
}));
