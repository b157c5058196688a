import assert from "node:assert/strict";
import { type KernelArray, kernels, runKernel, testedBackends } from "../support/kernels.ts";
import { decode, toKernelArguments } from "../support/op-arguments.ts";
import { decodeCases } from "./cases/decode.ts";

/* A cache in bfloat16 under float32 activations: appending rounds, and attention is that to the rounded numbers, bit for bit. */

const BACKENDS = ["ref", ...testedBackends.filter((name) => name.startsWith("cpu"))];
const cases = (op: string) => decodeCases.filter((each) => each.op === op);

const toBits = (values: KernelArray): Uint16Array => kernels.toBits(values as Float32Array, "bfloat16");
const fromBits = (bits: KernelArray): Float32Array => kernels.fromBits(bits as Uint16Array, "bfloat16");

function run(backend: string, op: string, args: Parameters<typeof runKernel>[2]): void {
  if (backend === "ref") kernels.run(backend, op, args);
  else runKernel(backend, op, args, { threads: 2 });
}

describe("a cache in bfloat16", () => {
  for (const backend of BACKENDS) {
    for (const { op, name, args } of cases("kvAppend"))
      it(`${op} ${name} on ${backend} rounds what it writes, and nothing else changes`, () => {
        const whole = toKernelArguments(op, args, "float32");
        const kCache = toBits(whole["kCache"] as KernelArray);
        const vCache = toBits(whole["vCache"] as KernelArray);
        const before = { kCache: fromBits(kCache), vCache: fromBits(vCache) };
        run(backend, op, { ...whole, cacheType: "bfloat16", kCache, vCache });
        const expected = { ...whole, ...before };
        kernels.run("ref", op, expected);
        assert.deepEqual(kCache, toBits(expected.kCache));
        assert.deepEqual(vCache, toBits(expected.vCache));
      });

    for (const { op, name, args } of cases("decodeAttention"))
      it(`${op} ${name} on ${backend} has the bits of a float32 cache of the same numbers`, () => {
        const narrow = toKernelArguments(op, args, "float32");
        narrow["kCache"] = toBits(narrow["kCache"] as KernelArray);
        narrow["vCache"] = toBits(narrow["vCache"] as KernelArray);
        const wide = { ...narrow, kCache: fromBits(narrow["kCache"]), vCache: fromBits(narrow["vCache"]) };
        const o = {
          narrow: (narrow["o"] as Float32Array).slice(),
          wide: (narrow["o"] as Float32Array).slice(),
        };
        run(backend, op, { ...narrow, cacheType: "bfloat16", o: o.narrow });
        run(backend, op, { ...wide, o: o.wide });
        assert.deepEqual(decode(o.narrow, "float32"), decode(o.wide, "float32"));
        assert.ok(o.narrow.some((value) => value !== 0 && !Number.isNaN(value)));
      });
  }

  it("is refused in other types", () => {
    const { op, args } = cases("kvAppend")[0]!;
    for (const [backend, code] of [
      ["ref", "ERR_RLHF_ARGUMENT"],
      ["simt", "ERR_RLHF_ARGUMENT"],
    ] as const)
      assert.throws(
        () => kernels.run(backend, op, { ...toKernelArguments(op, args, "float32"), cacheType: "float64" }),
        { code, message: /cacheType is float64, expected float32 or bfloat16/ },
      );
    assert.throws(
      () => kernels.run("simt", op, { ...toKernelArguments(op, args, "float32"), cacheType: "bfloat16" }),
      { code: "ERR_RLHF_UNSUPPORTED" },
    );
  });
});
