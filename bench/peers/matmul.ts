/**
 * Matrix products at a language model's shapes: x·Wᵀ with W packed before, beside torch.matmul at its best, in turn. Writes
 * bench/results/PROCESSOR/peers-matmul-*.json.
 *
 * usage: tsx bench/peers/matmul.ts [--compute float32|bfloat16x3|bfloat16] [--shapes 1024x768x2304,…] [--pairs 9] [--threads 2]
 *   [--opponents float32,float32+tcmalloc]
 */
import { parseArgs } from "node:util";
import { kernels } from "../../test/support/kernels.ts";
import { uniformArray } from "../ops/op-bench.ts";
import { besidePeers, COMMON_OPTIONS, computeOf, timed } from "./beside.ts";
import type { Timing } from "./paired.ts";

const { values: options } = parseArgs({
  options: {
    ...COMMON_OPTIONS,
    shapes: { type: "string", default: "1024x768x2304,1024x768x3072,1024x3072x768,1024x768x50257" },
  },
});
const compute = computeOf(options);
const threads = Number(options.threads);
const WORTH_TIMING = 3e11; // multiply-adds of a round, beside which the memory that a call takes first counts for little

for (const shape of options.shapes.split(",")) {
  const [rows, inputs, outputs] = shape.split("x").map(Number) as [number, number, number];
  const repetitions = Math.max(1, Math.round(WORTH_TIMING / (rows * inputs * outputs)));
  const weight = uniformArray(outputs * inputs);
  const bytes = kernels.packedWeightBytes("cpu", "float32", compute, inputs, outputs, false);
  const packed = new Float32Array(kernels.alignedBuffer(bytes), 0, bytes / 4);
  kernels.run("cpu", "packWeight", {
    type: "float32",
    compute,
    inputs,
    outputs,
    backward: false,
    weight,
    packed,
  });
  const product = {
    ...{
      type: "float32",
      weightType: "float32",
      compute,
      rows,
      inputs,
      outputs,
      xStride: inputs,
      yStride: outputs,
    },
    ...{ x: uniformArray(rows * inputs), weight, packedForward: packed, y: uniformArray(rows * outputs) },
  };
  const multiply = async (): Promise<Timing> => {
    const { result, ...timing } = await timed(async () =>
      kernels.bench("cpu", "linearForward", product, repetitions, { threads }),
    );
    return { ...timing, seconds: result.seconds.reduce((sum, value) => sum + value, 0) };
  };
  const sizes = { rows, inputs, outputs, repetitions };
  await besidePeers(
    {
      name: `matmul-${shape}-${compute}-${threads}-threads`,
      what: `${shape}, ${repetitions} products, ours ${compute}`,
      script: "matmul.py",
      args: Object.entries(sizes).flatMap(([name, value]) => [`--${name}`, String(value)]),
      ours: new Map([["ours", multiply]]),
      request: () => ({}),
      record: { gigaflop: (2 * rows * inputs * outputs * repetitions) / 1e9 },
    },
    options,
  );
}
