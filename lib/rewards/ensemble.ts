import { join } from "node:path";
import { RlhfError } from "../errors.ts";
import { localModel } from "../hub/hub.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { isPeftDirectory, readPeftDirectory } from "../model/peft.ts";
import {
  REWARD_LOAD_OPTIONS,
  type RewardLoadOptions,
  RewardModel,
  SCORE_OPTIONS,
  type ScoreOptions,
} from "../model/reward-model.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import {
  ENSEMBLE_COMBINATIONS,
  type EnsembleCombination,
  type EnsembleOptions,
  isEnsemble,
  memberName,
  readEnsemble,
  type SavedEnsemble,
  writeEnsemble,
} from "./ensemble-files.ts";

export type { EnsembleCombination, EnsembleOptions };

/** Combined scores, and how far the members are apart on each sequence: their standard deviation. */
export interface EnsembleScores {
  readonly scores: Float32Array;
  readonly spread: Float32Array;
}

const ENSEMBLE_OPTIONS: NamesOf<EnsembleOptions> = { combine: true, kappa: true };

function invalid(message: string): RlhfError {
  return new RlhfError("ERR_RLHF_ARGUMENT", message);
}

/**
 * Several reward models that score together (Coste et al. 2023). Members that all have statistics are normalised by their own first, for
 * their raw scores have no common scale.
 */
export class RewardEnsemble implements Disposable {
  readonly members: readonly RewardModel[];
  readonly combine: EnsembleCombination;
  readonly kappa: number;

  /** Throws ERR_RLHF_ARGUMENT for no members, or statistics that only some of them have. The ensemble disposes of its members. */
  constructor(members: readonly RewardModel[], options: EnsembleOptions = {}) {
    refuseUnknownOptions("RewardEnsemble", options, ENSEMBLE_OPTIONS);
    const { combine = "mean", kappa = 1 } = options;
    if (members.length === 0) throw invalid("RewardEnsemble: an ensemble needs at least one member");
    if (!members.every((member) => member instanceof RewardModel))
      throw invalid("RewardEnsemble: every member must be a RewardModel");
    if (!ENSEMBLE_COMBINATIONS.includes(combine))
      throw invalid(
        `RewardEnsemble: combine must be one of ${ENSEMBLE_COMBINATIONS.join(", ")}, got "${combine}"`,
      );
    if (!(Number.isFinite(kappa) && kappa >= 0))
      throw invalid(`RewardEnsemble: kappa must be a number of at least 0, got ${kappa}`);
    const measured = members.filter((member) => member.statistics !== null).length;
    if (measured > 0 && measured < members.length)
      throw invalid(
        `RewardEnsemble: ${measured} of ${members.length} members have statistics, so their scores have no common scale; measure those of the others, or set all to null`,
      );
    this.members = members;
    this.combine = combine;
    this.kappa = kappa;
  }

  /**
   * Loads a directory that `save` wrote, or reward models from several directories. Members with equal backbones share one in memory.
   * Throws ERR_RLHF_MODEL.
   */
  static async load(
    paths: string | readonly string[],
    options: RewardLoadOptions & EnsembleOptions = {},
  ): Promise<RewardEnsemble> {
    refuseUnknownOptions("RewardEnsemble.load", options, { ...REWARD_LOAD_OPTIONS, ...ENSEMBLE_OPTIONS });
    const { combine, kappa, ...loadOptions } = options;
    const saved: SavedEnsemble =
      typeof paths === "string" ? await readEnsemble(paths) : { members: [...paths] };
    const members: RewardModel[] = [];
    try {
      for (const directory of saved.members) {
        const backbone = loadOptions.backbone ?? (await backboneOf(directory, members));
        members.push(
          await RewardModel.load(directory, backbone ? { ...loadOptions, backbone } : loadOptions),
        );
      }
      return new RewardEnsemble(members, { combine: combine ?? saved.combine, kappa: kappa ?? saved.kappa });
    } catch (error) {
      for (const member of members.reverse()) member.dispose();
      throw error;
    }
  }

  /** Combined scores with their spread, in the order of the sequences. Members are normalised unless `normalize` is false. */
  async scoreWithSpread(
    sequences: readonly Int32Array[],
    options: ScoreOptions = {},
  ): Promise<EnsembleScores> {
    refuseUnknownOptions("score", options, SCORE_OPTIONS);
    const normalize = options.normalize ?? this.members.every((member) => member.statistics !== null);
    const rows: Float32Array[] = [];
    for (const member of this.members) rows.push(await member.score(sequences, { ...options, normalize }));
    const scores = new Float32Array(sequences.length);
    const spread = new Float32Array(sequences.length);
    for (let i = 0; i < sequences.length; i++) {
      const values = rows.map((row) => row[i] as number);
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      spread[i] = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
      scores[i] = this.#combined(values, mean, spread[i] as number);
    }
    return { scores, spread };
  }

  #combined(values: readonly number[], mean: number, spread: number): number {
    if (this.combine === "min") return Math.min(...values);
    return this.combine === "mean" ? mean : mean - this.kappa * spread;
  }

  /** The combined scores of token sequences, Float32Array. */
  async score(sequences: readonly Int32Array[], options: ScoreOptions = {}): Promise<Float32Array> {
    return (await this.scoreWithSpread(sequences, options)).scores;
  }

  /** Writes the members to `member-0`, `member-1`, … and ensemble.json beside them. */
  async save(directory: string): Promise<void> {
    const names = this.members.map((_, index) => memberName(index));
    for (const [index, member] of this.members.entries())
      await member.save(join(directory, names[index] as string));
    await writeEnsemble(directory, names.length, this);
  }

  dispose(): void {
    // The first owns the backbone that the others may have been lent.
    for (const member of [...this.members].reverse()) member.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * The model of an earlier member that may lend its backbone: of an adapter the one on the base that it names; of a whole model any, for
 * weights are compared before they are shared.
 */
async function backboneOf(path: string, members: readonly RewardModel[]): Promise<CausalLM | undefined> {
  const directory = await localModel(path);
  if (!(await isPeftDirectory(directory))) return members[0]?.model;
  const { baseModel } = await readPeftDirectory(directory);
  return members.find(({ model }) => baseModel !== null && model.directory === baseModel)?.model;
}

/** Loads what scores answers: a reward model (a path or a `hub:` name), an ensemble's directory, or several models as an ensemble. */
export async function loadReward(
  paths: string | readonly string[],
  options: RewardLoadOptions & EnsembleOptions = {},
): Promise<RewardModel | RewardEnsemble> {
  refuseUnknownOptions("loadReward", options, { ...REWARD_LOAD_OPTIONS, ...ENSEMBLE_OPTIONS });
  const { combine, kappa, ...loadOptions } = options;
  const named = typeof paths === "string" ? paths : paths.length === 1 ? paths[0] : undefined;
  if (named === undefined) return await RewardEnsemble.load(paths, options);
  const single = await localModel(named);
  if (await isEnsemble(single)) return await RewardEnsemble.load(single, options);
  if (combine !== undefined || kappa !== undefined)
    throw invalid(`${single}: combine and kappa are for ensembles, and this is one reward model`);
  return await RewardModel.load(single, loadOptions);
}
