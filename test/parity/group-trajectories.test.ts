import assert from "node:assert/strict";
import {
  CausalLM,
  computeLogProbs,
  type GRPOConfig,
  GRPOTrainer,
  type GroupMinibatch,
  type LossAggregation,
  packSequences,
  type RewardScale,
  type RLOOConfig,
  RLOOTrainer,
  type Rollout,
} from "../../lib/index.ts";
import { testDevice } from "../support/tiny.ts";
import { tinyTokenizer } from "../trainers/support.ts";
import { assertAllClose, assertClose } from "./compare.ts";
import { modelDirectory, readJson } from "./reference.ts";

interface Settings {
  temperature: number;
  beta: number;
  epsilon: number;
  epsilon_high: number | null;
}

interface GrpoSettings extends Settings {
  loss_type: LossAggregation | "cispo";
  importance_sampling_level: "token" | "sequence";
  scale_rewards: RewardScale;
  use_bias_correction_kl: boolean;
}

interface RlooSettings extends Settings {
  normalize_advantages: boolean;
  reward_clip_range: [number, number] | null;
}

interface Trajectory<Of> {
  settings: Of;
  minibatches: number;
  epochs: number;
  learningRate: number;
  advantages: number[][];
  steps: (Record<string, number> & { loss: number; grad_norm: number })[];
  logProbs: number[];
}

interface Reference {
  groupSize: number;
  maxNewTokens: number;
  prompts: number[][];
  batches: { completion: number[]; reward: number }[][];
  grpo: Record<string, Trajectory<GrpoSettings>>;
  rloo: Record<string, Trajectory<RlooSettings>>;
}

const TOLERANCE = 1e-4;

describe("updates of TRL's GRPO and RLOO trainers from given answers, step by step within 1e-4", () => {
  const { groupSize, maxNewTokens, prompts, batches, ...reference } =
    readJson<Reference>("group-trajectories.json");
  const perBatch = (batches[0] as object[]).length;

  /** A batch of answers as the trainer would have sampled them; their rows carry the rewards. */
  function rolloutsOf(batch: number): Rollout[] {
    return (batches[batch] as Reference["batches"][0]).map(({ completion, reward }, answer) => {
      const prompt = prompts[Math.floor((batch * perBatch + answer) / groupSize)] as number[];
      return {
        tokens: Int32Array.from([...prompt, ...completion]),
        promptLength: prompt.length,
        row: { prompt: "", metadata: { score: reward } },
        response: "",
        finishReason: "length",
      };
    });
  }

  const common = <Of extends Settings>({ settings, epochs, minibatches, learningRate }: Trajectory<Of>) => ({
    seed: 0,
    batchSize: perBatch,
    groupSize,
    maxNewTokens,
    updateEpochs: epochs,
    numMinibatches: minibatches,
    learningRate,
    temperature: settings.temperature,
    klCoefficient: settings.beta,
    clipRange: settings.epsilon,
    ...(settings.epsilon_high !== null && { clipRangeHigh: settings.epsilon_high }),
  });

  const options = <Config>(model: CausalLM, config: Config) => ({
    model,
    tokenizer: tinyTokenizer(),
    reward: (_prompt: string, _response: string, { row }: { row: { metadata?: Record<string, unknown> } }) =>
      row.metadata?.["score"] as number,
    prompts: ["a"],
    config,
  });

  const load = (): Promise<CausalLM> =>
    CausalLM.load(modelDirectory("micro-llama"), { device: testDevice, trainable: "all" });

  /** Losses are compared with the largest of the run: those of a batch's first pass are 0 but for rounding. */
  function assertMinibatch(
    { loss, gradNorm, kl, clipFractionLow, clipFractionHigh }: GroupMinibatch,
    expected: Record<string, number>,
    largestLoss: number,
    { perToken, hasKl }: { perToken: boolean; hasKl: boolean },
    step: string,
  ): void {
    assertAllClose([loss], [expected["loss"]!], TOLERANCE, `${step}: loss`, largestLoss);
    assertClose(gradNorm, expected["grad_norm"]!, TOLERANCE, `${step}: gradient norm`);
    if (hasKl) assertAllClose([kl], [expected["kl"]!], TOLERANCE, `${step}: kl`, 1);
    // Of ratios of whole answers TRL counts answers; ours are shares of tokens.
    if (!perToken) return;
    assertAllClose([clipFractionLow], [expected["clip_ratio/low_mean"]!], 1e-6, `${step}: clipped low`, 1);
    assertAllClose([clipFractionHigh], [expected["clip_ratio/high_mean"]!], 1e-6, `${step}: clipped high`, 1);
  }

  async function follow<Of extends Settings>(
    { settings, advantages, steps, logProbs }: Trajectory<Of>,
    model: CausalLM,
    trainer: GRPOTrainer | RLOOTrainer,
    compared: { perToken: boolean; hasKl: boolean },
  ): Promise<void> {
    const largestLoss = Math.max(...steps.map(({ loss }) => Math.abs(loss)));
    const remaining = [...steps];
    for (const batch of batches.keys()) {
      const experience = await trainer.computeAdvantages(rolloutsOf(batch));
      assertAllClose(experience.advantage, advantages[batch]!, TOLERANCE, `advantages of batch ${batch}`);
      const { minibatches } = await trainer.updatePolicy(experience);
      for (const [index, minibatch] of minibatches.entries())
        assertMinibatch(
          minibatch,
          remaining.shift()!,
          largestLoss,
          compared,
          `batch ${batch}, update ${index}`,
        );
    }
    assert.equal(remaining.length, 0, "TRL made as many updates");
    const rollouts = [...batches.keys()].flatMap(rolloutsOf);
    const packed = packSequences(rollouts);
    const values = await computeLogProbs(model, packed, { temperature: settings.temperature });
    for (const [index, { tokens, promptLength }] of rollouts.entries()) {
      const begin = packed.offsets[index]!;
      const sum = values.subarray(begin + promptLength, begin + tokens.length).reduce((a, b) => a + b, 0);
      assertClose(sum, logProbs[index]!, TOLERANCE, `log-prob of answer ${index} after training`);
    }
  }

  for (const microBatchTokens of [4096, 20]) {
    const cut = microBatchTokens < 100 ? ", in micro-batches of one or two answers" : "";
    for (const [name, trajectory] of Object.entries(reference.grpo)) {
      it(`GRPO: ${name}${cut}`, async () => {
        using model = await load();
        const { loss_type: type, importance_sampling_level: level, ...settings } = trajectory.settings;
        // TRL bounds CISPO's ratio by epsilon_high itself.
        const cispo: GRPOConfig = { surrogate: "cispo", clipRangeHigh: (settings.epsilon_high ?? 0) - 1 };
        const config: GRPOConfig = {
          ...common(trajectory),
          microBatchTokens,
          ratioLevel: level,
          scaleRewards: settings.scale_rewards,
          weighKl: settings.use_bias_correction_kl,
          ...(type === "cispo" ? cispo : { lossAggregation: type }),
        };
        using trainer = new GRPOTrainer(options(model, config));
        const perToken = level === "token" && type !== "cispo";
        // TRL reports the KL as it is weighed.
        const hasKl = settings.beta !== 0 && !settings.use_bias_correction_kl;
        await follow(trajectory, model, trainer, { perToken, hasKl });
      });
    }

    for (const [name, trajectory] of Object.entries(reference.rloo)) {
      it(`RLOO: ${name}${cut}`, async () => {
        using model = await load();
        const { normalize_advantages, reward_clip_range } = trajectory.settings;
        const config: RLOOConfig = {
          ...common(trajectory),
          microBatchTokens,
          whitenAdvantages: normalize_advantages,
          rewardClip: reward_clip_range?.[1] ?? null,
        };
        using trainer = new RLOOTrainer(options(model, config));
        await follow(trajectory, model, trainer, { perToken: false, hasKl: false });
      });
    }
  }
});
