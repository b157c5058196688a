/** The quickstart as a function: makes the data, runs the stages of pipeline.yaml on it, and reads the report. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { EvaluationReport } from "../../lib/index.ts";
import { runPipeline } from "../../lib/pipeline/run.ts";
import type { Stage } from "../../lib/pipeline/schema.ts";
import { readPipeline } from "../../lib/pipeline/settings-file.ts";
import { SIZES, type Sizes, writeData } from "./make-data.ts";

const PIPELINE = fileURLToPath(new URL("pipeline.yaml", import.meta.url));
/** The directory that pipeline.yaml names. */
export const RUNS = fileURLToPath(new URL("../../runs/quickstart", import.meta.url));

export interface QuickstartOptions {
  /** Where data, models and report go. */
  readonly directory: string;
  readonly seed: number;
  readonly sizes?: Sizes;
  /** Changes the stages of pipeline.yaml before they run. */
  readonly adjust?: (stage: Stage) => Stage;
  readonly signal?: AbortSignal;
  /** The command that goes on after an interruption. */
  readonly again?: string;
}

/** A value with the directory of pipeline.yaml's paths replaced by another. */
function moved(value: unknown, directory: string): unknown {
  if (typeof value === "string")
    return value.startsWith(`${RUNS}/`) ? join(directory, value.slice(RUNS.length)) : value;
  if (Array.isArray(value)) return value.map((item) => moved(item, directory));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, moved(item, directory)]));
}

/** Runs what of the quickstart is not yet complete in its directory. */
export async function quickstart(options: QuickstartOptions): Promise<EvaluationReport> {
  const { directory, seed, sizes = SIZES, adjust = (stage) => stage, signal, again } = options;
  writeData(join(directory, "data"), seed, sizes);
  const stages = (await readPipeline(PIPELINE)).map(({ kind, settings }) => {
    const own = { ...(moved(settings, directory) as Stage["settings"]), seed };
    return adjust({ kind, settings: own } as Stage);
  });
  const results = await runPipeline(stages, {
    ...(signal && { signal }),
    ...(again !== undefined && { again }),
  });
  const report = join(results.at(-1)?.outputDir as string, "report.json");
  return JSON.parse(await readFile(report, "utf8")) as EvaluationReport;
}
