import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import type { Comparison } from "../../bench/peers/paired.ts";
import { type PeerResult, peerTables, withAllPeerTables, withPeerTables } from "../../bench/peers/table.ts";
import { argumentsOf, computesOf, WORKS } from "../../bench/peers/works.ts";

const DOCUMENT = new URL("../../docs/PERFORMANCE.md", import.meta.url);

const by = (ratio: number): Comparison => ({ ours: 2, theirs: 2 * ratio, ratio, interval: [ratio, ratio] });

/** The rows for a work whose only result is this one, in float32. */
function rowsOf(name: string, result: PeerResult): string[] {
  const work = WORKS.find((one) => one.name === name)!;
  return peerTables((asked) => (asked === work.result("float32") ? result : undefined))
    .split("\n")
    .filter((row) => row.startsWith(`| ${work.title}`));
}

const withRatios = (installed: number, tuned: number): PeerResult => ({
  comparisons: [
    { ours: "ours", peer: "float32", seconds: by(installed) },
    { ours: "ours", peer: "float32+tcmalloc", seconds: by(tuned) },
    { ours: "ours, another way", peer: "float32", seconds: by(0.1) },
  ],
});

describe("the tables beside PyTorch", () => {
  it("are in docs/PERFORMANCE.md as bench/results has them", () => {
    const document = readFileSync(DOCUMENT, "utf8");
    assert.equal(withAllPeerTables(document), document, "npm run bench:peers writes them anew");
  });

  it("say what was reached, as installed and tuned", () => {
    const verdicts = [
      withRatios(1.5, 1.2),
      withRatios(1.49, 1.2),
      withRatios(1.5, 1.19),
      withRatios(1.4, 1.1),
    ];
    assert.deepEqual(
      verdicts.map((result) => rowsOf("training-lora", result)[0]!.split(" | ")[6]),
      ["yes", "**not** as installed", "**not** tuned", "**no**"],
    );
  });

  it("set ours beside the fastest way to run PyTorch", () => {
    const { comparisons } = withRatios(1.6, 1.5);
    const compiled = { ours: "ours", peer: "float32+tcmalloc+compile", seconds: by(1.3) };
    const [row] = rowsOf("training-lora", { comparisons: [...comparisons, compiled], commit: "abc1234" });
    assert.match(
      row!,
      /float32, tcmalloc, compiled 2\.60 s: \*\*1\.30\*\* \[1\.30, 1\.30\] .* yes \| abc1234 \|/,
    );
  });

  it("hold peak memory to its own aim", () => {
    const peakBytes = { ours: 2 ** 20, float32: 3 * 2 ** 20, "float32+tcmalloc": 2.5 * 2 ** 20 };
    const [, row] = rowsOf("log-probs-4x256", { ...withRatios(1.5, 1.5), peakBytes });
    assert.match(row!, /1 MiB \| float32 3 MiB: \*\*3\.00\*\* .* \| 3 \| \*\*not\*\* tuned \|/);
  });

  it("count the bandwidth where it is part of the aim", () => {
    const [row] = rowsOf("generation-1", { ...withRatios(3, 3), bandwidthLimitSeconds: [1.4, 1.4, 9] });
    assert.match(row!, /2\.00 s, 70 % of the bandwidth .* \*\*not\*\* bandwidth \|/);
  });

  it("say of what was not measured that it was not", () => {
    const tables = peerTables(() => undefined).split("\n");
    const unmeasured = tables.filter((row) => row.includes("| not measured |"));
    const all = WORKS.flatMap((work) => computesOf(work).map(() => work));
    const withMemory = all.filter(({ aim }) => aim.memory !== undefined);
    assert.equal(unmeasured.length, all.length + withMemory.length);
    assert.ok(unmeasured.some((row) => row.endsWith("| 3.5 | – | – | `generation-32:float32` |")));
  });

  it("have each result once, and a command for it", () => {
    const results = WORKS.flatMap((work) => computesOf(work).map(work.result));
    assert.equal(new Set(results).size, results.length);
    const [work] = WORKS;
    assert.deepEqual(argumentsOf(work!, "bfloat16").slice(0, 4), ["--compute", "bfloat16", "--pairs", "4"]);
  });

  it("need their place in the document", () => {
    assert.throws(() => withPeerTables("# Nothing", "avx2", () => undefined), /not marked by .*avx2/);
  });
});
