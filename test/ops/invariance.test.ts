import assert from "node:assert/strict";
import {
  checkAttention,
  checkAttentionPrefix,
  checkSharedPrompts,
  checkWideWindow,
  type Run,
  rowsOf,
} from "../support/attention-rows.ts";
import { isCudaBackend, type KernelType, kernels, PAGE_TOKENS, testedBackends } from "../support/kernels.ts";
import { evaluate } from "../support/op-arguments.ts";
import { CaseData, unset } from "./cases/case.ts";
import { klDivergenceForwardArguments } from "./cases/kl-divergence.ts";
import { ACTIVATION, linearForwardArguments } from "./cases/linear.ts";
import { tokenLogProbForwardArguments } from "./cases/token-log-prob.ts";
import { tokenLossArguments } from "./cases/token-loss.ts";

/**
 * A row's bits do not depend on what else is in the batch: what makes the PPO ratio of a re-scored token exactly 1. Rows are
 * computed inside a batch and alone, and compared bit for bit.
 */

/** Rows of y and loraHidden of linearForward, alone and in small batches. */
function checkLinear(
  run: Run,
  shape: { inputs: number; outputs: number; rank: number; transposed: boolean },
): void {
  const data = new CaseData(`row invariance of linear ${JSON.stringify(shape)}`);
  const rows = 67;
  const args = linearForwardArguments(data, {
    rows,
    ...shape,
    bias: true,
    activation: ACTIVATION.geluTanh,
    residual: "separate",
  });
  const batch = run("linearForward", args);
  for (const [first, count] of [
    [0, 1],
    [1, 1],
    [33, 1],
    [66, 1],
    [5, 7],
    [30, 37],
  ] as const) {
    const part = run("linearForward", {
      ...args,
      rows: count,
      x: rowsOf(args["x"] as Float64Array, first, count, shape.inputs),
      residual: rowsOf(args["residual"] as Float64Array, first, count, shape.outputs),
      y: unset(count * shape.outputs),
      ...(shape.rank > 0 && { loraHidden: unset(count * shape.rank) }),
    });
    assert.deepEqual(part["y"], rowsOf(batch["y"]!, first, count, shape.outputs), `rows ${first} + ${count}`);
  }
}

/** What backward makes again of what an activation was applied to, beside what the product made of it on its way. */
function checkActivation(run: Run): void {
  for (const [name, activation] of Object.entries(ACTIVATION)) {
    const data = new CaseData(`activation ${name} again`);
    const shape = { rows: 67, inputs: 33, outputs: 70, rank: 0, transposed: false };
    const args = linearForwardArguments(data, { ...shape, bias: true, activation, preActivation: true });
    const { y, preActivation: x } = run("linearForward", args);
    const count = y!.length;
    assert.deepEqual(run("activationForward", { activation, count, x: x!, y: unset(count) })["y"], y, name);
    const arrays = { x: x!, dy: data.normal(count), dx: unset(count) };
    const alone = run("activationBackward", { activation, count, ...arrays });
    const both = run("activationBackward", { activation, count, ...arrays, y: unset(count) });
    assert.deepEqual(both["y"], y, `${name}, beside its derivative`);
    assert.deepEqual(both["dx"], alone["dx"], `${name}, derivative`);
  }
}

/** The same of SwiGLU. */
function checkGatedSilu(run: Run): void {
  const data = new CaseData("gated silu again");
  const [rows, cols] = [7, 133];
  const inputs = {
    rows,
    cols,
    inputStride: cols,
    gate: data.normal(rows * cols, 3),
    up: data.normal(rows * cols),
  };
  const { y } = run("gatedSiluForward", { ...inputs, y: unset(rows * cols) });
  const gradients = { dy: data.normal(rows * cols), dGate: unset(rows * cols), dUp: unset(rows * cols) };
  const alone = run("gatedSiluBackward", { ...inputs, ...gradients });
  const both = run("gatedSiluBackward", { ...inputs, ...gradients, y: unset(rows * cols) });
  assert.deepEqual(both["y"], y);
  assert.deepEqual([both["dGate"], both["dUp"]], [alone["dGate"], alone["dUp"]]);
}

/** Every sequence that is being decoded, alone, with a table of its own pages. */
function checkDecode(run: Run, window: number, headDim: number): void {
  const data = new CaseData("row invariance of decoding");
  const lengths = [3, 700, 256, 257, 1, 512, 40];
  const [heads, kvHeads, pages, tableStride] = [10, 2, 60, 22];
  const size = pages * PAGE_TOKENS * kvHeads * headDim;
  const width = heads * headDim;
  const args = {
    ...{ rows: lengths.length, heads, kvHeads, headDim, pages, window, scale: headDim ** -0.5 },
    ...{ tableStride, tables: data.integers(lengths.length * tableStride, pages) },
    ...{ lengths: Int32Array.from(lengths), qStride: width, oStride: width },
    ...{ q: data.normal(lengths.length * width), kCache: data.normal(size), vCache: data.normal(size) },
    o: unset(lengths.length * width),
  };
  const batch = run("decodeAttention", args);
  for (const [row, length] of lengths.entries()) {
    const own = Math.ceil(length / PAGE_TOKENS);
    const alone = run("decodeAttention", {
      ...args,
      ...{ rows: 1, tableStride: own, lengths: Int32Array.of(length) },
      tables: args.tables.slice(row * tableStride, row * tableStride + own),
      q: rowsOf(args.q, row, 1, width),
      o: unset(width),
    });
    assert.deepEqual(alone["o"], rowsOf(batch["o"]!, row, 1, width), `sequence of ${length}`);
  }
}

/** Every prediction of a batch, alone. */
function checkTokenLogProb(run: Run): void {
  const data = new CaseData("row invariance of tokenLogProb");
  const [rows, cols, vocab] = [40, 33, 517];
  const args = tokenLogProbForwardArguments(data, { rows, cols, vocab, count: 21, temperature: 0.7 });
  const batch = run("tokenLogProbForward", args);
  for (const [index, t] of (args["predictions"] as Int32Array).entries()) {
    const source = (args["sources"] as Int32Array)[index]!;
    const alone = run("tokenLogProbForward", {
      ...args,
      rows: 2,
      count: 1,
      x: Float64Array.of(...unset(cols), ...rowsOf(args["x"] as Float64Array, source, 1, cols)),
      tokens: Int32Array.of(-1, (args["tokens"] as Int32Array)[t]!),
      predictions: Int32Array.of(1),
      sources: Int32Array.of(1),
      logProb: unset(2),
      lse: unset(2),
      entropy: unset(2),
    });
    for (const field of ["logProb", "lse", "entropy"])
      assert.equal(alone[field]![1], batch[field]![t], `${field} of token ${t}`);
  }
}

/** Every token's statistics in a pass with a loss, alone: whatever block it lies in. */
function checkTokenLoss(run: Run): void {
  const data = new CaseData("row invariance of tokenLoss");
  const [rows, cols, vocab] = [40, 33, 517];
  const shape = { kind: "nll", rows, cols, vocab, count: 21, blockRows: 8, temperature: 0.7 } as const;
  const args = tokenLossArguments(data, shape);
  const batch = run("tokenLossForwardBackward", args);
  for (const [index, t] of (args["predictions"] as Int32Array).entries()) {
    const source = (args["sources"] as Int32Array)[index]!;
    const alone = run("tokenLossForwardBackward", {
      ...args,
      rows: 2,
      count: 1,
      x: Float64Array.of(...new Float64Array(cols), ...rowsOf(args["x"] as Float64Array, source, 1, cols)),
      tokens: Int32Array.of(-1, (args["tokens"] as Int32Array)[t]!),
      tokenWeight: Float64Array.of(0, (args["tokenWeight"] as Float64Array)[t]!),
      predictions: Int32Array.of(1),
      sources: Int32Array.of(1),
      ...{ logProb: new Float64Array(2), lse: new Float64Array(2), entropy: new Float64Array(2) },
      ...{ dLogProb: unset(2), dx: new Float64Array(2 * cols) },
    });
    for (const field of ["logProb", "lse", "entropy", "dLogProb"])
      assert.equal(alone[field]![1], batch[field]![t], `${field} of token ${t}`);
  }
}

/** Every divergence of a batch, alone. */
function checkKlDivergence(run: Run, direction: "reverse" | "forward"): void {
  const data = new CaseData("row invariance of klDivergence");
  const [rows, cols, refCols, vocab] = [40, 33, 21, 2517];
  const shape = { rows, cols, refCols, vocab, count: 21, temperature: 0.7, direction };
  const args = klDivergenceForwardArguments(data, shape);
  const batch = run("klDivergenceForward", args);
  for (const [index, t] of (args["predictions"] as Int32Array).entries()) {
    const source = (args["sources"] as Int32Array)[index]!;
    const row = (name: string, width: number): Float64Array =>
      Float64Array.of(...unset(width), ...rowsOf(args[name] as Float64Array, source, 1, width));
    const alone = run("klDivergenceForward", {
      ...args,
      rows: 2,
      count: 1,
      x: row("x", cols),
      refX: row("refX", refCols),
      predictions: Int32Array.of(1),
      sources: Int32Array.of(1),
      lse: Float64Array.of(0, (args["lse"] as Float64Array)[t]!),
      refLse: Float64Array.of(0, (args["refLse"] as Float64Array)[t]!),
      kl: unset(2),
    });
    assert.equal(alone["kl"]![1], batch["kl"]![t], `kl of token ${t}`);
  }
}

for (const backend of testedBackends.filter((name) => name !== "ref")) {
  const operators = new Set(kernels.operators(backend));
  const types: KernelType[] = isCudaBackend(backend) ? ["float32", "bfloat16", "float16"] : ["float32"];
  describe(`bits of a row on ${backend}`, () => {
    for (const type of types) {
      const run: Run = (op, args) =>
        evaluate(op, args, type, backend, { threads: isCudaBackend(backend) ? 1 : 2 });
      if (operators.has("linearForward")) {
        it(`linearForward, ${type}`, () =>
          checkLinear(run, { inputs: 129, outputs: 70, rank: 0, transposed: false }));
        it(`linearForward with LoRA, ${type}`, () => {
          checkLinear(run, { inputs: 65, outputs: 130, rank: 4, transposed: true });
          checkLinear(run, { inputs: 136, outputs: 200, rank: 8, transposed: false }); // as Hopper's kernel takes them
        });
      }
      if (operators.has("activationForward") && type === "float32")
        it("activationForward, of what linearForward's was applied to", () => checkActivation(run));
      if (operators.has("gatedSiluForward"))
        it(`gatedSiluForward, beside its derivative, ${type}`, () => checkGatedSilu(run));
      if (operators.has("attentionForward")) {
        it(`attentionForward, ${type}`, () => checkAttention(run));
        it(`attentionForward of a prefix, ${type}`, () => checkAttentionPrefix(run));
        for (const window of [1, 40, 70]) {
          it(`attentionForward with a window of ${window}, ${type}`, () => checkAttention(run, window));
          it(`attentionForward of a prefix with a window of ${window}, ${type}`, () =>
            checkAttentionPrefix(run, window));
        }
        for (const window of [0, 1, 70])
          it(`attentionForward with shared prompts${window > 0 ? ` and a window of ${window}` : ""}, ${type}`, () =>
            checkSharedPrompts(run, window));
        it(`attentionForward with a window beyond the length, ${type}`, () => checkWideWindow(run));
      }
      for (const window of [0, 1, 257])
        it(`decodeAttention with a window of ${window}, ${type}`, () => {
          checkDecode(run, window, 16);
          checkDecode(run, window, 7); // not in whole packs
        });
      if (operators.has("tokenLogProbForward"))
        it(`tokenLogProbForward, ${type}`, () => checkTokenLogProb(run));
      if (operators.has("tokenLossForwardBackward"))
        it(`tokenLossForwardBackward, ${type}`, () => checkTokenLoss(run));
      if (operators.has("klDivergenceForward"))
        for (const direction of ["reverse", "forward"] as const)
          it(`klDivergenceForward, ${direction}, ${type}`, () => checkKlDivergence(run, direction));
    }
  });
}
