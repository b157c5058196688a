import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type DiscreteEnvironment,
  EnvironmentPolicy,
  type EnvironmentPPOConfig,
  EnvironmentPPOTrainer,
  readMetrics,
} from "../../lib/index.ts";
import { CartPole, Pendulum } from "./tasks.ts";

const CONFIG: EnvironmentPPOConfig = {
  numIterations: 4,
  numEnvironments: 3,
  stepsPerIteration: 40,
  hidden: [9],
  numPpoEpochs: 2,
  entropyCoefficient: 0.01,
  valueClipRange: 0.2,
  saveSteps: 2,
};

/** A task that ends by time alone, after `limit` steps of reward 1, and tells nothing. */
class Waiting implements DiscreteEnvironment {
  readonly actionKind = "discrete";
  readonly observationSize = 1;
  readonly actionSize = 2;
  #time = 0;
  readonly #reward: number;
  readonly #limit: number;
  constructor(reward: number, limit: number) {
    this.#reward = reward;
    this.#limit = limit;
  }
  reset() {
    this.#time = 0;
    return [1];
  }
  async step() {
    return {
      observation: [1],
      reward: this.#reward,
      terminated: false,
      truncated: ++this.#time >= this.#limit,
    };
  }
}

describe("EnvironmentPPOTrainer", () => {
  let directory: string;
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), "rlhf-environment-"));
  });
  afterEach(() => rmSync(directory, { recursive: true, force: true }));

  for (const [name, environment] of [
    ["discrete", () => new CartPole()],
    ["continuous", () => new Pendulum()],
  ] as const) {
    it(`gives the same bits from the same seed, ${name}, on any number of threads`, async () => {
      const results = [];
      for (const [seed, threads] of [
        [1, 1],
        [1, 3],
        [2, 1],
      ] as const) {
        const trainer = new EnvironmentPPOTrainer({ environment, config: { ...CONFIG, seed }, threads });
        await trainer.train({ progress: { update() {}, note() {}, finish() {} } });
        results.push(trainer.policy.networks.parameters);
      }
      assert.deepEqual(results[0], results[1]);
      assert.notDeepEqual(results[0], results[2]);
      assert.ok(results[0]!.every(Number.isFinite));
    });
  }

  it("ends a resumed run in the same bytes", async () => {
    const [whole, parted] = [join(directory, "whole"), join(directory, "parted")];
    const make = (outputDir: string) =>
      new EnvironmentPPOTrainer({ environment: () => new CartPole(), config: CONFIG, outputDir });
    for await (const _ of make(whole).steps());
    const abort = new AbortController();
    await assert.rejects(
      async () => {
        for await (const { step } of make(parted).steps({ signal: abort.signal }))
          if (step === 2) abort.abort();
      },
      { code: "ERR_RLHF_ABORTED" },
    );
    const second = make(parted);
    for await (const _ of second.steps());
    const text = (outputDir: string) => readFileSync(join(outputDir, "checkpoint.json"), "utf8");
    assert.equal(text(whole), text(parted));
    assert.deepEqual(
      readMetrics(join(parted, "metrics.jsonl")).map(({ step }) => step),
      [1, 2, 3, 4],
    );
    await assert.rejects(
      new EnvironmentPPOTrainer({
        environment: () => new CartPole(),
        config: { ...CONFIG, gamma: 0.5 },
        outputDir: parted,
      }).train(),
      { code: "ERR_RLHF_CHECKPOINT", message: /gamma was 0\.99 and is 0\.5/ },
    );
    const broken = JSON.parse(text(parted)) as Record<string, unknown>;
    writeFileSync(join(parted, "checkpoint.json"), JSON.stringify({ ...broken, parameters: "AAAA" }));
    await assert.rejects(make(parted).train(), {
      code: "ERR_RLHF_CHECKPOINT",
      message: /parameters: holds 3 bytes/,
    });
  });

  it("saves a policy that acts as the trained one", async () => {
    const trainer = new EnvironmentPPOTrainer({ environment: () => new Pendulum(), config: CONFIG });
    await trainer.trainStep();
    await trainer.save(directory);
    const loaded = await EnvironmentPolicy.load(directory);
    const observations = [
      [1, 0, 0.5],
      [-0.6, 0.8, -3],
    ];
    assert.deepEqual(await loaded.act(observations), await trainer.policy.act(observations));
    await assert.rejects(EnvironmentPolicy.load(join(directory, "none")), { code: "ERR_RLHF_CHECKPOINT" });
    await assert.rejects(loaded.act([[1, 2]]), { code: "ERR_RLHF_SHAPE" });
  });

  it("values a state by what follows a truncation too", async () => {
    // Reward 1 at each step for ever is worth 1 / (1 − 0.5) = 2; four steps and nothing after them, at most 1.875 and 1.39 on average.
    const config = {
      gamma: 0.5,
      learningRate: 0.01,
      numIterations: 15,
      stepsPerIteration: 32,
      scaleRewards: false,
    };
    const trainer = new EnvironmentPPOTrainer({ environment: () => new Waiting(1, 4), config });
    for await (const _ of trainer.steps());
    using pass = await trainer.policy.networks.forward(trainer.policy.normalise([[1]]));
    assert.ok(Math.abs((pass.value[0] as number) - 2) < 0.1, `${pass.value[0]}`);
  });

  it("refuses settings, environments, observations and rewards that are wrong", async () => {
    const make = (environment: () => DiscreteEnvironment, config: EnvironmentPPOConfig = CONFIG) =>
      new EnvironmentPPOTrainer({ environment, config });
    assert.throws(() => make(() => new CartPole(), { gama: 0.9 } as EnvironmentPPOConfig), {
      code: "ERR_RLHF_ARGUMENT",
      message: /gamma/,
    });
    assert.throws(() => make(() => new CartPole(), { clipRange: -1 }), { code: "ERR_RLHF_ARGUMENT" });
    let made = 0;
    assert.throws(() => make(() => (made++ === 0 ? new CartPole() : new Waiting(1, 4))), {
      code: "ERR_RLHF_ARGUMENT",
      message: /environment\(1\)/,
    });
    await assert.rejects(make(() => new Waiting(Number.NaN, 4)).trainStep(), { code: "ERR_RLHF_REWARD" });
    const observing = (observation: number[]) =>
      Object.assign(new Waiting(1, 4), { reset: () => observation });
    await assert.rejects(make(() => observing([1, 2])).trainStep(), { code: "ERR_RLHF_SHAPE" });
    await assert.rejects(make(() => observing([Number.NaN])).trainStep(), { code: "ERR_RLHF_NON_FINITE" });
  });
});
