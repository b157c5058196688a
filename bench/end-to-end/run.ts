/**
 * Whole works on models of random weights, each in a process of its own: time, tokens a second, peak memory, and the floor
 * Σ max(FLOP / peak, bytes / bandwidth) with our share of it, the peaks measured in the same process.
 *
 *   npm run bench:end-to-end                              every work on every model, in float32 and bfloat16
 *   npm run bench:end-to-end -- train-lora gpt2           works and models by name
 *   npm run bench:end-to-end -- linearity                 a LoRA step at 1, 2, 4 and 8 times the length and the batch
 *
 * Options: --threads (all), --compute (float32,bfloat16), --rounds (3). Writes bench/results/PROCESSOR/end-to-end-MODEL-COMPUTE.json, merging works
 * into what is there, and linearity-MODEL-COMPUTE.json.
 */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { Compute } from "../ops/op-bench.ts";
import { resultPathHere } from "../result-files.ts";
import type { WorkerTask, WorkResult } from "./worker.ts";
import { MODELS, WORKS } from "./works.ts";

const LINEARITY = "linearity";

const { values: options, positionals: names } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: String(availableParallelism()) },
    compute: { type: "string", default: "float32,bfloat16" },
    rounds: { type: "string", default: "3" },
  },
});

function runWorker(task: WorkerTask): WorkResult {
  const worker = fileURLToPath(new URL("./worker.ts", import.meta.url));
  const args = ["--import", "tsx", worker, JSON.stringify(task)];
  const output = execFileSync(process.execPath, args, {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  return JSON.parse(output.trim().split("\n").at(-1)!) as WorkResult;
}

function print({
  work,
  place,
  seconds,
  tokensPerSecond,
  peakResident,
  peakEngine,
  floor,
  share,
}: WorkResult): void {
  const MiB = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  console.log(
    `${place.model.padEnd(12)} ${work.padEnd(12)} ${place.compute.padEnd(10)} ${place.sequences}×${place.length}`.padEnd(
      45,
    ) +
      ` ${seconds.toFixed(3).padStart(8)} s  ${tokensPerSecond.toFixed(0).padStart(7)} tokens/s` +
      `  floor ${floor.toFixed(3)} s, ${(100 * share).toFixed(0)} %  ${MiB(peakResident)} (engine ${MiB(peakEngine)})`,
  );
}

/** Results of this file by work and place: a new one takes the place of an old one. */
function record(file: string, results: readonly WorkResult[]): void {
  const path = resultPathHere(file);
  const old = existsSync(path)
    ? (JSON.parse(readFileSync(path, "utf8")) as { results: WorkResult[] }).results
    : [];
  const key = ({ work, place }: WorkResult): string => `${work} ${JSON.stringify(place)}`;
  const merged = new Map([...old, ...results].map((result) => [key(result), result]));
  const machine = { cpu: cpus()[0]?.model, cores: cpus().length };
  writeFileSync(path, `${JSON.stringify({ ...machine, results: [...merged.values()] }, null, 1)}\n`);
}

/** Sequences and lengths of the steps whose cost should grow with their tokens. */
function linearityPlaces(model: string): [sequences: number, length: number][] {
  const base = model === "stories260k" ? 64 : 128;
  const factors = [1, 2, 4, 8];
  return [
    ...factors.map((factor): [number, number] => [1, factor * base]),
    ...factors.slice(1).map((factor): [number, number] => [factor, base]),
  ];
}

function run(model: string, compute: Compute, works: readonly string[]): void {
  const shared = { model, compute, threads: Number(options.threads) };
  const at = (work: string, sequences: number, length: number): WorkResult => {
    const result = runWorker({
      work,
      place: { ...shared, sequences, length },
      rounds: Number(options.rounds),
    });
    print(result);
    return result;
  };
  const whole = works.filter((work) => work !== LINEARITY);
  const sequences = model === "stories260k" ? 16 : 4;
  for (const work of whole) record(`end-to-end-${model}-${compute}`, [at(work, sequences, 256)]);
  if (!works.includes(LINEARITY)) return;
  const results = linearityPlaces(model).map(([count, length]) => at("train-lora", count, length));
  record(`linearity-${model}-${compute}`, results);
}

const known = [...Object.keys(WORKS), LINEARITY];
const unknown = names.find((name) => !known.includes(name) && !(name in MODELS));
if (unknown)
  throw new Error(
    `no work or model "${unknown}"; there are ${[...known, ...Object.keys(MODELS)].join(", ")}`,
  );
const chosenModels = names.filter((name) => name in MODELS);
const chosenWorks = names.filter((name) => known.includes(name));
for (const model of chosenModels.length > 0 ? chosenModels : Object.keys(MODELS)) {
  for (const compute of options.compute.split(",") as Compute[]) {
    run(model, compute, chosenWorks.length > 0 ? chosenWorks : known);
  }
}
