import { join } from "node:path";
import { RlhfError } from "../errors.ts";
import { readJsonIfPresent, writeJson } from "../model/files.ts";

/** How the scores of an ensemble's members become one. */
export const ENSEMBLE_COMBINATIONS = ["mean", "min", "mean-std"] as const;
export type EnsembleCombination = (typeof ENSEMBLE_COMBINATIONS)[number];

export interface EnsembleOptions {
  /** "mean" (default), "min": the most doubtful member, or "mean-std": mean − kappa·deviation, which punishes disagreement. */
  readonly combine?: EnsembleCombination | undefined;
  /** Weight of the deviation in "mean-std". Default 1. */
  readonly kappa?: number | undefined;
}

const FILE = "ensemble.json";

/** Whether a directory holds an ensemble. */
export async function isEnsemble(directory: string): Promise<boolean> {
  return (await readJsonIfPresent(join(directory, FILE), "ERR_RLHF_MODEL")) !== null;
}

/** The directory of a member within that of its ensemble. */
export function memberName(index: number): string {
  return `member-${index}`;
}

/** Whether a directory's name is that of an ensemble's member. */
export function isMember(name: string): boolean {
  return /^member-\d+$/.test(name);
}

/** Marks a directory with members in it as an ensemble. */
export async function writeEnsemble(
  directory: string,
  members: number,
  { combine = "mean", kappa = 1 }: EnsembleOptions,
): Promise<void> {
  const names = Array.from({ length: members }, (_, index) => memberName(index));
  await writeJson(join(directory, FILE), { members: names, combine, kappa });
}

/** What ensemble.json says. */
export interface SavedEnsemble extends EnsembleOptions {
  /** Directories. */
  readonly members: readonly string[];
}

/** Reads ensemble.json. Throws ERR_RLHF_MODEL. */
export async function readEnsemble(directory: string): Promise<SavedEnsemble> {
  const path = join(directory, FILE);
  const found = await readJsonIfPresent(path, "ERR_RLHF_MODEL");
  if (found === null) throw malformed(path, "does not exist; expected the directory of a reward ensemble");
  const { members, combine, kappa } = found;
  const isList = Array.isArray(members) && members.length > 0;
  if (!isList || !members.every((name) => typeof name === "string"))
    throw malformed(path, "members must be a list of directories");
  if (!ENSEMBLE_COMBINATIONS.includes(combine as EnsembleCombination) || typeof kappa !== "number")
    throw malformed(path, "combine must be mean, min or mean-std, and kappa a number");
  return {
    members: members.map((name: string) => join(directory, name)),
    combine: combine as EnsembleCombination,
    kappa,
  };
}

function malformed(path: string, problem: string): RlhfError {
  return new RlhfError("ERR_RLHF_MODEL", `${path}: ${problem}`, { path });
}
