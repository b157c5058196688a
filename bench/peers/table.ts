import { existsSync, readFileSync } from "node:fs";
import type { Compute } from "../ops/op-bench.ts";
import { PROCESSORS, resultPath } from "../result-files.ts";
import { type Comparison, median } from "./paired.ts";
import { type Aim, computesOf, type PeerWork, WORKS } from "./works.ts";

// The tables of docs/PERFORMANCE.md from what bench/results/PROCESSOR/peers-*.json hold: nothing in them is written by hand.

/** What the tables need of a result. */
export interface PeerResult {
  /** The commit that was measured; results of before it was kept have none. */
  readonly commit?: string;
  readonly comparisons: readonly {
    readonly ours: string;
    readonly peer: string;
    readonly seconds: Comparison;
  }[];
  /** Of each process, by its name; absent where memory was not measured. */
  readonly peakBytes?: Readonly<Record<string, number>>;
  /** Seconds that reading the weights alone takes; of rounds. */
  readonly bandwidthLimitSeconds?: readonly number[];
}

const OURS = "ours";

/** PyTorch with nothing but what it brings. */
const isInstalled = (peer: string): boolean => !peer.includes("+");

const NAMES: Readonly<Record<string, string>> = {
  float32: "float32",
  autocast: "autocast",
  bfloat16: "bfloat16 weights",
  compile: "compiled",
};
const named = (peer: string): string =>
  peer
    .split("+")
    .map((part) => NAMES[part] ?? part)
    .join(", ");

const round = (value: number): string => (value >= 10 ? value.toFixed(1) : value.toFixed(2));
const seconds = (value: number): string =>
  value < 0.1 ? `${(1000 * value).toFixed(1)} ms` : `${round(value)} s`;
const ratioOf = ({ ratio, interval }: Comparison): string =>
  `**${round(ratio)}** [${interval.map(round).join(", ")}]`;
const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

/** Of several ways to run PyTorch, the one that is the hardest for ours. */
function hardest<T>(rows: readonly T[], ratio: (row: T) => number): T | undefined {
  return rows.toSorted((a, b) => ratio(a) - ratio(b))[0];
}

/** "yes", or what was not reached. */
function verdict(goals: readonly { what: string; reached: boolean }[]): string {
  const missed = goals.filter(({ reached }) => !reached).map(({ what }) => what);
  if (missed.length === 0) return "yes";
  return missed.length === goals.length ? "**no**" : `**not** ${missed.join(", ")}`;
}

/** A work in one type. */
interface Row {
  readonly work: PeerWork;
  readonly compute: Compute;
}

/** What was measured of it. */
interface Measured extends Row {
  readonly result: PeerResult;
}

const NOT_MEASURED = "not measured";

/** The share of the bandwidth that ours reaches; undefined where it was not measured. */
function bandwidthShare({ bandwidthLimitSeconds = [] }: PeerResult, ours: number): number | undefined {
  return bandwidthLimitSeconds.length > 0 ? median(bandwidthLimitSeconds) / ours : undefined;
}

function aimText({ installed, tuned, bandwidth }: Aim): string {
  const ratios = [installed, ...(tuned === undefined ? [] : [tuned])].join(" / ");
  return bandwidth === undefined ? ratios : `${ratios}; ${100 * bandwidth} % of the bandwidth`;
}

/** The cells of time: ours, theirs as installed and tuned, the aim, whether it is reached, the build, the name. */
function timeCells({ work, compute, result }: Measured): string[] {
  const rows = result.comparisons.filter(({ ours }) => ours === OURS);
  const ratio = ({ seconds }: (typeof rows)[number]): number => seconds.ratio;
  const [installed, tuned] = [true, false].map((plain) =>
    hardest(
      rows.filter(({ peer }) => isInstalled(peer) === plain),
      ratio,
    ),
  );
  if (!installed)
    throw new Error(`${work.name}:${compute} was not measured beside PyTorch as it is installed`);
  const { aim } = work;
  const { ours } = installed.seconds;
  const share = bandwidthShare(result, ours);
  const goals = [{ what: "as installed", reached: installed.seconds.ratio >= aim.installed }];
  if (tuned) goals.push({ what: "tuned", reached: tuned.seconds.ratio >= (aim.tuned ?? aim.installed) });
  if (aim.bandwidth !== undefined && share !== undefined)
    goals.push({ what: "bandwidth", reached: share >= aim.bandwidth });
  const theirs = (row: typeof tuned): string =>
    row ? `${named(row.peer)} ${seconds(row.seconds.theirs)}: ${ratioOf(row.seconds)}` : "–";
  return [
    share === undefined ? seconds(ours) : `${seconds(ours)}, ${(100 * share).toFixed(0)} % of the bandwidth`,
    theirs(installed),
    theirs(tuned),
    aimText(aim),
    verdict(goals),
    result.commit ?? "–",
    `\`${work.name}:${compute}\``,
  ];
}

/** The same where nothing was measured. */
function timeAims({ work, compute }: Row): string[] {
  return [NOT_MEASURED, "–", "–", aimText(work.aim), "–", "–", `\`${work.name}:${compute}\``];
}

/** The cells of peak memory, as far as they are time's. */
function memoryCells({ work: { aim }, result: { peakBytes = {} } }: Measured): string[] {
  const ours = peakBytes[OURS]!;
  const least = aim.memory!;
  const peers = Object.entries(peakBytes).filter(([name]) => !name.startsWith(OURS));
  const [installed, tuned] = [true, false].map((plain) =>
    hardest(
      peers.filter(([peer]) => isInstalled(peer) === plain),
      ([, bytes]) => bytes,
    ),
  );
  const theirs = (peer: typeof tuned): string =>
    peer ? `${named(peer[0])} ${mebibytes(peer[1])}: **${round(peer[1] / ours)}**` : "–";
  const reached = (peer: typeof tuned): boolean => !peer || peer[1] >= least * ours;
  const goals = [
    { what: "as installed", reached: reached(installed) },
    { what: "tuned", reached: reached(tuned) },
  ];
  return [mebibytes(ours), theirs(installed), theirs(tuned), String(least), verdict(goals)];
}

function memoryAims({ work: { aim } }: Row): string[] {
  return [NOT_MEASURED, "–", "–", String(aim.memory), "–"];
}

const HEADS = ["node-rlhf", "PyTorch as installed: ratio", "tuned: ratio", "aim", "reached?"];

/** A table with a work's title in the first of its rows. */
function table<Each extends Row>(
  heads: readonly string[],
  all: readonly Each[],
  cells: (one: Each) => string[],
): string[] {
  const line = (texts: readonly string[]): string => `| ${texts.join(" | ")} |`;
  const columns = ["work", "products in", ...heads];
  const rows = all.map((one, index) => {
    const isFirst = all[index - 1]?.work !== one.work;
    return line([isFirst ? one.work.title : "", one.compute, ...cells(one)]);
  });
  return [line(columns), `|${columns.map(() => "---").join("|")}|`, ...rows];
}

/** Reads a result by its name; undefined where there is none. */
export type ReadResult = (name: string) => PeerResult | undefined;

/** Of bench/results. */
export const readResult =
  (processor: string): ReadResult =>
  (name) => {
    const path = resultPath(processor, `peers-${name}`);
    return existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as PeerResult) : undefined;
  };

/** The tables of time and of memory, in Markdown. */
export function peerTables(read: ReadResult): string {
  const all = WORKS.flatMap((work) =>
    computesOf(work).map((compute) => ({ work, compute, result: read(work.result(compute)) })),
  );
  const withMemory = all.filter(({ work }) => work.aim.memory !== undefined);
  return [
    ...table([...HEADS, "build", "name"], all, ({ result, ...row }) =>
      result ? timeCells({ ...row, result }) : timeAims(row),
    ),
    "",
    "Peak memory of whole processes:",
    "",
    ...table(HEADS, withMemory, ({ result, ...row }) =>
      result?.peakBytes ? memoryCells({ ...row, result }) : memoryAims(row),
    ),
  ].join("\n");
}

/** The document with a processor's tables as `read` has them now. Throws where their place is not marked. */
export function withPeerTables(document: string, processor: string, read: ReadResult): string {
  const opening = `<!-- peers, ${processor}: made by npm run bench:peers -->`;
  const closing = `<!-- end of peers, ${processor} -->`;
  const begin = document.indexOf(opening);
  const end = document.indexOf(closing);
  if (begin < 0 || end < begin)
    throw new Error(`the place of the peers' tables is not marked by ${opening} and ${closing}`);
  return `${document.slice(0, begin + opening.length)}\n${peerTables(read)}\n${document.slice(end)}`;
}

/** The document with the tables of every processor that has results, as bench/results has them now. */
export const withAllPeerTables = (document: string): string =>
  PROCESSORS.reduce((text, processor) => withPeerTables(text, processor, readResult(processor)), document);
