import assert from "node:assert/strict";
import {
  DPOTrainer,
  KTOTrainer,
  preferenceRows as preferenceTokenizer,
  RewardModelTrainer,
  rewardRows,
  tokenizeInSlices,
  unpairedRows,
} from "../../lib/index.ts";
import { preferenceRows, tinyModel, tinyTokenizer } from "./support.ts";

describe("data that was tokenised before", () => {
  const tokenizer = tinyTokenizer();
  const unpaired = preferenceRows.flatMap(({ prompt, chosen, rejected }) => [
    { prompt, completion: chosen, label: true },
    { prompt, completion: rejected, label: false },
  ]);
  const config = { batchSize: 4, maxSteps: 2, maxLength: 32 };

  it("trains as the rows it was made of", async () => {
    const losses = async (
      make: (model: Awaited<ReturnType<typeof tinyModel>>) => DPOTrainer | KTOTrainer | RewardModelTrainer,
    ): Promise<unknown[]> => {
      using model = await tinyModel(tokenizer);
      using trainer = make(model);
      const seen: unknown[] = [trainer.tokenized];
      for await (const { metrics } of trainer.steps()) seen.push(metrics.loss, metrics["eval/loss"]);
      return seen;
    };
    const pairs = await tokenizeInSlices(preferenceRows, preferenceTokenizer(tokenizer, { maxLength: 32 }));
    const answers = await tokenizeInSlices(unpaired, unpairedRows(tokenizer, { maxLength: 32 }));
    const judged = await tokenizeInSlices(preferenceRows, rewardRows(tokenizer, { maxLength: 32 }));
    const cases = [
      [preferenceRows, pairs].map((trainData) =>
        losses((model) => new DPOTrainer({ model, tokenizer, trainData, evalData: trainData, config })),
      ),
      [unpaired, answers].map((trainData) =>
        losses((model) => new KTOTrainer({ model, tokenizer, trainData, config })),
      ),
      [preferenceRows, judged].map((trainData) =>
        losses(
          (model) => new RewardModelTrainer({ model, tokenizer, trainData, evalData: trainData, config }),
        ),
      ),
    ];
    for (const runs of cases) {
      const [fromRows, fromTokens] = await Promise.all(runs);
      assert.equal(fromRows!.length, 5);
      assert.deepEqual(fromTokens, fromRows);
    }
  });

  it("that is longer than the trainer takes is an error that says so", async () => {
    const trainData = await tokenizeInSlices(preferenceRows, preferenceTokenizer(tokenizer));
    using model = await tinyModel(tokenizer);
    assert.throws(() => new DPOTrainer({ model, tokenizer, trainData, config: { maxLength: 3 } }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /over maxLength 3; give maxLength when it is tokenised/,
    });
  });
});
