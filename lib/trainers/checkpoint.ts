import { createHash } from "node:crypto";
import { mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { finishHash, hashSequence } from "../data/token-files.ts";
import { messageOf, RlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { readJsonIfPresent, syncDirectory, writeJson } from "../model/files.ts";
import type { Optimizer } from "../model/optimizer.ts";
import {
  readSafetensors,
  readTensor,
  type TensorEntry,
  type TensorSource,
  writeSafetensors,
} from "../model/safetensors.ts";

/** Parameters that are trained together, with their optimizer. */
export interface TrainedPart {
  /** Distinguishes the parts of one trainer: "policy", "value". */
  readonly name: string;
  readonly model: CausalLM;
  readonly optimizer: Optimizer;
}

/** Weights that change in a run without an optimizer, such as those of a reference that follows the policy. */
export interface KeptWeights {
  /** Distinguishes them from the trainer's parts. */
  readonly name: string;
  readonly model: CausalLM;
  /** Groups of the model's parameters: "base", "adapter:<name>". */
  readonly groups: readonly string[];
}

/** Tells whether a model is the one that a run began with. */
export interface ModelFingerprint {
  /** Where it was loaded from; null for one made from a configuration. */
  readonly directory: string | null;
  /** SHA-256 of configuration, parameters and what products are computed in. */
  readonly hash: string;
  /** What products are computed in; left out by checkpoints of before it was told. */
  readonly compute?: string;
}

/** What a checkpoint holds beside weights and moments. Everything random follows from the seed and these counters. */
export interface CheckpointState {
  readonly trainer: string;
  /** Steps done. */
  readonly step: number;
  readonly skippedUpdates: number;
  /** Settings that decide what is computed; a run can only go on with the same. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Hash of the training data. */
  readonly data: string;
  /** The models of the run, as they were before its first step. */
  readonly models: readonly ModelFingerprint[];
  /** What the algorithm keeps from step to step, as JSON can hold it. */
  readonly algorithm: object;
}

/** What a checkpoint holds as tensors, and how it gets back to where it came from. */
export interface CheckpointContents {
  /** Names and shapes decide whether a checkpoint fits. */
  readonly tensors: readonly TensorSource[];
  /** Updates that each optimizer made. */
  readonly optimizerSteps: Readonly<Record<string, number>>;
  restore(
    read: (name: string) => Promise<Float32Array>,
    optimizerSteps: Readonly<Record<string, number>>,
  ): Promise<void>;
}

interface Manifest extends CheckpointState {
  readonly version: 1;
  readonly optimizerSteps: Readonly<Record<string, number>>;
  readonly tensorBytes: number;
}

/** A whole checkpoint on disk. */
export interface Checkpoint {
  readonly directory: string;
  readonly state: CheckpointState;
}

const TENSORS = "state.safetensors";
const MANIFEST = "trainer.json";
const NAME = /^checkpoint-(\d+)$/;
const TEMPORARY_NAME = /^\.checkpoint-\d+\.tmp$/;

function weightsOf({ name: owner, model, groups }: KeptWeights): TensorSource[] {
  return model
    .parameters()
    .filter((parameter) => groups.includes(parameter.group))
    .map(({ name, shape }) => ({
      name: `${owner}/weight/${name}`,
      shape,
      read: () => model.readParameter(name),
    }));
}

function momentsOf(part: TrainedPart): TensorSource[] {
  return part.model
    .parameters()
    .filter((parameter) => part.optimizer.groups.includes(parameter.group))
    .flatMap(({ name, shape }) => [
      {
        name: `${part.name}/m/${name}`,
        shape,
        read: async () => (await part.optimizer.exportMoments(name)).m,
      },
      {
        name: `${part.name}/v/${name}`,
        shape,
        read: async () => (await part.optimizer.exportMoments(name)).v,
      },
    ]);
}

/** The loss scale and the steps since it changed, where the loss is scaled. */
function lossScaleOf({ name, optimizer }: TrainedPart): TensorSource[] {
  const { lossScale } = optimizer;
  if (!lossScale) return [];
  return [{ name: `${name}/lossScale`, shape: [2], read: async () => Float32Array.from(lossScale) }];
}

function tensorsOf(part: TrainedPart): TensorSource[] {
  const { name, model, optimizer } = part;
  return [...weightsOf({ name, model, groups: optimizer.groups }), ...momentsOf(part), ...lossScaleOf(part)];
}

/** Steps of the checkpoints in a directory, whole or not, ascending. */
async function checkpointSteps(outputDir: string): Promise<number[]> {
  const names = await readdir(outputDir).catch(() => []);
  return names
    .map((name) => NAME.exec(name)?.[1])
    .filter((step) => step !== undefined)
    .map(Number)
    .sort((a, b) => a - b);
}

/**
 * Removes what a killed run left, checkpoints of steps that this run has not reached (of an earlier run, that this one did not go
 * on from), and all but the newest `limit` of the others.
 */
export async function removeLeftovers(outputDir: string, step: number, limit: number): Promise<void> {
  const steps = await checkpointSteps(outputDir);
  const leftovers = (await readdir(outputDir)).filter((name) => TEMPORARY_NAME.test(name));
  const kept = steps.filter((other) => other <= step).slice(-limit);
  const surplus = steps.filter((other) => !kept.includes(other)).map((other) => `checkpoint-${other}`);
  for (const name of [...leftovers, ...surplus])
    await rm(join(outputDir, name), { recursive: true, force: true });
}

/**
 * Writes a checkpoint as `checkpoint-<step>`, removes later ones and all but the newest `limit`. The manifest is written last and the
 * directory renamed into place, so a run that is killed at any moment leaves whole checkpoints only. Throws ERR_RLHF_IO; the
 * checkpoints before this one then stay as they are.
 */
export async function saveCheckpoint(
  outputDir: string,
  state: CheckpointState,
  contents: CheckpointContents,
  limit: number,
): Promise<string> {
  const directory = join(outputDir, `checkpoint-${state.step}`);
  const temporary = join(outputDir, `.checkpoint-${state.step}.tmp`);
  try {
    await rm(temporary, { recursive: true, force: true });
    await mkdir(temporary, { recursive: true });
    await writeSafetensors(join(temporary, TENSORS), contents.tensors);
    const manifest: Manifest = {
      version: 1,
      ...state,
      optimizerSteps: contents.optimizerSteps,
      tensorBytes: (await stat(join(temporary, TENSORS))).size,
    };
    await writeJson(join(temporary, MANIFEST), manifest);
    await rm(directory, { recursive: true, force: true });
    await rename(temporary, directory);
    await syncDirectory(outputDir);
    await removeLeftovers(outputDir, state.step, limit);
    return directory;
  } catch (error) {
    // On a full disk the room is needed; the first error is the one to tell.
    await rm(temporary, { recursive: true, force: true }).catch(() => undefined);
    if (error instanceof RlhfError) throw error;
    throw new RlhfError(
      "ERR_RLHF_IO",
      `${directory}: the checkpoint cannot be written: ${messageOf(error)}`,
      { directory },
      { cause: error },
    );
  }
}

/** Whether a manifest has what going on from it takes; files can be damaged and still be JSON. */
function isManifest(manifest: Manifest): boolean {
  const { step, skippedUpdates, settings, optimizerSteps, algorithm } = manifest;
  return (
    [step, skippedUpdates].every((count) => Number.isSafeInteger(count) && count >= 0) &&
    [settings, optimizerSteps, algorithm].every((value) => typeof value === "object" && value !== null)
  );
}

async function readManifest(directory: string): Promise<Manifest | null> {
  try {
    const manifest = (await readJsonIfPresent(
      join(directory, MANIFEST),
      "ERR_RLHF_CHECKPOINT",
    )) as Manifest | null;
    if (manifest?.version !== 1 || !isManifest(manifest)) return null;
    const { size } = await stat(join(directory, TENSORS));
    if (size !== manifest.tensorBytes) return null;
    await readSafetensors(join(directory, TENSORS));
    return manifest;
  } catch {
    // Cut off or damaged: an earlier checkpoint has to do.
    return null;
  }
}

/** The newest whole checkpoint of a directory; null when there is none. */
export async function findCheckpoint(outputDir: string): Promise<Checkpoint | null> {
  for (const step of (await checkpointSteps(outputDir)).reverse()) {
    const directory = join(outputDir, `checkpoint-${step}`);
    const state = await readManifest(directory);
    if (state) return { directory, state };
  }
  return null;
}

/** Throws ERR_RLHF_CHECKPOINT unless a checkpoint holds all of these tensors in these shapes. */
function checkTensors(
  directory: string,
  entries: ReadonlyMap<string, TensorEntry>,
  expected: readonly TensorSource[],
): void {
  for (const { name, shape } of expected) {
    const found = entries.get(name)?.shape;
    if (found?.join() === shape.join()) continue;
    const problem = found
      ? `has tensor "${name}" of shape [${found.join(", ")}], this run's is [${shape.join(", ")}]`
      : `has no tensor "${name}"`;
    throw new RlhfError(
      "ERR_RLHF_CHECKPOINT",
      `${directory}: ${problem}; it is of another model. Load the model that the run began with, or use resume: false`,
      { directory, name },
    );
  }
}

/** Puts what a checkpoint holds back. Throws ERR_RLHF_CHECKPOINT, before anything is written, where it does not fit. */
export async function restoreCheckpoint(checkpoint: Checkpoint, contents: CheckpointContents): Promise<void> {
  const { entries } = await readSafetensors(join(checkpoint.directory, TENSORS));
  checkTensors(checkpoint.directory, entries, contents.tensors);
  const { optimizerSteps } = checkpoint.state as Manifest;
  await contents.restore((name) => readTensor(entries.get(name) as TensorEntry), optimizerSteps);
}

/** Weights, moments and step counts of models. */
export function modelContents(
  parts: readonly TrainedPart[],
  kept: readonly KeptWeights[],
): CheckpointContents {
  return {
    tensors: [...parts.flatMap(tensorsOf), ...kept.flatMap(weightsOf)],
    optimizerSteps: Object.fromEntries(parts.map((part) => [part.name, part.optimizer.stepCount])),
    async restore(read, optimizerSteps) {
      for (const { name: part, model, optimizer } of parts) {
        for (const name of optimizer.parameters) {
          await model.writeParameter(name, await read(`${part}/weight/${name}`));
          await optimizer.importMoments(name, {
            m: await read(`${part}/m/${name}`),
            v: await read(`${part}/v/${name}`),
          });
        }
        await optimizer.setStepCount(optimizerSteps[part] ?? 0);
        if (!optimizer.lossScale) continue;
        const [scale = 1, steps = 0] = await read(`${part}/lossScale`);
        await optimizer.setLossScale(scale, steps);
      }
      for (const { name: owner, model, groups } of kept) {
        for (const { name } of model.parameters().filter((parameter) => groups.includes(parameter.group)))
          await model.writeParameter(name, await read(`${owner}/weight/${name}`));
      }
    },
  };
}

/** Throws ERR_RLHF_CHECKPOINT, naming what differs, when a checkpoint is not of the run described by `current`. */
export function checkSameRun(checkpoint: Checkpoint, current: CheckpointState): void {
  const saved = checkpoint.state;
  const differences: string[] = [];
  if (saved.trainer !== current.trainer)
    differences.push(`it is of ${saved.trainer}, not of ${current.trainer}`);
  for (const name of new Set([...Object.keys(saved.settings), ...Object.keys(current.settings)])) {
    const [before, now] = [saved.settings[name], current.settings[name]].map((value) =>
      JSON.stringify(value),
    );
    if (before !== now) differences.push(`${name} was ${before} and is ${now}`);
  }
  if (saved.data !== current.data) differences.push("the training data is another");
  differences.push(...differingModels(saved.models ?? [], current.models));
  if (differences.length === 0) return;
  throw new RlhfError(
    "ERR_RLHF_CHECKPOINT",
    `${checkpoint.directory}: this run cannot go on from it: ${differences.join("; ")}. Use the same settings and models, another outputDir, or resume: false`,
    { directory: checkpoint.directory },
  );
}

function differingModels(saved: readonly ModelFingerprint[], current: readonly ModelFingerprint[]): string[] {
  if (saved.length !== current.length)
    return [`it is of ${saved.length} models, this run of ${current.length}`];
  return current.flatMap(({ directory, hash, compute }, i) => {
    if (hash === saved[i]?.hash) return [];
    const computed = saved[i]?.compute;
    if (computed !== undefined && computed !== compute) return [`compute was ${computed} and is ${compute}`];
    const [before, now] = [saved[i]?.directory, directory].map((path) => path ?? "made from a configuration");
    return [`a model (${now}) has other weights than the one that the run began with (${before})`];
  });
}

/** A hash of token sequences, which tells whether a checkpoint is of the same data. */
export function hashSequences(sequences: Iterable<Int32Array>): string {
  const hash = createHash("sha256");
  for (const tokens of sequences) hashSequence(hash, tokens);
  return finishHash(hash);
}
