import assert from "node:assert/strict";
import {
  CausalLM,
  GRPOTrainer,
  type GroupConfig,
  type GroupTrainer,
  type LoadOptions,
  type Metrics,
  type PackedBatch,
  type PPOConfig,
  PPOTrainer,
  ReinforcePlusPlusTrainer,
  type RewardFunction,
  RLOOTrainer,
} from "../../lib/index.ts";
import { TINY_LLAMA } from "../support/tiny.ts";
import { assertSameWeights, prompts, tinyTokenizer } from "./support.ts";

/* The updates go on from the pass that measured their first micro-batch: it is run once, and no bit is another. */

const tokenizer = tinyTokenizer();
const CONFIG = { batchSize: 8, maxNewTokens: 7, learningRate: 3e-3, numMinibatches: 2, numIterations: 3 };
const LORA = { r: 4, targetModules: "all-linear" as const };
const reward: RewardFunction = (_prompt, response) => (response.match(/[aeiou]/g) ?? []).length / 3;

function makeModel(trainable: "all" | "none", options: LoadOptions = {}): Promise<CausalLM> {
  const config = { ...TINY_LLAMA, vocab_size: tokenizer.vocabSize, eos_token_id: tokenizer.eosTokenId };
  return CausalLM.create({ ...config, initializer_range: 0.1 }, { trainable, ...options });
}

type AnyTrainer = PPOTrainer | GroupTrainer;

interface Setup {
  readonly name: string;
  readonly trainable: "all" | "none";
  readonly options?: LoadOptions;
  readonly make: (model: CausalLM) => AnyTrainer;
}

function ppo(model: CausalLM, config: PPOConfig): PPOTrainer {
  const settings = { ...CONFIG, targetKl: null, numPpoEpochs: 2, ...config };
  return new PPOTrainer({ model, tokenizer, reward, prompts, config: settings });
}

function group(Trainer: typeof GRPOTrainer | typeof RLOOTrainer | typeof ReinforcePlusPlusTrainer) {
  return (model: CausalLM, config: GroupConfig = {}): GroupTrainer =>
    new Trainer({ model, tokenizer, reward, prompts, config: { ...CONFIG, groupSize: 4, ...config } });
}

const SETUPS: readonly Setup[] = [
  { name: "PPO of all weights", trainable: "all", make: (model) => ppo(model, {}) },
  {
    ...{ name: "PPO of an adapter, one minibatch of one micro-batch, in bfloat16x3", trainable: "none" },
    options: { compute: "bfloat16x3" },
    make: (model) => ppo(model, { lora: LORA, numMinibatches: 1, temperature: 0.7 }),
  },
  {
    ...{ name: "PPO of an adapter in small micro-batches, layers recomputed", trainable: "none" },
    options: { recomputeLayers: true },
    make: (model) => ppo(model, { lora: LORA, microBatchTokens: 30 }),
  },
  {
    ...{ name: "PPO of an adapter, its value function an adapter too", trainable: "none" },
    make: (model) => ppo(model, { lora: LORA, valueModel: "adapter", microBatchTokens: 60 }),
  },
  {
    ...{ name: "PPO with a value model of its own, the score after the end", trainable: "all" },
    make: (model) => ppo(model, { valueModel: "separate", rewardPlacement: "after-end" }),
  },
  {
    ...{ name: "PPO that ends at its targetKl", trainable: "all" },
    make: (model) => ppo(model, { targetKl: 1e-6, numPpoEpochs: 5 }),
  },
  { name: "PPO with the full KL", trainable: "all", make: (model) => ppo(model, { klEstimator: "full" }) },
  { name: "GRPO", trainable: "all", make: (model) => group(GRPOTrainer)(model, { microBatchTokens: 50 }) },
  {
    ...{ name: "REINFORCE++ of an adapter, one minibatch", trainable: "none" },
    make: (model) =>
      group(ReinforcePlusPlusTrainer)(model, { lora: LORA, numMinibatches: 1, updateEpochs: 2 }),
  },
  {
    name: "RLOO, whose ratios are those of answers",
    trainable: "all",
    make: (model) => group(RLOOTrainer)(model),
  },
];

/** A step of the parts that are public, each of which stands alone. */
async function partByPart(trainer: AnyTrainer): Promise<Metrics> {
  const rollouts = await trainer.generateResponses();
  if (trainer instanceof PPOTrainer) {
    const experience = await trainer.computeRewardsAndValues(rollouts);
    return { ...experience.metrics, ...(await trainer.ppoStep(experience)).metrics };
  }
  const experience = await trainer.computeAdvantages(rollouts);
  return { ...experience.metrics, ...(await trainer.updatePolicy(experience)).metrics };
}

/** Response tokens of each pass of a model, by what they are for. */
function countPasses(model: CausalLM): Readonly<Record<"measured" | "opened" | "trained", number[]>> {
  const passes = { measured: [] as number[], opened: [] as number[], trained: [] as number[] };
  const forward = model.forward.bind(model);
  const forwardBackward = model.forwardBackward.bind(model) as CausalLM["forwardBackward"];
  const count = (counts: number[], { mask }: PackedBatch): void => {
    counts.push(mask.reduce((total, bit) => total + bit, 0));
  };
  model.forward = (batch, options) => {
    count(options?.grad ? passes.opened : passes.measured, batch);
    return forward(batch, options);
  };
  model.forwardBackward = (batch, loss, options) => {
    count(passes.trained, batch);
    return forwardBackward(batch, loss, options);
  };
  return passes;
}

describe("the pass that updates begin with", () => {
  for (const { name, trainable, options, make } of SETUPS)
    it(`has the bits of one to measure and one to train: ${name}`, async () => {
      using whole = await makeModel(trainable, options);
      using parted = await makeModel(trainable, options);
      using trainer = make(whole);
      using apart = make(parted);
      await trainer.trainStep();
      await apart.trainStep();
      const { metrics } = await trainer.trainStep();
      const expected = await partByPart(apart);
      assert.deepEqual(
        Object.fromEntries(Object.keys(expected).map((metric) => [metric, metrics[metric]])),
        expected,
      );
      await assertSameWeights(whole, parted);
    });

  it("of PPO measures and trains", async () => {
    using model = await makeModel("none");
    using trainer = ppo(model, { lora: LORA, numMinibatches: 1, stop: [] });
    const passes = countPasses(model);
    await trainer.trainStep();
    const all = 8 * 7;
    // The reference is measured; the policy's first pass measures and trains, its second trains.
    assert.deepEqual(passes, { measured: [all], opened: [all], trained: [all] });
  });

  it("is the first micro-batch alone: of other rollouts measuring and training are apart", async () => {
    using model = await makeModel("none");
    using trainer = ppo(model, { lora: LORA, stop: [], numPpoEpochs: 1, microBatchTokens: 30 });
    const passes = countPasses(model);
    await trainer.trainStep();
    const total = (counts: readonly number[]): number => counts.reduce((sum, count) => sum + count, 0);
    const [opened] = passes.opened as [number];
    assert.equal(passes.opened.length, 1);
    assert.ok(opened > 0 && opened < 4 * 7);
    assert.equal(total(passes.measured), 8 * 7 + (8 * 7 - opened), "the reference, and the policy's others");
    assert.equal(total(passes.trained), 8 * 7 - opened);
  });

  it("of GRPO with one update is the policy's only one", async () => {
    using model = await makeModel("all");
    using trainer = group(GRPOTrainer)(model, { numMinibatches: 1, stop: [] });
    const passes = countPasses(model);
    await trainer.trainStep();
    assert.deepEqual(passes, { measured: [], opened: [8 * 7], trained: [] });
  });

  it("is not left behind by an iteration that fails, nor made by an evaluation", async () => {
    using model = await makeModel("all");
    let failing = true;
    class Failing extends GRPOTrainer {
      protected override advantagesOf(
        ...measured: Parameters<GRPOTrainer["advantagesOf"]>
      ): ReturnType<GRPOTrainer["advantagesOf"]> {
        if (failing) throw new Error("no advantages today");
        return super.advantagesOf(...measured);
      }
    }
    const config = { ...CONFIG, groupSize: 4 };
    using trainer = new Failing({ model, tokenizer, reward, prompts, evalPrompts: prompts, config });
    const passes = countPasses(model);
    // One more than may wait for backward at a time.
    for (let i = 0; i < 5; i++) {
      await assert.rejects(trainer.trainStep(), /no advantages today/);
      await trainer.evaluate();
    }
    assert.equal(passes.opened.length, 5);
    failing = false;
    await trainer.trainStep();
  });
});
