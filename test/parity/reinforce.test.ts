import assert from "node:assert/strict";
import {
  CausalLM,
  computeLogProbs,
  packSequences,
  type ReinforceBaseline,
  ReinforcePlusPlusTrainer,
  type Rollout,
} from "../../lib/index.ts";
import { testDevice } from "../support/tiny.ts";
import { tinyTokenizer } from "../trainers/support.ts";
import { assertAllClose, assertClose } from "./compare.ts";
import { modelDirectory, readJson } from "./reference.ts";

interface Reference {
  batches: { prompt: number[]; completion: number[]; reward: number }[][];
  cases: Record<
    ReinforceBaseline,
    {
      options: {
        klCoefficient: number;
        gamma: number;
        temperature: number;
        clipRange: number;
        clipRangeHigh: number;
        learningRate: number;
        groupSize: number;
      };
      /** Of each batch, one per answer token. */
      advantages: number[][];
      steps: { loss: number; gradNorm: number; clipFractionLow: number; clipFractionHigh: number }[];
      logProbs: number[];
    }
  >;
}

const TOLERANCE = 1e-4;

describe("updates of REINFORCE++ from given answers against plain PyTorch", () => {
  const { batches, cases } = readJson<Reference>("reinforce.json");

  const rolloutsOf = (batch: Reference["batches"][0]): Rollout[] =>
    batch.map(({ prompt, completion, reward }) => ({
      tokens: Int32Array.from([...prompt, ...completion]),
      promptLength: prompt.length,
      row: { prompt: "", metadata: { score: reward } },
      response: "",
      finishReason: "length",
    }));

  function makeTrainer(
    model: CausalLM,
    baseline: ReinforceBaseline,
    microBatchTokens: number,
  ): ReinforcePlusPlusTrainer {
    return new ReinforcePlusPlusTrainer({
      model,
      tokenizer: tinyTokenizer(),
      reward: (_prompt, _response, { row }) => row.metadata?.["score"] as number,
      prompts: ["a"],
      config: {
        ...cases[baseline].options,
        baseline,
        batchSize: 8,
        maxNewTokens: 12,
        updateEpochs: 2,
        microBatchTokens,
      },
    });
  }

  for (const baseline of ["batch", "group"] as const)
    for (const microBatchTokens of [4096, 20])
      it(`baseline of the ${baseline}, micro-batches of ${microBatchTokens} tokens`, async () => {
        const { options, advantages, steps, logProbs } = cases[baseline];
        using model = await CausalLM.load(modelDirectory("micro-llama"), {
          device: testDevice,
          trainable: "all",
        });
        using trainer = makeTrainer(model, baseline, microBatchTokens);
        const largestLoss = Math.max(...steps.map(({ loss }) => Math.abs(loss)));
        for (const [index, batch] of batches.entries()) {
          const experience = await trainer.computeAdvantages(rolloutsOf(batch));
          const { mask } = experience.batch.packed;
          const ofAnswers = experience.advantage.filter((_, t) => mask[t] !== 0);
          assertAllClose(ofAnswers, advantages[index]!, TOLERANCE, `advantages of batch ${index}`);
          const { minibatches } = await trainer.updatePolicy(experience);
          for (const [epoch, actual] of minibatches.entries()) {
            const expected = steps[2 * index + epoch]!;
            const where = `batch ${index}, epoch ${epoch}`;
            assertAllClose([actual.loss], [expected.loss], TOLERANCE, `${where}: loss`, largestLoss);
            assertClose(actual.gradNorm, expected.gradNorm, TOLERANCE, `${where}: gradient norm`);
            assert.ok(Math.abs(actual.clipFractionLow - expected.clipFractionLow) < 1e-6, where);
            assert.ok(Math.abs(actual.clipFractionHigh - expected.clipFractionHigh) < 1e-6, where);
          }
        }
        const rollouts = batches.flatMap(rolloutsOf);
        const packed = packSequences(rollouts);
        const values = await computeLogProbs(model, packed, { temperature: options.temperature });
        for (const [index, { tokens, promptLength }] of rollouts.entries()) {
          const begin = packed.offsets[index]!;
          const answer = values.subarray(begin + promptLength, begin + tokens.length);
          assertClose(
            answer.reduce((a, b) => a + b, 0),
            logProbs[index]!,
            TOLERANCE,
            `log-prob of answer ${index} after training`,
          );
        }
      });
});
