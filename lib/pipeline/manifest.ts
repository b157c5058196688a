import { readdir, readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { writeJson } from "../model/files.ts";
import { isMember } from "../rewards/ensemble-files.ts";
import { FREE_SETTINGS } from "../trainers/training-loop.ts";
import { fingerprint, hashOfValue, RUN_FILES } from "./fingerprint.ts";
import { type PathSetting, pathKeys, pathsOf } from "./paths.ts";
import { camelCase, type Stage, type StageKind } from "./schema.ts";

const MANIFEST = "stage.json";

/** Directories that trainers write checkpoints and the best model to, in the output directory of their stage. */
const CHECKPOINT = /^(?:checkpoint-\d+|best)$/;

/** Numbers that tell what a stage achieved, e.g. {"eval/loss before": 5.1, "eval/loss after": 2.3}. */
export type StageSummary = Readonly<Record<string, number>>;

/** What a stage is computed from. Two stages with equal keys give the same result. */
export interface StageKey {
  readonly stage: StageKind;
  /** Hash of the settings; paths count by what they hold, under `inputs`. */
  readonly settings: string;
  /** Hash of what each input path holds, by key. */
  readonly inputs: Readonly<Record<string, string>>;
}

/** The file that marks a stage's output directory as begun or complete. */
export interface StageManifest {
  readonly version: 1;
  readonly key: StageKey;
  readonly complete: boolean;
  /** Bytes of each file of the result, so that a deleted or cut-off file is noticed. */
  readonly outputs: Readonly<Record<string, number>>;
  readonly summary: StageSummary;
}

export type StageState = "new" | "begun" | "complete";

/** Hashes a stage's inputs, and those settings that decide its result. */
export async function stageKey(stage: Stage): Promise<StageKey> {
  const settings: Record<string, unknown> = {};
  const inputs: Record<string, string> = {};
  for (const [key, value] of Object.entries(stage.settings)) {
    if (FREE_SETTINGS.has(camelCase(key))) continue;
    if (!pathKeys.has(key)) {
      settings[key] = value;
    } else if (key !== "output_dir") {
      const setting = value as PathSetting;
      const hashes = await Promise.all(pathsOf(setting).map((path) => fingerprint(path, key)));
      const names = typeof setting === "string" || Array.isArray(setting) ? [] : Object.keys(setting);
      inputs[key] = hashOfValue(names.length > 0 ? [names, hashes] : hashes);
    }
  }
  return { stage: stage.kind, settings: hashOfValue(settings), inputs };
}

async function readManifest(directory: string): Promise<StageManifest | null> {
  try {
    return JSON.parse(await readFile(join(directory, MANIFEST), "utf8")) as StageManifest;
  } catch {
    // Missing or unreadable: the stage has to be run either way.
    return null;
  }
}

/** Sizes of the files of a result, those of an ensemble's members included. */
async function outputSizes(directory: string, prefix = ""): Promise<Record<string, number>> {
  const sizes: Record<string, number> = {};
  for (const entry of await readdir(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    if (entry.isFile() && !RUN_FILES.has(entry.name)) sizes[prefix + entry.name] = (await stat(path)).size;
    if (entry.isDirectory() && isMember(entry.name))
      Object.assign(sizes, await outputSizes(path, `${entry.name}/`));
  }
  return sizes;
}

function write(directory: string, manifest: StageManifest): Promise<void> {
  return writeJson(join(directory, MANIFEST), manifest);
}

/** Whether an output directory holds the complete result of this stage, a part of it, or nothing of it. */
export async function stageState(
  directory: string,
  key: StageKey,
): Promise<{ state: StageState; summary: StageSummary }> {
  const manifest = await readManifest(directory);
  if (manifest === null || hashOfValue(manifest.key) !== hashOfValue(key))
    return { state: "new", summary: {} };
  if (!manifest.complete) return { state: "begun", summary: {} };
  const sizes = await outputSizes(directory);
  const intact = Object.entries(manifest.outputs).every(([name, size]) => sizes[name] === size);
  return intact ? { state: "complete", summary: manifest.summary } : { state: "begun", summary: {} };
}

/**
 * Marks a stage as begun. When it is to start afresh in a directory that an earlier run marked as its own, the checkpoints
 * and the best model of that run are removed: resuming from them later would mix the two.
 *
 * @returns the names of the directories that were removed
 */
export async function markBegun(directory: string, key: StageKey, afresh: boolean): Promise<string[]> {
  let removed: string[] = [];
  if (afresh && (await readManifest(directory)) !== null) {
    removed = (await readdir(directory)).filter((name) => CHECKPOINT.test(name));
    for (const name of removed) await rm(join(directory, name), { recursive: true, force: true });
  }
  await write(directory, { version: 1, key, complete: false, outputs: {}, summary: {} });
  return removed;
}

/** Marks a stage as complete; written last, when all of its files are. */
export async function markComplete(directory: string, key: StageKey, summary: StageSummary): Promise<void> {
  await write(directory, { version: 1, key, complete: true, outputs: await outputSizes(directory), summary });
}
