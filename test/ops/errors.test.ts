import assert from "node:assert/strict";
import { type KernelArguments, kernels } from "../support/kernels.ts";
import { type CaseArguments, toKernelArguments } from "../support/op-arguments.ts";
import { opCases } from "./cases/index.ts";

/** The first case of an op. */
function caseOf(op: string): CaseArguments {
  return opCases.find((each) => each.op === op)!.args;
}

/** A case with one thing changed, and what the error says of it. */
type BadCall = readonly [
  op: string,
  change: Readonly<Record<string, KernelArguments[string]>>,
  code: string,
  message: string,
];

const SHAPE = "ERR_RLHF_SHAPE";
const ARGUMENT = "ERR_RLHF_ARGUMENT";
const TOKEN_RANGE = "ERR_RLHF_TOKEN_RANGE";

const NON_FINITE = "ERR_RLHF_NON_FINITE";

/** Logits for the first case of `sample`: zeros, but for one of the first row. */
function sampleLogits(odd: number): Float32Array {
  const { rows, vocab } = caseOf("sample") as { rows: number; vocab: number };
  const logits = new Float32Array(rows * vocab);
  logits[2] = odd;
  return logits;
}

/** Sizes, settings and missing arrays: every backend finds them before it runs anything. */
const badCalls: readonly BadCall[] = [
  ["rmsNormForward", { cols: 0 }, SHAPE, "rmsNormForward: cols is 0, expected ≥ 1"],
  ["layerNormBackward", { rows: -1 }, SHAPE, "rows is -1, expected ≥ 1"],
  ["rmsNormForward", { x: null }, ARGUMENT, "x is null, expected an array"],
  ["rmsNormForward", { eps: Number.NaN }, ARGUMENT, "eps is nan, expected ≥ 0"],
  ["rmsNormBackward", { accumulateDx: 2 }, ARGUMENT, "accumulateDx is 2, expected 0 or 1"],
  ["linearForward", { inputs: 5 }, SHAPE, "xStride is 1, expected ≥ inputs = 5"],
  ["linearForward", { yStride: 0 }, SHAPE, "yStride is 0, expected ≥ outputs = 1"],
  ["linearForward", { activation: 6 }, ARGUMENT, "activation is 6, expected 0 to 5"],
  ["linearForward", { rank: 2 }, ARGUMENT, "loraA is null, expected an array with rank > 0"],
  ["linearForward", { weight: null }, ARGUMENT, "weight is null"],
  ["linearBackward", { dA: new Float32Array(1) }, ARGUMENT, "dA is an array, expected null with rank 0"],
  [
    "attentionForward",
    { heads: 3, kvHeads: 2, qStride: 12 },
    SHAPE,
    "heads is 3, expected a multiple of kvHeads = 2",
  ],
  ["attentionForward", { maxLength: 2 }, SHAPE, "maxLength is 2, expected 1 to 1"],
  ["attentionForward", { window: -1 }, SHAPE, "window is -1, expected ≥ 0"],
  ["attentionBackward", { dO: null }, ARGUMENT, "dO is null"],
  ["headNormForward", { heads: 0 }, SHAPE, "heads is 0, expected ≥ 1"],
  ["headNormForward", { stride: 1 }, SHAPE, "stride is 1, expected ≥ heads · headDim = 2"],
  ["headNormForward", { eps: -1 }, ARGUMENT, "eps is -1, expected ≥ 0"],
  ["headNormBackward", { rstd: null }, ARGUMENT, "rstd is null"],
  [
    "rotary",
    { rotary: 3, headDim: 4, rowStride: 4 },
    SHAPE,
    "rotary is 3, expected a multiple of a pair = 2",
  ],
  ["tokenLogProbForward", { temperature: 0 }, ARGUMENT, "temperature is 0, expected > 0"],
  ["tokenLogProbForward", { count: 2 }, SHAPE, "count is 2, expected 0 to 1"],
  ["tokenLogProbForward", { sources: null }, ARGUMENT, "sources is null"],
  ["tokenLossForwardBackward", { blockRows: 0 }, SHAPE, "blockRows is 0, expected ≥ 1"],
  ["tokenLossForwardBackward", { kind: 3 }, ARGUMENT, "kind is 3, expected 0 to 2"],
  ["tokenLossForwardBackward", { dx: null }, ARGUMENT, "dWeight is an array, expected null without dx"],
  ["tokenLossForwardBackward", { stats: null }, ARGUMENT, "tokenNllLoss: stats is null"],
  ["tokenLossForwardBackward", { kind: 1 }, ARGUMENT, "ppoPolicyLoss: mask is null"],
  ["tokenLossForwardBackward", { kind: 2 }, SHAPE, "groupPolicyLoss: sequences is 0"],
  [
    "tokenLossForwardBackward",
    { weight: null },
    ARGUMENT,
    "weight is null, expected an array without packedForward",
  ],
  ["klDivergenceForward", { direction: 2 }, ARGUMENT, "direction is 2, expected 0 to 1"],
  ["klDivergenceForward", { refCols: 0 }, SHAPE, "klDivergenceForward: refCols is 0, expected ≥ 1"],
  [
    "klDivergenceForward",
    { refWeight: null },
    ARGUMENT,
    "refWeight is null, expected an array without refPackedForward",
  ],
  ["klDivergenceBackward", { dKl: null }, ARGUMENT, "dKl is null"],
  ["klReward", { estimator: 4 }, ARGUMENT, "estimator is 4, expected 1 to 3"],
  ["gae", { lambda: 1.5 }, ARGUMENT, "lambda is 1.5, expected 0 to 1"],
  [
    "ppoPolicyLoss",
    { entropyCoefficient: 0.1 },
    ARGUMENT,
    "entropy is null, expected an array with entropyCoefficient ≠ 0",
  ],
  ["groupPolicyLoss", { highestRatio: 0.7 }, ARGUMENT, "highestRatio is 0.7, expected ≥ lowestRatio"],
  ["groupPolicyLoss", { level: 3 }, ARGUMENT, "level is 3, expected 0 to 2"],
  ["groupPolicyLoss", { weighKl: 2 }, ARGUMENT, "weighKl is 2, expected 0 to 1"],
  [
    "groupPolicyLoss",
    { advantage: null },
    ARGUMENT,
    "advantage is null, expected an array without tokenAdvantage",
  ],
  [
    "groupPolicyLoss",
    { level: 1, tokenAdvantage: new Float64Array(10) },
    ARGUMENT,
    "level is 1, expected 0 to 0",
  ],
  [
    "groupPolicyLoss",
    { klCoefficient: 0.1 },
    ARGUMENT,
    "refLogProb is null, expected an array with klCoefficient ≠ 0",
  ],
  ["ppoPolicyLoss", { dualClip: 1.1 }, ARGUMENT, "dualClip is 1.1, expected 0 (none) or > 1 + clipRange"],
  ["sequenceSum", { sequences: 0 }, SHAPE, "sequences is 0, expected ≥ 1"],
  ["sequenceSumBackward", { dSum: null }, ARGUMENT, "dSum is null, expected an array"],
  ["preferenceLoss", { kind: 14 }, ARGUMENT, "kind is 14, expected 0 to 13"],
  ["preferenceLoss", { fDivergence: -1 }, ARGUMENT, "fDivergence is -1, expected 0 to 3"],
  [
    "preferenceLoss",
    { fDivergence: 2, kind: 9 },
    ARGUMENT,
    "fDivergence is 2, expected 0 (reverse KL): the other divergences are for losses of the margin",
  ],
  ["preferenceLoss", { beta: 0 }, ARGUMENT, "beta is 0, expected > 0"],
  ["preferenceLoss", { labelSmoothing: 0.5 }, ARGUMENT, "labelSmoothing is 0.5, expected 0 to below 0.5"],
  ["preferenceLoss", { kind: 3 }, ARGUMENT, "labelSmoothing is 0, expected > 0 with exo_pair, 1e-3 is usual"],
  ["preferenceLoss", { kind: 6 }, ARGUMENT, "order is null, expected an array with losses that sort"],
  [
    "preferenceLoss",
    { kind: 7, lengthNormalized: true },
    ARGUMENT,
    "lengthNormalized is 1, expected 0 with losses that sort",
  ],
  [
    "preferenceLoss",
    { kind: 6, order: new Int32Array(2), pairWeight: new Float32Array(1) },
    ARGUMENT,
    "pairWeight is an array, expected null with losses that sort",
  ],
  ["preferenceLoss", { kind: 8 }, ARGUMENT, "lengthNormalized is 0, expected 1 with the odds ratio"],
  [
    "preferenceLoss",
    { kind: 8, lengthNormalized: true },
    ARGUMENT,
    "refLogProb is an array, expected null with the odds ratio",
  ],
  [
    "preferenceLoss",
    { lengthNormalized: true, tokens: null },
    ARGUMENT,
    "tokens is null, expected an array to divide by",
  ],
  ["ktoLoss", { kl: -0.1 }, ARGUMENT, "kl is -0.1, expected ≥ 0"],
  ["adamW", { step: 0 }, SHAPE, "step is 0, expected ≥ 1"],
  ["adamW", { beta2: 1 }, ARGUMENT, "beta2 is 1, expected 0 to below 1"],
  [
    "adamW",
    { type: "float16" },
    ARGUMENT,
    "master is null, expected an array with float16, which is not rounded stochastically",
  ],
  ["sample", { topP: 0 }, ARGUMENT, "topP is 0, expected above 0 to 1"],
  ["sample", { type: "complex128" }, ARGUMENT, "type is complex128, expected a real floating-point type"],
];

/** What arrays hold: where the host reads their memory. Kernels of a device give NaN (test/simt/contents.test.ts). */
const badContents: readonly BadCall[] = [
  [
    "attentionForward",
    { parents: Int32Array.of(0) },
    ARGUMENT,
    "parents[0] is 0, expected -1 (none) or an earlier sequence",
  ],
  [
    "attentionBackward",
    { parents: Int32Array.of(-2) },
    ARGUMENT,
    "parents[0] is -2, expected -1 (none) or an earlier sequence",
  ],
  [
    "preferenceLoss",
    { lengthNormalized: true, tokens: new Int32Array(5) },
    ARGUMENT,
    "is 0, expected 1 or more",
  ],
  ["preferenceLoss", { chosen: Int32Array.of(5) }, ARGUMENT, "chosen[0] is 5, expected 0 to 4"],
  ["ktoLoss", { label: Int32Array.of(2) }, ARGUMENT, "label[0] is 2, expected 1, -1 or 0"],
  ["wpoWeight", { mask: new Float32Array(10) }, ARGUMENT, "mask selects no token of sequence 0"],
  ["sample", { logits: sampleLogits(Number.NaN) }, NON_FINITE, "logits[0, 2] is NaN or infinite"],
  ["sample", { logits: sampleLogits(Infinity) }, NON_FINITE, "logits[0, 2] is NaN or infinite"],
  ["sample", { logits: sampleLogits(0).fill(-Infinity) }, ARGUMENT, "row 0 has no token left to draw"],
  ["embeddingForward", { tokens: Int32Array.of(1) }, TOKEN_RANGE, "1"],
  ["embeddingForward", { tokens: Int32Array.of(-1) }, TOKEN_RANGE, "-1"],
];

for (const backend of kernels.backends()) {
  const operators = new Set(kernels.operators(backend));
  describe(`malformed arguments on ${backend}`, () => {
    const calls = backend === "simt" ? badCalls : [...badCalls, ...badContents];
    for (const [op, change, code, message] of calls.filter(([op]) => operators.has(op))) {
      it(`${op}: ${message}`, () => {
        const args = { ...toKernelArguments(op, caseOf(op), "float32"), ...change };
        assert.throws(
          () => kernels.run(backend, op, args),
          (error: Error & { code?: string }) => {
            assert.equal(error.code, code, error.message);
            assert.ok(error.message.includes(message), error.message);
            return true;
          },
        );
      });
    }
  });
}

describe("malformed calls of the kernels addon", () => {
  const args = (): Record<string, KernelArguments[string]> =>
    toKernelArguments("rmsNormForward", caseOf("rmsNormForward"), "float32");
  const run = (change: KernelArguments) => () =>
    kernels.run("ref", "rmsNormForward", { ...args(), ...change });

  it("an unknown backend", () => {
    assert.throws(() => kernels.run("tpu", "rmsNormForward", args()), {
      code: "ERR_RLHF_UNKNOWN_NAME",
      message: /no backend "tpu" here; these are: cpu, ref/,
    });
  });

  it("an unknown op", () => {
    assert.throws(() => kernels.run("ref", "softmax", {}), {
      code: "ERR_RLHF_UNKNOWN_NAME",
      message: /"softmax"/,
    });
  });

  it("an unknown argument", () => {
    assert.throws(run({ columns: 3 }), {
      name: "TypeError",
      message: /unknown argument "columns"; it takes type, rows/,
    });
  });

  it("arrays and numbers of the wrong kind", () => {
    assert.throws(run({ x: 3 }), { name: "TypeError", message: /rmsNormForward: x must be a typed array/ });
    assert.throws(run({ rows: 1.5 }), { name: "TypeError", message: /rows must be an integer/ });
    assert.throws(run({ eps: "small" }), { name: "TypeError", message: /eps must be a number/ });
    assert.throws(run({ type: "float8" }), {
      name: "TypeError",
      message: /type must be one of float32, float64/,
    });
    assert.throws(() => kernels.run("ref", "gae", { offsets: new Float32Array(2) }), {
      name: "TypeError",
      message: /gae: offsets must be a Int32Array, got Float32Array/,
    });
  });

  it("ops that a backend does not have", () => {
    assert.throws(
      () =>
        kernels.run("ref", "packWeight", {
          inputs: 1,
          outputs: 1,
          weight: new Float32Array(1),
          packed: new Uint8Array(1),
        }),
      { code: "ERR_RLHF_UNSUPPORTED" },
    );
  });

  it("types that the oracle does not have", () => {
    assert.throws(run({ type: "float16" }), { code: "ERR_RLHF_UNSUPPORTED", message: /ref has no float16/ });
  });

  it("parents two levels deep, and sources that fall or lie outside", () => {
    const named = (op: string, name: string): KernelArguments =>
      toKernelArguments(op, opCases.find((each) => each.op === op && each.name === name)!.args, "float32");
    const attention = named("attentionForward", "two answers, grouped");
    const predictions = named("tokenLogProbForward", "9 rows, vocabulary 65");
    for (const backend of kernels.backends().filter((name) => name !== "simt")) {
      assert.throws(
        () =>
          kernels.run(backend, "attentionForward", { ...attention, parents: Int32Array.of(-1, 0, 1, -1) }),
        { code: ARGUMENT, message: /parents\[2\] is 1, expected a sequence without a parent/ },
      );
      const bad =
        (...sources: number[]) =>
        () =>
          kernels.run(backend, "tokenLogProbForward", { ...predictions, sources: Int32Array.from(sources) });
      assert.throws(bad(0, 1, 2, 1, 4), {
        code: ARGUMENT,
        message: /sources\[3\] is 1, expected at least .* 2/,
      });
      assert.throws(bad(0, 1, 2, 3, 9), { code: ARGUMENT, message: /sources\[4\] is 9, expected 0 to 8/ });
      const divergence = named("klDivergenceForward", "9 rows, vocabulary 65, a wider reference, reverse");
      const falling = { ...divergence, sources: Int32Array.of(0, 1, 2, 1, 4) };
      assert.throws(() => kernels.run(backend, "klDivergenceForward", falling), {
        code: ARGUMENT,
        message: /klDivergenceForward: sources\[3\] is 1, expected at least .* 2/,
      });
    }
  });

  it("offsets, positions and masks that do not fit, on the oracle", () => {
    const gae = toKernelArguments("gae", caseOf("gae"), "float64");
    const bad = (change: KernelArguments) => () => kernels.run("ref", "gae", { ...gae, ...change });
    assert.throws(bad({ offsets: Int32Array.of(0, 1) }), {
      code: ARGUMENT,
      message: "gae: offsets[1] is 1, expected rows = 2",
    });
    assert.throws(bad({ mask: Float64Array.of(1, 1) }), {
      code: ARGUMENT,
      message: /mask\[0\] is 1 at the first token/,
    });
  });
});
