import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { kernelFiles, type Mutant, mutate, mutateLaunch, realArguments, SELECTOR } from "./source.ts";

export interface MutatedSources {
  /** The text of each file, by its path from csrc/cuda. */
  readonly files: ReadonlyMap<string, string>;
  readonly mutants: readonly Mutant[];
  /** What tells one state of a source from another: of those that can have mutants. */
  readonly digests: ReadonlyMap<string, string>;
}

/** csrc/cuda with all mutants in it. */
export function mutatedSources(root: string): MutatedSources {
  const [cuda, ops] = [join(root, "csrc", "cuda"), join(root, "csrc", "ops")];
  const headers = readdirSync(ops).map((name) => readFileSync(join(ops, name), "utf8"));
  const reals = realArguments(headers.join("\n"));
  const kernels = new Set(kernelFiles(cuda));
  const mutants: Mutant[] = [];
  const files = new Map<string, string>();
  const digests = new Map<string, string>();
  for (const entry of readdirSync(cuda, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    const file = path.slice(cuda.length + 1);
    let text = readFileSync(path, "utf8");
    if (file === "prim/platform.cuh") text = text.replace("#pragma once", `#pragma once\n${SELECTOR}`);
    if (file === "prim/launch.cuh") text = mutateLaunch(text);
    if (kernels.has(file)) {
      digests.set(file, createHash("sha256").update(text).digest("hex").slice(0, 12));
      const mutated = mutate(file, text, mutants.length, reals);
      text = mutated.text;
      mutants.push(...mutated.mutants);
    }
    files.set(file, text);
  }
  return { files, mutants, digests };
}
