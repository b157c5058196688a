import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import {
  type DiscreteEnvironment,
  EnvironmentPolicy,
  type EnvironmentPPOConfig,
  EnvironmentPPOTrainer,
  playEpisodes,
  readMetrics,
} from "../../lib/index.ts";
import { contentsOf } from "../resume/support.ts";
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
  evalEpisodes: 3,
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
        for await (const _ of trainer.steps());
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
    const [expected, actual] = [await contentsOf(whole), await contentsOf(parted)];
    for (const file of ["checkpoint-4/trainer.json", "checkpoint-4/state.safetensors", "metrics.jsonl"])
      assert.ok(isDeepStrictEqual(actual.get(file), expected.get(file)), file);
    assert.deepEqual(
      readMetrics(join(parted, "metrics.jsonl")).map(({ step }) => step),
      [1, 2, 3, 4],
    );
    const resumed = (config: EnvironmentPPOConfig, environment = () => new CartPole()) =>
      new EnvironmentPPOTrainer({ environment, config: { ...CONFIG, ...config }, outputDir: parted });
    await assert.rejects(resumed({ gamma: 0.5 }).train(), {
      code: "ERR_RLHF_CHECKPOINT",
      message: /gamma was 0\.99 and is 0\.5/,
    });
    const wide = () => Object.assign(new CartPole(), { observationSize: 5 });
    await assert.rejects(resumed({}, wide).train(), {
      code: "ERR_RLHF_CHECKPOINT",
      message: /observationSize was 4 and is 5/,
    });
    truncateSync(join(parted, "checkpoint-4", "state.safetensors"), 100);
    const third = make(parted);
    for await (const _ of third.steps());
    assert.deepEqual(third.policy.networks.parameters, second.policy.networks.parameters);
  });

  it("keeps the last checkpoints, the best policy and the final one, and evaluates as often as it is told", async () => {
    const config = {
      ...CONFIG,
      saveSteps: 1,
      saveTotalLimit: 2,
      evalSteps: 2,
      evalEpisodeSteps: 7,
      bestMetric: "eval/length",
    };
    const trainer = new EnvironmentPPOTrainer({
      environment: () => new CartPole(),
      config,
      outputDir: directory,
    });
    const notes: string[] = [];
    const progress = { update() {}, note: (text: string) => notes.push(text), finish() {} };
    const { steps, metrics } = await trainer.train({ progress });
    await trainer.save();
    assert.equal(steps, 4);
    assert.equal(metrics["eval/length"], 7, "cut off, and no pole falls in 7 steps");
    assert.deepEqual(readdirSync(directory).sort(), [
      "best",
      "checkpoint-3",
      "checkpoint-4",
      "final",
      "metrics.jsonl",
    ]);
    assert.equal(JSON.parse(readFileSync(join(directory, "best", "best.json"), "utf8")).step, 2);
    const evaluated = readMetrics(join(directory, "metrics.jsonl")).filter(
      (row) => "eval/return" in row.metrics,
    );
    assert.deepEqual(
      evaluated.map(({ step }) => step),
      [2, 4],
    );
    assert.ok(notes.some((note) => note.includes("checkpoint-3")));
    const best = await EnvironmentPolicy.load(join(directory, "best"));
    const [episode] = await playEpisodes(best, [new CartPole()], { maxSteps: 5 });
    assert.deepEqual(episode, { return: 5, length: 5 });
  });

  it("keeps the origin of observations where the first iteration put it, and follows their scale", async () => {
    const trainer = new EnvironmentPPOTrainer({ environment: () => new CartPole(), config: CONFIG });
    await trainer.trainStep();
    const first = trainer.policy.statistics?.state();
    await trainer.trainStep();
    const second = trainer.policy.statistics?.state();
    assert.deepEqual(second?.mean, first?.mean);
    assert.ok(first?.mean.every((value) => value !== 0));
    assert.notDeepEqual(second?.squares, first?.squares);
    assert.equal(second?.count, 240);
  });

  it("tries a step again that an environment made fail, as if nothing had been", async () => {
    const make = (environment: () => CartPole) => new EnvironmentPPOTrainer({ environment, config: CONFIG });
    const whole = make(() => new CartPole());
    let calls = 0;
    class Flaky extends CartPole {
      override step(action: number) {
        if (++calls === 200) throw new Error("the cart is stuck");
        return super.step(action);
      }
    }
    const flaky = make(() => new Flaky());
    await flaky.trainStep();
    await assert.rejects(flaky.trainStep(), /the cart is stuck/);
    for (const trainer of [whole, flaky]) while (trainer.step < 3) await trainer.trainStep();
    assert.deepEqual(flaky.policy.networks.parameters, whole.policy.networks.parameters);
    assert.deepEqual(flaky.policy.statistics?.state(), whole.policy.statistics?.state());
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
    await assert.rejects(EnvironmentPolicy.load(join(directory, "none")), { code: "ERR_RLHF_MODEL" });
    await assert.rejects(loaded.act([[1, 2]]), { code: "ERR_RLHF_SHAPE" });
    const file = join(directory, "config.json");
    const saved = JSON.parse(readFileSync(file, "utf8"));
    const damaged: [object, string, RegExp][] = [
      [
        { networks: { ...saved.networks, hidden: [8] } },
        "ERR_RLHF_WEIGHTS",
        /actor\.layers\.0\.weight.*\[9, 3\], expected F32 \[8, 3\]/,
      ],
      [{ networks: { ...saved.networks, hidden: [] } }, "ERR_RLHF_WEIGHTS", /layers/],
      [{ networks: { ...saved.networks, hidden: "9" } }, "ERR_RLHF_MODEL", /hidden, a list of widths/],
      [{ spaces: { ...saved.spaces, actionSize: 0 } }, "ERR_RLHF_MODEL", /positive sizes/],
      [
        { observations: { count: 3, held: true, mean: [1], squares: [1] } },
        "ERR_RLHF_MODEL",
        /mean and squares of 3/,
      ],
      [{ model_type: "llama" }, "ERR_RLHF_MODEL", /no policy/],
    ];
    for (const [changed, code, message] of damaged) {
      writeFileSync(file, JSON.stringify({ ...saved, ...changed }));
      await assert.rejects(EnvironmentPolicy.load(directory), { code, message });
    }
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
    assert.throws(() => make(() => undefined as unknown as DiscreteEnvironment), {
      code: "ERR_RLHF_ARGUMENT",
      message: /must give an object .* it gave undefined/,
    });
    assert.throws(() => make(() => ({ observationSize: 1 }) as DiscreteEnvironment), {
      code: "ERR_RLHF_ARGUMENT",
      message: /one without reset or step/,
    });
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
