import assert from "node:assert/strict";
import {
  type KernelArguments,
  type KernelType,
  kernels,
  runKernel,
  testedBackends,
} from "../support/kernels.ts";
import { CaseData } from "./cases/case.ts";

type Arguments = Record<string, KernelArguments[string]>;

const BACKENDS = testedBackends.filter((name) => name !== "ref");

/** An update in float32 of random weights, some of them hard to round. */
function updateOf(count: number): Arguments & { parameter: Float32Array } {
  const data = new CaseData(`an update of ${count}`);
  const parameter = Float32Array.from(data.normal(count));
  parameter.set([0, -0, 1 + 2 ** -8, -1 - 2 ** -8, 65519, 3.39e38].slice(0, count));
  return {
    ...{ type: "float32", count, step: 3, learningRate: 1e-3, weightDecay: 0.01, gradientScale: 0.5 },
    gradient: Float32Array.from(data.normal(count)),
    parameter,
    m: Float32Array.from(data.normal(count, 0.1)),
    v: Float32Array.from(data.normal(count, 0.3).map((value) => value * value)),
  };
}

const array = (type: KernelType, count: number): Float32Array | Uint16Array =>
  type === "float32" ? new Float32Array(count) : new Uint16Array(count);

describe("AdamW's copy of its weights", () => {
  for (const backend of BACKENDS)
    for (const type of ["bfloat16", "float16", "float32"] as const)
      it(`has the bits of an update without one, and of narrow after it: ${type} on ${backend}`, () => {
        for (const count of [1, 7, 64, 1001]) {
          const plain: Arguments = updateOf(count);
          runKernel(backend, "adamW", plain);
          const y = array(type, count);
          runKernel(backend, "narrow", { type, count, x: plain["parameter"]!, y });

          const { parameter: master, ...others } = updateOf(count);
          const both: Arguments = { ...others, type, master, parameter: array(type, count) };
          runKernel(backend, "adamW", both);
          assert.deepEqual(both["parameter"], y, `${count} elements`);
          assert.deepEqual(both["master"], plain["parameter"]);
          for (const field of ["m", "v"]) assert.deepEqual(both[field], plain[field]);
        }
      });
});

/**
 * Updates of bfloat16 weights by ±learningRate to the last bit, in whatever order a backend computes: without momentum AdamW's step is
 * the gradient's sign. Returns the new weights.
 */
function moved(
  backend: string,
  weights: Float32Array,
  { seed = 1, step = 1, by = 0, sign = 1 }: { seed?: number; step?: number; by?: number; sign?: number },
  threads = 1,
): Uint16Array {
  const count = weights.length;
  const parameter = kernels.toBits(weights, "bfloat16");
  const args: Arguments = {
    ...{ type: "bfloat16", count, step, seed, learningRate: by, beta1: 0, beta2: 0, eps: 0 },
    gradient: new Float32Array(count).fill(-sign),
    parameter,
    ...{ m: new Float32Array(count), v: new Float32Array(count) },
  };
  if (backend === "ref") kernels.run(backend, "adamW", args);
  else runKernel(backend, "adamW", args, { threads });
  return parameter;
}

const wide = (bits: Uint16Array): Float32Array => kernels.fromBits(bits, "bfloat16");
const all = (count: number, value: number): Float32Array => new Float32Array(count).fill(value);

/** Numbers of bfloat16 of all sizes, subnormal and the largest among them. */
function numbers(count: number): Float32Array {
  const data = new CaseData("numbers of bfloat16");
  const values = Float32Array.from(data.normal(count), (value, i) => value * 2 ** ((i % 200) - 100));
  values.set([0, -0, 1, -1, 2 ** -133, -(2 ** -133), 3.3895313892515355e38, -3.3895313892515355e38]);
  return wide(kernels.toBits(values, "bfloat16"));
}

describe("AdamW on weights in bfloat16 without master weights", () => {
  const COUNT = 100_003; // several blocks of work, and a rest that fills no pack

  it("the oracle rounds to one of the two neighbours, and leaves what is a number of bfloat16 alone", () => {
    const weights = numbers(4096);
    for (const [by, sign] of [
      [1e-3, 1],
      [1e-3, -1],
      [3e-41, 1],
      [0, 1],
    ] as const) {
      const rounded = wide(moved("ref", weights, { by, sign, seed: 5 }));
      const sums = weights.map((weight) => Math.fround(weight + sign * Math.fround(by)));
      for (const [i, sum] of sums.entries()) {
        const words = new Uint32Array(Float32Array.of(sum).buffer);
        const nearer = new Float32Array(Uint32Array.of(words[0]! & 0xffff0000).buffer)[0]!;
        const farther = new Float32Array(Uint32Array.of((words[0]! & 0xffff0000) + 0x10000).buffer)[0]!;
        const fits = nearer === sum ? rounded[i] === sum : rounded[i] === nearer || rounded[i] === farther;
        assert.ok(fits, `${sum} became ${rounded[i]}, not ${nearer} or ${farther}`);
      }
    }
  });

  for (const backend of BACKENDS) {
    it(`the oracle's bits, for any seed, step, size and number of threads: ${backend}`, () => {
      const weights = numbers(COUNT);
      for (const [seed, step, by, sign, count] of [
        [1, 1, 1e-3, 1, COUNT],
        [2 ** 40 + 3, 7, 1e-3, -1, COUNT],
        [0, 123_456, 2.5e-5, 1, 2051],
        [3, 2, 3e-41, 1, 4096],
        [3, 2, 0.1, 1, 1],
      ] as const) {
        const some = weights.slice(0, count);
        const expected = moved("ref", some, { seed, step, by, sign });
        for (const threads of backend.startsWith("cpu") ? [1, 2, 3] : [1])
          assert.deepEqual(moved(backend, some, { seed, step, by, sign }, threads), expected);
      }
    });

    it(`infinities stay, and NaN stays NaN: ${backend}`, () => {
      const weights = Float32Array.of(Infinity, -Infinity, Number.NaN, 1);
      assert.deepEqual(wide(moved(backend, weights, { by: 1e-3 })).slice(0, 3), weights.slice(0, 3));
      // A NaN whose lower bits, with others added, would carry into its exponent.
      const args: Arguments = { ...updateOf(64), type: "bfloat16", parameter: new Uint16Array(64) };
      args["gradient"] = new Float32Array(new Uint32Array(64).fill(0x7fffffff).buffer);
      runKernel(backend, "adamW", args);
      assert.ok(wide(args["parameter"] as Uint16Array).every(Number.isNaN));
    });
  }

  it("right in the mean, over elements and over steps, and either way alike", () => {
    const [elements, steps] = [512, 512];
    const gap = 2 ** -7; // above 1
    for (const share of [1 / 64, 0.25, 0.5, 0.9]) {
      for (const sign of [1, -1]) {
        const farther = Array.from({ length: steps }, (_, step) =>
          Float64Array.from(
            wide(moved("ref", all(elements, sign), { by: share * gap, sign, step: step + 1 })),
            (value) => (value === sign ? 0 : 1),
          ),
        );
        const deviation = Math.sqrt(share * (1 - share));
        const mean = (values: Iterable<number>, count: number): number => {
          let sum = 0;
          for (const value of values) sum += value;
          return (sum / count - share) / (deviation / Math.sqrt(count));
        };
        const whole = mean(
          farther.flatMap((row) => [...row]),
          elements * steps,
        );
        assert.ok(Math.abs(whole) < 4, `${share}: ${whole} standard errors off`);
        const rows = farther.map((row) => mean(row, elements));
        const columns = Array.from({ length: elements }, (_, i) =>
          mean(
            farther.map((row) => row[i]!),
            steps,
          ),
        );
        for (const errors of [rows, columns]) {
          assert.ok(Math.max(...errors.map(Math.abs)) < 6, `${share}: ${Math.max(...errors.map(Math.abs))}`);
          // Independent draws: the means of rows and of columns spread as far as they should and no farther.
          const spread = errors.reduce((sum, error) => sum + error * error, 0) / errors.length;
          assert.ok(Math.abs(spread - 1) < 0.3, `${share}: spread ${spread}`);
        }
      }
    }
  });

  it("gathers updates that are far too small for a single one to be seen", () => {
    const [count, steps, by] = [1024, 400, 2 ** -14]; // a gap is 2⁻⁷
    for (const backend of BACKENDS.filter((name) => name.startsWith("cpu")).slice(0, 1)) {
      let weights = all(count, 1);
      for (let step = 1; step <= steps; step++) weights = wide(moved(backend, weights, { by, step }));
      const mean = weights.reduce((sum, value) => sum + value, 0) / count;
      assert.ok(Math.abs(mean - 1 - steps * by) < 0.05 * steps * by, `${mean - 1} of ${steps * by}`);
    }
  });

  it("a master weight is asked for in float16", () => {
    const count = 4;
    const args = { type: "float16", count, ...{ m: all(4, 0), v: all(4, 0), gradient: all(4, 1) } };
    assert.throws(() => kernels.run("cpu", "adamW", { ...args, parameter: new Uint16Array(count) }), {
      message: /master is null, expected an array with float16/,
    });
  });
});
