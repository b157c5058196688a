import assert from "node:assert/strict";
import { CaseData } from "../ops/cases/case.ts";
import { forwardCase, hopperCases, linearForwardArguments } from "../ops/cases/linear.ts";
import { checkPortableBits, type HopperCase, onHopper, runOn } from "../support/hopper.ts";
import type { KernelArguments } from "../support/kernels.ts";
import { type CaseArguments, toKernelArguments } from "../support/op-arguments.ts";

/*
 * The linear layer in bfloat16 by Hopper's own instructions (csrc/cuda/hopper), on the emulator as a device of compute capability 9.0.
 * It claims to have two multiprocessors: tiles of 256 columns are used where there are two of them or more, else tiles of 128. A GPU has tiles
 * of 128 here, and wider ones in filled-device.test.ts.
 */

const SEEDS = [0, 2, 3, 5];

const forward = (products: number, ...options: Parameters<typeof forwardCase>): HopperCase => ({
  opCase: forwardCase(...options),
  products,
});
/** How many products of the table's cases go by the Hopper kernel: hidden states of thin adapters, and their gradients, do not. */
const PRODUCTS: Readonly<Record<string, number>> = {
  "33×40×72 with LoRA of rank 72": 2,
  "130×264×72": 2,
  "72×136×200 transposed, strided, dx accumulated": 2,
  "70×136×128 with LoRA": 2,
};

const CASES: readonly HopperCase[] = [
  ...hopperCases.map((opCase) => ({ opCase, products: PRODUCTS[opCase.name] ?? 1 })),
  // 31 tiles of rows: a group of 16, and one less than another.
  forward(1, "3900×8×260, groups of rows' tiles", { rows: 3900, inputs: 8, outputs: 260 }),
];

/** What the kernel leaves to the one that runs everywhere. */
const LEFT: readonly HopperCase[] = [
  forward(0, "9×60×64, rows not at multiples of 16 bytes", { rows: 9, inputs: 60, outputs: 64 }),
  forward(0, "9×64×66, columns that are no packs", { rows: 9, inputs: 64, outputs: 66 }),
  forward(0, "9×64×64 strided by 3", { rows: 9, inputs: 64, outputs: 64, gap: 3 }),
  forward(0, "9×64×60, few columns", { rows: 9, inputs: 64, outputs: 60 }),
  forward(0, "9×64×64 with LoRA of rank 3", { rows: 9, inputs: 64, outputs: 64, rank: 3 }),
];

describe(`the linear layer ${onHopper}`, () => {
  for (const each of CASES) {
    const seeds = Number(each.opCase.args["rows"]) < 1000 ? SEEDS : SEEDS.slice(0, 2);
    it(`${each.opCase.op}: ${each.opCase.name}, ${seeds.length} schedules`, () =>
      checkPortableBits(each, seeds));
  }

  for (const each of LEFT)
    it(`${each.opCase.op}: ${each.opCase.name}: is left to mma.sync`, () => checkPortableBits(each, [0]));

  it("linearForward computes in float32 as elsewhere", () => {
    const { op, args } = CASES[0]!.opCase;
    runOn(90, 1, op, toKernelArguments(op, args, "float32"), 0);
  });

  it("linearForward gives a row the same bits alone and among others, in tiles of either width", () => {
    const [rows, inputs, outputs, rank] = [300, 136, 200, 8]; // one row is less than two tiles of 256 columns
    const data = new CaseData("hopper rows");
    const together = linearForwardArguments(data, { rows, inputs, outputs, rank, bias: true });
    const all = toKernelArguments("linearForward", together, "bfloat16");
    runOn(90, 1, "linearForward", all, 1);
    for (const row of [0, 63, 64, 127, 128, 299]) {
      const alone: CaseArguments = {
        ...together,
        rows: 1,
        x: (together["x"] as Float64Array).slice(row * inputs, (row + 1) * inputs),
        loraHidden: new Float64Array(rank),
        y: new Float64Array(outputs),
      };
      const one = toKernelArguments("linearForward", alone, "bfloat16");
      runOn(90, 1, "linearForward", one, 1);
      const bits = (args: KernelArguments, first: number) => [
        ...(args["y"] as Uint16Array).subarray(first, first + outputs),
      ];
      assert.deepEqual(bits(one, 0), bits(all, row * outputs), `row ${row}`);
    }
  });
});
