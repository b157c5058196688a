/**
 * Importing the built package beside importing torch, transformers and trl, each in a process of its own, in turn: milliseconds of the
 * import statement, and of the whole process. Writes bench/results/PROCESSOR/peers-start-up.json. Needs `npm run build`.
 *
 * usage: tsx bench/peers/start-up.ts [--pairs 5]
 */
import { execFileSync } from "node:child_process";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { writeRecord } from "./beside.ts";
import { compare, type Timing, timeInTurn } from "./paired.ts";
import { PYTHON } from "./peer.ts";

const { values: options } = parseArgs({ options: { pairs: { type: "string", default: "5" } } });

const entry = JSON.stringify(pathToFileURL(new URL("../../dist/index.js", import.meta.url).pathname).href);
const ours = `const began = performance.now(); await import(${entry}); console.log((performance.now() - began) / 1000)`;
const theirs =
  "import time; began = time.perf_counter(); import torch, transformers, trl; print(time.perf_counter() - began)";

/** Runs a process that prints the seconds of its import. */
function start(command: string, args: readonly string[]): () => Promise<Timing & { process: number }> {
  return async () => {
    const began = performance.now();
    const seconds = Number(
      execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }),
    );
    return { seconds, cpuSeconds: Number.NaN, process: (performance.now() - began) / 1000 };
  };
}

const timings = await timeInTurn(
  Number(options.pairs),
  1,
  new Map([
    ["ours", start(process.execPath, ["--input-type=module", "-e", ours])],
    ["theirs", start(PYTHON, ["-c", theirs])],
  ]),
);
const seconds = (name: string): number[] => timings.get(name)!.map((timing) => timing.seconds);
const wholeProcess = (name: string): number[] =>
  timings.get(name)!.map((timing) => (timing as Timing & { process: number }).process);
const comparisons = {
  import: compare(seconds("ours"), seconds("theirs")),
  process: compare(wholeProcess("ours"), wholeProcess("theirs")),
};
writeRecord("start-up", { what: "import node-rlhf : import torch, transformers, trl", comparisons });
for (const [what, { ours: us, theirs: them, ratio, interval }] of Object.entries(comparisons))
  console.log(
    `${what}: ${(1000 * us).toFixed(0)} : ${(1000 * them).toFixed(0)} ms, ratio ${ratio.toFixed(1)} [${interval.map((bound) => bound.toFixed(1)).join(", ")}]`,
  );
