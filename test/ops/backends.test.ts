import assert from "node:assert/strict";
import { Expectation } from "../support/compare.ts";
import {
  bytesOf,
  isCudaBackend,
  isKernelArray,
  type KernelArguments,
  type KernelType,
  kernels,
  runFenced,
  runKernel,
  testedBackends,
  withEnvironment,
} from "../support/kernels.ts";
import { type CaseArguments, decodeOutputs, encode, toKernelArguments } from "../support/op-arguments.ts";
import { assertUntouched, markUnset } from "../support/untouched.ts";
import type { OpCase } from "./cases/case.ts";
import { existsIn, opCases } from "./cases/index.ts";

/** The element types in which a backend computes. */
function typesOf(backend: string): KernelType[] {
  return isCudaBackend(backend) ? ["float32", "bfloat16", "float16"] : ["float32"];
}

/** What rounds, and what every fourth case would leave out, is tested in full in float16, too. */
const IN_FULL = ["narrow", "adamW", "decodeAttention"];

/** All cases, and every fourth in float16: its kernels are those of bfloat16 but for how they round and which product they call. */
function casesIn(type: KernelType): readonly OpCase[] {
  const cases = opCases.filter((each) => existsIn(type, each));
  return type === "float16"
    ? cases.filter(({ op }, index) => index % 4 === 0 || IN_FULL.includes(op))
    : cases;
}

const CPU_THREADS = [1, 2] as const;

interface Variant {
  readonly name: string;
  readonly args: Record<string, KernelArguments[string]>;
}

/** A packed form among an op's arguments, and the weight and the width that it is of. */
interface PackedField {
  readonly field: string;
  readonly weight: string;
  readonly inputs: readonly string[];
  readonly backward: boolean;
}

const PACKED_FIELDS: readonly PackedField[] = [
  { field: "packedForward", weight: "weight", inputs: ["inputs", "cols"], backward: false },
  { field: "packedBackward", weight: "weight", inputs: ["inputs", "cols"], backward: true },
  { field: "refPackedForward", weight: "refWeight", inputs: ["refCols"], backward: false },
];

/** The weight of a case in the backend's packed form, or nothing where there is none. */
function packed(
  backend: string,
  args: CaseArguments,
  type: KernelType,
  { weight, inputs: widths, backward }: PackedField,
): Uint8Array | undefined {
  const inputs = Number(widths.map((name) => args[name]).find((width) => width !== undefined));
  const outputs = Number(args["outputs"] ?? args["vocab"]);
  const bytes = kernels.packedWeightBytes(backend, type, "float32", inputs, outputs, backward);
  if (bytes === 0) return undefined;
  const form = new Uint8Array(kernels.alignedBuffer(bytes));
  runKernel(backend, "packWeight", {
    type,
    compute: "float32",
    inputs,
    outputs,
    transposed: args["transposed"] === true,
    backward,
    weight: encode(args[weight] as Float64Array, type),
    packed: form,
  });
  return form;
}

/** A case as it is, and with the packed forms of its weight where the backend has them. */
function variantsOf(backend: string, { op }: OpCase, args: CaseArguments, type: KernelType): Variant[] {
  const plain = { name: "", args: toKernelArguments(op, args, type) };
  const fields = kernels.operatorFields(op).map((field) => field.name);
  const forms: Record<string, Uint8Array> = {};
  for (const packedField of PACKED_FIELDS) {
    const form = fields.includes(packedField.field) ? packed(backend, args, type, packedField) : undefined;
    if (form) forms[packedField.field] = form;
  }
  if (Object.keys(forms).length === 0) return [plain];
  return [plain, { name: ", packed weight", args: { ...toKernelArguments(op, args, type), ...forms } }];
}

/** Throws unless two runs of an op left the same bits in every array. */
function assertSameBits(left: KernelArguments, right: KernelArguments, label: string): void {
  for (const [field, value] of Object.entries(left)) {
    if (!isKernelArray(value)) continue;
    assert.ok(
      Buffer.from(bytesOf(value)).equals(bytesOf(right[field] as typeof value)),
      `${label}: ${field} has other bits`,
    );
  }
}

function checkVariant(
  backend: string,
  { op }: OpCase,
  type: KernelType,
  variant: Variant,
  expectation: Expectation,
): KernelArguments {
  const threadCounts = backend.startsWith("cpu") ? CPU_THREADS : [1];
  const runs = threadCounts.map((threads) => {
    const args = { ...variant.args };
    const copies = new Map<unknown, KernelArguments[string]>();
    for (const [name, value] of Object.entries(args)) {
      if (!isKernelArray(value)) continue;
      if (!copies.has(value)) copies.set(value, value.slice());
      args[name] = copies.get(value)!;
    }
    markUnset(op, args);
    runKernel(backend, op, args, { threads });
    assertUntouched(op, args, expectation.values, expectation.fields());
    return args;
  });
  expectation.verify(decodeOutputs(op, runs[0]!, type), `${op} on ${backend} in ${type}${variant.name}`);
  for (const [index, run] of runs.entries())
    assertSameBits(runs[0]!, run, `${op} on ${backend}${variant.name}, ${threadCounts[index]} threads`);
  return runs[0]!;
}

/** A run on the emulator for each fence, by a schedule of its own; the first run of a case has that of seed 1. */
const FENCED_RUNS = [
  { fence: "before", seed: "2" },
  { fence: "after", seed: "3" },
] as const;

/** What the op reads and writes lies in its arrays: on the emulator, no byte beside them is anybody's. `first` is what another schedule gave. */
function checkFenced(
  { op }: OpCase,
  type: KernelType,
  expectation: Expectation,
  first: KernelArguments,
): void {
  for (const { fence, seed } of FENCED_RUNS) {
    const args = toKernelArguments(op, expectation.args, type);
    markUnset(op, args);
    withEnvironment("RLHF_SIMT_SEED", seed, () => runFenced(fence, op, args));
    assertUntouched(op, args, expectation.values, expectation.fields());
    assertSameBits(first, args, `${op} in ${type}, fence ${fence} its arrays, seed ${seed}`);
  }
}

function checkCase(backend: string, opCase: OpCase, type: KernelType): void {
  const expectation = new Expectation(opCase, type);
  const [plain] = variantsOf(backend, opCase, expectation.args, type).map((variant) =>
    checkVariant(backend, opCase, type, variant, expectation),
  );
  if (backend === "simt") checkFenced(opCase, type, expectation, plain!);
}

for (const backend of ["ref", ...testedBackends.filter((name) => name !== "ref")]) {
  describe(`ops on ${backend}`, () => {
    const operators = new Set(kernels.operators(backend));
    // Sampling reads logits, which are float32 under every type.
    for (const type of typesOf(backend))
      for (const opCase of casesIn(type).filter((each) => operators.has(each.op)))
        it(`${opCase.op}: ${opCase.name}${type === "float32" ? "" : `, ${type}`}`, () =>
          checkCase(backend, opCase, type));
  });
}

/** Ops that go by kernels of their own on Hopper, where shapes and alignment let them. */
const OF_HOPPER = /^(?:linear|attention|tokenLogProb|tokenLoss|klDivergence)/;

/** Whether any of Hopper's kernels runs in a case. */
function goesByHopper({ op, args }: OpCase): boolean {
  kernels.simtLaunches();
  runKernel("simt", op, toKernelArguments(op, args, "bfloat16"));
  return kernels.simtLaunches().some((name) => /hopper\w+Kernel/.test(name));
}

if (testedBackends.includes("simt"))
  describe("ops on simt as on Hopper", () => {
    const cases = casesIn("bfloat16").filter(({ op }) => OF_HOPPER.test(op));
    const onHopper = (run: () => void): void => withEnvironment("RLHF_CUDA_CAPABILITY", "90", run);

    for (const opCase of cases)
      it(`${opCase.op}: ${opCase.name}, bfloat16`, () =>
        onHopper(() => checkCase("simt", opCase, "bfloat16")));

    it("each of them has a case that goes by Hopper's kernels", () =>
      onHopper(() => {
        for (const op of new Set(cases.map((each) => each.op)))
          assert.ok(cases.filter((each) => each.op === op).some(goesByHopper), op);
      }));
  });
