import { Engine, rewardLoss } from "../../lib/index.ts";
import { testDevice } from "../support/tiny.ts";
import { assertAllClose, assertClose } from "./compare.ts";
import { readJson } from "./reference.ts";

interface RewardCase {
  chosen: number[];
  rejected: number[];
  answers: number[];
  label: number[];
  pairLoss: "logistic" | "hinge";
  margin?: number;
  score?: number[];
  scoreWeight?: number;
  loss: number;
  gradient: number[];
}

const TOLERANCE = 1e-5;

describe("reward losses against PyTorch", () => {
  const expected = readJson<Record<string, RewardCase>>("reward-losses.json");
  for (const [name, { chosen, rejected, answers, ...want }] of Object.entries(expected)) {
    it(`${name}: loss and gradient`, async () => {
      const pairs = chosen.length;
      const count = pairs + answers.length;
      const { dValue, stats } = await rewardLoss(Engine.shared({ device: testDevice }), {
        value: Float32Array.from([...chosen, ...rejected, ...answers]),
        chosen: Int32Array.from(chosen, (_, i) => i),
        rejected: Int32Array.from(rejected, (_, i) => pairs + i),
        scored: Int32Array.from(answers, (_, i) => 2 * pairs + i),
        score: Float32Array.from(want.score ?? []),
        label: Float32Array.from(want.label),
        margin: new Float32Array(pairs).fill(want.margin ?? 0),
        pairLoss: want.pairLoss,
        scoreWeight: want.scoreWeight,
        scale: 1 / count,
      });
      assertClose(stats.loss / count, want.loss, TOLERANCE, "loss");
      assertAllClose(await dValue.read(), want.gradient, TOLERANCE, "gradient");
    });
  }
});
