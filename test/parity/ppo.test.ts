import assert from "node:assert/strict";
import * as losses from "../../lib/engine/losses.ts";
import { CausalLM, packSequences } from "../../lib/index.ts";
import { assertAllClose, assertClose, relativeDistance } from "./compare.ts";
import { modelDirectory, ReferenceTensors, readJson } from "./reference.ts";

interface Options {
  klCoefficient: number;
  clipRange: number;
  valueClipRange: number;
  valueLossCoefficient: number;
  entropyCoefficient: number;
  learningRate: number;
  betas: [number, number];
  eps: number;
  weightDecay: number;
  maxGradNorm: number;
  temperature: number;
  gamma: number;
  lambda_: number;
}

interface Minibatch {
  rollouts: number[];
  policyLoss: number;
  valueLoss: number;
  entropy: number;
  approxKl: number;
  clipFraction: number;
  valueClipFraction: number;
  gradNorm: number;
}

type HeadKind = "linear" | "mlp";
type PerToken = "oldLogProb" | "oldValue" | "advantage" | "returns";

/** The names of the reference's head tensors (torch.nn.Sequential) and of ours. */
const HEAD_NAMES: Record<HeadKind, Record<string, string>> = {
  linear: { "0.weight": "weight", "0.bias": "bias" },
  mlp: { "0.weight": "inner.weight", "0.bias": "inner.bias", "2.weight": "weight", "2.bias": "bias" },
};
const TOLERANCE = 1e-4;

describe("one PPO update against plain PyTorch", () => {
  const updates = readJson<Record<HeadKind, { options: Options; minibatches: Minibatch[] }>>("ppo.json");
  for (const kind of ["linear", "mlp"] as const) {
    const { options, minibatches } = updates[kind];
    it(`2 epochs × 4 minibatches, shared value head (${kind}): losses, gradient norms, final weights`, async () => {
      const expected = new ReferenceTensors(`ppo-${kind}.safetensors`);
      using model = await CausalLM.load(modelDirectory("micro-llama"), { device: "cpu", trainable: "all" });
      await addValueHead(model, kind, expected);
      const rollouts = expected
        .sequences()
        .map((tokens, i) => ({ tokens, promptLength: expected.integers("promptLengths")[i]! }));
      const prepared = await prepare(model, rollouts, options, expected);
      const { betas, eps, weightDecay } = options;
      using optimizer = model.createOptimizer({ heads: ["value"], betas, eps, weightDecay });
      for (const [index, minibatch] of minibatches.entries()) {
        const actual = await step(model, rollouts, prepared, minibatch.rollouts, options);
        const { learningRate, maxGradNorm } = options;
        const { gradNorm } = await optimizer.step({ learningRate, maxGradNorm });
        const what = (key: string): string => `${key} of minibatch ${index}`;
        for (const key of ["policyLoss", "valueLoss", "entropy"] as const) {
          assertClose(actual[key], minibatch[key], TOLERANCE, what(key));
        }
        assertClose(gradNorm, minibatch.gradNorm, TOLERANCE, what("gradNorm"));
        assertClose(actual.clipFraction, minibatch.clipFraction, TOLERANCE, what("clipFraction"));
        assertClose(
          actual.valueClipFraction,
          minibatch.valueClipFraction,
          TOLERANCE,
          what("valueClipFraction"),
        );
        assertClose(actual.approxKl, minibatch.approxKl, TOLERANCE, what("approxKl"));
      }
      await assertFinalWeights(model, kind, expected);
    });
  }
});

type Rollout = { tokens: Int32Array; promptLength: number };
type Prepared = Record<PerToken, Float32Array[]>;

async function addValueHead(model: CausalLM, kind: HeadKind, expected: ReferenceTensors): Promise<void> {
  model.addHead("value", { kind });
  for (const [theirs, ours] of Object.entries(HEAD_NAMES[kind])) {
    await model.writeParameter(`value:${ours}`, expected.floats(`head.${theirs}`));
  }
}

/** The per-token array cut into one piece per sequence. */
function cut(values: Float32Array, offsets: Int32Array): Float32Array[] {
  return Array.from(offsets.subarray(1), (end, i) => values.slice(offsets[i], end));
}

/** Log-probs, values, rewards, advantages and returns of the rollouts, compared with PyTorch's where they stand at index t. */
async function prepare(
  model: CausalLM,
  rollouts: Rollout[],
  options: Options,
  expected: ReferenceTensors,
): Promise<Prepared> {
  const batch = packSequences(rollouts);
  const { mask, offsets } = batch;
  using pass = await model.forward(batch, { head: "value", temperature: options.temperature });
  const oldLogProb = await pass.logProb();
  const oldValue = await pass.value();
  const { engine } = model;
  const { reward } = await losses.klReward(engine, {
    logProb: oldLogProb,
    refLogProb: expected.floats("refLogProb"),
    mask,
    offsets,
    score: expected.floats("scores"),
    klCoefficient: options.klCoefficient,
  });
  const { gamma, lambda_: lambda } = options;
  const { advantage, returns } = await losses.gae(engine, {
    reward,
    value: oldValue,
    mask,
    offsets,
    gamma,
    lambda,
  });
  const { y: whitened } = await losses.whiten(engine, { x: advantage, mask });

  assertAllClose(await reward.read(), expected.floats("reward"), TOLERANCE, "reward");
  assertAllClose(await returns.read(), expected.floats("return"), TOLERANCE, "return");
  assertAllClose(await whitened.read(), expected.floats("advantage"), TOLERANCE, "advantage");
  const masked = oldLogProb.map((value, t) => value * mask[t]!);
  assertAllClose(masked, expected.floats("oldLogProb"), TOLERANCE, "oldLogProb");
  return {
    oldLogProb: cut(oldLogProb, offsets),
    oldValue: cut(oldValue, offsets),
    advantage: cut(await whitened.read(), offsets),
    returns: cut(await returns.read(), offsets),
  };
}

/** Forward, losses and backward of one minibatch; gradients are left for the optimizer. */
async function step(
  model: CausalLM,
  rollouts: Rollout[],
  prepared: Prepared,
  rows: number[],
  options: Options,
): Promise<Omit<Minibatch, "rollouts" | "gradNorm">> {
  const gather = (key: PerToken): Float32Array =>
    Float32Array.from(rows.flatMap((row) => Array.from(prepared[key][row]!)));
  const batch = packSequences(rows.map((row) => rollouts[row]!));
  const { mask } = batch;
  const count = mask.reduce((sum, value) => sum + value, 0);
  const pass = await model.forward(batch, {
    head: "value",
    temperature: options.temperature,
    grad: true,
  });
  const policy = await losses.ppoPolicyLoss(model.engine, {
    logProb: pass.device.logProb,
    oldLogProb: gather("oldLogProb"),
    advantage: gather("advantage"),
    entropy: pass.device.entropy,
    mask,
    clipRange: options.clipRange,
    entropyCoefficient: options.entropyCoefficient,
    scale: 1 / count,
  });
  const value = await losses.ppoValueLoss(model.engine, {
    value: pass.device.value,
    oldValue: gather("oldValue"),
    returns: gather("returns"),
    mask,
    clipRange: options.valueClipRange,
    scale: options.valueLossCoefficient / count,
  });
  await pass.backward({ dLogProb: policy.dLogProb, dEntropy: policy.dEntropy, dValue: value.dValue });
  return {
    policyLoss: policy.stats.loss / count,
    valueLoss: value.stats.loss / count,
    entropy: policy.stats.entropy / count,
    approxKl: policy.stats.approxKl / count,
    clipFraction: policy.stats.clipped / count,
    valueClipFraction: value.stats.clipped / count,
  };
}

async function assertFinalWeights(
  model: CausalLM,
  kind: HeadKind,
  expected: ReferenceTensors,
): Promise<void> {
  const heads = Object.entries(HEAD_NAMES[kind]).map(([theirs, ours]) => [`head.${theirs}`, `value:${ours}`]);
  const ourNames = new Map(heads as [string, string][]);
  const names = expected.names("final.").map((name) => name.slice("final.".length));
  assert.equal(names.length, model.parameters().length, "number of parameters");
  for (const name of names) {
    const actual = await model.readParameter(ourNames.get(name) ?? name);
    const distance = relativeDistance(actual, expected.floats(`final.${name}`));
    assert.ok(distance <= TOLERANCE, `final ${name}: relative distance ${distance.toExponential(2)}`);
  }
}
