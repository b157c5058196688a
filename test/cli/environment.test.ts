import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Engine, EnvironmentPolicy, EnvironmentPPOTrainer, readMetrics } from "../../lib/index.ts";
import { temporaryDirectory, writeText } from "../data/support.ts";
import { CartPole } from "../environment/tasks.ts";
import { runCommand, runHere, startCommand } from "./support.ts";

/**
 * Guess which of two numbers is shown: ten guesses, a point for each right one. A timer is left behind, as the connection to a
 * simulator might be: commands end all the same.
 */
const GUESSING = `
setInterval(() => {}, 1000);
export default () => {
  let [shown, time, state] = [0, 0, 0];
  const show = () => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    shown = state > 2 ** 30 ? 1 : -1;
    return [shown, 1];
  };
  return {
    actionKind: "discrete",
    observationSize: 2,
    actionSize: 2,
    reset(seed) {
      [time, state] = [0, seed];
      return show();
    },
    step(action) {
      const reward = (action === 1) === (shown === 1) ? 1 : 0;
      time++;
      return { observation: show(), reward, terminated: time === 10, truncated: false };
    },
    state: () => [shown, time, state],
    restore: (saved) => {
      [shown, time, state] = saved;
    },
  };
};
`;

describe("command line: environment-ppo", () => {
  const directory = temporaryDirectory();
  const path = (name: string): string => join(directory, name);
  const settings = (name: string, keys = "", module = "guessing.mjs"): string =>
    writeText(
      directory,
      `${name}.yaml`,
      `environment_module: ${module}\noutput_dir: ${name}\nnum_iterations: 12\nnum_environments: 4\nsteps_per_iteration: 40\nlearning_rate: 1.0e-2\nhidden: [8]\neval_episodes: 10\n${keys}`,
    );
  before(() => void writeText(directory, "guessing.mjs", GUESSING));

  it("is trained to its end when nobody reads what the module prints", async () => {
    writeText(
      directory,
      "talking.mjs",
      `console.log("begins");\n${GUESSING.replace("time++;", "time++; console.log(time);")}`,
    );
    const words = ["environment-ppo", "--config", settings("unheard", "", "talking.mjs")];
    const { code, stderr } = await startCommand(words, false).ended;
    assert.equal(code, 0, stderr);
    assert.match(stderr, /done in/);
    assert.equal(readMetrics(path("unheard/metrics.jsonl")).length, 12);
  });

  it("learns the task of a module, saves the policy, and is not run again", async () => {
    const words = ["environment-ppo", "--config", settings("learnt", "save_steps: 6\n"), "--seed", "3"];
    const { code, stderr } = await runCommand(...words);
    assert.equal(code, 0, stderr);
    const [, before, after] = /eval\/return before ([\d.]+), eval\/return after ([\d.]+)/.exec(stderr) ?? [];
    assert.ok(Number(before) < 9 && Number(after) === 10, stderr);
    const policy = await EnvironmentPolicy.load(path("learnt"));
    assert.deepEqual(
      (
        await policy.act([
          [1, 1],
          [-1, 1],
        ])
      ).map((action) => [...action]),
      [[1], [0]],
    );
    assert.ok(existsSync(path("learnt/checkpoint-12/trainer.json")));
    assert.equal(readMetrics(path("learnt/metrics.jsonl")).length, 12);
    // The same stage of a pipeline is the same stage.
    const stage = readFileSync(path("learnt.yaml"), "utf8");
    const pipeline = `seed: 3\nstages:\n  - environment-ppo:\n${stage.replace(/^(?=.)/gm, "      ")}`;
    const again = await runCommand("run", writeText(directory, "pipeline.yaml", pipeline));
    assert.equal(again.code, 0, again.stderr);
    assert.match(again.stderr, /environment-ppo: complete in .*skipped/);
  });

  it("saves where Ctrl-C stops it, and goes on from there", async () => {
    const words = [
      "environment-ppo",
      "--config",
      settings("stopped", "num_ppo_epochs: 150\nsave_steps: 1\n"),
    ];
    const running = startCommand([...words, "--force", "--hidden", "[8]"]);
    await running.said("checkpoint-2");
    running.interrupt();
    const { code, stderr } = await running.ended;
    assert.equal(code, 130, stderr);
    // Copied into a shell, the command is the same one; with --force it would begin anew.
    const { groups } = /was interrupted; .*To go on, run "(?<command>.*)" again \[/s.exec(stderr) ?? {};
    assert.equal(groups?.command, `node-rlhf ${words.join(" ")} --hidden '[8]'`);
    const { length } = readMetrics(path("stopped/metrics.jsonl"));
    assert.ok(length >= 2 && length < 12, `${length}`);
    assert.ok(existsSync(path(`stopped/checkpoint-${length}/state.safetensors`)));
    assert.ok(!existsSync(path("stopped/model.safetensors")));
    const second = await runCommand(...words);
    assert.equal(second.code, 0, second.stderr);
    assert.match(second.stderr, /going on in/);
    assert.ok(!second.stderr.includes(`checkpoint-${length}\n`), second.stderr);
    const steps = readMetrics(path("stopped/metrics.jsonl")).map(({ step }) => step);
    assert.deepEqual(
      steps,
      Array.from({ length: 12 }, (_, i) => i + 1),
    );
    assert.ok(existsSync(path("stopped/model.safetensors")));
  });

  it("--estimate says what the run takes at most, plays nothing, and no run takes more", async () => {
    const words = ["environment-ppo", "--config", settings("estimated"), "--estimate"];
    const { code, stdout } = await runCommand(...words);
    assert.equal(code, 0);
    for (const use of ["weights", "optimizer", "scratch", "arrays", "total", "budget"])
      assert.match(stdout, new RegExp(`^${use} +[\\d.]+ \\w+$`, "m"));
    assert.ok(!existsSync(path("estimated")));
    const environment = (): CartPole => new CartPole();
    const config = { numIterations: 2, stepsPerIteration: 64, hidden: [8] };
    using trainer = new EnvironmentPPOTrainer({ environment, config, threads: 7 });
    const { bytes } = await trainer.estimateMemory();
    for await (const _ of trainer.steps());
    await trainer.evaluate();
    const { peak } = Engine.shared({ threads: 7 }).memory();
    assert.ok(bytes.scratch >= peak.scratch && bytes.arrays >= peak.arrays, JSON.stringify([bytes, peak]));
    assert.ok(
      bytes.scratch < 2 * peak.scratch && bytes.arrays < 8 * peak.arrays,
      JSON.stringify([bytes, peak]),
    );
    // Two networks 4 → 8 → 2 and 1.
    assert.equal(bytes.weights, 4 * (4 * 8 + 8 + 8 * 2 + 2 + 4 * 8 + 8 + 8 + 1));
  });

  it("names a module, key or flag that is wrong before anything is done", async () => {
    writeText(directory, "nothing.mjs", "export const environment = 1;\n");
    writeText(directory, "number.mjs", "export default () => 5;\n");
    const cases: [string, string, string[], number, RegExp][] = [
      ["", "nothing.mjs", [], 2, /nothing\.mjs: .*default export \(index\) => Environment/],
      ["", "missing.mjs", [], 1, /environment_module: .*missing\.mjs: there is no such file/],
      ["", "number.mjs", [], 1, /must give an object .* it gave 5/],
      ["num_enviroments: 3\n", "guessing.mjs", [], 2, /did you mean "num_environments"/],
      ["batch_size: 3\n", "guessing.mjs", [], 2, /unknown key "batch_size"/],
      ["", "guessing.mjs", ["--clip-range", "0"], 2, /--clip-range/],
    ];
    for (const [keys, module, flags, expected, message] of cases) {
      const words = ["environment-ppo", "--config", settings("wrong", keys, module), ...flags];
      const { code, stderr } = await runHere(...words);
      assert.match(stderr, message);
      assert.equal(code, expected, stderr);
    }
    const { code, stderr } = await runHere("environment-ppo", "--output-dir", path("wrong"));
    assert.match(stderr, /environment-module: is required/);
    assert.equal(code, 2);
    assert.ok(!existsSync(path("wrong/metrics.jsonl")));
  });
});
