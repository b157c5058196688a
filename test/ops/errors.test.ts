import assert from "node:assert/strict";
import { type KernelArguments, kernels } from "../support/kernels.ts";
import { type CaseArguments, toKernelArguments } from "../support/op-arguments.ts";
import { opCases } from "./cases/index.ts";

/** The first case of an op. */
function caseOf(op: string): CaseArguments {
  return opCases.find((each) => each.op === op)!.args;
}

interface BadCall {
  readonly op: string;
  readonly change: Readonly<Record<string, KernelArguments[string]>>;
  readonly code: string;
  readonly message: string;
}

const SHAPE = "ERR_RLHF_SHAPE";
const ARGUMENT = "ERR_RLHF_ARGUMENT";

const badCalls: readonly BadCall[] = [
  {
    op: "rmsNormForward",
    change: { cols: 0 },
    code: SHAPE,
    message: "rmsNormForward: cols is 0, expected ≥ 1",
  },
  { op: "layerNormBackward", change: { rows: -1 }, code: SHAPE, message: "rows is -1, expected ≥ 1" },
  { op: "rmsNormForward", change: { x: null }, code: ARGUMENT, message: "x is null, expected an array" },
  { op: "rmsNormForward", change: { eps: Number.NaN }, code: ARGUMENT, message: "eps is nan, expected ≥ 0" },
  {
    op: "rmsNormBackward",
    change: { accumulateDx: 2 },
    code: ARGUMENT,
    message: "accumulateDx is 2, expected 0 or 1",
  },
  { op: "linearForward", change: { inputs: 5 }, code: SHAPE, message: "xStride is 1, expected ≥ inputs = 5" },
  {
    op: "linearForward",
    change: { yStride: 0 },
    code: SHAPE,
    message: "yStride is 0, expected ≥ outputs = 1",
  },
  {
    op: "linearForward",
    change: { activation: 6 },
    code: ARGUMENT,
    message: "activation is 6, expected 0 to 5",
  },
  {
    op: "linearForward",
    change: { rank: 2 },
    code: ARGUMENT,
    message: "loraA is null, expected an array with rank > 0",
  },
  { op: "linearForward", change: { weight: null }, code: ARGUMENT, message: "weight is null" },
  {
    op: "linearBackward",
    change: { dA: new Float32Array(1) },
    code: ARGUMENT,
    message: "dA is an array, expected null with rank 0",
  },
  {
    op: "attentionForward",
    change: { heads: 3, kvHeads: 2, qStride: 12 },
    code: SHAPE,
    message: "heads is 3, expected a multiple of kvHeads = 2",
  },
  {
    op: "attentionForward",
    change: { maxLength: 2 },
    code: SHAPE,
    message: "maxLength is 2, expected 1 to 1",
  },
  { op: "attentionForward", change: { window: -1 }, code: SHAPE, message: "window is -1, expected ≥ 0" },
  { op: "attentionBackward", change: { dO: null }, code: ARGUMENT, message: "dO is null" },
  { op: "headNormForward", change: { heads: 0 }, code: SHAPE, message: "heads is 0, expected ≥ 1" },
  {
    op: "headNormForward",
    change: { stride: 1 },
    code: SHAPE,
    message: "stride is 1, expected ≥ heads · headDim = 2",
  },
  { op: "headNormForward", change: { eps: -1 }, code: ARGUMENT, message: "eps is -1, expected ≥ 0" },
  { op: "headNormBackward", change: { rstd: null }, code: ARGUMENT, message: "rstd is null" },
  {
    op: "rotary",
    change: { rotary: 3, headDim: 4, rowStride: 4 },
    code: SHAPE,
    message: "rotary is 3, expected a multiple of a pair = 2",
  },
  {
    op: "tokenLogProbForward",
    change: { temperature: 0 },
    code: ARGUMENT,
    message: "temperature is 0, expected > 0",
  },
  { op: "tokenLogProbForward", change: { count: 2 }, code: SHAPE, message: "count is 2, expected 0 to 1" },
  {
    op: "attentionForward",
    change: { parents: Int32Array.of(0) },
    code: ARGUMENT,
    message: "parents[0] is 0, expected -1 (none) or an earlier sequence",
  },
  {
    op: "attentionBackward",
    change: { parents: Int32Array.of(-2) },
    code: ARGUMENT,
    message: "parents[0] is -2, expected -1 (none) or an earlier sequence",
  },
  { op: "tokenLogProbForward", change: { sources: null }, code: ARGUMENT, message: "sources is null" },
  { op: "klReward", change: { estimator: 4 }, code: ARGUMENT, message: "estimator is 4, expected 1 to 3" },
  { op: "gae", change: { lambda: 1.5 }, code: ARGUMENT, message: "lambda is 1.5, expected 0 to 1" },
  {
    op: "ppoPolicyLoss",
    change: { entropyCoefficient: 0.1 },
    code: ARGUMENT,
    message: "entropy is null, expected an array with entropyCoefficient ≠ 0",
  },
  {
    op: "groupPolicyLoss",
    change: { highestRatio: 0.7 },
    code: ARGUMENT,
    message: "highestRatio is 0.7, expected ≥ lowestRatio",
  },
  { op: "groupPolicyLoss", change: { level: 3 }, code: ARGUMENT, message: "level is 3, expected 0 to 2" },
  {
    op: "groupPolicyLoss",
    change: { klCoefficient: 0.1 },
    code: ARGUMENT,
    message: "refLogProb is null, expected an array with klCoefficient ≠ 0",
  },
  {
    op: "ppoPolicyLoss",
    change: { dualClip: 1.1 },
    code: ARGUMENT,
    message: "dualClip is 1.1, expected 0 (none) or > 1 + clipRange",
  },
  { op: "sequenceSum", change: { sequences: 0 }, code: SHAPE, message: "sequences is 0, expected ≥ 1" },
  {
    op: "sequenceSumBackward",
    change: { dSum: null },
    code: ARGUMENT,
    message: "dSum is null, expected an array",
  },
  { op: "preferenceLoss", change: { kind: 14 }, code: ARGUMENT, message: "kind is 14, expected 0 to 13" },
  {
    op: "preferenceLoss",
    change: { fDivergence: -1 },
    code: ARGUMENT,
    message: "fDivergence is -1, expected 0 to 3",
  },
  {
    op: "preferenceLoss",
    change: { fDivergence: 2, kind: 9 },
    code: ARGUMENT,
    message: "fDivergence is 2, expected 0 (reverse KL): the other divergences are for losses of the margin",
  },
  { op: "preferenceLoss", change: { beta: 0 }, code: ARGUMENT, message: "beta is 0, expected > 0" },
  {
    op: "preferenceLoss",
    change: { labelSmoothing: 0.5 },
    code: ARGUMENT,
    message: "labelSmoothing is 0.5, expected 0 to below 0.5",
  },
  {
    op: "preferenceLoss",
    change: { kind: 3 },
    code: ARGUMENT,
    message: "labelSmoothing is 0, expected > 0 with exo_pair, 1e-3 is usual",
  },
  {
    op: "preferenceLoss",
    change: { kind: 6 },
    code: ARGUMENT,
    message: "order is null, expected an array with losses that sort",
  },
  {
    op: "preferenceLoss",
    change: { kind: 7, lengthNormalized: true },
    code: ARGUMENT,
    message: "lengthNormalized is 1, expected 0 with losses that sort",
  },
  {
    op: "preferenceLoss",
    change: { kind: 6, order: new Int32Array(2), pairWeight: new Float32Array(1) },
    code: ARGUMENT,
    message: "pairWeight is an array, expected null with losses that sort",
  },
  {
    op: "preferenceLoss",
    change: { kind: 8 },
    code: ARGUMENT,
    message: "lengthNormalized is 0, expected 1 with the odds ratio",
  },
  {
    op: "preferenceLoss",
    change: { kind: 8, lengthNormalized: true },
    code: ARGUMENT,
    message: "refLogProb is an array, expected null with the odds ratio",
  },
  {
    op: "preferenceLoss",
    change: { lengthNormalized: true, tokens: null },
    code: ARGUMENT,
    message: "tokens is null, expected an array to divide by",
  },
  {
    op: "preferenceLoss",
    change: { lengthNormalized: true, tokens: new Int32Array(5) },
    code: ARGUMENT,
    message: "is 0, expected 1 or more",
  },
  {
    op: "preferenceLoss",
    change: { chosen: Int32Array.of(5) },
    code: ARGUMENT,
    message: "chosen[0] is 5, expected 0 to 4",
  },
  { op: "ktoLoss", change: { kl: -0.1 }, code: ARGUMENT, message: "kl is -0.1, expected ≥ 0" },
  {
    op: "ktoLoss",
    change: { label: Int32Array.of(2) },
    code: ARGUMENT,
    message: "label[0] is 2, expected 1, -1 or 0",
  },
  {
    op: "wpoWeight",
    change: { mask: new Float32Array(10) },
    code: ARGUMENT,
    message: "mask selects no token of sequence 0",
  },
  { op: "adamW", change: { step: 0 }, code: SHAPE, message: "step is 0, expected ≥ 1" },
  { op: "adamW", change: { beta2: 1 }, code: ARGUMENT, message: "beta2 is 1, expected 0 to below 1" },
  { op: "sample", change: { topP: 0 }, code: ARGUMENT, message: "topP is 0, expected above 0 to 1" },
  {
    op: "sample",
    change: { type: "complex128" },
    code: ARGUMENT,
    message: "type is complex128, expected a real floating-point type",
  },
  {
    op: "embeddingForward",
    change: { tokens: Int32Array.of(1) },
    code: "ERR_RLHF_TOKEN_RANGE",
    message: "1",
  },
  {
    op: "embeddingForward",
    change: { tokens: Int32Array.of(-1) },
    code: "ERR_RLHF_TOKEN_RANGE",
    message: "-1",
  },
];

for (const backend of kernels.backends()) {
  const operators = new Set(kernels.operators(backend));
  describe(`malformed arguments on ${backend}`, () => {
    for (const { op, change, code, message } of badCalls.filter((bad) => operators.has(bad.op))) {
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
