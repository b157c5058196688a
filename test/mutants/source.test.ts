import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { type Equivalent, entryOf, unmatchedEntries } from "../../scripts/mutants/equivalent.ts";
import {
  changedSince,
  type MutantRecord,
  type Result,
  withEntries,
  withFile,
  withoutGone,
} from "../../scripts/mutants/record.ts";
import {
  kernelFiles,
  type Mutant,
  mutate,
  operatorsOf,
  realArguments,
} from "../../scripts/mutants/source.ts";
import { mutatedSources } from "../../scripts/mutants/tree.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const CUDA = join(ROOT, "csrc", "cuda");

/** Functions of prim/ that order what threads and copies do. */
const ORDERING = [
  ...["syncThreads", "syncWarp", "syncNamed", "cpAsyncCommit", "cpAsyncWait"],
  ...["publishBarriers", "arrive", "arriveExpecting", "waitFor"],
  ...["beginProducts", "commitProducts", "waitForProducts"],
];
/** Those without a result that order nothing: they copy, multiply or write, or set up what is then waited for. */
const OTHERS = [
  ...["cpAsync16", "copyBox", "copyHeadBox", "ldmatrixX4", "ldmatrixX4Transposed", "writeWords", "writePack"],
  ...["mmaM16N8K16", "multiplyTiles", "multiplyFragment", "pin", "initBarrier", "setRegisters", "addPack"],
];

const SAMPLE = `
struct Arguments { int count; float limit; };
int rounds(int count) { return count > 3 ? count : 3; }

__global__ void kernel(Arguments a, const float* x, float* y) {
  cpAsyncWait<kStages - 2>();
  syncThreads();  // a < b
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = i < a.count ? x[i] : 0.0f;
  if (threadIdx.x >= a.count || x[0] > a.limit) return;
  const int last = lesser(a.count, 7);
  static_assert(sizeof(int) < 8);
}
`;

describe("mutants of the CUDA sources", () => {
  const { text, mutants } = mutate("sample.cu", SAMPLE, 10, new Set());
  const changes = mutants.map(({ line, change }) => `${line}: ${change}`);

  it("are barriers, waits and bounds of integers in functions of the device", () => {
    assert.deepEqual(changes, [
      "6: cpAsyncWait<kStages - 2>(), one group less",
      "7: no syncThreads()",
      "9: < a.count, + 1",
      "9: < a.count, − 1",
      "10: >= a.count, + 1",
      "10: >= a.count, − 1",
      "11: lesser(a.count, 7), + 1",
      "11: lesser(a.count, 7), − 1",
    ]);
    assert.deepEqual(
      mutants.map(({ id }) => id),
      mutants.map((_, index) => 10 + index),
    );
  });

  it("stand in the lines where they were", () => {
    const lines = text.split("\n");
    assert.equal(lines.length, SAMPLE.split("\n").length);
    assert.equal(
      lines[5],
      "  (rlhf::mutants::is(10) ? cpAsyncWait<(kStages - 2) + 1>() : cpAsyncWait<kStages - 2>());",
    );
    assert.equal(lines[6]!.trimEnd(), "  (rlhf::mutants::is(11) ? void() : syncThreads());");
    assert.equal(
      lines[8],
      "  for (int i = 0; i < 4; ++i) y[i] = i < rlhf::mutants::shift(12) + a.count ? x[i] : 0.0f;",
    );
    assert.equal(lines[10], "  const int last = rlhf::mutants::shift(16) + lesser(a.count, 7);");
  });

  it("are in loops that are not to be unrolled, too", () => {
    const loop = (pragma: string): string =>
      `RLHF_DEVICE void f() {\n${pragma}\n  for (int i = 0; i < 4; ++i) g(i);\n}`;
    const changesOf = (pragma: string): string[] =>
      mutate("f.cu", loop(pragma), 0, new Set()).mutants.map(({ change }) => change);
    assert.deepEqual(changesOf("#pragma unroll 1"), ["< 4, + 1", "< 4, − 1"]);
    assert.deepEqual(changesOf("#pragma unroll"), []);
  });

  it("leave comparisons of arguments that are reals alone", () => {
    const reals = realArguments("struct Sample {\n  double topP = 1, minP = 0;  // shares\n};\n");
    assert.deepEqual([...reals], ["topP", "minP"]);
    const source = "RLHF_DEVICE bool f(const Sample& a) { return a.topP < 1 && a.topK > 0; }";
    assert.deepEqual(
      mutate("f.cu", source, 0, reals).mutants.map(({ change }) => change),
      ["> 0, + 1", "> 0, − 1"],
    );
  });

  it("are in every source with kernels, and each of these runs in ops that are known", () => {
    const files = kernelFiles(CUDA);
    assert.ok(files.includes("attention.cu") && files.includes("prim/pipeline.cuh"));
    assert.ok(!files.includes("device.cu"));
    for (const file of files) assert.notDeepEqual(operatorsOf(CUDA, file), [], file);
    assert.deepEqual(operatorsOf(CUDA, "rotary.cu"), ["rotary"]);
    assert.ok(operatorsOf(CUDA, "prim/pipeline.cuh").includes("tokenLogProbForward"));
    const ofProducts = ["linear", "tokenLogProb", "klDivergence"].flatMap((op) => [
      `${op}Forward`,
      `${op}Backward`,
    ]);
    assert.deepEqual(operatorsOf(CUDA, "hopper/matmul.cuh"), ofProducts);
  });

  it("know which functions of prim/ order what threads and copies do", () => {
    const declared = ["ptx", "platform"].flatMap((name) => {
      const text = readFileSync(join(CUDA, "prim", `${name}.cuh`), "utf8");
      return [...text.matchAll(/\b(?:RLHF_DEVICE|inline) void (\w+)\(/g)].map((match) => match[1]!);
    });
    assert.deepEqual([...new Set(declared)].sort(), [...ORDERING, ...OTHERS].sort());
  });

  it("are made of every call that orders anything", () => {
    const all = mutatedSources(ROOT).mutants;
    const calls = new RegExp(`(?<![\\w.:])(?:${ORDERING.join("|")})(?:<[^;()]*>)?\\(`, "g");
    let found = 0;
    for (const file of kernelFiles(CUDA)) {
      for (const [index, line] of readFileSync(join(CUDA, file), "utf8").split("\n").entries()) {
        for (const [call] of line.replace(/\/\/.*$/, "").matchAll(calls)) {
          const isOfCall = ({ change }: Mutant): boolean => change.replace(/^no /, "").startsWith(call);
          const mutant = all.find((each) => each.file === file && each.line === index + 1 && isOfCall(each));
          assert.ok(mutant, `${file}:${index + 1}: ${call} has no mutant`);
          found++;
        }
      }
    }
    assert.ok(found > 60, `${found} calls`);
  });

  it("compile", () => {
    const folder = mkdtempSync(join(tmpdir(), "rlhf-mutants-"));
    try {
      const { files, mutants: all } = mutatedSources(ROOT);
      const found = all.filter(({ file }) => file === "prim/pipeline.cuh");
      assert.ok(found.some(({ change }) => change === "cpAsyncWait<kStages - 2>(), one group less"));
      for (const [file, content] of files) {
        const path = join(folder, "cuda", file);
        execFileSync("mkdir", ["-p", resolve(path, "..")]);
        writeFileSync(path, content);
      }
      const source = join(folder, "cuda", "dropout.cu");
      const flags = ["-std=c++20", "-fsyntax-only", "-Wno-unknown-pragmas", `-I${folder}`, `-I${ROOT}/csrc`];
      execFileSync("c++", [...flags, "-x", "c++", source]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("have no entry among the equivalent ones that is not a mutant, and each has a reason", () => {
    const path = join(ROOT, "scripts", "mutants", "equivalent.json");
    const entries = JSON.parse(readFileSync(path, "utf8")) as Equivalent[];
    assert.deepEqual(unmatchedEntries(entries, mutatedSources(ROOT).mutants), []);
    for (const { reason } of entries) assert.ok(reason.length > 20);
    const [first] = mutants;
    const entry = { file: "sample.cu", text: first!.text, changes: [first!.change, "< x, + 1"], reason: "" };
    assert.equal(entryOf([entry], first!), entry);
    assert.equal(entryOf([entry], mutants[1]!), undefined);
    assert.deepEqual(
      unmatchedEntries([entry], mutants).map(({ changes }) => changes),
      [["< x, + 1"]],
    );
  });
});

describe("the record of a run of mutants", () => {
  const mutants = [1, 2, 3, 4].map((id) => ({
    id,
    file: "a.cu",
    line: id,
    text: `line ${id}`,
    change: "< n, + 1",
  }));
  const verdict = { outcome: "survived", test: "", message: "", passed: 1, slowestMs: 1 } as const;
  const results: Result[] = mutants.map((mutant) => ({
    mutant,
    verdict: mutant.id === 1 ? { ...verdict, outcome: "hung" } : verdict,
    equivalent: mutant.id === 2 ? { file: "a.cu", text: mutant.text, changes: [], reason: "" } : undefined,
  }));
  const nothing: MutantRecord = { killedShare: 1, files: {}, survivors: [] };
  const record = withFile(nothing, "a.cu", "state 1", results);

  it("counts what is equivalent apart, and names those that survived", () => {
    assert.deepEqual(record.files, { "a.cu": { killed: 1, survived: 2, equivalent: 1, source: "state 1" } });
    assert.equal(record.killedShare, 0.3333);
    assert.deepEqual(
      record.survivors.map(({ text }) => text),
      ["line 3", "line 4"],
    );
  });

  it("counts those as equivalent that have an entry since", () => {
    const entry = { file: "a.cu", text: "line 4", changes: ["< n, + 1"], reason: "" };
    const named = withEntries(record, [entry]);
    assert.deepEqual(named.files, { "a.cu": { killed: 1, survived: 1, equivalent: 2, source: "state 1" } });
    assert.equal(named.killedShare, 0.5);
    assert.deepEqual(
      named.survivors.map(({ text }) => text),
      ["line 3"],
    );
    assert.deepEqual(withEntries(named, [entry]), named);
  });

  it("changes file by file", () => {
    const others = mutants.map((mutant) => ({ ...mutant, file: "b.cu" }));
    const killed = others.map((mutant) => ({ mutant, verdict: results[0]!.verdict, equivalent: undefined }));
    const both = withFile(record, "b.cu", "state 1", killed);
    assert.equal(both.killedShare, 0.7143);
    assert.equal(both.survivors.length, 2);
    const again = withFile(both, "a.cu", "state 2", results.slice(0, 3));
    assert.deepEqual(again.files["a.cu"], { killed: 1, survived: 1, equivalent: 1, source: "state 2" });
    assert.deepEqual(
      again.survivors.map(({ text }) => text),
      ["line 3"],
    );
    assert.deepEqual(Object.keys(again.files), ["a.cu", "b.cu"]);
  });

  it("is out of date where there are more mutants of a file than were run", () => {
    const digests = new Map([["a.cu", "state 1"]]);
    assert.deepEqual(changedSince(record, digests, mutants), []);
    assert.deepEqual(changedSince(record, digests, [...mutants, { file: "a.cu" }]), ["a.cu"]);
  });

  it("tells which files have changed since, and forgets those that are gone", () => {
    const digests = new Map([
      ["a.cu", "state 2"],
      ["c.cu", "state 1"],
    ]);
    const both = withFile(record, "c.cu", "state 1", []);
    assert.deepEqual(changedSince(both, digests, mutants), ["a.cu"]);
    assert.deepEqual(changedSince(nothing, digests, mutants), ["a.cu", "c.cu"]);
    const left = withoutGone(both, new Map([["c.cu", "state 1"]]));
    assert.deepEqual(left.files, { "c.cu": { killed: 0, survived: 0, equivalent: 0, source: "state 1" } });
    assert.deepEqual(left.survivors, []);
  });
});
