import { existsSync } from "node:fs";
import { resolve, sep } from "node:path";
import { RlhfError, type RlhfErrorCode } from "../errors.ts";
import { isHubId } from "../hub/id.ts";
import { modelKeys, type PathSetting, pathKeys, pathsOf } from "./paths.ts";
import type { Stage } from "./schema.ts";

/** The paths that a stage reads, with their keys. */
function inputsOf({ settings }: Stage): [key: string, path: string][] {
  return Object.entries(settings)
    .filter(([key, value]) => pathKeys.has(key) && key !== "output_dir" && value !== undefined)
    .flatMap(([key, value]) => pathsOf(value as PathSetting).map((path): [string, string] => [key, path]));
}

function fail({ kind, at }: Stage, problem: string, code: RlhfErrorCode = "ERR_RLHF_CONFIG"): never {
  throw new RlhfError(code, `${at === undefined ? "" : `${at}: `}${kind}: ${problem}`);
}

/** A stage that wrote over a model it reads, or over another stage's result, would destroy it. */
export function checkOutputs(stages: readonly Stage[]): void {
  const owners = new Map<string, string>();
  for (const stage of stages) {
    const { output_dir } = stage.settings;
    const output = resolve(output_dir);
    const same = inputsOf(stage).find(([key, path]) => modelKeys.has(key) && resolve(path) === output)?.[0];
    if (same !== undefined)
      fail(
        stage,
        `output_dir is ${same} too (${output_dir}), which would be overwritten; name another directory`,
      );
    const owner = owners.get(output);
    if (owner !== undefined)
      fail(stage, `output_dir ${output_dir} is that of the ${owner} stage too; each stage needs its own`);
    owners.set(output, stage.kind);
  }
}

/**
 * What a stage reads has to be there, or to be made by a stage before it: a misspelt path of the last stage would otherwise be found
 * when all others have run.
 */
export function checkInputs(stages: readonly Stage[]): void {
  const makes = ({ settings }: Stage, path: string): boolean =>
    `${resolve(path)}${sep}`.startsWith(`${resolve(settings.output_dir)}${sep}`);
  for (const [index, stage] of stages.entries())
    for (const [key, path] of inputsOf(stage)) {
      if (isHubId(path) || existsSync(path)) continue;
      if (stages.slice(0, index).some((before) => makes(before, path))) continue;
      const maker = stages.slice(index).find((other) => makes(other, path));
      if (maker === stage) fail(stage, `${key}: ${path} is in the stage's own output_dir`);
      if (maker !== undefined)
        fail(stage, `${key}: ${path} is made by the ${maker.kind} stage that follows; put that one first`);
      fail(stage, `${key}: ${path}: there is no such file or directory`, "ERR_RLHF_IO");
    }
}
