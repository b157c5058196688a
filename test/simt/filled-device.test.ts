import { backwardCase, forwardCase } from "../ops/cases/linear.ts";
import { Expectation } from "../support/compare.ts";
import { cudaBackend, kernels, runKernel, withEnvironment } from "../support/kernels.ts";
import { decodeOutputs, toKernelArguments } from "../support/op-arguments.ts";

/*
 * Products of which every multiprocessor gets a share, as they are in training. Hopper's kernel has its wide tiles then; on the
 * emulator it has them in small.
 */
describe(`products that fill the device, on ${cudaBackend}`, () => {
  const side = Math.ceil(Math.sqrt(Math.max(4, kernels.deviceLimits(cudaBackend).multiprocessors)));
  const [tall, wide] = [128 * side - 8, 256 * side - 8];
  for (const { op, name, args, criterion } of [
    forwardCase("y", { rows: tall, inputs: 72, outputs: wide, bias: true, rank: 8 }),
    forwardCase("y, transposed", { rows: tall, inputs: 40, outputs: wide, transposed: true }),
    backwardCase("dx", { rows: tall, inputs: wide, outputs: 72, rank: 8, dx: "write" }),
    backwardCase("dx, transposed", {
      rows: tall,
      inputs: wide,
      outputs: 72,
      transposed: true,
      dx: "accumulate",
    }),
    backwardCase("dW", { rows: 72, inputs: wide, outputs: tall, dWeight: true }),
  ])
    it(`${op}: ${name}`, () => {
      const expectation = new Expectation({ op, name, args, criterion }, "bfloat16");
      // At most: a GPU has what it has. The kernels that run everywhere have wide tiles of their own.
      for (const capability of ["90", "80"]) {
        const given = toKernelArguments(op, expectation.args, "bfloat16");
        withEnvironment("RLHF_CUDA_CAPABILITY", capability, () => runKernel(cudaBackend, op, given));
        expectation.verify(decodeOutputs(op, given, "bfloat16"), `${op} ${name}, ${capability}`);
      }
    });
});
