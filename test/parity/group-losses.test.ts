import { Engine } from "../../lib/engine/engine.ts";
import { groupPolicyLoss } from "../../lib/engine/losses.ts";
import { groupAdvantages, leaveOneOutAdvantages, type RewardScale } from "../../lib/index.ts";
import { offsetsOf } from "../ops/cases/case.ts";
import { testDevice } from "../support/tiny.ts";
import { assertAllClose, assertClose } from "./compare.ts";
import { readJson } from "./reference.ts";

interface Expected {
  loss: number;
  /** By the log-prob of each answer token. */
  gradient: number[];
  metrics: Record<string, number>;
}

interface GrpoSettings {
  loss_type: "grpo" | "bnpo" | "dapo" | "dr_grpo" | "cispo";
  importance_sampling_level: "token" | "sequence";
  beta: number;
  epsilon_low: number;
  epsilon_high: number;
  weigh_kl?: boolean;
}

interface AdvantageCase<Settings> {
  rewards: number[];
  group: number;
  settings: Settings;
  advantages: number[];
}

interface Reference {
  batch: {
    lengths: number[];
    logProb: number[];
    oldLogProb: number[];
    refLogProb: number[];
    advantage: number[];
    allTokens: number;
    minibatches: number;
    maxNewTokens: number;
  };
  grpo: (Expected & { settings: GrpoSettings })[];
  rloo: (Expected & { settings: Pick<GrpoSettings, "epsilon_low" | "epsilon_high"> })[];
  advantages: {
    grpo: AdvantageCase<{ scale_rewards: RewardScale }>[];
    rloo: AdvantageCase<object>[];
  };
}

const TOLERANCE = 1e-5;
const floats = (values: ArrayLike<number>): Float32Array => Float32Array.from(values);

const title = (settings: object): string =>
  Object.entries(settings)
    .map(([name, value]) => `${name} ${value}`)
    .join(", ");

describe("losses and advantages of GRPO and RLOO against TRL's trainers", () => {
  const { batch, ...reference } = readJson<Reference>("group-losses.json");
  const { lengths, allTokens, minibatches, maxNewTokens } = batch;
  const engine = Engine.shared({ device: testDevice });
  const tokens = batch.logProb.length;
  const answers = lengths.length;
  const given = {
    logProb: floats(batch.logProb),
    oldLogProb: floats(batch.oldLogProb),
    advantage: floats(batch.advantage),
    offsets: offsetsOf(lengths),
    mask: new Float32Array(tokens).fill(1),
  };
  const weightOf: Record<GrpoSettings["loss_type"], (length: number) => number> = {
    grpo: (length) => 1 / (answers * length),
    bnpo: () => 1 / tokens,
    dapo: () => minibatches / allTokens,
    cispo: () => minibatches / allTokens,
    dr_grpo: () => 1 / (answers * maxNewTokens),
  };

  for (const { settings, loss, gradient, metrics } of reference.grpo) {
    it(`GRPO: ${title(settings)}`, async () => {
      const { loss_type: type, importance_sampling_level: level, beta, epsilon_low, epsilon_high } = settings;
      const result = await groupPolicyLoss(engine, {
        ...given,
        ...(beta !== 0 && { refLogProb: floats(batch.refLogProb), klCoefficient: beta }),
        weighKl: settings.weigh_kl ?? false,
        weight: floats(lengths.map(weightOf[type])),
        level: level === "token" ? "token" : "sequence-mean",
        surrogate: type === "cispo" ? "truncated" : "clipped",
        lowestRatio: 1 - epsilon_low,
        highestRatio: type === "cispo" ? epsilon_high : 1 + epsilon_high,
      });
      using dLogProb = result.dLogProb;
      const { stats } = result;
      assertClose(stats.loss, loss, TOLERANCE, "loss");
      assertAllClose(await dLogProb.read(), gradient, TOLERANCE, "gradient");
      // TRL reports the KL as it is weighed.
      if (beta !== 0 && !settings.weigh_kl) assertClose(stats.kl / tokens, metrics["kl"]!, TOLERANCE, "kl");
      // TRL counts answers where a ratio is an answer's; ours are shares of tokens.
      if (type === "cispo" || level === "sequence") return;
      assertClose(stats.clippedLow / tokens, metrics["clip_ratio/low_mean"]!, TOLERANCE, "clipped low");
      assertClose(stats.clippedHigh / tokens, metrics["clip_ratio/high_mean"]!, TOLERANCE, "clipped high");
    });
  }

  for (const { settings, loss, gradient } of reference.rloo) {
    it(`RLOO: ${title(settings)}`, async () => {
      const { stats, ...result } = await groupPolicyLoss(engine, {
        ...given,
        weight: floats(lengths.map((length) => 1 / (answers * length))),
        level: "sequence-sum",
        lowestRatio: 1 - settings.epsilon_low,
        highestRatio: 1 + settings.epsilon_high,
      });
      using dLogProb = result.dLogProb;
      assertClose(stats.loss, loss, TOLERANCE, "loss");
      assertAllClose(await dLogProb.read(), gradient, TOLERANCE, "gradient");
    });
  }

  for (const { rewards, group, settings, advantages } of reference.advantages.grpo) {
    it(`advantages of GRPO: groups of ${group}, ${title(settings)}`, () => {
      const actual = groupAdvantages(floats(rewards), group, settings.scale_rewards);
      assertAllClose(actual, advantages, TOLERANCE, "advantages");
    });
  }

  for (const { rewards, group, advantages } of reference.advantages.rloo) {
    it(`advantages of RLOO: groups of ${group}`, () => {
      const actual = leaveOneOutAdvantages(floats(rewards), group);
      assertAllClose(actual, advantages, TOLERANCE, "advantages");
    });
  }
});
