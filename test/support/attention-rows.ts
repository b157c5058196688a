import assert from "node:assert/strict";
import { attentionForwardArguments } from "../ops/cases/attention.ts";
import { CaseData, offsetsOf, unset } from "../ops/cases/case.ts";
import type { CaseArguments } from "./op-arguments.ts";

/** That a row of attention has the same bits whatever else is in the batch. */

/** Runs an op on a backend. */
export type Run = (op: string, args: CaseArguments) => Record<string, Float64Array>;

/** `count` rows of an array from the row `first` on. */
export function rowsOf(values: Float64Array, first: number, count: number, stride: number): Float64Array {
  return values.slice(first * stride, (first + count) * stride);
}

/** Every sequence of a batch has the bits that it has alone, behind a copy of its parent's rows if it has a parent. */
function checkAlone(
  run: Run,
  name: string,
  lengths: readonly number[],
  parents: readonly number[] | undefined,
  window: number,
  headDim: number,
): void {
  const shape = { heads: 4, kvHeads: 2, headDim, window };
  const args = attentionForwardArguments(new CaseData(name), {
    lengths,
    ...(parents && { parents }),
    ...shape,
  });
  const { parents: _, ...unshared } = args;
  const batch = run("attentionForward", args);
  const offsets = offsetsOf(lengths);
  for (const [index, length] of lengths.entries()) {
    const runs = [parents?.[index] ?? -1, index].filter((sequence) => sequence >= 0);
    const total = runs.reduce((sum, sequence) => sum + lengths[sequence]!, 0);
    const rows = (field: string, stride: number): Float64Array =>
      Float64Array.from(
        runs.flatMap((sequence) => [
          ...rowsOf(args[field] as Float64Array, offsets[sequence]!, lengths[sequence]!, stride),
        ]),
      );
    const alone = run("attentionForward", {
      ...unshared,
      rows: total,
      sequences: 1,
      maxLength: total,
      offsets: Int32Array.of(0, total),
      q: rows("q", 4 * headDim),
      k: rows("k", 2 * headDim),
      v: rows("v", 2 * headDim),
      o: unset(total * 4 * headDim),
      lse: unset(total * 4),
    });
    for (const [field, stride] of [
      ["o", 4 * headDim],
      ["lse", 4],
    ] as const)
      assert.deepEqual(
        rowsOf(batch[field]!, offsets[index]!, length, stride),
        rowsOf(alone[field]!, total - length, length, stride),
        `${field} of sequence ${index}`,
      );
  }
}

/** Every sequence of a packed batch, alone. */
export function checkAttention(run: Run, window = 0, headDim = 16): void {
  checkAlone(run, "row invariance of attention", [3, 70, 1, 33, 64], undefined, window, headDim);
}

/** A prefix of a sequence has the bits that it has in the whole: what came later was masked. */
export function checkAttentionPrefix(run: Run, window = 0, headDim = 16): void {
  const data = new CaseData("prefix invariance of attention");
  const shape = { lengths: [197], heads: 2, kvHeads: 1, headDim, window };
  const args = attentionForwardArguments(data, shape);
  const whole = run("attentionForward", args);
  for (const length of [1, 31, 64, 65, 130, 196]) {
    const prefix = run("attentionForward", {
      ...args,
      rows: length,
      maxLength: length,
      offsets: Int32Array.of(0, length),
      q: rowsOf(args["q"] as Float64Array, 0, length, 2 * headDim),
      k: rowsOf(args["k"] as Float64Array, 0, length, headDim),
      v: rowsOf(args["v"] as Float64Array, 0, length, headDim),
      o: unset(length * 2 * headDim),
      lse: unset(length * 2),
    });
    assert.deepEqual(prefix["o"], rowsOf(whole["o"]!, 0, length, 2 * headDim), `prefix of ${length}`);
  }
}

/** Answers that share their prompt have the bits of those that each have a copy of it. */
export function checkSharedPrompts(run: Run, window: number, headDim = 16): void {
  const lengths = [100, 64, 40, 1, 20, 170, 5];
  const parents = [-1, -1, 0, 1, 1, 0, -1];
  checkAlone(run, "row invariance of shared prompts", lengths, parents, window, headDim);
}

/** A window as long as the sequence has the bits of none. */
export function checkWideWindow(run: Run, headDim = 16): void {
  const data = new CaseData("wide window of attention");
  const shape = { lengths: [97, 64], heads: 2, kvHeads: 1, headDim };
  const args = attentionForwardArguments(data, shape);
  for (const window of [97, 98, 1000])
    assert.deepEqual(run("attentionForward", { ...args, window }), run("attentionForward", args));
}
