import assert from "node:assert/strict";
import { allBenches, benchesNamed, opsWithoutBench } from "../../bench/ops/index.ts";
import { floorSeconds, type OpBench, workOf } from "../../bench/ops/op-bench.ts";
import { kernels } from "../support/kernels.ts";

describe("benches of ops", () => {
  it("has one for every op of the CPU", () => {
    assert.deepEqual(opsWithoutBench("cpu"), []);
  });

  it("names only ops that there are, each row once", () => {
    const known = new Set(kernels.operators("ref"));
    for (const { op } of allBenches) assert.ok(known.has(op), op);
    const rows = allBenches.map((bench) => `${bench.op} ${bench.label}`);
    assert.equal(new Set(rows).size, rows.length);
  });

  it("names only fields of their op where it says what they touch", () => {
    for (const { op, bytes = {}, updated = [] } of allBenches) {
      const fields = kernels.operatorFields(op).map((field) => field.name);
      for (const name of [...Object.keys(bytes), ...updated])
        assert.ok(fields.includes(name), `${op}: ${name}`);
    }
  });

  it("finds benches by table and by op", () => {
    assert.ok(benchesNamed("attention")!.some((bench) => bench.op === "decodeAttention"));
    assert.ok(benchesNamed("gae")!.every((bench) => bench.op === "gae"));
    assert.equal(benchesNamed("nothing"), undefined);
  });
});

describe("work of an op", () => {
  const args = (): Record<string, Float32Array | Int32Array> => ({
    tokens: new Int32Array(10),
    table: new Float32Array(1000),
    y: new Float32Array(40),
  });

  it("is every array once", () => {
    const bench: OpBench = { op: "embeddingForward", label: "", args };
    assert.deepEqual(workOf(bench, args()), {
      flops: 0,
      readBytes: 40 + 4000,
      writtenBytes: 160,
      updatedBytes: 0,
    });
  });

  it("counts what is touched of a table", () => {
    const bench: OpBench = { op: "embeddingForward", label: "", args, bytes: { table: 160 }, flops: 7 };
    assert.deepEqual(workOf(bench, args()), { flops: 7, readBytes: 200, writtenBytes: 160, updatedBytes: 0 });
  });

  it("knows what is changed in place: named so, or given as input and as output", () => {
    const x = new Float32Array(10);
    const bench: OpBench = { op: "adamW", label: "", args: () => ({}), updated: ["parameter"] };
    const work = workOf(bench, { gradient: x, parameter: new Float32Array(10) });
    assert.deepEqual(work, { flops: 0, readBytes: 40, writtenBytes: 0, updatedBytes: 40 });
    const inPlace: OpBench = { op: "activationBackward", label: "", args: () => ({}) };
    assert.deepEqual(workOf(inPlace, { x, dy: x, dx: x }), {
      flops: 0,
      readBytes: 0,
      writtenBytes: 0,
      updatedBytes: 40,
    });
  });

  it("takes as long as what bounds it", () => {
    const work = { flops: 200, readBytes: 20, writtenBytes: 10, updatedBytes: 5 };
    assert.equal(floorSeconds(work, 100, 100), 2);
    assert.equal(floorSeconds(work, 1000, 100), 0.4);
  });
});
