import assert from "node:assert/strict";
import {
  CausalLM,
  type Experience,
  type PPOConfig,
  PPOTrainer,
  type PpoMinibatch,
  type Rollout,
} from "../../lib/index.ts";
import { estimateAdvantages } from "../../lib/trainers/experience.ts";
import { testDevice } from "../support/tiny.ts";
import { tinyTokenizer } from "../trainers/support.ts";
import { assertAllClose, assertClose, relativeDistance } from "./compare.ts";
import { modelDirectory, ReferenceTensors, readJson } from "./reference.ts";

type Case = "linear" | "mlp" | "kl";
type Options = Required<
  Pick<
    PPOConfig,
    | "klCoefficient"
    | "clipRange"
    | "valueClipRange"
    | "valueLossCoefficient"
    | "entropyCoefficient"
    | "learningRate"
    | "betas"
    | "eps"
    | "weightDecay"
    | "maxGradNorm"
    | "temperature"
    | "gamma"
  >
> &
  Pick<PPOConfig, "klEstimator" | "klLossCoefficient" | "klLossDirection"> & { lambda_: number };
type Minibatch = Record<(typeof COMPARED)[number], number> & { rollouts: number[]; divergence?: number };

const COMPARED = [
  "policyLoss",
  "valueLoss",
  "entropy",
  "approxKl",
  "clipFraction",
  "valueClipFraction",
  "gradNorm",
] as const satisfies readonly (keyof PpoMinibatch)[];

/** The names of the reference's head tensors (torch.nn.Sequential) and of ours. */
const LINEAR = { "0.weight": "weight", "0.bias": "bias" };
const HEAD_NAMES: Record<Case, Record<string, string>> = {
  linear: LINEAR,
  kl: LINEAR,
  mlp: { "0.weight": "inner.weight", "0.bias": "inner.bias", "2.weight": "weight", "2.bias": "bias" },
};
const TOLERANCE = 1e-4;

const TITLES: Record<Case, string> = {
  linear: "shared linear value head",
  mlp: "shared mlp value head",
  kl: "the KL over the whole vocabulary in reward and loss",
};

/** The policy with the reference's value head on it. */
async function loadPolicy(name: Case, expected: ReferenceTensors): Promise<CausalLM> {
  const model = await CausalLM.load(modelDirectory("micro-llama"), { device: testDevice, trainable: "all" });
  model.addHead("value", { kind: name === "mlp" ? "mlp" : "linear" });
  for (const [theirs, ours] of Object.entries(HEAD_NAMES[name])) {
    await model.writeParameter(`value:${ours}`, expected.floats(`head.${theirs}`));
  }
  return model;
}

/** A trainer of the reference's settings whose reward is the score that the rollout's row carries. */
function createTrainer(model: CausalLM, options: Options, microBatchTokens: number): PPOTrainer {
  const { lambda_: lambda, ...settings } = options;
  return new PPOTrainer({
    model,
    tokenizer: tinyTokenizer(),
    reward: (_prompt, _response, { row }) => row.metadata?.["score"] as number,
    prompts: ["a"],
    config: {
      ...settings,
      lambda,
      numPpoEpochs: 2,
      numMinibatches: 4,
      targetKl: null,
      maxNewTokens: 16,
      microBatchTokens,
    },
  });
}

function rolloutsOf(expected: ReferenceTensors): Rollout[] {
  const [promptLengths, scores] = [expected.integers("promptLengths"), expected.floats("scores")];
  return expected.sequences().map((tokens, i) => ({
    tokens,
    promptLength: promptLengths[i]!,
    row: { prompt: "", metadata: { score: scores[i]! } },
    response: "",
    finishReason: "length",
  }));
}

/** What the trainer measures of the rollouts, with the reference's (other) reference log-probs or divergence in the reward. */
async function measure(
  trainer: PPOTrainer,
  expected: ReferenceTensors,
  klCoefficient: number,
): Promise<Experience> {
  const measured = await trainer.computeRewardsAndValues(rolloutsOf(expected));
  assert.deepEqual(measured.refLogProb, measured.logProb, "the reference is the policy's starting point");
  const full = trainer.config.klEstimator === "full";
  assert.deepEqual(measured.divergence, full ? new Float32Array(measured.logProb.length) : null);
  const divergence = full ? expected.floats("divergence") : null;
  const experience = { ...measured, refLogProb: expected.floats("refLogProb"), divergence };
  const { engine } = trainer.model;
  return { ...experience, ...(await estimateAdvantages(engine, experience, klCoefficient, trainer.config)) };
}

function assertExperience(experience: Experience, expected: ReferenceTensors): void {
  const { mask } = experience.batch.packed;
  const masked = experience.logProb.map((value, t) => value * mask[t]!);
  assertAllClose(masked, expected.floats("oldLogProb"), TOLERANCE, "oldLogProb");
  assertAllClose(experience.reward, expected.floats("reward"), TOLERANCE, "reward");
  assertAllClose(experience.returns, expected.floats("return"), TOLERANCE, "return");
  assertAllClose(experience.advantage, expected.floats("advantage"), TOLERANCE, "advantage");
}

async function assertFinalWeights(model: CausalLM, name: Case, expected: ReferenceTensors): Promise<void> {
  const heads = Object.entries(HEAD_NAMES[name]).map(
    ([theirs, ours]) => [`head.${theirs}`, `value:${ours}`] as const,
  );
  const ourNames = new Map<string, string>(heads);
  const names = expected.names("final.").map((name) => name.slice("final.".length));
  assert.equal(names.length, model.parameters().length, "number of parameters");
  for (const name of names) {
    const actual = await model.readParameter(ourNames.get(name) ?? name);
    const distance = relativeDistance(actual, expected.floats(`final.${name}`));
    assert.ok(distance <= TOLERANCE, `final ${name}: relative distance ${distance.toExponential(2)}`);
  }
}

describe("one PPO update of PPOTrainer against plain PyTorch", () => {
  const updates = readJson<Record<Case, { options: Options; minibatches: Minibatch[] }>>("ppo.json");
  for (const [name, what] of Object.entries(TITLES) as [Case, string][]) {
    for (const microBatchTokens of [4096, 16]) {
      it(`2 epochs × 4 minibatches, ${what}, micro-batches of ${microBatchTokens} tokens`, async () => {
        const { options, minibatches } = updates[name];
        const expected = new ReferenceTensors(`ppo-${name}.safetensors`);
        using model = await loadPolicy(name, expected);
        using trainer = createTrainer(model, options, microBatchTokens);
        const experience = await measure(trainer, expected, options.klCoefficient);
        assertExperience(experience, expected);

        const update = await trainer.ppoStep(experience, options.learningRate);
        assert.deepEqual(
          update.minibatches.map(({ rollouts }) => Array.from(rollouts)),
          minibatches.map(({ rollouts }) => rollouts),
        );
        for (const [index, minibatch] of minibatches.entries()) {
          for (const key of COMPARED) {
            const actual = update.minibatches[index]![key]!;
            assertClose(actual, minibatch[key], TOLERANCE, `${key} of minibatch ${index}`);
          }
          const { divergence } = update.minibatches[index]!;
          assertClose(divergence, minibatch.divergence ?? 0, TOLERANCE, `divergence of minibatch ${index}`);
        }
        await assertFinalWeights(model, name, expected);
      });
    }
  }
});
