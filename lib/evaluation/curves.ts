import { existsSync } from "node:fs";
import { join } from "node:path";
import { messageOf, RlhfError } from "../errors.ts";
import { type MetricsRecord, readMetrics } from "../monitor/metrics.ts";
import { formatNumber } from "./report.ts";

/** One metric of one run over its steps. */
export interface Curve {
  readonly run: string;
  /** In the order of steps; only finite values. */
  readonly points: readonly (readonly [step: number, value: number])[];
}

/** One metric of all runs that recorded it. */
export interface Chart {
  readonly metric: string;
  readonly curves: readonly Curve[];
}

/** What says more about the machine and the clock than about training. */
const LEFT_OUT = new Set(["tokens/s", "epoch"]);
/** Points that a curve is drawn with at most; of more, neighbours are averaged. */
const MOST_POINTS = 300;

export const COLOURS = [
  "#1f77b4",
  "#d62728",
  "#2ca02c",
  "#9467bd",
  "#ff7f0e",
  "#17becf",
  "#8c564b",
  "#e377c2",
];

/** The metrics.jsonl of a run: the file itself, or in the run's directory; null where there is none. */
export function metricsFileOf(run: string): string | null {
  const file = run.endsWith(".jsonl") ? run : join(run, "metrics.jsonl");
  return existsSync(file) ? file : null;
}

/** What runs recorded, by name, from their metrics files. Throws ERR_RLHF_IO for a file that cannot be read. */
export function readRuns(files: Readonly<Record<string, string>>): Record<string, MetricsRecord[]> {
  return Object.fromEntries(Object.entries(files).map(([run, file]) => [run, readRun(file)]));
}

function readRun(file: string): MetricsRecord[] {
  try {
    return readMetrics(file);
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_IO",
      `${file}: cannot be read: ${messageOf(error)}`,
      { file },
      { cause: error },
    );
  }
}

function averaged(points: Curve["points"]): Curve["points"] {
  const size = Math.ceil(points.length / MOST_POINTS);
  if (size <= 1) return points;
  return Array.from({ length: Math.ceil(points.length / size) }, (_, i) => {
    const part = points.slice(i * size, (i + 1) * size);
    const mean = (which: 0 | 1): number => part.reduce((sum, point) => sum + point[which], 0) / part.length;
    return [mean(0), mean(1)] as const;
  });
}

/** Charts of every metric that a run recorded at least twice. */
export function chartsOf(runs: Readonly<Record<string, readonly MetricsRecord[]>>): Chart[] {
  const charts = new Map<string, Curve[]>();
  for (const [run, records] of Object.entries(runs)) {
    const metrics = new Set(records.flatMap((record) => Object.keys(record.metrics)));
    for (const metric of metrics) {
      if (LEFT_OUT.has(metric)) continue;
      const points = records.flatMap(({ step, metrics: values }) => {
        const value = values[metric];
        return value !== undefined && Number.isFinite(value) ? [[step, value] as const] : [];
      });
      if (points.length < 2) continue;
      charts.set(metric, [...(charts.get(metric) ?? []), { run, points: averaged(points) }]);
    }
  }
  return [...charts].map(([metric, curves]) => ({ metric, curves }));
}

const WIDTH = 360;
const HEIGHT = 200;
const LEFT = 58;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 24;

/** Places a value of a range on a stretch of pixels; a range of one value is its middle. */
function scale(low: number, high: number, from: number, to: number): (value: number) => number {
  return (value) => (high > low ? from + ((value - low) / (high - low)) * (to - from) : (from + to) / 2);
}

/**
 * A chart as an SVG element with the ends of its axes written out. Holds no text from outside but numbers.
 *
 * @param colourOf the colour of a run
 */
export function toSvg({ curves }: Chart, colourOf: (run: string) => string): string {
  const points = curves.flatMap((curve) => curve.points);
  const ends = (which: 0 | 1): [number, number] =>
    points.reduce<[number, number]>(
      ([low, high], point) => [Math.min(low, point[which]), Math.max(high, point[which])],
      [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY],
    );
  const [firstStep, lastStep] = ends(0);
  const [low, high] = ends(1);
  const x = scale(firstStep, lastStep, LEFT, WIDTH - RIGHT);
  const y = scale(low, high, HEIGHT - BOTTOM, TOP);
  const text = (at: number, line: number, anchor: string, value: number): string =>
    `<text x="${at}" y="${line}" text-anchor="${anchor}">${formatNumber(value)}</text>`;
  const lines = curves.map(({ run, points: own }) => {
    const path = own.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    return `<polyline fill="none" stroke="${colourOf(run)}" stroke-width="1.5" points="${path}"/>`;
  });
  return [
    `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img">`,
    `<path class="axes" fill="none" d="M${LEFT},${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}"/>`,
    text(LEFT - 5, TOP + 8, "end", high),
    text(LEFT - 5, HEIGHT - BOTTOM, "end", low),
    text(LEFT, HEIGHT - 7, "start", firstStep),
    text(WIDTH - RIGHT, HEIGHT - 7, "end", lastStep),
    ...lines,
    "</svg>",
  ].join("");
}
