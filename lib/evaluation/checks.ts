import { messageOf, RlhfError } from "../errors.ts";
import type { MetricsRecord } from "../monitor/metrics.ts";
import type { EvaluationReport } from "./report.ts";

/** One thing that a report is to show, its figure, and whether it is so. */
export interface ReportCheck {
  readonly name: string;
  /** What was measured; null: it could not be. */
  readonly figure: number | null;
  /** What the figure is to be, in words: "at least 0.8". */
  readonly requirement: string;
  readonly holds: boolean;
}

export interface CheckContext {
  /** What each run of the evaluation recorded, by name. */
  readonly runs: Readonly<Record<string, readonly MetricsRecord[]>>;
  /** Where the report is written; undefined: nowhere. */
  readonly outputDir: string | undefined;
}

/**
 * Says what a report is to show and whether it does. May be asynchronous. What it throws, and anything but a list of checks, ends the
 * evaluation with ERR_RLHF_REWARD.
 */
export type ChecksFunction = (
  report: Omit<EvaluationReport, "checks">,
  context: CheckContext,
) => readonly ReportCheck[] | Promise<readonly ReportCheck[]>;

function isCheck(value: unknown): value is ReportCheck {
  if (typeof value !== "object" || value === null) return false;
  const { name, figure, requirement, holds } = value as Record<keyof ReportCheck, unknown>;
  const known = figure === null || (typeof figure === "number" && Number.isFinite(figure));
  return typeof name === "string" && typeof requirement === "string" && typeof holds === "boolean" && known;
}

/** Runs the checks of a report. */
export async function runChecks(
  checks: ChecksFunction,
  report: Omit<EvaluationReport, "checks">,
  context: CheckContext,
): Promise<readonly ReportCheck[]> {
  let found: unknown;
  try {
    found = await checks(report, context);
  } catch (error) {
    throw new RlhfError("ERR_RLHF_REWARD", `checks failed: ${messageOf(error)}`, {}, { cause: error });
  }
  const bad = Array.isArray(found) ? found.findIndex((check) => !isCheck(check)) : 0;
  if (bad < 0) return found as ReportCheck[];
  const got = JSON.stringify(Array.isArray(found) ? found[bad] : found);
  throw new RlhfError(
    "ERR_RLHF_REWARD",
    `checks must return a list of { name, figure, requirement, holds }, with a finite figure or null; entry ${bad} is ${got}`,
    { index: bad },
  );
}
