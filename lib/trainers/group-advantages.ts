import { RlhfError } from "../errors.ts";

/** What advantages are divided by: the deviation within the group (default), that of the whole batch, or nothing (Dr. GRPO). */
export type RewardScale = "group" | "batch" | "none";

/** Keeps the advantages of a group whose scores hardly differ from being blown up. */
const DEVIATION_FLOOR = 1e-4;

function meanOf(values: Float32Array): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The deviation of a sample (n − 1); 0 of a single value. */
export function sampleDeviation(values: Float32Array): number {
  const mean = meanOf(values);
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / Math.max(1, values.length - 1));
}

/** The scores of each group: answers to one prompt stand together. Throws ERR_RLHF_SHAPE where they do not come out even. */
export function groupsOf(scores: Float32Array, groupSize: number): Float32Array[] {
  if (!(groupSize >= 2) || scores.length % groupSize !== 0)
    throw new RlhfError(
      "ERR_RLHF_SHAPE",
      `advantages within groups: ${scores.length} scores do not make groups of ${groupSize}; expected a multiple of a group of at least 2`,
    );
  return Array.from({ length: scores.length / groupSize }, (_, g) =>
    scores.subarray(g * groupSize, (g + 1) * groupSize),
  );
}

/**
 * Advantages of group-relative policy optimisation (Shao et al. 2024, section 4.1.2): (score − mean of the group) ÷ (deviation + 1e-4).
 *
 * @param scores Float32Array[S], the answers to one prompt side by side
 * @param groupSize answers per prompt, at least 2
 * @param scale "none" leaves the division out, as Dr. GRPO does (Liu et al. 2025)
 * @returns Float32Array[S]. Throws ERR_RLHF_SHAPE when the scores do not divide into groups.
 */
export function groupAdvantages(
  scores: Float32Array,
  groupSize: number,
  scale: RewardScale = "group",
): Float32Array {
  const advantages = new Float32Array(scores.length);
  const batchDeviation = scale === "batch" ? sampleDeviation(scores) : 0;
  groupsOf(scores, groupSize).forEach((group, g) => {
    const mean = meanOf(group);
    const deviation = scale === "group" ? sampleDeviation(group) : batchDeviation;
    const divisor = scale === "none" ? 1 : deviation + DEVIATION_FLOOR;
    group.forEach((score, i) => {
      advantages[g * groupSize + i] = (score - mean) / divisor;
    });
  });
  return advantages;
}

/**
 * Advantages of REINFORCE leave-one-out (Ahmadian et al. 2024, eq. 8): score − mean of the group's other scores.
 * Arguments and errors as `groupAdvantages`.
 */
export function leaveOneOutAdvantages(scores: Float32Array, groupSize: number): Float32Array {
  const advantages = groupAdvantages(scores, groupSize, "none");
  // score − (Σ − score)/(G − 1) = (score − mean)·G/(G − 1)
  return advantages.map((advantage) => (advantage * groupSize) / (groupSize - 1));
}
