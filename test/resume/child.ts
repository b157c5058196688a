/**
 * One training run in a process of its own: `child.ts <sft|dpo|ppo|grpo|environment> <outputDir>`. Standard output tells, line by line, each step
 * and each call that changes files before it is made ("event …"), and each rollout. With KILL_AT=n the process sends itself
 * SIGKILL in place of the n-th event.
 */
import { promises, writeSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import {
  type CausalLM,
  DPOTrainer,
  EnvironmentPPOTrainer,
  GRPOTrainer,
  isRlhfError,
  PPOTrainer,
  SFTTrainer,
} from "../../lib/index.ts";
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
  bestMetric: {
    dpo: "eval/loss",
    ppo: "eval/objective/scores",
    grpo: "eval/objective/scores",
    environment: "eval/return",
  }[algorithm as string],
  seed: 3,
};
const tokenizer = tinyTokenizer();
const lora = { r: 4, targetModules: "all-linear" as const };

const ROLLOUTS = { ...COMMON, maxNewTokens: 6, numMinibatches: 2, numIterations: 8 };

/** Tells every rollout that a trainer makes, and whether it is training's or an evaluation's. */
function telling<Online extends PPOTrainer | GRPOTrainer>(
  make: (options: {
    tokenizer: typeof tokenizer;
    outputDir: string;
    prompts: string[];
    evalPrompts: string[];
    reward: (prompt: string, response: string) => number;
  }) => Online,
): Online {
  let phase = "training";
  const trainer = make({
    tokenizer,
    outputDir,
    prompts,
    evalPrompts: prompts.slice(0, 2),
    reward(prompt, response) {
      writeSync(1, `rollout ${JSON.stringify([phase, trainer.step, prompt, response])}\n`);
      return (response.match(/[aeiou]/g) ?? []).length / 3;
    },
  });
  const evaluate = trainer.evaluate.bind(trainer);
  trainer.evaluate = async () => {
    phase = "evaluation";
    const metrics = await evaluate();
    phase = "training";
    return metrics;
  };
  return trainer;
}

/** A frozen model with an adapter that has been trained, which a run goes on from: its reference is a copy of that. */
async function modelWithAdapter(): Promise<CausalLM> {
  const model = await tinyModel(tokenizer, "none");
  model.addAdapter("policy", { ...lora, alpha: 8 });
  for (const { name, shape } of model.parameters().filter(({ name }) => name.endsWith("lora_B"))) {
    const size = shape.reduce((product, extent) => product * extent, 1);
    await model.writeParameter(
      name,
      Float32Array.from({ length: size }, (_, i) => 0.05 * Math.sin(i)),
    );
  }
  return model;
}

async function makeTrainer(): Promise<
  SFTTrainer | DPOTrainer | PPOTrainer | GRPOTrainer | EnvironmentPPOTrainer
> {
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
  if (algorithm === "grpo") {
    const model = await modelWithAdapter();
    const kl = { klCoefficient: 0.05, klLossCoefficient: 0.1 };
    const config = { ...ROLLOUTS, ...kl, groupSize: 2, shapeRewards: true };
    return telling((online) => new GRPOTrainer({ ...online, model, config }));
  }
  const model = await tinyModel(tokenizer);
  if (algorithm === "dpo") {
    const config = { ...COMMON, maxSteps: 12, syncRefModel: true, refModelSyncSteps: 3 };
    return new DPOTrainer({ ...options, model, trainData: TRAIN, evalData: HELD_OUT, config });
  }
  const kl = { klTarget: 0.02, klHorizon: 20 };
  const config = { ...ROLLOUTS, ...kl, numPpoEpochs: 2, valueModel: "separate" as const };
  return telling((online) => new PPOTrainer({ ...online, model, config }));
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
