/**
 * What became slower or faster against another commit: builds its rlhf_kernels.node in a temporary worktree and runs the op benches of
 * both addons in turn, in this process and on the same arrays. A change counts where the median of the paired ratios is more than 5 % off
 * and its 95 % interval is off by some too. Ends with exit code 1 where something fell.
 *
 *   npm run bench:compare                              against the commit before HEAD, every op
 *   npm run bench:compare -- v0.1.0 attention gemm     against another, these tables or ops
 *
 * Options: --threads (1), --compute (float32,bfloat16), --pairs (21). What the other addon does not take is said and left out.
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { type KernelArguments, type KernelsAddon, kernels } from "../test/support/kernels.ts";
import { allBenches, benchesNamed } from "./ops/index.ts";
import { type Compute, hasCompute, type OpBench } from "./ops/op-bench.ts";
import { type Comparison, compare } from "./peers/paired.ts";
import { verdictOf } from "./verdict.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
/** Seconds that one side's runs of a pair take at least: much more than a clock's resolution, much less than a neighbour's visit. */
const SECONDS_A_TURN = 0.004;

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: "1" },
    compute: { type: "string", default: "float32,bfloat16" },
    pairs: { type: "string", default: "21" },
  },
});

/** Builds the addon of a commit in a worktree that is gone afterwards, and loads it. */
function addonOf(commit: string): KernelsAddon {
  const folder = mkdtempSync(join(tmpdir(), "rlhf-compare-"));
  const worktree = join(folder, "tree");
  const git = (...args: string[]) =>
    execFileSync("git", args, { cwd: root, stdio: ["ignore", "ignore", "inherit"] });
  try {
    git("worktree", "add", "--detach", worktree, commit);
    symlinkSync(join(root, "node_modules"), join(worktree, "node_modules"));
    // The compiler's cache knows files by their places relative to the tree.
    const env = { ...process.env, CCACHE_BASEDIR: worktree, CCACHE_NOHASHDIR: "1" };
    const build = ["scripts/build-native.cjs", "--target", "rlhf_kernels"];
    execFileSync(process.execPath, build, { cwd: worktree, env, stdio: ["ignore", "ignore", "inherit"] });
    const require = createRequire(import.meta.url);
    return require(join(worktree, "build", "kernels", "rlhf_kernels.node")) as KernelsAddon;
  } finally {
    if (existsSync(worktree)) git("worktree", "remove", "--force", worktree);
    rmSync(folder, { recursive: true, force: true });
  }
}

/** One bench by each addon in turn, seconds of the fastest run of each turn; who goes first alternates. */
function inTurn(before: KernelsAddon, op: string, args: KernelArguments, backend: string): Comparison {
  const threads = Number(options.threads);
  const run = (addon: KernelsAddon, count: number): number => {
    const { seconds } = addon.bench(backend, op, args, count, { threads });
    return Math.min(...seconds);
  };
  const count = Math.max(1, Math.ceil(SECONDS_A_TURN / Math.max(run(before, 2), run(kernels, 2))));
  const turns = Math.min(count, 500);
  const [ours, theirs]: [number[], number[]] = [[], []];
  for (let pair = 0; pair < Number(options.pairs); pair++) {
    if (pair % 2 === 0) theirs.push(run(before, turns));
    ours.push(run(kernels, turns));
    if (pair % 2 === 1) theirs.push(run(before, turns));
  }
  return compare(ours, theirs);
}

function print(
  bench: OpBench,
  compute: Compute,
  { ratio, interval, ours, theirs }: Comparison,
  mark: string,
): void {
  const bounds = interval.map((bound) => bound.toFixed(3)).join(", ");
  const times = `${(1e3 * theirs).toFixed(4)} → ${(1e3 * ours).toFixed(4)} ms`;
  const name = `${bench.op.padEnd(20)} ${bench.label.padEnd(36)} ${compute.padEnd(10)}`;
  console.log(
    `${name} ${times.padStart(24)}  ${ratio.toFixed(3)}× as fast [${bounds}]${mark && `  ${mark}`}`,
  );
}

/** Compares one bench in one type; the verdict, or undefined where the other addon does not take these arguments. */
function compareBench(before: KernelsAddon, bench: OpBench, compute: Compute, backend: string) {
  try {
    const result = inTurn(before, bench.op, bench.args({ backend, compute }), backend);
    const verdict = verdictOf(result);
    print(bench, compute, result, verdict === "same" ? "" : verdict.toUpperCase());
    return verdict;
  } catch (error) {
    console.log(`${bench.op.padEnd(20)} ${bench.label}: not compared, ${(error as Error).message}`);
    return undefined;
  }
}

function main(): void {
  const isBench = (name: string): boolean => benchesNamed(name) !== undefined;
  const commit = positionals.find((name) => !isBench(name)) ?? "HEAD~1";
  const names = positionals.filter(isBench);
  const benches = names.length > 0 ? names.flatMap((name) => benchesNamed(name)!) : allBenches;
  const backend = kernels.backends().find((name) => name.startsWith("cpu"))!;
  console.log(`${backend}, ${options.threads} thread(s): this build against ${commit}`);
  const before = addonOf(commit);
  const found = { fell: 0, rose: 0, same: 0 };
  for (const bench of benches) {
    for (const compute of options.compute.split(",") as Compute[]) {
      if (compute !== "float32" && !hasCompute(bench.op)) continue;
      const verdict = compareBench(before, bench, compute, backend);
      if (verdict) found[verdict]++;
    }
  }
  console.log(`${found.fell} fell, ${found.rose} rose, ${found.same} within 5 %`);
  if (found.fell > 0) process.exitCode = 1;
}

main();
