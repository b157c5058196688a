import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import type { Compute } from "../ops/op-bench.ts";
import { resultPathHere } from "../result-files.ts";
import { type Comparison, type Contestant, compare, type Timing, timeInTurn } from "./paired.ts";
import { Peer } from "./peer.ts";

const TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4";
const VOCABULARY = 50257;

/** Options that the comparisons share, for parseArgs. */
export const COMMON_OPTIONS = {
  opponents: { type: "string", default: "float32,float32+tcmalloc" },
  compute: { type: "string", default: "float32" },
  pairs: { type: "string", default: "5" },
  "warm-up": { type: "string", default: "1" },
  threads: { type: "string", default: "2" },
  "model-dir": { type: "string", default: `${tmpdir()}/gpt2-small-random` },
} as const;

export interface CommonOptions {
  readonly opponents: string;
  readonly compute: string;
  readonly pairs: string;
  readonly "warm-up": string;
  readonly threads: string;
  readonly "model-dir": string;
}

/** What the engine computes in, of an option's text. */
export function computeOf({ compute }: CommonOptions): Compute {
  if (compute === "float32" || compute === "bfloat16x3" || compute === "bfloat16") return compute;
  throw new Error(`--compute is float32, bfloat16x3 or bfloat16, not ${compute}`);
}

/** Random tokens of GPT-2's vocabulary, the same for the same round. */
export function randomTokens(
  round: number,
  sequences: number,
  length: number,
  vocabulary = VOCABULARY,
): number[][] {
  let state = 12345 + round;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * vocabulary);
  };
  return Array.from({ length: sequences }, () => Array.from({ length }, next));
}

/** Times what `work` awaits. */
export async function timed<T>(work: () => Promise<T>): Promise<Timing & { result: T }> {
  const began = performance.now();
  const cpuBegan = process.cpuUsage();
  const result = await work();
  const seconds = (performance.now() - began) / 1000;
  const cpu = process.cpuUsage(cpuBegan);
  return { seconds, cpuSeconds: (cpu.user + cpu.system) / 1e6, result };
}

/** An opponent is written PRECISION[+tcmalloc][+compile]: how PyTorch computes, another allocator, torch.compile. */
export function startOpponent(name: string, script: string, args: readonly string[]): Peer {
  const [precision = "", ...ways] = name.split("+");
  const unknown = ways.find((way) => way !== "tcmalloc" && way !== "compile");
  if (unknown) throw new Error(`opponent ${name}: "${unknown}" is neither tcmalloc nor compile`);
  const more = ["--precision", precision, ...(ways.includes("compile") ? ["--compile"] : [])];
  return new Peer(script, [...args, ...more], ways.includes("tcmalloc") ? { LD_PRELOAD: TCMALLOC } : {});
}

export interface Work {
  /** Of the file in bench/results. */
  readonly name: string;
  readonly what: string;
  /** The opponents' program and its arguments. */
  readonly script: string;
  readonly args: readonly string[];
  /** Ways in which ours can be run, by name. */
  readonly ours: ReadonlyMap<string, (round: number) => Promise<Timing & object>>;
  /** What an opponent is sent for a round. */
  readonly request: (round: number) => unknown;
  /** What is not timed of a round and comes first. */
  readonly beforeRound?: () => Promise<void>;
  /** What an opponent is sent before the first round, without an answer. */
  readonly greeting?: unknown;
  /** Peak resident memory of processes that were measured for themselves; else of the rounds, where they tell it. */
  readonly peakBytes?: Readonly<Record<string, number>>;
  /** More to keep with the result. */
  readonly record?: Readonly<Record<string, unknown>>;
  /** Has the last word. */
  readonly after?: (timings: ReadonlyMap<string, readonly Timing[]>) => void;
}

interface Row {
  readonly ours: string;
  readonly peer: string;
  readonly seconds: Comparison;
  readonly cpuSeconds: Comparison;
}

/** Runs the work in all ways, ours and theirs in turn, writes peers-NAME.json and prints the comparisons. */
export async function besidePeers(work: Work, options: CommonOptions): Promise<void> {
  const opponents = options.opponents.split(",");
  const args = [options["model-dir"], "--threads", options.threads, ...work.args];
  const peers = new Map<string, Peer>();
  try {
    for (const name of opponents) peers.set(name, startOpponent(name, work.script, args));
    const versions = new Set<string>();
    for (const peer of peers.values()) versions.add((await peer.read<{ ready: string }>()).ready);
    if (work.greeting !== undefined) for (const peer of peers.values()) peer.tell(work.greeting);
    const contestants = new Map<string, Contestant>(work.ours);
    for (const [name, peer] of peers) contestants.set(name, (round) => peer.ask<Timing>(work.request(round)));
    const timings = await timeInTurn(
      Number(options.pairs),
      Number(options["warm-up"]),
      contestants,
      work.beforeRound,
    );
    report(work, opponents, Number(options.threads), [...versions].join("; "), timings);
  } finally {
    for (const peer of peers.values()) await peer[Symbol.asyncDispose]();
  }
}

function report(
  work: Work,
  opponents: readonly string[],
  threads: number,
  peers: string,
  timings: ReadonlyMap<string, Timing[]>,
): void {
  const values = (name: string, key: keyof Timing): number[] =>
    timings.get(name)!.map((timing) => timing[key]);
  const rows: Row[] = [...work.ours.keys()].flatMap((ours) =>
    opponents.map((peer) => ({
      ours,
      peer,
      seconds: compare(values(ours, "seconds"), values(peer, "seconds")),
      cpuSeconds: compare(values(ours, "cpuSeconds"), values(peer, "cpuSeconds")),
    })),
  );
  const { what, record } = work;
  const peakBytes = work.peakBytes ?? peaksOf(timings);
  const measured = {
    ...(peakBytes && { peakBytes }),
    comparisons: rows,
    timings: Object.fromEntries(timings),
  };
  writeRecord(work.name, { what, threads, peers, ...record, ...measured });
  console.log(`${what}, ${threads} threads, ${peers}`);
  rows.forEach(printRow);
  if (peakBytes) printPeaks(peakBytes);
  work.after?.(timings);
}

/** The most resident memory of each process, where its rounds tell it. */
function peaksOf(timings: ReadonlyMap<string, readonly Timing[]>): Record<string, number> | undefined {
  const peaks = [...timings].map(([name, all]) => {
    const bytes = all.map((timing) => (timing as { peakBytes?: number }).peakBytes ?? Number.NaN);
    return [name, Math.max(...bytes)] as const;
  });
  return peaks.some(([, peak]) => Number.isNaN(peak)) ? undefined : Object.fromEntries(peaks);
}

function printPeaks(peakBytes: Readonly<Record<string, number>>): void {
  for (const [name, bytes] of Object.entries(peakBytes))
    console.log(
      `  peak memory, ${name}: ${(bytes / 2 ** 20).toFixed(0)} MiB, ${(bytes / peakBytes["ours"]!).toFixed(2)} of ours`,
    );
}

function printRow({ ours, peer, seconds, cpuSeconds }: Row): void {
  const numbers = (comparison: Comparison): string =>
    `${comparison.ours.toFixed(3)} : ${comparison.theirs.toFixed(3)} s, ratio ${comparison.ratio.toFixed(2)}` +
    ` [${comparison.interval.map((bound) => bound.toFixed(2)).join(", ")}]`;
  console.log(`  ${ours} : ${peer}  ${numbers(seconds)}; processor ${numbers(cpuSeconds)}`);
}

/** The commit of the sources, with a plus where they are not as it has them. */
function measuredCommit(): string {
  const git = (...args: string[]): string =>
    execFileSync("git", args, { cwd: import.meta.dirname, encoding: "utf8" }).trim();
  const changed = git("status", "--porcelain", "--", "../../lib", "../../csrc") !== "";
  return git("rev-parse", "--short", "HEAD") + (changed ? "+" : "");
}

/** Writes peers-NAME.json among this processor's results. */
export function writeRecord(name: string, record: Readonly<Record<string, unknown>>): void {
  const machine = { cpu: cpus()[0]?.model, cores: cpus().length, loadAverage: loadavg()[0] };
  const when = { commit: measuredCommit(), date: new Date().toISOString().slice(0, 10) };
  writeFileSync(
    resultPathHere(`peers-${name}`),
    `${JSON.stringify({ ...machine, ...when, ...record }, null, 1)}\n`,
  );
}
