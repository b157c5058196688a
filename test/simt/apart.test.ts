import assert from "node:assert/strict";
import type { OpCase } from "../ops/cases/case.ts";
import { opCases } from "../ops/cases/index.ts";
import { Expectation } from "../support/compare.ts";
import {
  bytesOf,
  CATCHES_FAULTS,
  isKernelArray,
  type KernelArguments,
  type KernelArray,
  kernels,
  runFenced,
  runKernel,
} from "../support/kernels.ts";
import { decodeOutputs, toKernelArguments } from "../support/op-arguments.ts";

/**
 * A device with memory of its own, as a GPU: arrays go there and come back, and neither side reaches the other's memory. The emulator
 * keeps its memory from the host, so that the way to `cuda` is walked without a GPU.
 */
const APART = "simt:apart";

/** The largest case of every op by the numbers that its arrays hold. */
function largestCases(): OpCase[] {
  const size = ({ args }: OpCase): number =>
    Object.values(args).reduce<number>(
      (sum, value) => sum + (ArrayBuffer.isView(value) ? value.length : 0),
      0,
    );
  return kernels
    .operators(APART)
    .map((op) => opCases.filter((each) => each.op === op).reduce((a, b) => (size(b) > size(a) ? b : a)));
}

/** rmsNormForward on so many elements of y where its shape asks for 3 × 40. */
function shortened(elements: number): KernelArguments {
  const row = (count: number): Float32Array => new Float32Array(count).fill(1);
  return { rows: 3, cols: 40, eps: 1e-5, x: row(120), weight: row(40), y: row(elements), rstd: row(3) };
}

describe("ops on a device with memory of its own", () => {
  it("has the ops of the emulator, and is one of the backends that are asked for by name alone", () => {
    assert.deepEqual(kernels.operators(APART), kernels.operators("simt"));
    assert.ok(!kernels.backends().includes(APART));
    assert.throws(() => kernels.operators("simt:beside"), {
      code: "ERR_RLHF_UNKNOWN_NAME",
      message: /simt:apart, cuda/,
    });
  });

  for (const type of ["float32", "bfloat16"] as const)
    for (const opCase of largestCases())
      it(`${opCase.op}: ${opCase.name}, ${type}: meets the oracle, and has the bits that it has on arrays of the host`, () => {
        const expectation = new Expectation(opCase, type);
        const [apart, host] = [APART, "simt"].map((backend) => {
          const args = toKernelArguments(opCase.op, expectation.args, type);
          runKernel(backend, opCase.op, args);
          return args;
        }) as [KernelArguments, KernelArguments];
        expectation.verify(decodeOutputs(opCase.op, apart, type), `${opCase.op} in ${type}`);
        for (const [field, value] of Object.entries(apart))
          if (isKernelArray(value))
            assert.deepEqual(bytesOf(value), bytesOf(host[field] as KernelArray), field);
      });

  it("keeps arrays that share a buffer together, and an array given twice one", () => {
    const buffer = new Float32Array(8 + 120 + 40);
    const [x, weight] = [buffer.subarray(8, 128), buffer.subarray(128)];
    buffer.fill(2);
    const args = { ...shortened(120), x, y: x, weight };
    kernels.run(APART, "rmsNormForward", args);
    const expected = 2 / Math.sqrt(1 + 1e-5 / 4);
    assert.ok(x.every((value) => Math.abs(value - expected) < 1e-6));
    assert.ok(buffer.subarray(0, 8).every((value) => value === 2) && weight.every((value) => value === 2));
  });

  it("finds what an op writes past an array's end, there as here", () => {
    for (const backend of ["simt", APART])
      assert.throws(() => runKernel(backend, "rmsNormForward", shortened(119)), {
        message: new RegExp(`rmsNormForward on ${backend}: y was written past its end`),
      });
  });

  if (CATCHES_FAULTS)
    it("finds what an op reads beside an array, on the side of the fence, and goes on", () => {
      const message = /emulated kernel .*: warp \d+ lane \d+ reads or writes outside the arrays/;
      const short = { ...shortened(120), x: new Float32Array(119) };
      runFenced("before", "rmsNormForward", short);
      assert.throws(() => runFenced("after", "rmsNormForward", short), { message });
      const sums = {
        sequences: 1,
        rows: 3,
        offsets: Int32Array.of(-1, 3),
        weight: new Float32Array(3).fill(1),
        x: new Float32Array(3),
        sum: new Float32Array(1),
      };
      assert.throws(() => runFenced("before", "sequenceSum", sums), { message });
      runFenced("after", "rmsNormForward", shortened(120));
    });

  it("says what is wrong with a call, and goes on", () => {
    assert.throws(() => kernels.run(APART, "rmsNormForward", { ...shortened(120), cols: 0 }), {
      code: "ERR_RLHF_SHAPE",
    });
    assert.throws(() => kernels.run(APART, "rmsNormForward", { ...shortened(120), type: "float64" }), {
      code: "ERR_RLHF_UNSUPPORTED",
    });
    kernels.run(APART, "rmsNormForward", shortened(120));
  });

  it("is timed by its events, on copies taken in turn", () => {
    const { seconds, scratchBytes } = kernels.benchOnDevice(APART, "rmsNormForward", shortened(120), 5, {
      copies: 2,
      leadBytes: 1 << 16,
    });
    assert.equal(seconds.length, 5);
    assert.ok(seconds.every((each) => each > 0 && each < 60));
    assert.ok(scratchBytes >= 0);
    const { name, model, multiprocessors } = kernels.deviceLimits(APART);
    assert.deepEqual([name, model, multiprocessors], ["simt:apart", "", 0]);
  });
});
