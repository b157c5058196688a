import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import {
  FeatureRewardModel,
  FeatureRewardTrainer,
  type FeatureRewardTrainerConfig,
  type FeatureRow,
  Random,
  readMetrics,
} from "../../lib/index.ts";
import { contentsOf } from "../resume/support.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";

const INPUTS = 4;

/** A function that no linear one comes near to: over symmetric inputs all its terms but the last are even, or products. */
function truth([a, b, c, d]: readonly number[]): number {
  return Math.abs(a!) + b! * c! + Math.sin(2 * d!);
}

/** Vectors whose numbers have different scales, which `truth` undoes. */
function vectors(count: number, stream: string): { raw: number[]; features: number[] }[] {
  const random = new Random(7, stream);
  return Array.from({ length: count }, () => {
    const raw = Array.from({ length: INPUTS }, () => random.normal());
    return { raw, features: raw.map((value, i) => 20 + value * 10 ** (i - 1)) };
  });
}

function scored(count: number, stream: string): FeatureRow[] {
  return vectors(count, stream).map(({ raw, features }) => ({ features, score: truth(raw) }));
}

/** Pairs judged as Bradley and Terry's model says, by chance; with `certain`, always for the better one. */
function pairs(count: number, stream: string, certain = false): FeatureRow[] {
  const random = new Random(8, stream);
  const all = vectors(2 * count, stream);
  return Array.from({ length: count }, (_, i) => {
    const [first, second] = [all[2 * i]!, all[2 * i + 1]!];
    const better = 1 / (1 + Math.exp(3 * (truth(second.raw) - truth(first.raw))));
    const won = certain ? better > 0.5 : random.uniform() < better;
    const [chosen, rejected] = won ? [first, second] : [second, first];
    return { chosen: chosen.features, rejected: rejected.features };
  });
}

async function trained(
  trainData: readonly FeatureRow[],
  evalData: readonly FeatureRow[],
  config: FeatureRewardTrainerConfig,
  shape: object = {},
): Promise<FeatureRewardTrainer> {
  const model = FeatureRewardModel.create({ inputDim: INPUTS, seed: 1, ...shape });
  const trainer = new FeatureRewardTrainer({ model, trainData, evalData, config });
  for await (const _ of trainer.steps());
  return trainer;
}

describe("reward models on feature vectors", () => {
  it("learn a function that is not linear from scores, held-out ones too", async () => {
    const [train, held] = [scored(1500, "train"), scored(400, "held out")];
    const trainer = await trained(train, held, { numEpochs: 30, learningRate: 5e-3 });
    const { "eval/mse": error } = await trainer.evaluate();
    const values = held.map((row) => (row as { score: number }).score);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
    assert.ok(error! < 0.05 * variance, `${error} of ${variance}`);
  });

  it("learn it from preferences that are right by chance, held-out ones too", async () => {
    const [train, held] = [pairs(2500, "train pairs"), pairs(400, "held out pairs", true)];
    const trainer = await trained(train, held, { numEpochs: 12, learningRate: 3e-3, weightDecay: 0.01 });
    const metrics = await trainer.evaluate();
    assert.ok(metrics["eval/accuracy"]! > 0.9, `${metrics["eval/accuracy"]}`);
    assert.ok(metrics["eval/brier"]! < 0.15);
  });

  it("have the gradient that differences of the loss in float64 show", async () => {
    const shape = { inputDim: INPUTS, hiddenDim: 3, numLayers: 2, activation: "tanh" as const };
    const model = FeatureRewardModel.create({ ...shape, seed: 2 });
    const sizes = [INPUTS, 3, 3, 1];
    const [x] = [vectors(9, "gradient").map(({ raw }) => raw)];
    const rewards = (parameters: Float64Array): number[] =>
      x!.map((vector) => {
        let [at, values] = [0, vector];
        for (let layer = 0; layer + 1 < sizes.length; layer++) {
          const [inputs, outputs] = [sizes[layer]!, sizes[layer + 1]!];
          const bias = at + inputs * outputs;
          const from = values;
          values = Array.from({ length: outputs }, (_, o) => {
            const sum = from.reduce((total, value, i) => total + value * parameters[at + o * inputs + i]!, 0);
            return sum + parameters[bias + o]!;
          });
          if (layer + 2 < sizes.length) values = values.map(Math.tanh);
          at = bias + outputs;
        }
        return values[0]!;
      });
    // Three pairs, the last one a tie, and three scores, in the trainer's order and weights.
    const rows: FeatureRow[] = [
      { chosen: x![0]!, rejected: x![1]!, margin: 0.7 },
      { chosen: x![2]!, rejected: x![3]! },
      { chosen: x![4]!, rejected: x![5]!, tie: true },
      ...[6, 7, 8].map((i) => ({ features: x![i]!, score: i - 7 })),
    ];
    const logistic = (z: number): number => Math.log1p(Math.exp(-z));
    const loss = (parameters: Float64Array): number => {
      const r = rewards(parameters) as [
        number,
        number,
        number,
        number,
        number,
        number,
        number,
        number,
        number,
      ];
      const tie = 0.5 * (logistic(r[4] - r[5]) + logistic(r[5] - r[4]));
      const scores = 0.3 * ((r[6] + 1) ** 2 + r[7] ** 2 + (r[8] - 1) ** 2);
      return (logistic(r[0] - r[1] - 0.7) + logistic(r[2] - r[3]) + tie + scores) / 6;
    };
    const start = Float64Array.from(model.network.parameters);
    const slopes = start.map((_, i) => {
      const [up, down] = [start.slice(), start.slice()];
      up[i] = up[i]! + 1e-6;
      down[i] = down[i]! - 1e-6;
      return (loss(up) - loss(down)) / 2e-6;
    });
    await withTemporaryDirectory(async (directory) => {
      // AdamW without momentum of the first moment: it is the gradient.
      const config = {
        batchSize: 6,
        maxSteps: 1,
        betas: [0, 0.9] as const,
        maxGradNorm: null,
        scoreWeight: 0.3,
        normalizeFeatures: false,
        saveSteps: 1,
      };
      const trainer = new FeatureRewardTrainer({ model, trainData: rows, config, outputDir: directory });
      for await (const { metrics } of trainer.steps())
        assert.ok(Math.abs(metrics.loss! - loss(start)) < 1e-6, `${metrics.loss} ${loss(start)}`);
      const file = join(directory, "checkpoint-1", "state.safetensors");
      const bytes = readFileSync(file);
      const begin = 8 + Number(bytes.readBigUInt64LE(0));
      const gradient = slopes.map((_, i) => bytes.readFloatLE(begin + 4 * (start.length + i)));
      slopes.forEach((slope, i) => {
        assert.ok(
          Math.abs(slope - gradient[i]!) < 1e-6 + 1e-5 * Math.abs(slope),
          `${i}: ${slope} ${gradient[i]}`,
        );
      });
      assert.ok(slopes.filter((slope) => Math.abs(slope) > 1e-3).length > 20);
    });
  });

  it("give a vector the same reward alone as among others, also in files, and from any number of threads", async () => {
    await withTemporaryDirectory(async (directory) => {
      const config = { maxSteps: 3, seed: 4 };
      const trainer = await trained(scored(40, "few"), [], config, {
        activation: "silu",
        numLayers: 3,
        hiddenDim: 9,
      });
      const x = vectors(9000, "many").map(({ features }) => features);
      const rewards = await trainer.model.predict(x);
      assert.equal((await trainer.model.predict([x[8000]!]))[0], rewards[8000]);
      assert.equal((await trainer.model.predict([])).length, 0);
      await trainer.save(directory);
      assert.deepEqual((await readdir(directory)).sort(), ["config.json", "model.safetensors"]);
      const loaded = await FeatureRewardModel.load(directory, { threads: 3 });
      assert.deepEqual(loaded.config, { inputDim: INPUTS, hiddenDim: 9, numLayers: 3, activation: "silu" });
      assert.deepEqual(await loaded.predict(x), rewards);
      // Trained on, it keeps the scale that its weights belong to.
      const further = new FeatureRewardTrainer({ model: loaded, trainData: scored(10, "others") });
      assert.deepEqual(further.model.scale, trainer.model.scale);
    });
  });

  it("end a run that was interrupted in the same bytes, and refuse to go on with other data", async () => {
    await withTemporaryDirectory(async (directory) => {
      const rows = [...scored(30, "a"), ...pairs(30, "b")];
      const config = {
        numEpochs: 3,
        batchSize: 8,
        warmupSteps: 2,
        saveSteps: 4,
        evalSteps: 5,
        bestMetric: "eval/loss",
        seed: 5,
      };
      const make = (name: string, trainData: FeatureRow[] = rows, seed = 1) =>
        new FeatureRewardTrainer({
          model: FeatureRewardModel.create({ inputDim: INPUTS, hiddenDim: 8, seed }),
          trainData,
          evalData: scored(10, "c"),
          config,
          outputDir: join(directory, name),
        });
      const whole = make("whole");
      for await (const _ of whole.steps());
      await whole.save();
      const abort = new AbortController();
      await assert.rejects(
        async () => {
          for await (const { step } of make("parted").steps({ signal: abort.signal }))
            if (step === 11) abort.abort();
        },
        { code: "ERR_RLHF_ABORTED", message: /after step 12 of 24/ },
      );
      await assert.rejects(make("parted", rows.slice(1)).train(), {
        code: "ERR_RLHF_CHECKPOINT",
        message: /data/,
      });
      await assert.rejects(make("parted", rows, 2).train(), {
        code: "ERR_RLHF_CHECKPOINT",
        message: /weights/,
      });
      const second = make("parted");
      const steps: number[] = [];
      for await (const { step } of second.steps()) steps.push(step);
      assert.equal(steps[0], 13);
      await second.save();
      const [expected, actual] = [
        await contentsOf(join(directory, "whole")),
        await contentsOf(join(directory, "parted")),
      ];
      assert.deepEqual([...actual.keys()], [...expected.keys()]);
      for (const file of [
        "best/best.json",
        "checkpoint-20/trainer.json",
        "checkpoint-24/state.safetensors",
        "final/config.json",
      ])
        assert.ok(expected.has(file), file);
      for (const [file, content] of actual) assert.ok(isDeepStrictEqual(content, expected.get(file)), file);
      assert.equal(readMetrics(join(directory, "parted", "metrics.jsonl")).length, 24);
    });
  });

  it("refuse settings, rows and files that are wrong, and say where", async () => {
    const row = { features: [1, 2, 3, 4], score: 1 };
    const make = (rows: unknown[], config: object = {}) =>
      new FeatureRewardTrainer({
        model: FeatureRewardModel.create({ inputDim: INPUTS }),
        trainData: rows as FeatureRow[],
        config,
      });
    const cases: [unknown[], object, string, RegExp][] = [
      [[row], { batchsize: 3 }, "ERR_RLHF_ARGUMENT", /did you mean "batchSize"/],
      [[row], { labelSmoothing: 0.5 }, "ERR_RLHF_ARGUMENT", /labelSmoothing/],
      [[], {}, "ERR_RLHF_DATA", /no rows/],
      [
        [row, { features: [1, 2, 3], score: 1 }],
        {},
        "ERR_RLHF_SHAPE",
        /trainData\[1\]\.features has 3 numbers.*4/,
      ],
      [
        [{ chosen: row.features, rejected: [1, 2, 3, Number.NaN] }],
        {},
        "ERR_RLHF_NON_FINITE",
        /trainData\[0\]\.rejected\[3\] is NaN/,
      ],
      [[{ chosen: row.features, rejected: [1, 2, 3, 1e39] }], {}, "ERR_RLHF_NON_FINITE", /1e\+39/],
      [[{ ...row, score: "3" }], {}, "ERR_RLHF_DATA", /trainData\[0\] has the score 3/],
      [[{ chosen: row.features }], {}, "ERR_RLHF_DATA", /trainData\[0\] must be/],
      [[{ chosen: row.features, rejected: row.features, margin: -1 }], {}, "ERR_RLHF_DATA", /margin -1/],
      [
        [{ chosen: row.features, rejected: row.features, margin: 1 }],
        { loss: "log-exp" },
        "ERR_RLHF_ARGUMENT",
        /knows no margins/,
      ],
    ];
    for (const [rows, config, code, message] of cases)
      assert.throws(() => make(rows, config), { code, message });
    const shapes: [object, RegExp][] = [
      [{}, /inputDim is required/],
      [{ inputDim: 0 }, /inputDim must be a positive integer/],
      [{ inputDim: 3, hidenDim: 4 }, /did you mean "hiddenDim"/],
      [{ inputDim: 3, activation: "step" }, /"relu"/],
    ];
    for (const [shape, message] of shapes)
      assert.throws(() => FeatureRewardModel.create(shape as { inputDim: number }), {
        code: "ERR_RLHF_ARGUMENT",
        message,
      });
    const model = FeatureRewardModel.create({ inputDim: INPUTS });
    await assert.rejects(model.predict([row.features, [1]]), {
      code: "ERR_RLHF_SHAPE",
      message: /features\[1\]/,
    });
    await withTemporaryDirectory(async (directory) => {
      await assert.rejects(FeatureRewardModel.load(directory), { code: "ERR_RLHF_MODEL" });
      await model.save(directory);
      const file = join(directory, "config.json");
      const saved = JSON.parse(readFileSync(file, "utf8"));
      for (const [changed, code, message] of [
        [{ hidden_dim: 63 }, "ERR_RLHF_WEIGHTS", /layers\.0\.weight.*\[64, 4\], expected F32 \[63, 4\]/],
        [{ num_layers: 1 }, "ERR_RLHF_WEIGHTS", /layers/],
        [{ input_dim: 2.5 }, "ERR_RLHF_MODEL", /input_dim must be a positive integer/],
        [{ feature_mean: [1] }, "ERR_RLHF_MODEL", /lists of 4 numbers/],
      ] as const) {
        writeFileSync(file, JSON.stringify({ ...saved, ...changed }));
        await assert.rejects(FeatureRewardModel.load(directory), { code, message });
      }
    });
  });
});
