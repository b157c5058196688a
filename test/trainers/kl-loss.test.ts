import assert from "node:assert/strict";
import {
  type CausalLM,
  type GRPOConfig,
  GRPOTrainer,
  type KlDirection,
  type PPOConfig,
  PPOTrainer,
  packSequences,
  type ReinforcePlusPlusConfig,
  ReinforcePlusPlusTrainer,
  type RewardFunction,
  type RLOOConfig,
  RLOOTrainer,
  type Rollout,
} from "../../lib/index.ts";
import { RolloutBatch } from "../../lib/trainers/rollouts.ts";
import { assertSameWeights, preferenceRows, prompts, tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();
const CONFIG = {
  batchSize: 8,
  maxNewTokens: 7,
  learningRate: 3e-3,
  numIterations: 5,
  seed: 5,
  maxGradNorm: 1e6,
};
const COEFFICIENT = 0.7;

/** Deterministic, and different for most answers. */
const countLetters: RewardFunction = (_prompt, response) => (response.match(/[aeiou]/g) ?? []).length / 3;
/** Teaches nothing: what moves the policy is the divergence alone. */
const nothing: RewardFunction = () => 0;

type Config = Pick<
  GRPOConfig,
  "klLossCoefficient" | "klLossDirection" | "klLossEstimator" | "lora" | "microBatchTokens"
>;
/** What is in the loss: the divergence over the vocabulary in one of its directions, or k2. */
type Kl = KlDirection | "k2";
const settingsOf = (kl: Kl): Config => (kl === "k2" ? { klLossEstimator: "k2" } : { klLossDirection: kl });

function ppo(model: CausalLM, reward: RewardFunction, config: PPOConfig): PPOTrainer {
  const settings = { ...CONFIG, targetKl: null, numPpoEpochs: 1, ...config };
  return new PPOTrainer({ model, tokenizer, reward, prompts, config: settings });
}
function grpo(model: CausalLM, reward: RewardFunction, config: GRPOConfig): GRPOTrainer {
  return new GRPOTrainer({
    model,
    tokenizer,
    reward,
    prompts,
    config: { ...CONFIG, groupSize: 4, ...config },
  });
}
function reinforce(
  model: CausalLM,
  reward: RewardFunction,
  config: ReinforcePlusPlusConfig,
): ReinforcePlusPlusTrainer {
  const settings = { ...CONFIG, groupSize: 4, baseline: "group" as const, klCoefficient: 0, ...config };
  return new ReinforcePlusPlusTrainer({ model, tokenizer, reward, prompts, config: settings });
}
function rloo(model: CausalLM, reward: RewardFunction, config: RLOOConfig): RLOOTrainer {
  return new RLOOTrainer({
    model,
    tokenizer,
    reward,
    prompts,
    config: { ...CONFIG, groupSize: 4, ...config },
  });
}

/** Moves weights of the policy away from its starting point, which the trainer has by now. */
async function move(model: CausalLM, name: string, far = 0.05): Promise<void> {
  const values = await model.readParameter(name);
  await model.writeParameter(
    name,
    values.map((value, i) => value + far * Math.sin(1.7 * i)),
  );
}

/** One update whose gradient is the divergence's, and the same by passes of our own. */
async function updateAndExpectation(
  kind: "ppo" | "grpo" | "rloo" | "reinforce",
  adapter: boolean,
  kl: Kl,
  microBatchTokens: number,
) {
  const model = await tinyModel(tokenizer, adapter ? "none" : "all");
  using start = await model.clone();
  const config: Config = {
    klLossCoefficient: COEFFICIENT,
    ...settingsOf(kl),
    microBatchTokens,
    ...(adapter ? { lora: { r: 4, targetModules: "all-linear" } } : {}),
  };
  const moved = adapter
    ? "policy:model.layers.0.self_attn.v_proj.lora_B"
    : "model.layers.0.self_attn.v_proj.weight";
  const run = async () => {
    if (kind === "ppo") {
      const settings = { klCoefficient: 0, valueLossCoefficient: 0, whitenAdvantages: false };
      const trainer = ppo(model, nothing, { ...config, ...settings });
      await trainer.prepare();
      await move(model, moved);
      const rollouts = await trainer.generateResponses();
      const expected = await expectedOf(model, start, adapter, rollouts, kl, false);
      const experience = await trainer.computeRewardsAndValues(rollouts);
      return { trainer, expected, ...(await trainer.ppoStep(experience)) };
    }
    const trainer = {
      grpo: () => grpo(model, nothing, config),
      rloo: () => rloo(model, nothing, { ...config, klCoefficient: 0 }),
      reinforce: () => reinforce(model, nothing, config),
    }[kind]();
    await trainer.prepare();
    await move(model, moved);
    const rollouts = await trainer.generateResponses();
    const expected = await expectedOf(model, start, adapter, rollouts, kl, kind === "rloo");
    const experience = await trainer.computeAdvantages(rollouts);
    return { trainer, expected, ...(await trainer.updatePolicy(experience)) };
  };
  const { trainer, expected, minibatches, metrics } = await run();
  using _trainer = trainer;
  using _model = model;
  const [minibatch] = minibatches;
  return { minibatch: minibatch!, metrics, expected };
}

/** Mean divergence per token, the loss (a mean over tokens, or over answers' means), and the norm of its gradient. */
async function expectedOf(
  model: CausalLM,
  start: CausalLM,
  adapter: boolean,
  rollouts: readonly Rollout[],
  estimator: Kl,
  byAnswer: boolean,
) {
  const batch = packSequences(rollouts);
  using reference = await start.forward(batch, { keepDistribution: true });
  const klDirection = estimator === "k2" ? undefined : estimator;
  const named = adapter ? { adapter: "policy" } : {};
  using pass = await model.forward(batch, { ...named, reference, klDirection, grad: true });
  const [logProb, refLogProb] = [await pass.logProb(), await reference.logProb()];
  const ratio = Float64Array.from(logProb, (each, t) => each - refLogProb[t]!);
  const kl = estimator === "k2" ? ratio.map((each) => each ** 2 / 2) : await pass.kl();
  const dKl = new Float32Array(kl.length);
  let [sum, tokens, loss] = [0, 0, 0];
  for (let s = 0; s < batch.sequences; s++) {
    const [begin, end] = [batch.offsets[s]!, batch.offsets[s + 1]!];
    const length = end - begin - rollouts[s]!.promptLength;
    const total = rollouts.reduce((all, each) => all + each.tokens.length - each.promptLength, 0);
    for (let t = end - length; t < end; t++) {
      dKl[t] = COEFFICIENT / (byAnswer ? rollouts.length * length : total);
      sum += kl[t]!;
      loss += dKl[t]! * kl[t]!;
      tokens++;
    }
  }
  await pass.backward(estimator === "k2" ? { dLogProb: dKl.map((each, t) => each * ratio[t]!) } : { dKl });
  let squares = 0;
  for (const { name, trainable } of model.parameters()) {
    if (!trainable || name.startsWith("value")) continue;
    for (const value of await model.readGradient(name)) squares += value ** 2;
  }
  await model.zeroGradients();
  return { divergence: sum / tokens, loss, gradNorm: Math.sqrt(squares) };
}

function assertNear(actual: number, expected: number, what: string): void {
  assert.ok(
    Math.abs(actual - expected) <= 1e-4 * Math.abs(expected),
    `${what}: ${actual}, expected ${expected}`,
  );
}

describe("the divergence in the loss", () => {
  for (const kind of ["ppo", "grpo", "rloo", "reinforce"] as const)
    for (const [adapter, kl, microBatchTokens] of [
      [false, "k2", 4096],
      [true, "k2", 24],
      [false, "reverse", 4096],
      [false, "forward", 24],
      [true, "reverse", 24],
      [true, "forward", 4096],
    ] as const)
      it(`${kind}, ${adapter ? "an adapter" : "all weights"}, ${kl}: its gradient is that of the passes, in micro-batches of ${microBatchTokens}`, async () => {
        const { minibatch, metrics, expected } = await updateAndExpectation(
          kind,
          adapter,
          kl,
          microBatchTokens,
        );
        assert.ok(expected.divergence > 1e-3 && expected.gradNorm > 1e-3, JSON.stringify(expected));
        assertNear(minibatch.gradNorm as number, expected.gradNorm, "gradNorm");
        assertNear(minibatch.divergence, expected.divergence, "divergence");
        assertNear(metrics["policy/kl_avg"] as number, expected.divergence, "policy/kl_avg");
        if ("loss" in minibatch) assertNear(minibatch.loss, expected.loss, "loss");
      });

  it("k2 has the slope of its own gradient, and in the mean that of the divergence", async () => {
    using model = await tinyModel(tokenizer);
    using start = await model.clone();
    const name = "model.layers.0.self_attn.v_proj.weight";
    await move(model, name);
    const sequences = await model.generate(
      Array.from({ length: 512 }, (_, i) => tokenizer.encode(prompts[i % 4] as string)),
      { maxNewTokens: 7, seed: 3 },
    );
    const rollouts = sequences.map(({ tokens }, i) => {
      const prompt = tokenizer.encode(prompts[i % 4] as string);
      return { tokens: Int32Array.of(...prompt, ...tokens), promptLength: prompt.length } as Rollout;
    });
    const batch = packSequences(rollouts);
    const counts = batch.mask.reduce((sum, bit) => sum + bit, 0);
    using reference = await start.forward(batch, { keepDistribution: true });
    const refLogProb = await reference.logProb();
    const ratios = (logProb: Float32Array): Float64Array =>
      Float64Array.from(logProb, (each, t) => batch.mask[t]! * (each - refLogProb[t]!));
    const loss = async (): Promise<number> => {
      using pass = await model.forward(batch);
      return ratios(await pass.logProb()).reduce((sum, each) => sum + each ** 2 / 2, 0) / counts;
    };
    const gradientOf = async (k2: boolean): Promise<Float32Array> => {
      const pass = await model.forward(batch, { reference, grad: true });
      const share = batch.mask.map((bit) => bit / counts);
      const slopes = ratios(await pass.logProb());
      await pass.backward(k2 ? { dLogProb: share.map((each, t) => each * slopes[t]!) } : { dKl: share });
      const gradient = await model.readGradient(name);
      await model.zeroGradients();
      return gradient;
    };
    const [k2, full] = [await gradientOf(true), await gradientOf(false)];
    const norm = Math.hypot(...k2);
    const weights = await model.readParameter(name);
    const along = async (step: number): Promise<number> => {
      await model.writeParameter(
        name,
        weights.map((value, i) => value + (step * k2[i]!) / norm),
      );
      return await loss();
    };
    const slope = ((await along(0.01)) - (await along(-0.01))) / 0.02;
    assert.ok(Math.abs(slope - norm) < 0.01 * norm, `${slope}, expected ${norm}`);
    const product = k2.reduce((sum, each, i) => sum + each * full[i]!, 0);
    const cosine = product / (norm * Math.hypot(...full));
    assert.ok(
      cosine > 0.9 && Math.abs(norm / Math.hypot(...full) - 1) < 0.3,
      `${cosine}, ${norm}, ${Math.hypot(...full)}`,
    );
  });

  it("is none at the starting point: the first update has the bits of one without", async () => {
    for (const klLossDirection of ["reverse", "forward"] as const) {
      const update = async (klLossCoefficient: number): Promise<CausalLM> => {
        const model = await tinyModel(tokenizer);
        const config = { klCoefficient: 0.05, klLossCoefficient, klLossDirection };
        using trainer = grpo(model, countLetters, config);
        const { metrics } = await trainer.trainStep();
        assert.equal(metrics["policy/kl_avg"], klLossCoefficient === 0 ? undefined : 0);
        return model;
      };
      using without = await update(0);
      using beside = await update(3);
      await assertSameWeights(beside, without);
    }
  });

  it("keeps the policy near its starting point", async () => {
    const settings = { learningRate: 1e-3, batchSize: 16 };
    const kinds = {
      ppo: (model: CausalLM, config: Config) =>
        ppo(model, countLetters, { ...settings, ...config, klCoefficient: 0 }),
      grpo: (model: CausalLM, config: Config) => grpo(model, countLetters, { ...settings, ...config }),
      rloo: (model: CausalLM, config: Config) =>
        rloo(model, countLetters, { ...settings, ...config, klCoefficient: 0 }),
    };
    const texts = packSequences(
      preferenceRows.map(({ prompt, chosen }) => ({ tokens: tokenizer.encode(prompt + chosen) })),
    );
    for (const [name, make] of Object.entries(kinds))
      for (const klLossDirection of ["reverse", "forward"] as const) {
        const distance = async (klLossCoefficient: number): Promise<number> => {
          using model = await tinyModel(tokenizer);
          using start = await model.clone();
          using trainer = make(model, { klLossCoefficient, klLossDirection });
          for (let step = 0; step < 10; step++) await trainer.trainStep();
          using reference = await start.forward(texts, { keepDistribution: true });
          using pass = await model.forward(texts, { reference });
          return (await pass.kl()).reduce((sum, kl) => sum + kl, 0) / texts.tokens.length;
        };
        const [free, held] = [await distance(0), await distance(50)];
        assert.ok(held < free / 5, `${name}, ${klLossDirection}: ${held}, without ${free}`);
      }
  });

  it("is told apart from wrong settings", async () => {
    using model = await tinyModel(tokenizer);
    const refused = (message: RegExp) => ({ code: "ERR_RLHF_ARGUMENT", message });
    assert.throws(() => ppo(model, nothing, { klLossCoefficient: -1 }), refused(/klLossCoefficient/));
    assert.throws(
      () => grpo(model, nothing, { klLossDirection: "both" as KlDirection }),
      refused(/klLossDirection must be one of "reverse", "forward"/),
    );
    assert.throws(
      () => grpo(model, nothing, { klLossDirection: "forward", klLossEstimator: "k2" }),
      refused(/klLossDirection "forward" needs klLossEstimator "full"/),
    );
  });
});

describe('PPO with klEstimator "full"', () => {
  it("takes the divergence off the reward, and reports it", async () => {
    for (const microBatchTokens of [4096, 24]) {
      using model = await tinyModel(tokenizer);
      const klCoefficient = 0.3;
      using trainer = ppo(model, countLetters, { klEstimator: "full", klCoefficient, microBatchTokens });
      await trainer.trainStep();
      const rollouts = await trainer.generateResponses();
      const experience = await trainer.computeRewardsAndValues(rollouts);
      const { batch, scores, reward, logProb, refLogProb, metrics } = experience;
      const divergence = experience.divergence as Float32Array;
      const { mask, offsets } = batch.packed;
      let sum = 0;
      for (let t = 0; t < mask.length; t++) {
        const last = offsets.indexOf(t + 1) - 1;
        assert.equal(divergence[t]! > 0, mask[t] === 1, `token ${t}`);
        const expected = -klCoefficient * divergence[t]! + (last >= 0 ? (scores[last] as number) : 0);
        if (mask[t]) assert.ok(Math.abs(reward[t]! - expected) < 1e-6, `reward ${t}`);
        else assert.equal(reward[t], 0);
        sum += mask[t] ? divergence[t]! : 0;
      }
      assert.ok(Math.abs(experience.kl - sum / batch.size) < 1e-5);
      assert.ok(Math.abs((metrics["objective/kl"] as number) - experience.kl) < 1e-7);
      assert.ok(
        Math.abs((metrics["objective/non_score_reward"] as number) + klCoefficient * experience.kl) < 1e-6,
      );
      // The log-probs are those of passes without it, to the bit.
      using plain = ppo(await tinyModel(tokenizer), countLetters, { microBatchTokens });
      await plain.prepare();
      const packed = new RolloutBatch(rollouts).packed;
      using policyPass = await model.forward(packed, { predict: "masked" });
      using startPass = await plain.model.forward(packed, { predict: "masked" });
      assert.deepEqual(logProb, await policyPass.logProb());
      assert.deepEqual(refLogProb, await startPass.logProb());
      plain.model.dispose();
    }
  });

  it("is what k1 estimates: over many answers their means meet", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = ppo(model, countLetters, { klEstimator: "full", batchSize: 400 });
    await trainer.prepare();
    await move(model, "lm_head.weight", 0.25);
    const { batch, logProb, refLogProb, divergence, kl } = await trainer.computeRewardsAndValues(
      await trainer.generateResponses(),
    );
    // Of each answer: k1 less the divergence, whose expectation is 0.
    const { mask, offsets } = batch.packed;
    const excess = batch.rollouts.map((_, s) => {
      let sum = 0;
      for (let t = offsets[s]!; t < offsets[s + 1]!; t++)
        if (mask[t]) sum += logProb[t]! - refLogProb[t]! - divergence![t]!;
      return sum;
    });
    const mean = excess.reduce((sum, each) => sum + each, 0) / excess.length;
    const variance = excess.reduce((sum, each) => sum + (each - mean) ** 2, 0) / (excess.length - 1);
    const error = Math.sqrt(variance / excess.length);
    assert.ok(kl > 10 * error, `${kl} ± ${error} tells nothing`);
    assert.ok(Math.abs(mean) < 4 * error, `k1 is ${mean} over the divergence, ± ${error}`);
  });

  it("adapts β by the divergence", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = ppo(model, countLetters, {
      klEstimator: "full",
      klTarget: 1e-4,
      klHorizon: 8,
      klLossCoefficient: 0.1,
    });
    await trainer.trainStep();
    const { metrics } = await trainer.trainStep();
    const error = Math.min(0.2, Math.max(-0.2, (metrics["objective/kl"] as number) / 1e-4 - 1));
    assert.ok(error > 0);
    assertNear(trainer.klCoefficient, (metrics["kl_coef"] as number) * (1 + error), "β");
  });
});
