import assert from "node:assert/strict";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import {
  type DiscreteEnvironment,
  type Environment,
  EnvironmentPPOTrainer,
  FeatureRewardModel,
  FeatureRewardTrainer,
  playEpisodes,
  Random,
  withRewardModel,
} from "../../lib/index.ts";
import { contentsOf } from "../resume/support.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { Pendulum } from "./tasks.ts";

/** A walk on a line, 20 steps of 0.2 to the left or right; the nearer to 1, the better. Of itself it tells nothing, or the truth. */
class Walk implements DiscreteEnvironment {
  readonly actionKind = "discrete";
  readonly observationSize = 2;
  readonly actionSize = 2;
  readonly #tells: boolean;
  #at = { place: 0, time: 0 };

  constructor(tells: boolean) {
    this.#tells = tells;
  }
  reset(seed: number) {
    this.#at = { place: 4 * new Random(seed, "walk").uniform() - 2, time: 0 };
    return this.#seen();
  }
  step(action: number) {
    const place = this.#at.place + (action === 1 ? 0.2 : -0.2);
    this.#at = { place, time: this.#at.time + 1 };
    const reward = this.#tells ? -Math.abs(place - 1) : 0;
    return { observation: this.#seen(), reward, terminated: false, truncated: this.#at.time === 20 };
  }
  #seen(): number[] {
    return [this.#at.place, this.#at.time / 20];
  }
  state() {
    return this.#at;
  }
  restore(state: unknown) {
    this.#at = state as { place: number; time: number };
  }
}

/** A model that has seen which of two places is nearer to 1. */
async function preferring(): Promise<FeatureRewardModel> {
  const random = new Random(1, "places");
  const place = (): number => 8 * random.uniform() - 4;
  const trainData = Array.from({ length: 600 }, () => {
    const [a, b] = [place(), place()];
    const [chosen, rejected] = Math.abs(a - 1) < Math.abs(b - 1) ? [a, b] : [b, a];
    return { chosen: [chosen], rejected: [rejected] };
  });
  const model = FeatureRewardModel.create({ inputDim: 1, hiddenDim: 16 });
  const config = { learningRate: 5e-3, weightDecay: 0.01 };
  for await (const _ of new FeatureRewardTrainer({ model, trainData, config }).steps());
  return model;
}

describe("environments with a learned reward", () => {
  let model: FeatureRewardModel;
  before(async () => {
    model = await preferring();
  });
  const walk = (): Environment =>
    withRewardModel(new Walk(false), model, ({ step }) => [step.observation[0]!]);

  it("teach a policy what the preferences meant", async () => {
    const config = {
      numIterations: 12,
      numEnvironments: 4,
      stepsPerIteration: 60,
      hidden: [16],
      learningRate: 3e-3,
    };
    const trainer = new EnvironmentPPOTrainer({ environment: walk, config });
    const truly = async (): Promise<number> => {
      const environments = Array.from({ length: 30 }, () => new Walk(true));
      const episodes = await playEpisodes(trainer.policy, environments);
      return episodes.reduce((sum, episode) => sum + episode.return, 0) / 30;
    };
    const before = await truly();
    for await (const _ of trainer.steps());
    const after = await truly();
    // Who walks straight to 1 and stays within a step of it loses 9 on average, who always walks one way over 40.
    assert.ok(before < -25 && after > -14, `${before} ${after}`);
  });

  it("are gone on with exactly where their environments are", async () => {
    await withTemporaryDirectory(async (directory) => {
      const config = {
        numIterations: 4,
        numEnvironments: 2,
        stepsPerIteration: 30,
        hidden: [4],
        saveSteps: 2,
      };
      const make = (name: string) =>
        new EnvironmentPPOTrainer({ environment: walk, config, outputDir: join(directory, name) });
      for await (const _ of make("whole").steps());
      for await (const { step } of make("parted").steps()) if (step === 2) break;
      for await (const _ of make("parted").steps());
      const [whole, parted] = [
        await contentsOf(join(directory, "whole")),
        await contentsOf(join(directory, "parted")),
      ];
      assert.ok(whole.has("checkpoint-4/state.safetensors"));
      for (const [file, content] of parted) assert.ok(isDeepStrictEqual(content, whole.get(file)), file);
    });
  });

  it("show the model the step, and its rewards to the policy", async () => {
    const wide = FeatureRewardModel.create({ inputDim: 7, hiddenDim: 3, numLayers: 1 });
    const seen: number[][] = [];
    const environment = withRewardModel(new Pendulum(), wide, ({ observation, action, step }) => {
      seen.push([...Array.from(observation), ...(action as Float32Array), ...Array.from(step.observation)]);
      return seen.at(-1)!;
    });
    assert.equal(environment.state, undefined, "what cannot be restored says so");
    const first = Array.from(await environment.reset(3));
    const step = await environment.step(Float32Array.of(0.5) as never);
    await environment.step(Float32Array.of(-0.5) as never);
    assert.deepEqual(seen[0]?.slice(0, 4), [...first, 0.5]);
    assert.deepEqual(seen[1]?.slice(0, 3), Array.from(step.observation));
    assert.equal(step.reward, (await wide.predict([seen[0]!]))[0]);
    assert.throws(() => withRewardModel(new Pendulum(), wide), {
      code: "ERR_RLHF_ARGUMENT",
      message: /vectors of 7 numbers, observations have 3/,
    });
    const fitting = FeatureRewardModel.create({ inputDim: 3 });
    const plain = withRewardModel(new Pendulum(), fitting);
    await plain.reset(3);
    const { reward, observation } = await plain.step(Float32Array.of(0.5) as never);
    assert.equal(reward, (await fitting.predict([observation]))[0]);
  });
});
