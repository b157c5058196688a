import { RewardModel } from "../../lib/index.ts";
import { testDevice } from "../support/tiny.ts";
import { assertElementsClose } from "./compare.ts";
import { modelDirectory, readJson } from "./reference.ts";

describe("reward models against transformers", () => {
  const expected = readJson<Record<string, { sequences: number[][]; scores: number[] }>>("rewards.json");
  for (const [name, { sequences, scores }] of Object.entries(expected)) {
    it(`${name}: a …ForSequenceClassification directory gives the same scores`, async () => {
      using reward = await RewardModel.load(modelDirectory(name), { device: testDevice });
      const actual = await reward.score(sequences.map((tokens) => Int32Array.from(tokens)));
      assertElementsClose(actual, scores, 1e-4, "score");
    });
  }
});
