import assert from "node:assert/strict";
import {
  type CausalLM,
  type CPOConfig,
  CPOTrainer,
  DPOTrainer,
  type Metrics,
  CausalLM as Model,
  type ORPOConfig,
  ORPOTrainer,
  type SimPOConfig,
  SimPOTrainer,
} from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { answerLogProb, HELD_OUT, TRAIN } from "./preference-support.ts";
import { tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();
const CONFIG = { learningRate: 3e-3, batchSize: 4, numEpochs: 4, seed: 3 };
type Config = ORPOConfig & CPOConfig & SimPOConfig;

const options = (model: CausalLM, config: Config) => ({
  model,
  tokenizer,
  trainData: TRAIN,
  evalData: HELD_OUT,
  config: { ...CONFIG, ...config },
});

const KINDS: Record<string, (model: CausalLM, config: Config) => ORPOTrainer | CPOTrainer | SimPOTrainer> = {
  ORPO: (model, config) => new ORPOTrainer(options(model, config)),
  CPO: (model, config) => new CPOTrainer(options(model, config)),
  SimPO: (model, config) => new SimPOTrainer(options(model, config)),
};

/** Sums and mean log-probs of held-out answers, from the low level. */
async function heldOut(trainer: ORPOTrainer | CPOTrainer | SimPOTrainer) {
  return await Promise.all(
    trainer.evalExamples.map(async ({ chosen, rejected }) => {
      const count = (mask: Uint8Array): number => mask.reduce((sum, bit) => sum + bit, 0);
      const [c, r] = [
        await answerLogProb(trainer.model, chosen),
        await answerLogProb(trainer.model, rejected),
      ];
      const [nc, nr] = [count(chosen.lossMask), count(rejected.lossMask)];
      const whole = { ...chosen, lossMask: new Uint8Array(chosen.tokens.length).fill(1, 1) };
      return {
        c,
        r,
        meanC: c / nc,
        meanR: r / nr,
        tokens: nc,
        whole: await answerLogProb(trainer.model, whole),
        wholeTokens: chosen.tokens.length - 1,
      };
    }),
  );
}
type Pair = Awaited<ReturnType<typeof heldOut>>[0];

const softplus = (x: number): number => Math.log1p(Math.exp(-Math.abs(x))) + Math.max(x, 0);
const sum = (pairs: readonly Pair[], read: (pair: Pair) => number): number =>
  pairs.reduce((total, pair) => total + read(pair), 0);
const logOdds = ({ meanC, meanR }: Pair): number =>
  meanC - meanR - (Math.log(-Math.expm1(meanC)) - Math.log(-Math.expm1(meanR)));

const CASES: [string, Config, (pairs: readonly Pair[]) => number][] = [
  [
    "ORPO",
    { beta: 0.2 },
    (pairs) =>
      -sum(pairs, ({ c }) => c) / sum(pairs, ({ tokens }) => tokens) +
      (0.2 * sum(pairs, (pair) => softplus(-logOdds(pair)))) / pairs.length,
  ],
  [
    "ORPO",
    { nllOn: "all" },
    (pairs) =>
      -sum(pairs, ({ whole }) => whole) / sum(pairs, ({ wholeTokens }) => wholeTokens) +
      (0.1 * sum(pairs, (pair) => softplus(-logOdds(pair)))) / pairs.length,
  ],
  [
    "CPO",
    { nllWeight: 0.7 },
    (pairs) =>
      (-0.7 * sum(pairs, ({ c }) => c)) / sum(pairs, ({ tokens }) => tokens) +
      sum(pairs, ({ c, r }) => softplus(-0.1 * (c - r))) / pairs.length,
  ],
  [
    "SimPO",
    {},
    (pairs) => sum(pairs, ({ meanC, meanR }) => softplus(0.5 - 2 * (meanC - meanR))) / pairs.length,
  ],
];

describe("trainers without a reference", () => {
  for (const [kind, config, expected] of CASES) {
    it(`${kind} ${JSON.stringify(config)}: the loss is that of the log-probs`, async () => {
      using model = await tinyModel(tokenizer);
      using trainer = KINDS[kind]!(model, { ...config, microBatchTokens: 40 });
      const loss = expected(await heldOut(trainer));
      const metrics = await trainer.evaluate();
      assert.ok(Math.abs((metrics["eval/loss"] as number) - loss) < 1e-5 * Math.max(1, loss), `${loss}`);
    });
  }

  for (const [kind, make] of Object.entries(KINDS)) {
    for (const [what, trainable, config] of [
      ["all weights", "all", {}],
      ["an adapter", "none", { learningRate: 1e-2, lora: { r: 4, targetModules: "all-linear" } }],
    ] as const) {
      it(`${kind} of ${what} prefers chosen answers, held-out ones too, and saves what it learnt`, async () => {
        using model = await tinyModel(tokenizer, trainable);
        using trainer = make(model, config);
        const before = await trainer.evaluate();
        const steps: Metrics[] = [];
        for await (const { metrics } of trainer.steps()) steps.push(metrics);
        const after = await trainer.evaluate();
        assert.ok((after["eval/loss"] as number) < (before["eval/loss"] as number));
        assert.equal(after["eval/rewards/accuracies"], 1);
        for (const metrics of steps)
          for (const [name, value] of Object.entries(metrics)) assert.ok(Number.isFinite(value), name);
        await withTemporaryDirectory(async (directory) => {
          await trainer.save(directory);
          using saved = await Model.load(directory, { device: "cpu" });
          const { chosen } = trainer.evalExamples[0]!;
          const [ours, theirs] = [
            await answerLogProb(model, chosen, trainable === "none" ? "default" : undefined),
            await answerLogProb(saved, chosen),
          ];
          assert.ok(Math.abs(ours - theirs) < 1e-4 * Math.abs(ours), `${ours} and ${theirs}`);
        });
      });
    }
  }

  it("DPO without a reference rewards log-probs themselves", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = new DPOTrainer({ ...options(model, {}), config: { ...CONFIG, referenceFree: true } });
    const metrics = await trainer.evaluate();
    for (const side of ["chosen", "rejected"]) {
      const [reward, logProb] = [metrics[`eval/rewards/${side}`], metrics[`eval/logps/${side}`]];
      assert.ok(Math.abs((reward as number) - 0.1 * (logProb as number)) < 1e-5);
    }
  });

  it("refuse what they do not have", async () => {
    using model = await tinyModel(tokenizer);
    const refused = { code: "ERR_RLHF_ARGUMENT" };
    const orpo = (config: object) => new ORPOTrainer(options(model, config));
    assert.throws(() => orpo({ nllOn: "prompt" }), {
      ...refused,
      message: /nllOn must be one of "completion", "all"/,
    });
    assert.throws(() => orpo({ refModelSyncSteps: 3 }), { ...refused, message: /unknown setting/ });
    assert.throws(() => new CPOTrainer(options(model, { lossType: "robust" as "ipo" })), {
      ...refused,
      message: /lossType must be one of "sigmoid", "hinge", "ipo"/,
    });
    assert.throws(() => new SimPOTrainer(options(model, { gamma: -1 })), { ...refused, message: /gamma/ });
    assert.throws(() => new SimPOTrainer(options(model, { beta: 0 })), { ...refused, message: /beta/ });
  });
});
