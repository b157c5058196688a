import type { Comparison } from "./peers/paired.ts";

/** A ratio that differs less is no change. */
const TOLERANCE = 0.05;

/** Whether what is "ours" fell or rose by more than the tolerance, with an interval that leaves out "no change". */
export function verdictOf({ ratio, interval: [low, high] }: Comparison): "fell" | "rose" | "same" {
  if (ratio < 1 - TOLERANCE && high < 1) return "fell";
  if (ratio > 1 + TOLERANCE && low > 1) return "rose";
  return "same";
}
