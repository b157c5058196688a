import assert from "node:assert/strict";
import {
  computeAdvantages,
  computeLogProbs,
  computePreferenceLoss,
  findTargetModules,
  getLoraParameters,
  packSequences,
  printTrainableParameters,
} from "../../lib/index.ts";
import { tinyModel, tinyTokenizer } from "./support.ts";

function assertNear(actual: ArrayLike<number>, expected: readonly number[]): void {
  assert.equal(actual.length, expected.length);
  expected.forEach((value, i) => {
    assert.ok(
      Math.abs((actual[i] as number) - value) < 1e-6,
      `element ${i}: ${actual[i]}, expected ${value}`,
    );
  });
}

describe("functions that tutorials name", () => {
  // Golden values of design/ALGORITHMS.md: k1 at β 0.05, score 1 at the last token.
  const rewards = [-0.05 * (-1 - -1.2), -0.05 * (-2 - -1.5), -0.05 * 0 + 1];

  it("computeAdvantages: golden values, and returns = advantages + values", async () => {
    const values = [0.1, 0.2, 0.3];
    const { advantages, returns } = await computeAdvantages(rewards, values);
    assertNear(
      advantages,
      [0.8405, 0.79, 0.7].map((value, i) => (i === 0 ? 0.8405 : value)),
    );
    assertNear(returns, [0.9405, 0.99, 1]);
  });

  it("computePreferenceLoss: golden values", async () => {
    const plain = await computePreferenceLoss([1.2], [0.3]);
    assertNear([plain.loss, plain.accuracy], [0.341154, 1]);
    const withMargin = await computePreferenceLoss([1.2], [0.3], 0.5);
    assertNear([withMargin.loss], [0.513015]);
    assert.equal((await computePreferenceLoss([1, 0], [0, 1])).accuracy, 0.5);
  });

  it("computeLogProbs is the forward pass's logProb", async () => {
    const tokenizer = tinyTokenizer();
    using model = await tinyModel(tokenizer);
    const batch = packSequences([{ tokens: tokenizer.encode("Ann wants two eggs.") }]);
    using pass = await model.forward(batch, { temperature: 0.5 });
    assert.deepEqual(await computeLogProbs(model, batch, { temperature: 0.5 }), await pass.logProb());
  });

  it("adapters: findTargetModules, getLoraParameters, printTrainableParameters", async () => {
    using model = await tinyModel(tinyTokenizer(), "none");
    const modules = findTargetModules(model);
    assert.ok(modules.includes("q_proj") && modules.includes("down_proj"), `${modules}`);
    model.addAdapter("policy", { r: 2, alpha: 4, targetModules: ["q_proj"] });
    const names = getLoraParameters(model, "policy").map((parameter) => parameter.name);
    assert.equal(names.length, 4);
    assert.ok(
      names.every((name) => /^policy:.*q_proj\.lora_[AB]$/.test(name)),
      `${names}`,
    );
    const lines: string[] = [];
    const { trainable, all } = printTrainableParameters(model, (line) => lines.push(line));
    // Two layers of A [2, 24] and B [24, 2].
    assert.equal(trainable, 192);
    assert.match(lines[0] as string, /^trainable params: 192 \|\| all params: [\d,]+ \|\| trainable%: \d/);
    assert.ok(all > trainable);
  });
});
