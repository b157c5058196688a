/**
 * One training run in a process of its own: `child.ts <sft|dpo|ppo|environment> <outputDir>`. Standard output tells, line by line, each step
 * and each call that changes files before it is made ("event …"), and each rollout. With KILL_AT=n the process sends itself
 * SIGKILL in place of the n-th event.
 */
import { promises, writeSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { DPOTrainer, EnvironmentPPOTrainer, isRlhfError, PPOTrainer, SFTTrainer } from "../../lib/index.ts";
import { CartPole } from "../environment/tasks.ts";
import { HELD_OUT, TRAIN } from "../trainers/preference-support.ts";
import { prompts, sftRows, tinyModel, tinyTokenizer } from "../trainers/support.ts";

const [algorithm, outputDir = ""] = process.argv.slice(2);
const killAt = Number(process.env.KILL_AT ?? Number.POSITIVE_INFINITY);
let events = 0;

function event(what: string): void {
  if (++events >= killAt) process.kill(process.pid, "SIGKILL");
  writeSync(1, `event ${what}\n`);
}

/** Announces every call of a function of fs/promises, also where modules have imported it by name. */
function announce(name: "mkdir" | "open" | "rename" | "rm"): void {
  const original = promises[name] as (...args: unknown[]) => Promise<unknown>;
  Object.assign(promises, {
    [name]: async (...args: unknown[]) => {
      event(`${name} ${args[0]}`);
      const result = await original(...args);
      if (name === "open" && args[1] === "w") announceWrites(result as promises.FileHandle, String(args[0]));
      return result;
    },
  });
}

function announceWrites(file: promises.FileHandle, path: string): void {
  const write = file.writeFile.bind(file);
  file.writeFile = async (...args) => {
    event(`write ${path}`);
    await write(...args);
  };
}

for (const name of ["mkdir", "open", "rename", "rm"] as const) announce(name);
syncBuiltinESMExports();

const COMMON = {
  learningRate: 1e-2,
  batchSize: 4,
  warmupSteps: 2,
  schedule: "cosine" as const,
  saveSteps: 2,
  evalSteps: 3,
  // SFT keeps none: what it cannot write on a full disk is a checkpoint.
  bestMetric: { dpo: "eval/loss", ppo: "eval/objective/scores", environment: "eval/return" }[
    algorithm as string
  ],
  seed: 3,
};
const tokenizer = tinyTokenizer();
const lora = { r: 4, targetModules: "all-linear" as const };

async function makeTrainer(): Promise<SFTTrainer | DPOTrainer | PPOTrainer | EnvironmentPPOTrainer> {
  const options = { tokenizer, outputDir };
  if (algorithm === "environment") {
    const { batchSize: _, ...common } = COMMON;
    const config = {
      ...common,
      hidden: [8],
      numEnvironments: 2,
      stepsPerIteration: 20,
      numIterations: 12,
      evalEpisodes: 2,
    };
    return new EnvironmentPPOTrainer({ environment: () => new CartPole(), config, outputDir });
  }
  if (algorithm === "sft") {
    // Dropout draws random numbers in every step.
    const config = { ...COMMON, maxSteps: 12, lora: { ...lora, dropout: 0.2 } };
    const [trainData, evalData] = [sftRows.slice(4), sftRows.slice(0, 4)];
    return new SFTTrainer({
      ...options,
      model: await tinyModel(tokenizer, "none"),
      trainData,
      evalData,
      config,
    });
  }
  const model = await tinyModel(tokenizer);
  if (algorithm === "dpo") {
    const config = { ...COMMON, maxSteps: 12, syncRefModel: true, refModelSyncSteps: 3 };
    return new DPOTrainer({ ...options, model, trainData: TRAIN, evalData: HELD_OUT, config });
  }
  const reward = (prompt: string, response: string): number => {
    writeSync(1, `rollout ${JSON.stringify([phase, trainer.step, prompt, response])}\n`);
    return (response.match(/[aeiou]/g) ?? []).length / 3;
  };
  const trainer = new PPOTrainer({
    ...options,
    model,
    reward,
    prompts,
    evalPrompts: prompts.slice(0, 2),
    config: {
      ...COMMON,
      maxNewTokens: 6,
      numPpoEpochs: 2,
      numMinibatches: 2,
      numIterations: 8,
      valueModel: "separate",
      klTarget: 0.02,
      klHorizon: 20,
    },
  });
  const evaluate = trainer.evaluate.bind(trainer);
  let phase = "training";
  trainer.evaluate = async () => {
    phase = "evaluation";
    const metrics = await evaluate();
    phase = "training";
    return metrics;
  };
  return trainer;
}

try {
  using trainer = await makeTrainer();
  for await (const { step } of trainer.steps()) event(`step ${step}`);
  await trainer.save(join(outputDir, "final"));
  writeSync(1, "done\n");
} catch (error) {
  if (!isRlhfError(error)) throw error;
  writeSync(1, `error ${JSON.stringify({ code: error.code, message: error.message })}\n`);
  process.exitCode = 3;
}
