/**
 * `npm run bench:cuda`: each kernel's time on a GPU beside its limits and PyTorch's time for the same work in the same run.
 *
 *   npm run bench:cuda                                everything
 *   npm run bench:cuda -- linear attention            benches whose op or label holds a text
 *   npm run bench:cuda -- --python python3            the Python with PyTorch (default: PEER_PYTHON, else python3; --python none)
 *   npm run bench:cuda -- --backend simt:apart --shrink 64 --python none    the same way on the emulator: no figure means anything
 *
 * Where the device has kernels of its own for an op (Hopper), a line also tells the time without them.
 * Other options: --repetitions (30), --out FOLDER (bench/results), --minutes (8.5, after which no bench begins; one that has not ended 24
 * seconds later ends the process, and is named). Times are medians by the device's events. Inputs are random, in as many
 * copies, taken in turn, as are several times the second-level cache. A share is that of the limit that bounds the op: operations, or bytes as
 * a copy between two places of the device's memory moves them in this run. After each line FOLDER/cuda-NAME.json is written anew.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { messageOf } from "../../lib/errors.ts";
import {
  type DeviceLimits,
  isKernelArray,
  type KernelArguments,
  kernels,
} from "../../test/support/kernels.ts";
import { bytesMoved, type Work, workOf } from "../ops/op-bench.ts";
import { Peer } from "../peers/peer.ts";
import { cudaBenches } from "./benches.ts";
import type { CudaBench } from "./cuda-bench.ts";
import { type StatedLimits, statedLimits } from "./limits.ts";
import { Watchdog } from "./watchdog.ts";

const RESULTS = fileURLToPath(new URL("../results", import.meta.url));
/** Of the second-level cache, which copies of the inputs are at least as large as together. */
const CACHES = 4;
const MOST_COPIES = 16;
const COPY_BYTES = 2 ** 31;
/** Seconds for the bench that began last. */
const GRACE = 24;

interface Result {
  readonly op: string;
  readonly label: string;
  readonly error?: string;
  /** The median. */
  readonly seconds?: number;
  readonly flops?: number;
  readonly bytes?: number;
  /** The least seconds that the maker's limits allow, and those that the measured copy allows, as shares of the seconds taken. */
  readonly shareOfStated?: number;
  readonly shareOfCopy?: number;
  readonly arrayBytes?: number;
  readonly scratchBytes?: number;
  readonly peer?: PeerResult;
  /** PyTorch's seconds over ours. */
  readonly ratio?: number;
  /** The median by the kernels that run everywhere, where the device has others. */
  readonly portableSeconds?: number;
  readonly clocks?: string;
}

interface PeerResult {
  readonly seconds?: number;
  readonly peakBytes?: number;
  readonly error?: string;
}

interface Place {
  readonly backend: string;
  readonly repetitions: number;
  readonly limits: DeviceLimits;
  readonly stated: StatedLimits;
  /** Bytes a second that copying reads and writes. */
  readonly copyRate: number;
  readonly peer: Peer | undefined;
  readonly leadBytes: number;
}

function median(values: Iterable<number>): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1] ?? Number.NaN;
}

const bytesOf = (args: KernelArguments): number =>
  Object.values(args).reduce<number>((sum, value) => sum + (isKernelArray(value) ? value.byteLength : 0), 0);

/** The device's clocks, power and temperature now, as nvidia-smi has them. */
function readClocks(): string | undefined {
  const query = "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu";
  const run = spawnSync("nvidia-smi", [query, "--format=csv,noheader"], { encoding: "utf8" });
  return run.status === 0 ? run.stdout.trim().split("\n")[0] : undefined;
}

async function askPeer(peer: Peer, work: object, copies: number, repetitions: number): Promise<PeerResult> {
  const answer = await peer.ask<{ seconds?: number[]; peakBytes?: number; error?: string }>({
    ...work,
    copies,
    repetitions,
  });
  if (!answer.seconds?.length) return { error: answer.error ?? "PyTorch has no GPU here" };
  return {
    seconds: median(answer.seconds),
    ...(answer.peakBytes !== undefined && { peakBytes: answer.peakBytes }),
  };
}

/** Runs with only those kernels that every device has (csrc/cuda/prim/capability.h). */
function withPortableKernels<T>(body: () => T): T {
  const before = process.env["RLHF_CUDA_CAPABILITY"];
  process.env["RLHF_CUDA_CAPABILITY"] = "80";
  try {
    return body();
  } finally {
    if (before === undefined) delete process.env["RLHF_CUDA_CAPABILITY"];
    else process.env["RLHF_CUDA_CAPABILITY"] = before;
  }
}

async function measure(bench: CudaBench, place: Place): Promise<Result> {
  const { backend, repetitions, limits, stated, copyRate, peer, leadBytes } = place;
  const { op, label } = bench;
  if (!kernels.operators(backend).includes(op)) return { op, label, error: "the backend lacks this op" };
  const args = bench.args();
  const arrayBytes = bytesOf(args);
  const copies = Math.min(MOST_COPIES, Math.max(2, Math.ceil((CACHES * limits.l2Bytes) / arrayBytes)));
  const time = () => kernels.benchOnDevice(backend, op, args, repetitions, { copies, leadBytes });
  const timed = time();
  const clocks = readClocks();
  const portable =
    bench.ownKernelsFor === limits.computeCapability ? withPortableKernels(time).seconds : undefined;
  const work: Work = workOf({ ...bench, args: () => args }, args);
  const seconds = median(timed.seconds);
  const bytes = bytesMoved(work);
  const least = (bandwidth: number): number => Math.max(work.flops / stated.flops, bytes / bandwidth);
  const beside = peer && bench.peer ? await askPeer(peer, bench.peer, copies, repetitions) : undefined;
  return {
    ...{ op, label, seconds, flops: work.flops, bytes, arrayBytes, scratchBytes: timed.scratchBytes },
    ...(stated.flops > 0 && { shareOfStated: least(stated.bandwidth) / seconds }),
    ...(stated.flops > 0 && { shareOfCopy: least(copyRate) / seconds }),
    ...(beside && { peer: beside }),
    ...(beside?.seconds !== undefined && { ratio: beside.seconds / seconds }),
    ...(clocks !== undefined && { clocks }),
    ...(portable && { portableSeconds: median(portable) }),
  };
}

function lineOf(result: Result, copyRate: number, stated: StatedLimits): string {
  const name = `${result.op.padEnd(24)} ${result.label.padEnd(36)}`;
  const { seconds, flops = 0, bytes = 0, shareOfStated, shareOfCopy, scratchBytes = 0, peer, ratio } = result;
  if (seconds === undefined) return `${name} ${result.error}`;
  const percent = (share = 0): string => `${(100 * share).toFixed(1)} %`;
  const byProducts = flops / stated.flops > bytes / copyRate;
  const ofProducts = `${(flops / seconds / 1e12).toFixed(1)} TFLOP/s, ${percent(shareOfStated)} of ${(stated.flops / 1e12).toFixed(0)}`;
  const ofBytes =
    `${(bytes / seconds / 1e9).toFixed(0)} GB/s, ${percent(shareOfStated)} of ${(stated.bandwidth / 1e9).toFixed(0)}, ` +
    `${percent(shareOfCopy)} of the copy's`;
  const rate = stated.flops === 0 ? "" : byProducts ? ofProducts : ofBytes;
  const scratch = `${(scratchBytes / 2 ** 20).toFixed(0)} MiB of scratch`;
  const torch =
    ratio === undefined
      ? (peer?.error ?? "")
      : `PyTorch ${(1e3 * (peer?.seconds ?? 0)).toFixed(3)} ms: ${ratio.toFixed(2)}`;
  const { portableSeconds } = result;
  const portable = portableSeconds ? `without Hopper's kernels ${(1e3 * portableSeconds).toFixed(3)} ms` : "";
  return [name + (1e3 * seconds).toFixed(3).padStart(10), "ms ", rate, scratch, torch, portable]
    .filter(Boolean)
    .join("  ");
}

/** PyTorch, if a Python that has it is there. */
async function openPeer(python: string): Promise<{ peer: Peer | undefined; about: string }> {
  if (python === "none" || spawnSync(python, ["--version"]).status !== 0)
    return { peer: undefined, about: "no PyTorch beside it" };
  const peer = new Peer("../cuda/torch_ops.py", [], {}, python);
  const { ready, device, unavailable } = await peer.read<Record<string, string>>();
  if (ready) return { peer, about: `${ready} on ${device}` };
  await peer[Symbol.asyncDispose]();
  return { peer: undefined, about: `no PyTorch beside it: ${unavailable}` };
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      backend: { type: "string", default: "cuda" },
      python: { type: "string", default: process.env["PEER_PYTHON"] ?? "python3" },
      repetitions: { type: "string", default: "30" },
      shrink: { type: "string", default: "1" },
      minutes: { type: "string", default: "8.5" },
      out: { type: "string", default: RESULTS },
    },
  });
  const { backend } = values;
  const deadline = performance.now() + 60_000 * Number(values.minutes);
  const watchdog = new Watchdog(60 * Number(values.minutes) + GRACE);
  const shrink = Number(values.shrink);
  const limits = kernels.deviceLimits(backend);
  const stated = statedLimits(limits);
  const copied = Math.ceil(COPY_BYTES / shrink ** 2);
  const copyRate = (2 * copied) / median(kernels.deviceCopySeconds(backend, copied, 10));
  const { peer, about } = await openPeer(values.python);
  const name = (limits.model || limits.name).replace(/[^A-Za-z0-9]+/g, "-").toLowerCase();
  const head = {
    device: limits,
    stated,
    copyBytesPerSecond: copyRate,
    peer: about,
    shrink,
    node: process.version,
  };
  console.log(
    `${limits.name} ${limits.model}: ${(stated.flops / 1e12).toFixed(0)} TFLOP/s and ${(stated.bandwidth / 1e9).toFixed(0)} GB/s by ` +
      `${stated.source}; a copy moves ${(copyRate / 1e9).toFixed(0)} GB/s; ${about}`,
  );
  const leadBytes = Math.ceil(2 ** 30 / shrink ** 2);
  const place = {
    backend,
    repetitions: Number(values.repetitions),
    limits,
    stated,
    copyRate,
    peer,
    leadBytes,
  };
  const wanted = (bench: CudaBench): boolean =>
    positionals.length === 0 || positionals.some((text) => `${bench.op} ${bench.label}`.includes(text));
  const results: Result[] = [];
  mkdirSync(values.out, { recursive: true });
  for (const bench of cudaBenches(shrink).filter(wanted)) {
    const failed = (error: unknown): Result => ({
      op: bench.op,
      label: bench.label,
      error: messageOf(error),
    });
    const late = performance.now() > deadline;
    watchdog.watch(`${bench.op} ${bench.label}`);
    const result = late
      ? failed("its turn came too late (--minutes)")
      : await measure(bench, place).catch(failed);
    results.push(result);
    console.log(lineOf(result, copyRate, stated));
    const report = { ...head, at: new Date().toISOString(), results };
    writeFileSync(join(values.out, `cuda-${name}.json`), `${JSON.stringify(report, null, 1)}\n`);
  }
  await peer?.[Symbol.asyncDispose]();
  await watchdog.stop();
  if (results.length === 0) throw new Error(`no bench has ${positionals.join(" or ")} in its name`);
  if (results.some(({ error }) => error !== undefined)) process.exitCode = 1;
}

main().catch((error: unknown) => {
  const code = error instanceof Error && "code" in error ? `${error.code}: ` : "";
  console.error(`bench:cuda: ${code}${messageOf(error)}`);
  process.exitCode = 1;
});
