import {
  CausalLM,
  CPOTrainer,
  computeLogProbs,
  DPOTrainer,
  KTOTrainer,
  type Metrics,
  ORPOTrainer,
  packSequences,
  SimPOTrainer,
  type TokenizedExample,
  type TokenizedPreference,
  type TokenizedUnpaired,
  type TrainingStep,
} from "../../lib/index.ts";
import type { DpoLoss } from "../../lib/trainers/dpo-losses.ts";
import { testDevice } from "../support/tiny.ts";
import { preferenceRows, tinyTokenizer } from "../trainers/support.ts";
import { assertAllClose, assertClose } from "./compare.ts";
import { modelDirectory, REFERENCE, readJson } from "./reference.ts";

interface Answer {
  tokens: number[];
  promptLength: number;
}

interface Trajectory<Example> {
  settings: Record<string, unknown> & { learning_rate: number; beta: number };
  batchSize: number;
  betas: [number, number];
  eps: number;
  maxGradNorm: number;
  examples: Example[];
  steps: (Record<string, number> & { loss: number; grad_norm: number })[];
  logProbs: number[];
}

type Pair = { chosen: Answer; rejected: Answer };

interface Reference {
  dpo: Record<string, Trajectory<Pair>>;
  adapter: Trajectory<Pair>;
  kto: Trajectory<Answer & { label: boolean }>;
  orpo: Trajectory<Pair>;
  cpo: Trajectory<Pair>;
  simpo: Trajectory<Pair>;
}

interface Trained<Example> {
  trainStep(examples: readonly Example[]): Promise<TrainingStep>;
  dispose(): void;
}

const TOLERANCE = 1e-4;

const example = ({ tokens, promptLength }: Answer): TokenizedExample => ({
  tokens: Int32Array.from(tokens),
  promptLength,
  lossMask: Uint8Array.from(tokens, (_, t) => (t >= promptLength ? 1 : 0)),
});
const pair = ({ chosen, rejected }: Pair): TokenizedPreference => ({
  chosen: example(chosen),
  rejected: example(rejected),
  margin: 0,
});
const answersOf = (row: TokenizedPreference | TokenizedUnpaired): TokenizedExample[] =>
  "chosen" in row ? [row.chosen, row.rejected] : [row];

/** The metrics that TRL logs too. */
function assertMetrics(actual: Metrics, expected: Record<string, number>, step: number): void {
  for (const [name, value] of Object.entries(expected)) {
    const own = name === "grad_norm" ? "gradNorm" : name;
    // TRL logs a likelihood of 0 where none is learnt.
    if (name === "learning_rate" || (name === "nll_loss" && value === 0)) continue;
    // Rewards and margins are differences of log-probs of 20 to 50 nats.
    const scale = name.startsWith("rewards/") || name === "kl" ? 1 : Math.abs(value);
    assertAllClose([actual[own] ?? Number.NaN], [value], TOLERANCE, `step ${step}: ${name}`, scale);
  }
}

async function follow<Example extends TokenizedPreference | TokenizedUnpaired>(
  { steps, batchSize, logProbs }: Trajectory<unknown>,
  examples: readonly Example[],
  model: CausalLM,
  trainer: Trained<Example>,
  adapter?: string,
): Promise<void> {
  for (const [step, expected] of steps.entries()) {
    const first = (step * batchSize) % examples.length;
    const { metrics } = await trainer.trainStep(examples.slice(first, first + batchSize));
    assertMetrics(metrics, expected, step);
  }
  const answers = examples.flatMap(answersOf);
  const batch = packSequences(answers);
  const values = await computeLogProbs(model, batch, { adapter });
  for (const [index, { lossMask }] of answers.entries()) {
    const sum = lossMask.reduce((total, bit, t) => total + bit * values[batch.offsets[index]! + t]!, 0);
    assertClose(sum, logProbs[index]!, TOLERANCE, `log-prob of answer ${index} after training`);
  }
  trainer.dispose();
}

describe("ten steps of TRL's trainers, step by step within 1e-4", () => {
  const reference = readJson<Reference>("preference-trajectories.json");
  const tokenizer = tinyTokenizer();
  const load = (): Promise<CausalLM> =>
    CausalLM.load(modelDirectory("micro-llama"), { device: testDevice, trainable: "all" });
  const common = ({ settings, batchSize, betas, eps, maxGradNorm }: Trajectory<unknown>) => ({
    learningRate: settings.learning_rate,
    beta: settings.beta,
    schedule: "constant" as const,
    maxSteps: 10,
    batchSize,
    betas,
    eps,
    maxGradNorm,
    maxLength: 48,
  });
  // The rows only make the trainer; the steps get TRL's examples.
  const data = { tokenizer, trainData: preferenceRows.slice(0, 4) };

  for (const [name, trajectory] of Object.entries(reference.dpo)) {
    for (const microBatchTokens of [4096, 40]) {
      it(`DPO, ${name}${microBatchTokens < 100 ? ", in micro-batches of a pair" : ""}`, async () => {
        using model = await load();
        const { settings } = trajectory;
        const trainer = new DPOTrainer({
          ...data,
          model,
          config: {
            ...common(trajectory),
            microBatchTokens,
            ...(settings["loss_type"] !== undefined && {
              lossType: settings["loss_type"] as DpoLoss | DpoLoss[],
            }),
            ...(settings["loss_weights"] !== undefined && {
              lossWeights: settings["loss_weights"] as number[],
            }),
            ...(settings["label_smoothing"] !== undefined && {
              labelSmoothing: settings["label_smoothing"] as number,
            }),
            ...(settings["ld_alpha"] !== undefined && { ldAlpha: settings["ld_alpha"] as number }),
            ...(settings["use_weighting"] !== undefined && {
              useWeighting: settings["use_weighting"] as boolean,
            }),
          },
        });
        await follow(trajectory, trajectory.examples.map(pair), model, trainer);
      });
    }
  }

  it("DPO of an adapter that had been trained before, against a frozen copy of itself", async () => {
    using model = await CausalLM.load(modelDirectory("llama"), { device: testDevice });
    await model.loadAdapter("policy", `${REFERENCE}adapters/llama`);
    const trainer = new DPOTrainer({ ...data, model, config: common(reference.adapter) });
    await follow(reference.adapter, reference.adapter.examples.map(pair), model, trainer, "policy");
  });

  it("KTO", async () => {
    using model = await load();
    const trainer = new KTOTrainer({
      model,
      tokenizer,
      trainData: preferenceRows
        .slice(0, 4)
        .map(({ prompt, chosen }, index) => ({ prompt, completion: chosen, label: index % 2 === 0 })),
      config: {
        ...common(reference.kto),
        desirableWeight: reference.kto.settings["desirable_weight"] as number,
      },
    });
    const examples = reference.kto.examples.map((answer) => ({ ...example(answer), label: answer.label }));
    await follow(reference.kto, examples, model, trainer);
  });

  it("ORPO", async () => {
    using model = await load();
    const trainer = new ORPOTrainer({ ...data, model, config: { ...common(reference.orpo), nllOn: "all" } });
    await follow(reference.orpo, reference.orpo.examples.map(pair), model, trainer);
  });

  it("CPO", async () => {
    using model = await load();
    const trainer = new CPOTrainer({ ...data, model, config: common(reference.cpo) });
    await follow(reference.cpo, reference.cpo.examples.map(pair), model, trainer);
  });

  it("SimPO", async () => {
    using model = await load();
    const trainer = new SimPOTrainer({ ...data, model, config: common(reference.simpo) });
    await follow(reference.simpo, reference.simpo.examples.map(pair), model, trainer);
  });
});
