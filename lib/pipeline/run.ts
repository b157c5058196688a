import { chooseDevice } from "../engine/device.ts";
import { Engine } from "../engine/engine.ts";
import { toMemoryBudget } from "../engine/memory.ts";
import { isRlhfError, RlhfError } from "../errors.ts";
import type { MemoryEstimate } from "../model/estimate-memory.ts";
import { formatDuration, formatNumber } from "../monitor/format.ts";
import { RunLock } from "../trainers/run-lock.ts";
import { checkInputs, checkOutputs } from "./check-paths.ts";
import { runEnvironmentPpoStage } from "./environment-stage.ts";
import { runEvaluateStage } from "./evaluation-stage.ts";
import { runFeatureRewardStage } from "./feature-reward-stage.ts";
import { hashOfValue } from "./fingerprint.ts";
import { withLocalPaths } from "./hub-paths.ts";
import { runInitStage } from "./init-stage.ts";
import { markBegun, markComplete, type StageSummary, stageKey, stageState } from "./manifest.ts";
import { runGrpoStage, runPpoStage, runReinforcePlusPlusStage, runRlooStage } from "./online-stages.ts";
import { runCpoStage, runDpoStage, runKtoStage, runOrpoStage, runSimpoStage } from "./preference-stages.ts";
import { runRewardStage } from "./reward-stage.ts";
import type { EstimatedStage, SftStage, Stage, StageKind } from "./schema.ts";
import { runSftStage } from "./sft-stage.ts";
import { StageEstimated } from "./train.ts";

/** What a stage is run with beside its settings. */
export interface StageContext {
  readonly signal: AbortSignal | undefined;
  /** Hash of all that the stage is computed from. */
  readonly key: string;
  /** Whether the checkpoints in the output directory are of this very stage. */
  readonly resume: boolean;
  /** Tells the user one line. */
  readonly log: (text: string) => void;
  /** Runs a part of the stage as one of its own, in a directory within its output directory. */
  readonly runStage: (part: Stage, name: string) => Promise<StageResult>;
  /** True: the stage goes as far as its trainer and throws StageEstimated. */
  readonly estimates?: boolean;
}

export interface RunOptions {
  readonly signal?: AbortSignal;
  /** Runs stages also when their results are complete. */
  readonly force?: boolean;
  /** The command that goes on after an interruption, for the message. */
  readonly again?: string;
  readonly log?: (text: string) => void;
}

export interface StageResult {
  readonly kind: StageKind;
  readonly outputDir: string;
  /** True when the results were complete already. */
  readonly skipped: boolean;
  readonly summary: StageSummary;
}

/** The memory that a stage would take, and what it may. */
export interface StageEstimate extends MemoryEstimate {
  readonly budget: number;
}

/**
 * The memory that a stage would take, by use: its models, data and trainer are set up on an engine that only counts, and nothing is
 * trained or written. A stage of several parts needs as much as the first of them. A reward model that could share the policy's
 * weights counts as one of its own.
 */
export async function estimateStage(given: EstimatedStage): Promise<StageEstimate> {
  const estimates = async (part: Stage): Promise<never> => {
    await runStage(part, {
      signal: undefined,
      key: "",
      resume: false,
      log: () => {},
      runStage: estimates,
      estimates: true,
    });
    throw new RlhfError("ERR_RLHF_INTERNAL", `${part.kind}: the stage ended before its memory was estimated`);
  };
  const stage = await withLocalPaths(given, () => {}, undefined);
  const { device, compute, memory_budget }: Pick<SftStage, "device" | "compute" | "memory_budget"> =
    stage.settings;
  return Engine.whilePlanning({ device, compute }, async (engine) => {
    const budget = memory_budget === undefined ? engine.defaultMemoryBudget() : toMemoryBudget(memory_budget);
    return await estimates(stage).catch((error: unknown) => {
      if (error instanceof StageEstimated) return { ...error.estimate, budget };
      throw error;
    });
  });
}

function runStage(stage: Stage, context: StageContext): Promise<StageSummary> {
  switch (stage.kind) {
    case "init":
      return runInitStage(stage.settings, context);
    case "sft":
      return runSftStage(stage.settings, context);
    case "reward":
      return runRewardStage(stage.settings, context);
    case "ppo":
      return runPpoStage(stage.settings, context);
    case "grpo":
      return runGrpoStage(stage.settings, context);
    case "rloo":
      return runRlooStage(stage.settings, context);
    case "reinforce-plus-plus":
      return runReinforcePlusPlusStage(stage.settings, context);
    case "dpo":
      return runDpoStage(stage.settings, context);
    case "kto":
      return runKtoStage(stage.settings, context);
    case "orpo":
      return runOrpoStage(stage.settings, context);
    case "cpo":
      return runCpoStage(stage.settings, context);
    case "simpo":
      return runSimpoStage(stage.settings, context);
    case "feature-reward":
      return runFeatureRewardStage(stage.settings, context);
    case "environment-ppo":
      return runEnvironmentPpoStage(stage.settings, context);
    case "evaluate":
      return runEvaluateStage(stage.settings, context);
  }
}

/** ": name value, …", or nothing. */
function describeSummary(summary: StageSummary): string {
  const parts = Object.entries(summary).map(([name, value]) => `${name} ${formatNumber(value)}`);
  return parts.length === 0 ? "" : `: ${parts.join(", ")}`;
}

/** An interruption, with how to go on. */
function interrupted(error: unknown, stage: Stage, again: string | undefined): unknown {
  if (!isRlhfError(error) || error.code !== "ERR_RLHF_ABORTED") return error;
  const how = again === undefined ? "run it again" : `run "${again}" again`;
  const message = `${stage.kind} was interrupted; what was reached is in ${stage.settings.output_dir}. To go on, ${how}`;
  return new RlhfError(
    "ERR_RLHF_ABORTED",
    message,
    { outputDir: stage.settings.output_dir },
    { cause: error },
  );
}

/** Where a stage with a choice of device computes, and why. */
function placeOf({ settings }: Stage): string {
  if (!("device" in settings)) return "";
  const { device, reason } = chooseDevice(settings.device);
  return `, on ${device} (${reason})`;
}

/** Runs one stage, unless its results are complete. */
async function runIfNeeded(stage: Stage, name: string, options: RunOptions): Promise<StageResult> {
  const { signal, log = logToConsole } = options;
  const outputDir = stage.settings.output_dir;
  const key = await stageKey(stage);
  const { state, summary } = await stageState(outputDir, key);
  if (state === "complete" && !options.force) {
    log(`${name}: complete in ${outputDir}, skipped`);
    return { kind: stage.kind, outputDir, skipped: true, summary };
  }
  using _lock = RunLock.acquire(outputDir);
  const resume = state === "begun" && !options.force;
  log(`${name}: ${resume ? "going on in" : "writing to"} ${outputDir}${placeOf(stage)}`);
  const began = performance.now();
  const removed = await markBegun(outputDir, key, !resume);
  if (removed.length > 0) log(`  removed ${removed.join(", ")}: of a run with other settings or inputs`);
  const runPart = (part: Stage, partName: string): Promise<StageResult> =>
    runIfNeeded(part, partName, options);
  const achieved = await runStage(stage, { signal, key: hashOfValue(key), resume, log, runStage: runPart });
  await markComplete(outputDir, key, achieved);
  log(`${name}: done in ${formatDuration((performance.now() - began) / 1000)}${describeSummary(achieved)}`);
  return { kind: stage.kind, outputDir, skipped: false, summary: achieved };
}

function logToConsole(text: string): void {
  process.stderr.write(`${text}\n`);
}

/**
 * Runs stages in order. A stage whose results are complete for the same settings and inputs is skipped; one that was cut off
 * goes on from its last checkpoint. Throws, before any of them runs, ERR_RLHF_CONFIG when a stage would write over what another one
 * made or reads, or reads what a later one makes, and ERR_RLHF_IO for an input that is not there; later ERR_RLHF_ABORTED, after a
 * checkpoint, when the signal is raised. Throws ERR_RLHF_LOCKED when another process is running a stage in
 * the same directory.
 */
export async function runPipeline(
  stages: readonly Stage[],
  options: RunOptions = {},
): Promise<StageResult[]> {
  const results: StageResult[] = [];
  checkOutputs(stages);
  checkInputs(stages);
  const log = options.log ?? logToConsole;
  for (const [index, given] of stages.entries()) {
    const name = `[${index + 1}/${stages.length}] ${given.kind}`;
    const stage = await withLocalPaths(given, (file) => log(`  downloading ${file}`), options.signal);
    try {
      results.push(await runIfNeeded(stage, name, options));
    } catch (error) {
      throw interrupted(error, stage, options.again);
    }
  }
  return results;
}
