import assert from "node:assert/strict";
import { relativeDistance } from "../support/compare.ts";
import { checkGradient, type GradientCase, gradientTitle } from "../support/gradient-check.ts";
import { kernels } from "../support/kernels.ts";
import { type CaseArguments, decodeOutputs, evaluate, toKernelArguments } from "../support/op-arguments.ts";
import { attentionBackwardArguments, attentionForwardArguments } from "./cases/attention.ts";
import { CaseData, offsetsOf, responseMask, unset } from "./cases/case.ts";
import { dropoutArguments } from "./cases/dropout.ts";
import { rotaryTables } from "./cases/elementwise.ts";
import { ACTIVATION, linearForwardArguments } from "./cases/linear.ts";
import { PAIR_LOSS, STAT_COUNT } from "./cases/losses.ts";
import { headNormBackwardArguments, headNormForwardArguments, normForwardArguments } from "./cases/norm.ts";
import { tokenLogProbForwardArguments } from "./cases/token-log-prob.ts";

/** Gradients of every op with a backward pass against numerical differentiation of its forward. */

/** The same arguments with the named arrays at 0. */
function cleared(args: CaseArguments, names: readonly string[]): CaseArguments {
  const copy: Record<string, CaseArguments[string]> = { ...args };
  for (const name of names) copy[name] = new Float64Array((args[name] as Float64Array).length);
  return copy;
}

function attentionCase(window = 0, parents?: readonly number[]): GradientCase {
  const data = new CaseData("gradient of attention");
  const lengths = parents ? [4, 3, 1, 2, 2] : [5, 1, 7];
  const shape = {
    lengths,
    heads: 4,
    kvHeads: 2,
    headDim: 3,
    gap: 2,
    window,
    sharpness: 2,
    ...(parents && { parents }),
  };
  const forward = attentionForwardArguments(data, shape);
  const backward = attentionBackwardArguments(data, forward);
  return {
    name: `attention, grouped and strided${window > 0 ? `, window of ${window}` : ""}${parents ? ", shared prompts" : ""}`,
    forward: { op: "attentionForward", args: forward },
    upstream: { o: backward["dO"] as Float64Array },
    backward: { op: "attentionBackward", args: backward },
    // Of a single key the probability is 1, whatever the scores are.
    gradients: window === 1 ? { v: "dv" } : { q: "dq", k: "dk", v: "dv" },
    method: "complex",
  };
}

function normCase(norm: "rmsNorm" | "layerNorm"): GradientCase {
  const data = new CaseData(`gradient of ${norm}`);
  const forward = normForwardArguments(norm, data, 5, 9);
  const dy = data.normal(45);
  const { rstd, mean } = evaluate(`${norm}Forward`, forward);
  const { x, weight } = forward as Record<string, Float64Array>;
  return {
    name: norm,
    forward: { op: `${norm}Forward`, args: forward },
    upstream: { y: dy },
    backward: {
      op: `${norm}Backward`,
      args: {
        rows: 5,
        cols: 9,
        x: x!,
        weight: weight!,
        rstd: rstd!,
        dy,
        dx: unset(45),
        dWeight: new Float64Array(9),
        ...(mean && { mean, dBias: new Float64Array(9) }),
      },
    },
    gradients: { x: "dx", weight: "dWeight", ...(norm === "layerNorm" && { bias: "dBias" }) },
    method: "complex",
  };
}

function linearCase(transposed: boolean, rank: number, loraInput = false): GradientCase {
  const data = new CaseData(`gradient of linear ${transposed} ${rank}`);
  const shape = { rows: 5, inputs: 7, outputs: 6, gap: 2, rank, transposed, loraInput };
  const forward = linearForwardArguments(data, { ...shape, bias: true });
  const { loraHidden } = evaluate("linearForward", forward);
  const dy = data.matrix(5, 6, 8);
  const { bias: _bias, loraHidden: _hidden, y: _y, yStride: _stride, activation: _none, ...shared } = forward;
  return {
    name: `linear${transposed ? ", transposed" : ""}${rank ? `, LoRA of rank ${rank} with a random B` : ""}${loraInput ? ", an input of its own" : ""}`,
    forward: { op: "linearForward", args: forward },
    upstream: { y: dy },
    backward: {
      op: "linearBackward",
      args: {
        ...shared,
        dyStride: 8,
        dxStride: 9,
        dy,
        dx: unset(45),
        dWeight: new Float64Array(42),
        dBias: new Float64Array(6),
        ...(rank > 0 && {
          loraHidden: loraHidden!,
          loraGradient: unset(5 * rank),
          dA: new Float64Array(7 * rank),
          dB: new Float64Array(6 * rank),
        }),
        ...(loraInput && { dLoraInput: unset(35) }),
      },
    },
    gradients: {
      x: "dx",
      weight: "dWeight",
      bias: "dBias",
      ...(rank > 0 && { loraA: "dA", loraB: "dB" }),
      ...(loraInput && { loraInput: "dLoraInput" }),
    },
    method: "complex",
  };
}

/** The backward pass is the op itself, on dy. */
function dropoutCase(): GradientCase {
  const data = new CaseData("gradient of dropout");
  const forward = dropoutArguments(data, { rows: 5, cols: 9, probability: 0.3, gap: 2 });
  const dy = data.matrix(5, 9, 11);
  return {
    name: "dropout",
    forward: { op: "dropout", args: forward },
    upstream: { y: dy },
    backward: { op: "dropout", args: { ...forward, x: dy, y: unset(55) } },
    gradients: { x: "y" },
    method: "complex",
  };
}

/** The activation of linearForward on a weight of 1, its input kept away from the kink of relu. */
function activationCase(name: keyof typeof ACTIVATION): GradientCase {
  const data = new CaseData(`gradient of ${name}`);
  const count = 33;
  const x = data.normal(count, 2).map((value) => (Math.abs(value) < 1e-3 ? value + 0.1 : value));
  const dy = data.normal(count);
  const activation = ACTIVATION[name];
  return {
    name: `activation ${name}`,
    forward: {
      op: "linearForward",
      args: {
        rows: count,
        inputs: 1,
        outputs: 1,
        xStride: 1,
        yStride: 1,
        activation,
        x,
        weight: Float64Array.of(1),
        y: unset(count),
      },
    },
    upstream: { y: dy },
    backward: { op: "activationBackward", args: { activation, count, x, dy, dx: unset(count) } },
    gradients: { x: "dx" },
    method: name === "relu" ? "central" : "complex",
  };
}

function gatedSiluCase(): GradientCase {
  const data = new CaseData("gradient of gatedSilu");
  const shape = { rows: 3, cols: 7, inputStride: 9 };
  const gate = data.matrix(3, 7, 9, 2);
  const up = data.matrix(3, 7, 9);
  const dy = data.normal(21);
  return {
    name: "gatedSilu",
    forward: { op: "gatedSiluForward", args: { ...shape, gate, up, y: unset(21) } },
    upstream: { y: dy },
    backward: { op: "gatedSiluBackward", args: { ...shape, gate, up, dy, dGate: unset(27), dUp: unset(27) } },
    gradients: { gate: "dGate", up: "dUp" },
    method: "complex",
  };
}

function embeddingCase(): GradientCase {
  const data = new CaseData("gradient of embedding");
  const shape = { rows: 7, cols: 3, vocab: 5, maxPositions: 4 };
  const ids = { tokens: data.integers(7, 5), positions: data.integers(7, 4) };
  const dy = data.normal(21);
  return {
    name: "embedding with repeated tokens",
    forward: {
      op: "embeddingForward",
      args: { ...shape, ...ids, table: data.normal(15), positionTable: data.normal(12), y: unset(21) },
    },
    upstream: { y: dy },
    backward: {
      op: "embeddingBackward",
      args: { ...shape, ...ids, dy, dTable: new Float64Array(15), dPositionTable: new Float64Array(12) },
    },
    gradients: { table: "dTable", positionTable: "dPositionTable" },
    method: "complex",
  };
}

function headNormCase(): GradientCase {
  const data = new CaseData("gradient of headNorm");
  const forward = headNormForwardArguments(data, { rows: 5, heads: 2, headDim: 7, gap: 3 });
  const backward = headNormBackwardArguments(data, forward);
  return {
    name: "headNorm",
    forward: { op: "headNormForward", args: forward },
    upstream: { x: (backward["dx"] as Float64Array).slice() },
    backward: { op: "headNormBackward", args: cleared(backward, ["dWeight"]) },
    gradients: { x: "dx", weight: "dWeight" },
    method: "complex",
  };
}

function rotaryCase(): GradientCase {
  const data = new CaseData("gradient of rotary");
  const args = {
    rows: 5,
    heads: 2,
    headDim: 7,
    rotary: 4,
    rowStride: 17,
    maxPositions: 9,
    positions: data.integers(5, 9),
    ...rotaryTables(9, 4),
  };
  const upstream = data.matrix(5, 14, 17);
  return {
    name: "rotary, whose backward is its inverse",
    forward: { op: "rotary", args: { ...args, x: data.matrix(5, 14, 17) } },
    upstream: { x: upstream },
    backward: { op: "rotary", args: { ...args, inverse: true, x: upstream } },
    gradients: { x: "x" },
    method: "complex",
  };
}

function tokenLogProbCase(keepLogits: boolean, sources?: number): GradientCase {
  const data = new CaseData(`gradient of tokenLogProb ${keepLogits}`);
  const shape = {
    rows: 7,
    cols: 5,
    vocab: 11,
    count: 4,
    temperature: 0.7,
    keepLogits,
    sharpness: 1.5,
    ...(sources && { sources }),
  };
  const forward = tokenLogProbForwardArguments(data, shape);
  const { logProb: _, ...shared } = forward;
  const { lse, entropy, logits } = evaluate("tokenLogProbForward", forward);
  const upstream = { logProb: data.normal(7), lse: data.normal(7), entropy: data.normal(7) };
  return {
    name: `tokenLogProb${keepLogits ? ", logits kept" : ""}${sources ? ", several tokens from a row" : ""}`,
    forward: { op: "tokenLogProbForward", args: forward },
    upstream,
    backward: {
      op: "tokenLogProbBackward",
      args: {
        ...shared,
        lse: lse!,
        entropy: entropy!,
        ...(logits && { logits }),
        dLogProb: upstream.logProb,
        dLse: upstream.lse,
        dEntropy: upstream.entropy,
        dx: new Float64Array(35),
        dWeight: new Float64Array(55),
      },
    },
    gradients: { x: "dx", weight: "dWeight" },
    method: "complex",
  };
}

/** A loss differentiates itself: its forward is its sums, its backward its gradients. */
function lossCase(
  op: keyof typeof STAT_COUNT,
  name: string,
  args: CaseArguments,
  weights: readonly number[],
  gradients: Readonly<Record<string, string>>,
  method: GradientCase["method"],
): GradientCase {
  const stats = unset(STAT_COUNT[op]);
  const withStats = { ...args, stats };
  const upstream = new Float64Array(stats.length);
  upstream.set(weights);
  return {
    name: `${op}${name}`,
    forward: { op, args: withStats },
    upstream: { stats: upstream },
    backward: { op, args: withStats },
    gradients,
    method,
  };
}

function lossCases(): GradientCase[] {
  const data = new CaseData("gradients of losses");
  const lengths = [9, 2, 17];
  const rows = 28;
  const mask = responseMask(data, lengths);
  const scale = 0.37;
  const logProb = data.normal(rows, 0.5, -2);
  // Ratios e^±0.1 and e^±0.5, never within 1e-3 of the clip at 0.8 and 1.2; values likewise.
  const shift = (index: number): number => [0.1, -0.1, 0.5, -0.5][index % 4]!;
  const oldLogProb = logProb.map((value, index) => value - shift(index));
  const value = data.normal(rows);
  const oldValue = value.map((each, index) => each - shift(index));
  const policy = {
    rows,
    clipRange: 0.2,
    scale,
    mask,
    logProb,
    oldLogProb,
    advantage: data.normal(rows),
    dLogProb: unset(rows),
  };
  const bonus = { entropyCoefficient: 0.05, entropy: data.normal(rows, 0.2, 2), dEntropy: unset(rows) };
  const values = {
    rows,
    clipRange: 0.2,
    scale,
    mask,
    value,
    oldValue,
    returns: data.normal(rows),
    dValue: unset(rows),
  };
  const pairs = {
    chosen: Int32Array.of(3, 9, 3),
    rejected: Int32Array.of(5, 11, 7),
    margin: data.normal(3, 0.3, 0.5),
    label: Float64Array.of(0.9, 0.5, 1),
    scored: Int32Array.of(5, 20),
    score: data.normal(2, 2),
  };
  return [
    lossCase("ppoPolicyLoss", "", policy, [scale], { logProb: "dLogProb" }, "central"),
    // Between e^0.1 and e^0.5, so that some tokens of negative advantage are bounded and some are not.
    lossCase(
      "ppoPolicyLoss",
      " with a dual clip",
      { ...policy, dualClip: 1.4 },
      [scale],
      { logProb: "dLogProb" },
      "central",
    ),
    lossCase(
      "ppoPolicyLoss",
      " with an entropy bonus",
      { ...policy, ...bonus },
      [scale, 0, 0, 0, 0, -0.05 * scale],
      { logProb: "dLogProb", entropy: "dEntropy" },
      "complex",
    ),
    lossCase("ppoValueLoss", "", values, [scale], { value: "dValue" }, "central"),
    lossCase(
      "ppoValueLoss",
      ", not clipped",
      { ...values, clipRange: 0 },
      [scale],
      { value: "dValue" },
      "complex",
    ),
    lossCase(
      "tokenNllLoss",
      "",
      { rows, scale, weight: data.normal(rows), logProb, dLogProb: unset(rows) },
      [scale],
      { logProb: "dLogProb" },
      "complex",
    ),
    ...(["logistic", "hinge"] as const).map((pairLoss) =>
      lossCase(
        "rewardLoss",
        `, ${pairLoss}, with margins, labels, centering, a shared answer and scored ones`,
        {
          rows,
          pairs: 3,
          answers: 2,
          pairLoss: PAIR_LOSS[pairLoss],
          ...pairs,
          centering: 0.01,
          scoreWeight: 0.3,
          scale,
          value,
          dValue: unset(rows),
        },
        [scale],
        { value: "dValue" },
        pairLoss === "hinge" ? "central" : "complex",
      ),
    ),
  ];
}

const cases: readonly GradientCase[] = [
  attentionCase(),
  attentionCase(1),
  attentionCase(2),
  attentionCase(0, [-1, 0, -1, 0, 2]),
  attentionCase(3, [-1, 0, -1, 0, 2]),
  attentionCase(3),
  normCase("rmsNorm"),
  normCase("layerNorm"),
  linearCase(false, 0),
  linearCase(true, 0),
  linearCase(false, 1),
  linearCase(true, 3),
  linearCase(false, 2, true),
  linearCase(true, 3, true),
  dropoutCase(),
  ...(Object.keys(ACTIVATION) as (keyof typeof ACTIVATION)[]).map(activationCase),
  gatedSiluCase(),
  embeddingCase(),
  headNormCase(),
  rotaryCase(),
  tokenLogProbCase(false),
  tokenLogProbCase(true),
  tokenLogProbCase(false, 2),
  ...lossCases(),
];

describe("gradients of the oracle", () => {
  for (const gradientCase of cases) {
    it(gradientTitle(gradientCase), () => checkGradient(gradientCase));
  }

  it("complex steps leave the values of the real op unchanged", () => {
    for (const { forward } of cases) {
      const args = toKernelArguments(forward.op, forward.args, "complex128");
      kernels.run("ref", forward.op, args);
      const complex = decodeOutputs(forward.op, args, "complex128");
      for (const [field, values] of Object.entries(evaluate(forward.op, forward.args)))
        assert.ok(relativeDistance(values, complex[field]!) < 1e-14, `${forward.op}: ${field}`);
    }
  });

  const accumulating: Readonly<Record<string, readonly string[]>> = {
    linearBackward: ["dWeight", "dBias", "dA", "dB"],
    rmsNormBackward: ["dWeight"],
    layerNormBackward: ["dWeight", "dBias"],
    headNormBackward: ["dWeight"],
    embeddingBackward: ["dTable", "dPositionTable"],
    tokenLogProbBackward: ["dx", "dWeight"],
  };
  for (const [op, fields] of Object.entries(accumulating)) {
    it(`${op} adds to ${fields.join(", ")}`, () => {
      const { backward } = cases.findLast((each) => each.backward.op === op)!;
      const start = new CaseData(`start of ${op}`);
      const once = evaluate(op, cleared(backward.args, fields));
      const initial = Object.fromEntries(fields.map((field) => [field, start.normal(once[field]!.length)]));
      const added = evaluate(op, { ...backward.args, ...initial });
      for (const field of fields) {
        const sum = once[field]!.map((value, index) => value + initial[field]![index]!);
        assert.ok(relativeDistance(added[field]!, sum) < 1e-14, field);
      }
    });
  }

  it("accumulateDx adds to dx", () => {
    for (const op of ["rmsNormBackward", "layerNormBackward", "linearBackward"]) {
      const { backward } = cases.find((each) => each.backward.op === op)!;
      const once = evaluate(op, backward.args)["dx"]!;
      const start = new CaseData(`dx of ${op}`).normal(once.length);
      const added = evaluate(op, { ...backward.args, accumulateDx: true, dx: start })["dx"]!;
      for (const [index, value] of once.entries())
        if (!Number.isNaN(value)) assert.ok(Math.abs(added[index]! - value - start[index]!) < 1e-12, op);
    }
  });

  it("attention gives gradients of 0 to keys that no query sees through the mask", () => {
    // The last token's key is seen by its own query alone, whose softmax over one score is constant.
    const data = new CaseData("attention of one token");
    const forward = attentionForwardArguments(data, { lengths: [1, 1], heads: 2, kvHeads: 1, headDim: 4 });
    const { dq, dk } = evaluate("attentionBackward", attentionBackwardArguments(data, forward));
    for (const value of [...dq!, ...dk!]) assert.ok(Math.abs(value) < 1e-15, `${value} should be 0`);
  });

  it("losses give masked-out tokens gradients of exactly 0", () => {
    for (const { backward } of lossCases().slice(0, 4)) {
      const outputs = evaluate(backward.op, { ...backward.args, mask: new Float64Array(28) });
      for (const field of ["dLogProb", "dEntropy", "dValue", "stats"])
        for (const value of outputs[field] ?? []) assert.equal(value + 0, 0, `${backward.op}: ${field}`);
    }
  });

  it("checks a packed batch whose offsets do not fit", () => {
    const args = { ...attentionCase().forward.args, offsets: offsetsOf([5, 1, 6]) };
    assert.throws(() => evaluate("attentionForward", args), { code: "ERR_RLHF_ARGUMENT" });
  });
});
