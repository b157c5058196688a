import { Engine } from "../../lib/engine/engine.ts";
import * as losses from "../../lib/engine/losses.ts";
import { testDevice } from "../support/tiny.ts";
import { assertAllClose, assertClose } from "./compare.ts";
import { readJson } from "./reference.ts";

interface PolicyCase {
  logProb: number[];
  oldLogProb: number[];
  advantage: number[];
  clipRange: number;
  loss: number;
  gradient: number[];
  approxKl: number;
  clipFraction: number;
}

interface ValueCase {
  value: number[];
  oldValue: number[];
  returns: number[];
  clipRange: number;
  loss: number;
  gradient: number[];
}

interface GaeCase {
  gamma: number;
  lambda_: number;
  sequences: { rewards: number[]; values: number[]; advantages: number[]; returns: number[] }[];
}

interface PairCase {
  chosen: number[];
  rejected: number[];
  margin: number;
  centre: number;
  loss: number;
  gradients: [number[], number[]];
  accuracy: number;
}

interface HandPpo {
  logProb: number[];
  refLogProb: number[];
  values: number[];
  score: number;
  klCoefficient: number;
  gamma: number;
  lambda_: number;
  k3: number[];
  advantages: number[];
  returns: number[];
  whitened: number[];
}

interface Losses {
  policy: PolicyCase[];
  value: ValueCase[];
  gae: GaeCase[];
  whiten: { values: number[]; mask: number[]; whitened: number[] }[];
  bradleyTerry: PairCase[];
  hand: { ppo: HandPpo; bradleyTerry: { chosen: number; rejected: number; margin: number; loss: number }[] };
}

const TOLERANCE = 1e-5;
const floats = (values: number[]): Float32Array => Float32Array.from(values);
const ones = (count: number): Float32Array => new Float32Array(count).fill(1);

/** Values of tokens 1 … n laid out as the engine has them (token t's at t − 1), behind a prompt of one token. */
const shifted = (values: number[]): Float32Array => floats([...values, 0]);
const behindPrompt = (values: number[]): Float32Array => floats([0, ...values]);

describe("losses and advantages against PyTorch", () => {
  const expected = readJson<Losses>("losses.json");
  let engine: Engine;
  before(() => {
    engine = Engine.shared({ device: testDevice });
  });

  it("clipped policy loss: loss, gradient, approximate KL and clip fraction", async () => {
    for (const { logProb, oldLogProb, advantage, clipRange, ...want } of expected.policy) {
      const count = logProb.length;
      const { dLogProb, stats } = await losses.ppoPolicyLoss(engine, {
        logProb: floats(logProb),
        oldLogProb: floats(oldLogProb),
        advantage: floats(advantage),
        mask: ones(count),
        clipRange,
        scale: 1 / count,
      });
      assertClose(stats.loss / count, want.loss, TOLERANCE, "loss");
      assertClose(stats.approxKl / count, want.approxKl, TOLERANCE, "approxKl");
      assertClose(stats.clipped / count, want.clipFraction, TOLERANCE, "clip fraction");
      assertAllClose(await dLogProb.read(), want.gradient, TOLERANCE, "gradient");
    }
  });

  it("clipped value loss: loss and gradient", async () => {
    for (const { value, oldValue, returns, clipRange, ...want } of expected.value) {
      const count = value.length;
      const { dValue, stats } = await losses.ppoValueLoss(engine, {
        value: shifted(value),
        oldValue: shifted(oldValue),
        returns: behindPrompt(returns),
        mask: behindPrompt(new Array(count).fill(1)),
        clipRange,
        scale: 1 / count,
      });
      assertClose(stats.loss / count, want.loss, TOLERANCE, "loss");
      assertAllClose(await dValue.read(), shifted(want.gradient), TOLERANCE, "gradient");
    }
  });

  it("generalised advantages and returns of several sequences, against their definition", async () => {
    for (const { gamma, lambda_: lambda, sequences } of expected.gae) {
      const offsets = [0];
      for (const { rewards } of sequences) offsets.push(offsets.at(-1)! + rewards.length + 1);
      const pack = (layout: (values: number[]) => Float32Array, key: keyof (typeof sequences)[number]) =>
        floats(sequences.flatMap((sequence) => Array.from(layout(sequence[key]))));
      const { advantage, returns } = await losses.gae(engine, {
        reward: pack(behindPrompt, "rewards"),
        value: pack(shifted, "values"),
        mask: floats(sequences.flatMap(({ rewards }) => [0, ...rewards.map(() => 1)])),
        offsets: Int32Array.from(offsets),
        gamma,
        lambda,
      });
      assertAllClose(await advantage.read(), pack(behindPrompt, "advantages"), TOLERANCE, "advantages");
      assertAllClose(await returns.read(), pack(behindPrompt, "returns"), TOLERANCE, "returns");
    }
  });

  it("whitening over a mask, with the unbiased variance", async () => {
    for (const { values, mask, whitened } of expected.whiten) {
      const { y } = await losses.whiten(engine, { x: floats(values), mask: floats(mask) });
      assertAllClose(await y.read(), whitened, TOLERANCE, "whitened");
    }
  });

  it("Bradley-Terry loss with margin and centring: loss, gradient and accuracy", async () => {
    for (const { chosen, rejected, margin, centre, ...want } of expected.bradleyTerry) {
      const pairs = chosen.length;
      const { dValue, stats } = await losses.rewardLoss(engine, {
        value: floats([...chosen, ...rejected]),
        chosen: Int32Array.from(chosen, (_, i) => i),
        rejected: Int32Array.from(rejected, (_, i) => pairs + i),
        margin: new Float32Array(pairs).fill(margin),
        centering: centre,
        scale: 1 / pairs,
      });
      assertClose(stats.loss / pairs, want.loss, TOLERANCE, "loss");
      assertClose(stats.correct / pairs, want.accuracy, TOLERANCE, "accuracy");
      assertAllClose(await dValue.read(), want.gradients.flat(), TOLERANCE, "gradient");
    }
  });

  it("the worked PPO example: rewards, k3, advantages, returns, whitening", async () => {
    const {
      logProb,
      refLogProb,
      values,
      score,
      klCoefficient,
      gamma,
      lambda_: lambda,
      ...want
    } = expected.hand.ppo;
    const mask = behindPrompt(logProb.map(() => 1));
    const offsets = Int32Array.of(0, logProb.length + 1);
    const shared = {
      logProb: behindPrompt(logProb),
      refLogProb: behindPrompt(refLogProb),
      mask,
      offsets,
      score: floats([score]),
      klCoefficient,
    };
    const { kl: k3 } = await losses.klReward(engine, { ...shared, estimator: "k3" });
    assertAllClose(await k3.read(), behindPrompt(want.k3), 1e-6, "k3", 1);
    const { reward } = await losses.klReward(engine, shared);
    const { advantage, returns } = await losses.gae(engine, {
      reward,
      value: shifted(values),
      mask,
      offsets,
      gamma,
      lambda,
    });
    const { y } = await losses.whiten(engine, { x: advantage, mask });
    assertAllClose(await advantage.read(), behindPrompt(want.advantages), 1e-6, "advantages", 1);
    assertAllClose(await returns.read(), behindPrompt(want.returns), 1e-6, "returns", 1);
    assertAllClose(await y.read(), behindPrompt(want.whitened), 1e-6, "whitened", 1);
  });

  it("the worked Bradley-Terry examples", async () => {
    for (const { chosen, rejected, margin, loss } of expected.hand.bradleyTerry) {
      const { stats } = await losses.rewardLoss(engine, {
        value: floats([chosen, rejected]),
        chosen: Int32Array.of(0),
        rejected: Int32Array.of(1),
        margin: floats([margin]),
        scale: 1,
      });
      assertClose(stats.loss, loss, 1e-5, "loss");
    }
  });
});
