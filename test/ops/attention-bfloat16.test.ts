import assert from "node:assert/strict";
import { availableParallelism } from "node:os";
import {
  checkAttention,
  checkAttentionPrefix,
  checkSharedPrompts,
  checkWideWindow,
  type Run,
} from "../support/attention-rows.ts";
import {
  assertSameBits,
  BFLOAT16_KERNELS,
  bfloat16KernelsOf,
  COMPUTES,
  type Compute,
  CPU_BACKENDS,
  restoreBfloat16Kernel,
} from "../support/bfloat16-kernels.ts";
import { type KernelArguments, type KernelOptions, kernels, runKernel } from "../support/kernels.ts";
import { type CaseArguments, decodeOutputs, toKernelArguments } from "../support/op-arguments.ts";
import {
  type AttentionShape,
  attentionBackwardArguments,
  attentionForwardArguments,
  SHAPES,
} from "./cases/attention.ts";
import { CaseData } from "./cases/case.ts";

/*
 * Attention with its products in bfloat16 and bfloat16x3: every kernel that this machine has against the oracle, which rounds or splits
 * the same factors.
 */

type Op = "attentionForward" | "attentionBackward";

/** The root mean square that errors are measured in is never taken for less: with one visible key gradients of scores are what rounding leaves. */
const LEAST_SIZE = 0.05;

/** Narrower heads have their products in float32. */
const NARROWEST = 32;

/** The table's shapes with heads that are wide enough, and odd ones still odd. */
const WIDE_SHAPES: readonly (readonly [string, AttentionShape])[] = [
  ...Object.entries(SHAPES).map(([name, shape]) => {
    const headDim = shape.headDim < NARROWEST ? shape.headDim + NARROWEST : shape.headDim;
    return [`${name}, heads of ${headDim}`, { ...shape, headDim }] as const;
  }),
  ["the widest heads", { lengths: [140], heads: 1, kvHeads: 1, headDim: 1024 }],
];

/** What float32 holds of a case's numbers: both sides round or split the same. */
function single(args: CaseArguments): CaseArguments {
  const entries = Object.entries(args).map(([name, value]) => [
    name,
    value instanceof Float64Array ? Float64Array.from(Float32Array.from(value)) : value,
  ]);
  return Object.fromEntries(entries);
}

function argumentsOf(op: Op, name: string, shape: AttentionShape): CaseArguments {
  const data = new CaseData(`attention in bfloat16 ${name}`);
  const forward = single(attentionForwardArguments(data, shape));
  return op === "attentionForward" ? forward : single(attentionBackwardArguments(data, forward));
}

function run(op: Op, args: CaseArguments, compute: string, backend: string, options: KernelOptions = {}) {
  const type = backend === "ref" ? "float64" : "float32";
  const encoded = { ...toKernelArguments(op, args, type), type, compute };
  if (backend === "ref") kernels.run(backend, op, encoded);
  else runKernel(backend, op, encoded, options);
  return decodeOutputs(op, encoded, type);
}

/** Root mean square of the error as a share of the numbers'; the error of what must not be written, or must be, is NaN. */
function errorOf(actual: Float64Array, wanted: Float64Array): number {
  let [error, size, count] = [0, 0, 0];
  wanted.forEach((value, i) => {
    if (Number.isNaN(value)) {
      if (!Number.isNaN(actual[i])) error = Number.NaN;
      return;
    }
    error += (actual[i]! - value) ** 2;
    size += value ** 2;
    count++;
  });
  return Math.sqrt(error / count) / Math.max(LEAST_SIZE, Math.sqrt(size / count));
}

/**
 * A factor that is itself computed may be rounded the other way, one of many thousands. Where one factor of one product is not rounded at all
 * the error is 1.4e-3 and more.
 */
const TOLERANCE: Readonly<Record<Compute, number>> = { bfloat16: 2.5e-4, bfloat16x3: 1e-5 };

describe("attention in bfloat16", () => {
  afterEach(restoreBfloat16Kernel);

  for (const op of ["attentionForward", "attentionBackward"] as const)
    for (const [name, shape] of WIDE_SHAPES)
      for (const compute of COMPUTES)
        it(`${op}, ${name}, in ${compute}`, () => {
          const args = argumentsOf(op, name, shape);
          const wanted = run(op, args, compute, "ref");
          for (const backend of CPU_BACKENDS)
            for (const kernel of bfloat16KernelsOf(backend)) {
              kernels.chooseBfloat16Kernel(kernel);
              const actual = run(op, args, compute, backend);
              for (const [field, values] of Object.entries(wanted)) {
                const error = errorOf(actual[field]!, values);
                assert.ok(
                  error <= TOLERANCE[compute],
                  `${field} on ${backend} by ${kernel}: ${error.toExponential(2)}`,
                );
              }
            }
        });

  it("of narrow heads is float32's, bit for bit", () => {
    const shape = { lengths: [70, 30], heads: 2, kvHeads: 1, headDim: NARROWEST - 1 };
    for (const op of ["attentionForward", "attentionBackward"] as const)
      for (const compute of COMPUTES) {
        const args = argumentsOf(op, "narrow heads", shape);
        for (const backend of ["cpu", "ref"])
          assertSameBits(
            run(op, args, compute, backend),
            run(op, args, "float32", backend),
            `${op} on ${backend}`,
          );
      }
  });

  for (const compute of COMPUTES)
    for (const kernel of BFLOAT16_KERNELS) {
      const rows: Run = (op, args) => {
        kernels.chooseBfloat16Kernel(kernel);
        return run(op as Op, args, compute, "cpu", { threads: 2 });
      };
      it(`in ${compute} by ${kernel}: a row has the same bits alone, in a prefix and behind a shared prompt`, () => {
        for (const window of [0, 1, 40, 70]) {
          checkAttention(rows, window, 40);
          checkAttentionPrefix(rows, window, 40);
          checkSharedPrompts(rows, window, 40);
        }
        checkWideWindow(rows, 40);
      });

      it(`in ${compute} by ${kernel}: the same bits on any number of threads and by both schedules`, () => {
        kernels.chooseBfloat16Kernel(kernel);
        const shape = {
          ...{ lengths: [150, 70, 131, 40, 3], parents: [-1, 0, 0, -1, 3] },
          ...{ heads: 4, kvHeads: 2, headDim: 40, gap: 2 },
        };
        for (const op of ["attentionForward", "attentionBackward"] as const)
          for (const window of [0, 70]) {
            const args = argumentsOf(op, "threads", { ...shape, window });
            const one = run(op, args, compute, "cpu", { threads: 1 });
            for (const threads of [2, 5, Math.max(8, availableParallelism())])
              assertSameBits(run(op, args, compute, "cpu", { threads }), one, `${op}, ${threads} threads`);
          }
      });
    }

  it("of more keys than a thread's memory holds packed has the bits of fewer", () => {
    const shape = { lengths: [460], heads: 2, kvHeads: 1, headDim: 1024 };
    const args = argumentsOf("attentionForward", "many keys", shape);
    const whole = run("attentionForward", args, "bfloat16x3", "cpu");
    const length = 300;
    const firstRows = (values: unknown, width: number) => (values as Float64Array).slice(0, length * width);
    const part = run(
      "attentionForward",
      {
        ...args,
        ...{ rows: length, maxLength: length, offsets: Int32Array.of(0, length) },
        ...{ q: firstRows(args["q"], 2048), k: firstRows(args["k"], 1024), v: firstRows(args["v"], 1024) },
        ...{ o: firstRows(args["o"], 2048), lse: firstRows(args["lse"], 2) },
      },
      "bfloat16x3",
      "cpu",
    );
    assertSameBits(
      part,
      { o: firstRows(whole["o"], 2048), lse: firstRows(whole["lse"], 2) },
      "300 of 460 rows",
    );
  });

  it("a NaN stays one in all that depends on it, whatever its bits", () => {
    const shape = { lengths: [5, 4], heads: 1, kvHeads: 1, headDim: NARROWEST };
    for (const kernel of BFLOAT16_KERNELS)
      for (const compute of COMPUTES) {
        kernels.chooseBfloat16Kernel(kernel);
        for (const [op, field] of [
          ["attentionForward", "q"],
          ["attentionForward", "k"],
          ["attentionForward", "v"],
          ["attentionBackward", "q"],
          ["attentionBackward", "dO"],
        ] as const) {
          const encoded: KernelArguments = {
            ...toKernelArguments(op, argumentsOf(op, "NaN", shape), "float32"),
            ...{ type: "float32", compute },
          };
          const values = encoded[field] as Float32Array;
          new Uint32Array(values.buffer, values.byteOffset).fill(0xffffffff, 3 * NARROWEST, 4 * NARROWEST);
          runKernel("cpu", op, encoded);
          const result = op === "attentionForward" ? "o" : "dq";
          const numbers = encoded[result] as Float32Array;
          numbers.forEach((value, i) => {
            const row = Math.floor(i / NARROWEST);
            // A row after it in the same sequence sees its key; a weight of 0 keeps no NaN of a value away from those before it.
            if (field === "v" && row < 3) return;
            const depends = row === 3 || (row === 4 && (field === "k" || field === "v"));
            assert.equal(
              Number.isNaN(value),
              depends,
              `${kernel}, ${compute}, ${result}[${i}] with a NaN in ${field} is ${value}`,
            );
          });
        }
      }
  });

  it("is refused by CUDA's kernels where the activations are float32", () => {
    const shape = { lengths: [2], heads: 1, kvHeads: 1, headDim: NARROWEST };
    for (const op of ["attentionForward", "attentionBackward"] as const)
      for (const compute of COMPUTES)
        assert.throws(() => run(op, argumentsOf(op, "CUDA", shape), compute, "simt"), {
          code: "ERR_RLHF_UNSUPPORTED",
          message: /products in bfloat16(x3)? of float32 activations are not there on CUDA/,
        });
  });
});
