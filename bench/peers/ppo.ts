/**
 * PPO iterations on stories260k: examples/happy-words' task, all weights trained and a separate value model, 4 epochs of 2 minibatches:
 * node-rlhf beside a plain PyTorch PPO without a trainer library, in turn. Writes bench/results/PROCESSOR/peers-ppo-stories260k-*.json.
 *
 * usage: tsx bench/peers/ppo.ts [--rollouts 64] [--new-tokens 48] [--pairs 5] [--threads 2] [--opponents float32,float32+tcmalloc]
 *   [--model-dir ../shared/models/stories260k] [--script ../shared/tools/plain-ppo.py]
 */
import { parseArgs } from "node:util";
import { happyWords, STARTS } from "../../examples/happy-words/task.ts";
import { CausalLM, PPOTrainer, Tokenizer } from "../../lib/index.ts";
import { besidePeers, COMMON_OPTIONS, computeOf, timed } from "./beside.ts";
import type { Timing } from "./paired.ts";

const { values: options } = parseArgs({
  options: {
    ...COMMON_OPTIONS,
    "model-dir": { type: "string", default: "../shared/models/stories260k" },
    script: { type: "string", default: "../shared/tools/plain-ppo.py" },
    rollouts: { type: "string", default: "64" },
    "new-tokens": { type: "string", default: "48" },
  },
});
const rollouts = Number(options.rollouts);
const newTokens = Number(options["new-tokens"]);
const iterations = Number(options.pairs) + Number(options["warm-up"]);
const compute = computeOf(options);

const tokenizer = await Tokenizer.load(options["model-dir"]);
using model = await CausalLM.load(options["model-dir"], {
  device: "cpu",
  threads: Number(options.threads),
  compute,
  trainable: "all",
});
using trainer = new PPOTrainer({
  model,
  tokenizer,
  reward: happyWords,
  prompts: STARTS.flatMap((start) => new Array<string>(rollouts).fill(start)),
  config: {
    numIterations: iterations,
    batchSize: rollouts,
    shufflePrompts: false,
    maxNewTokens: newTokens,
    minNewTokens: newTokens,
    stop: [],
    numPpoEpochs: 4,
    numMinibatches: 2,
    klCoefficient: 0.1,
    targetKl: null,
    learningRate: 1e-4,
    valueModel: "separate",
    valueHead: "linear",
  },
});
const steps = trainer.steps();

async function ourIteration(): Promise<Timing & { score: number | undefined }> {
  const { result, ...timing } = await timed(() => steps.next());
  if (result.done) throw new Error("there are fewer iterations than rounds");
  return { ...timing, score: result.value.metrics["objective/scores"] };
}

await besidePeers(
  {
    name: `ppo-stories260k-${rollouts}x${newTokens}-${compute}-${options.threads}-threads`,
    what: `stories260k, PPO iteration of ${rollouts} answers of ${newTokens} tokens, 4 epochs x 2 minibatches, all weights, ours ${compute}`,
    script: "plain_ppo.py",
    args: [
      ...["--script", options.script, "--rollouts", options.rollouts, "--new-tokens", options["new-tokens"]],
      ...["--iterations", String(iterations + 1)],
    ],
    ours: new Map([["ours", ourIteration]]),
    request: () => ({}),
  },
  options,
);
await steps.return();
