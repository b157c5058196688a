import assert from "node:assert/strict";
import { bytesOf, type KernelArray, kernels, runKernel } from "../support/kernels.ts";
import { encode } from "../support/op-arguments.ts";
import { CaseData } from "./cases/case.ts";

/*
 * Weights that are held in their packed form alone: every number comes back from it, lookups read it as they read the table, and products
 * backward as they read the weight.
 */

const BACKENDS = kernels.backends().filter((name) => name.startsWith("cpu"));
type Type = "float32" | "bfloat16";

const SHAPES = [
  { inputs: 1, outputs: 1 },
  { inputs: 33, outputs: 65 },
  { inputs: 64, outputs: 30 },
  { inputs: 7, outputs: 400 },
  { inputs: 300, outputs: 130 },
];

/** Every kind of number: a permutation has no business with what they are. */
function anyBits(name: string, count: number, type: Type): KernelArray {
  const values = new CaseData(name).normal(count);
  values.set([-0, 2 ** -140, -(2 ** -149), 3e38].slice(0, count));
  return encode(values, type);
}

interface Weight {
  readonly inputs: number;
  readonly outputs: number;
  readonly transposed: boolean;
}

function packed(backend: string, type: Type, weight: KernelArray, shape: Weight): Uint8Array {
  const { inputs, outputs } = shape;
  const bytes = kernels.packedWeightBytes(backend, type, type, inputs, outputs, false);
  const form = new Uint8Array(kernels.alignedBuffer(bytes));
  runKernel(backend, "packWeight", { type, compute: type, ...shape, backward: false, weight, packed: form });
  return form;
}

describe("packed weights", () => {
  for (const backend of BACKENDS)
    for (const type of ["float32", "bfloat16"] as const) {
      for (const transposed of [false, true])
        it(`${type}, ${transposed ? "transposed, " : ""}on ${backend}: unpacking gives every bit back`, () => {
          for (const { inputs, outputs } of SHAPES) {
            const shape = { inputs, outputs, transposed };
            const weight = anyBits(`unpack ${inputs} ${outputs}`, inputs * outputs, type);
            const form = packed(backend, type, weight, shape);
            for (const threads of [1, 2]) {
              const back = encode(new Float64Array(inputs * outputs).fill(Number.NaN), type);
              runKernel(backend, "unpackWeight", { type, ...shape, packed: form, weight: back }, { threads });
              assert.deepEqual(bytesOf(back), bytesOf(weight), `${inputs} × ${outputs}, ${threads} threads`);
            }
          }
        });

      it(`${type} on ${backend}: embeddings from a head's packed form are those from the table`, () => {
        for (const { inputs: cols, outputs: vocab } of SHAPES) {
          const data = new CaseData(`embedding ${cols} ${vocab}`);
          const rows = 37;
          const table = anyBits(`table ${cols} ${vocab}`, cols * vocab, type);
          const args = {
            ...{ type: "float32", tableType: type, rows, cols, vocab, maxPositions: 9 },
            tokens: Int32Array.from({ length: rows }, (_, n) => (n * 29) % vocab),
            positions: Int32Array.from({ length: rows }, (_, n) => n % 9),
          };
          const form = packed(backend, type, table, { inputs: cols, outputs: vocab, transposed: false });
          for (const positionTable of [null, encode(data.normal(9 * cols), type)]) {
            const [expected, actual] = [new Float32Array(rows * cols), new Float32Array(rows * cols)];
            runKernel(backend, "embeddingForward", { ...args, positionTable, table, y: expected });
            runKernel(backend, "embeddingForward", { ...args, positionTable, packedTable: form, y: actual });
            assert.deepEqual(bytesOf(actual), bytesOf(expected), `${cols} × ${vocab}`);
          }
        }
      });
    }

  for (const backend of BACKENDS)
    for (const rows of [3, 300])
      it(`${rows} rows backward on ${backend}: the form for products forward serves as the weight does`, () => {
        for (const { inputs, outputs } of [...SHAPES, { inputs: 70, outputs: 2100 }])
          for (const transposed of [false, true]) {
            const shape = { inputs, outputs, transposed };
            const data = new CaseData(`backward ${rows} ${inputs} ${outputs}`);
            const weight = encode(data.normal(inputs * outputs), "float32");
            const strides = { rows, xStride: inputs, dyStride: outputs, dxStride: inputs };
            const dy = encode(data.normal(rows * outputs), "float32");
            const [expected, actual] = [new Float32Array(rows * inputs), new Float32Array(rows * inputs)];
            const args = { type: "float32", ...shape, ...strides, dy };
            const packedForward = packed(backend, "float32", weight, shape);
            runKernel(backend, "linearBackward", { ...args, weight, dx: expected });
            runKernel(backend, "linearBackward", { ...args, packedForward, dx: actual }, { threads: 2 });
            assert.deepEqual(bytesOf(actual), bytesOf(expected), `${inputs} × ${outputs}, ${transposed}`);
          }
      });

  it("in bfloat16 the form for products forward serves no others", () => {
    const args = {
      rows: 1,
      inputs: 1,
      outputs: 1,
      xStride: 1,
      dyStride: 1,
      dxStride: 1,
      compute: "bfloat16",
    };
    const arrays = { dy: new Float32Array(1), packedForward: new Uint8Array(4096), dx: new Float32Array(1) };
    const call = () => kernels.run("cpu", "linearBackward", { type: "float32", ...args, ...arrays });
    assert.throws(call, { code: "ERR_RLHF_UNSUPPORTED", message: /serves no other product/ });
  });

  it("other types have none", () => {
    const shape = { inputs: 4, outputs: 4, packed: new Uint8Array(4096), weight: new Uint16Array(16) };
    assert.throws(() => kernels.run("cpu", "unpackWeight", { type: "float16", ...shape }), {
      code: "ERR_RLHF_UNSUPPORTED",
    });
    assert.throws(
      () => kernels.run("ref", "unpackWeight", { type: "float32", ...shape, weight: new Float32Array(16) }),
      {
        code: "ERR_RLHF_UNSUPPORTED",
      },
    );
  });
});
