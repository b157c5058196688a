/**
 * The task of run.ts without a value function: answers are compared with others to the same prompt, or with all of the batch.
 *
 *   npx tsx examples/happy-words/groups.ts [--trainer grpo|rloo|reinforce++|reinforce++-baseline] [--seed 0] [--iterations 60]
 *     [--model ../shared/models/stories260k]
 *
 * Prints one JSON line per iteration: mean reward of the 64 answers, KL per answer to the starting point, share of clipped
 * ratios, seconds since the start. All weights train.
 */
import { parseArgs } from "node:util";
import { CausalLM, GRPOTrainer, ReinforcePlusPlusTrainer, RLOOTrainer, Tokenizer } from "../../lib/index.ts";
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
// In RLOO and REINFORCE++ the KL weighs against scores, as in PPO; in GRPO against advantages of deviation 1 in each group, which are larger.
const trainers: Record<string, () => GRPOTrainer | RLOOTrainer | ReinforcePlusPlusTrainer> = {
  grpo: () => new GRPOTrainer({ ...given, config: { ...config, groupSize: 16, klCoefficient: 0.19 } }),
  rloo: () => new RLOOTrainer({ ...given, config: { ...config, groupSize: 16, klCoefficient: 0.11 } }),
  "reinforce++": () => new ReinforcePlusPlusTrainer({ ...given, config: { ...config, klCoefficient: 0.11 } }),
  "reinforce++-baseline": () =>
    new ReinforcePlusPlusTrainer({
      ...given,
      config: { ...config, groupSize: 16, baseline: "group", klCoefficient: 0.1 },
    }),
};
const make = trainers[options.trainer];
if (!make) throw new Error(`--trainer is one of ${Object.keys(trainers).join(", ")}, not ${options.trainer}`);
using trainer = make();

await printIterations(trainer, (metrics) => ({
  clipFraction: rounded(
    (metrics["policy/clipfrac_low_avg"] ?? 0) + (metrics["policy/clipfrac_high_avg"] ?? 0),
    4,
  ),
}));
