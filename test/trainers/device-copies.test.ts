import assert from "node:assert/strict";
import {
  CausalLM,
  type CopyCount,
  type EngineCopies,
  GRPOTrainer,
  type PPOConfig,
  PPOTrainer,
  SFTTrainer,
} from "../../lib/index.ts";
import { TINY_LLAMA, testDevice } from "../support/tiny.ts";
import { prompts, tinyTokenizer } from "./support.ts";

/* What trainers copy between host and device. test/simt/library.test.ts runs this on the emulated GPU too. */

const FLOAT = Float32Array.BYTES_PER_ELEMENT;
const tokenizer = tinyTokenizer();

function tinyModel(): Promise<CausalLM> {
  const config = { ...TINY_LLAMA, vocab_size: tokenizer.vocabSize, eos_token_id: tokenizer.eosTokenId };
  return CausalLM.create(config, { trainable: "all", seed: 7, device: testDevice });
}

/** What was copied while `body` ran. */
async function copiesOf(model: CausalLM, body: () => Promise<unknown>): Promise<EngineCopies> {
  const before = model.engine.copies();
  await body();
  const after = model.engine.copies();
  const during = (which: keyof EngineCopies): CopyCount => ({
    count: after[which].count - before[which].count,
    bytes: after[which].bytes - before[which].bytes,
  });
  return { toDevice: during("toDevice"), toHost: during("toHost") };
}

const CONFIG: PPOConfig = {
  ...{ batchSize: 6, numPpoEpochs: 2, numMinibatches: 2, targetKl: null, seed: 5, stop: [] },
};

/** The copies of one PPO iteration, part by part, and the tokens of its batch. */
async function iteration(config: PPOConfig): Promise<{
  readonly tokens: number;
  readonly answers: number;
  readonly sampling: EngineCopies;
  readonly measuring: EngineCopies;
  readonly updating: EngineCopies;
}> {
  using model = await tinyModel();
  const reward = (_prompt: string, response: string): number => response.length;
  using trainer = new PPOTrainer({ model, tokenizer, reward, prompts, config: { ...CONFIG, ...config } });
  await trainer.prepare();
  let rollouts: Awaited<ReturnType<typeof trainer.generateResponses>> = [];
  const sampling = await copiesOf(model, async () => {
    rollouts = await trainer.generateResponses();
  });
  let experience: Awaited<ReturnType<typeof trainer.computeRewardsAndValues>> | undefined;
  const measuring = await copiesOf(model, async () => {
    experience = await trainer.computeRewardsAndValues(rollouts);
  });
  const { batch } = experience as NonNullable<typeof experience>;
  const updating = await copiesOf(model, () => trainer.ppoStep(experience as NonNullable<typeof experience>));
  return {
    tokens: batch.packed.tokens.length,
    answers: batch.responseTokens(),
    ...{ sampling, measuring, updating },
  };
}

describe(`copies between host and ${testDevice}`, () => {
  it("PPO samples: of each new token its id comes to the host", async () => {
    const { answers, sampling } = await iteration({ maxNewTokens: 7 });
    assert.deepEqual(sampling.toHost, { count: 7, bytes: answers * Int32Array.BYTES_PER_ELEMENT });
  });

  it("PPO measures: log-probs, values, rewards, KL, advantages and returns come to the host once", async () => {
    const { tokens, measuring } = await iteration({ maxNewTokens: 7 });
    assert.deepEqual(measuring.toHost, { count: 7, bytes: 7 * tokens * FLOAT });
  });

  it("PPO updates: the sums of losses and gradients come to the host, and nothing of tokens", async () => {
    const [short, long] = [await iteration({ maxNewTokens: 4 }), await iteration({ maxNewTokens: 24 })];
    assert.ok(long.tokens > 2 * short.tokens);
    assert.deepEqual(long.updating.toHost, short.updating.toHost);
    // Four updates, each with the sums of the policy's and of the value's loss, and with one norm for each group.
    assert.equal(long.updating.toHost.count, 4 * 3);
    assert.ok(long.updating.toHost.bytes <= 4 * 100, String(long.updating.toHost.bytes));
  });

  it("PPO's updates bring a batch and its loss's arrays to the device, less than 64 bytes a token and epoch", async () => {
    const { tokens, updating } = await iteration({ maxNewTokens: 24 });
    assert.ok(
      updating.toDevice.bytes < 2 * 64 * tokens,
      `${updating.toDevice.bytes} bytes, ${tokens} tokens`,
    );
    assert.ok(updating.toDevice.count <= 4 * 16, String(updating.toDevice.count));
  });

  it("GRPO's updates and fine-tuning bring sums alone to the host", async () => {
    const counted: EngineCopies["toHost"][][] = [[], []];
    for (const maxNewTokens of [4, 24]) {
      using model = await tinyModel();
      const reward = (_prompt: string, response: string): number => response.length;
      const config = { batchSize: 8, groupSize: 4, maxNewTokens, stop: [], seed: 5 };
      using trainer = new GRPOTrainer({ model, tokenizer, reward, prompts, config });
      const experience = await trainer.computeAdvantages(await trainer.generateResponses());
      counted[0]?.push((await copiesOf(model, () => trainer.updatePolicy(experience))).toHost);
    }
    for (const times of [1, 2]) {
      const rows = prompts.map((prompt) => ({ prompt, response: " some tea.".repeat(times) }));
      using model = await tinyModel();
      const config = { batchSize: 2, maxSteps: 3, learningRate: 1e-3, seed: 5 };
      using trainer = new SFTTrainer({ model, tokenizer, trainData: rows, config });
      await trainer.prepare();
      counted[1]?.push((await copiesOf(model, () => trainer.train())).toHost);
    }
    for (const [short, long] of counted) {
      assert.deepEqual(short, long);
      assert.ok((short?.bytes as number) <= 100 * (short?.count as number), JSON.stringify(short));
    }
  });
});
