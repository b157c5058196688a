/**
 * One work in a process of its own, so that its peak memory is its own: prints what it took as JSON. bench/end-to-end/run.ts starts it
 * with the work's name and place as JSON.
 */
import { Engine } from "../../lib/index.ts";
import { kernels } from "../../test/support/kernels.ts";
import { peakOf } from "../ops/ceilings.ts";
import { floorOf, type Machine } from "./floor.ts";
import { WORKS, type WorkPlace } from "./works.ts";

export interface WorkerTask {
  readonly work: string;
  readonly place: WorkPlace;
  /** Rounds that are timed, after one that is not. */
  readonly rounds: number;
}

export interface WorkResult extends WorkerTask {
  /** Median of the rounds, and the fastest. */
  readonly seconds: number;
  readonly fastest: number;
  readonly tokens: number;
  readonly tokensPerSecond: number;
  /** Bytes: the most that was resident, of the process and of that the engine's own; the engine's peaks by use, added up. */
  readonly peakResident: number;
  readonly peakEngine: number;
  readonly machine: Machine;
  /** The least seconds possible with the machine's peaks, and their share of the seconds taken. */
  readonly floor: number;
  readonly share: number;
}

const STREAM = { readBytes: 1 << 28, writtenBytes: 0, updatedBytes: 0 };

/** Peaks of so many threads; the best of several, as other work on the machine can only lower them. */
function measureMachine(threads: number): Machine {
  const best = (measure: () => number): number => Math.max(measure(), measure(), measure());
  return {
    peak: {
      float32: best(() => peakOf.float32(threads)),
      bfloat16x3: best(() => peakOf.bfloat16x3(threads)),
      bfloat16: best(() => peakOf.bfloat16(threads)),
    },
    bandwidth: best(() => kernels.streamingRate(threads, STREAM)),
  };
}

/** The best of two measurements: a neighbour that slows one down must not lower the floor's peaks. */
function better(a: Machine, b: Machine): Machine {
  return {
    peak: {
      float32: Math.max(a.peak.float32, b.peak.float32),
      bfloat16x3: Math.max(a.peak.bfloat16x3, b.peak.bfloat16x3),
      bfloat16: Math.max(a.peak.bfloat16, b.peak.bfloat16),
    },
    bandwidth: Math.max(a.bandwidth, b.bandwidth),
  };
}

/** What `measure` finds a second later: neighbours may have gone. */
const later = async <T>(measure: () => T): Promise<T> => {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  return measure();
};

async function main({ work: name, place, rounds }: WorkerTask): Promise<WorkResult> {
  const work = await WORKS[name]!(place);
  await work.run();
  const times: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const start = performance.now();
    await work.run();
    times.push((performance.now() - start) / 1e3);
  }
  const { threads, compute } = place;
  const peakResident = process.resourceUsage().maxRSS * 1024;
  const { peak } = Engine.shared({ device: "cpu", threads, compute }).memory();
  times.sort((a, b) => a - b);
  const seconds = times[times.length >> 1]!;
  const machine = better(measureMachine(threads), await later(() => measureMachine(threads)));
  const floor = floorOf(work.operations, compute, machine);
  return {
    ...{ work: name, place, rounds, seconds, fastest: times[0]!, tokens: work.tokens },
    ...{ tokensPerSecond: work.tokens / seconds, peakResident },
    peakEngine: Object.values(peak).reduce((total, bytes) => total + bytes, 0),
    ...{ machine, floor, share: floor / seconds },
  };
}

console.log(JSON.stringify(await main(JSON.parse(process.argv[2]!) as WorkerTask)));
process.exit(0);
