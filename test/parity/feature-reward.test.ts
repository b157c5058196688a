import assert from "node:assert/strict";
import { join } from "node:path";
import { FeatureRewardModel, FeatureRewardTrainer, type FeatureRow } from "../../lib/index.ts";
import { readSafetensors, readTensor, type TensorEntry } from "../../lib/model/safetensors.ts";
import { testDevice, withTemporaryDirectory } from "../support/tiny.ts";
import { assertAllClose, assertClose } from "./compare.ts";
import { readJson } from "./reference.ts";

interface Case {
  activation: "relu" | "tanh";
  parameters: number[][];
  chosen: number[][];
  rejected: number[][];
  margin: number[];
  features: number[][];
  score: number[];
  labelSmoothing: number;
  scoreWeight: number;
  gradient: number[][];
  steps: { loss: number; gradNorm: number }[];
  prediction: number[];
  learningRate: number;
}

const TOLERANCE = 1e-5;

function makeTrainer(given: Case, config: object, outputDir?: string): FeatureRewardTrainer {
  const { activation, chosen, rejected, margin, features, score } = given;
  const shape = { inputDim: 5, hiddenDim: 7, numLayers: 2, activation };
  const model = FeatureRewardModel.create({ ...shape, device: testDevice });
  model.network.parameters.set(given.parameters.flat());
  const rows: FeatureRow[] = [
    ...chosen.map((vector, i) => ({ chosen: vector, rejected: rejected[i]!, margin: margin[i]! })),
    ...features.map((vector, i) => ({ features: vector, score: score[i]! })),
  ];
  return new FeatureRewardTrainer({
    model,
    trainData: rows,
    config: {
      batchSize: rows.length,
      normalizeFeatures: false,
      learningRate: given.learningRate,
      labelSmoothing: given.labelSmoothing,
      scoreWeight: given.scoreWeight,
      weightDecay: 0.1,
      ...config,
    },
    ...(outputDir === undefined ? {} : { outputDir }),
  });
}

describe("reward models on features against PyTorch", () => {
  const cases = readJson<Record<string, Case>>("feature-reward.json");
  for (const [name, given] of Object.entries(cases)) {
    it(`${name}: losses, gradient norms and predictions of ${given.steps.length} steps`, async () => {
      const config = { maxSteps: given.steps.length, betas: [0.8, 0.95], maxGradNorm: 0.7 };
      const trainer = makeTrainer(given, config);
      for (const [index, expected] of given.steps.entries()) {
        const { metrics } = await trainer.trainStep();
        assertClose(metrics.loss!, expected.loss, TOLERANCE, `loss of step ${index}`);
        assertClose(metrics.gradNorm!, expected.gradNorm, TOLERANCE, `gradient norm of step ${index}`);
      }
      assertAllClose(await trainer.model.predict(given.features), given.prediction, TOLERANCE, "predictions");
    });

    it(`${name}: the gradient of every parameter`, async () => {
      await withTemporaryDirectory(async (directory) => {
        // With a first decay rate of 0 the first moment is the gradient itself.
        const config = { maxSteps: 1, betas: [0, 0.95], maxGradNorm: null, saveSteps: 1 };
        const trainer = makeTrainer(given, config, directory);
        for await (const _ of trainer.steps());
        const { entries } = await readSafetensors(join(directory, "checkpoint-1", "state.safetensors"));
        for (const [index, { name: parameter }] of trainer.model.slices.entries()) {
          const found = await readTensor(entries.get(`reward/m/${parameter}`) as TensorEntry);
          assertAllClose(found, given.gradient[index]!, TOLERANCE, parameter);
        }
        assert.equal(trainer.model.slices.length, given.gradient.length);
      });
    });
  }
});
