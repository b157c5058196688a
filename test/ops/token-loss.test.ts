import assert from "node:assert/strict";
import { checkGradient, type GradientCase, gradientTitle } from "../support/gradient-check.ts";
import { kernels, runKernel, testedBackends } from "../support/kernels.ts";
import { type CaseArguments, decodeOutputs, toKernelArguments } from "../support/op-arguments.ts";
import { CaseData, unset } from "./cases/case.ts";
import {
  TOKEN_LOSS_SHAPES,
  type TokenLossName,
  type TokenLossShape,
  tokenLossArguments,
} from "./cases/token-loss.ts";

/* The loss inside the vocabulary's pass: its gradients, and that it is the three ops that it stands for. */

const OP = "tokenLossForwardBackward";
const SCALE = 1 / 7;
/** What is minimised, as weights of the loss's sums: PPO's bonus is no part of its loss. */
const OBJECTIVES: Record<TokenLossName, (args: CaseArguments) => number[]> = {
  nll: () => [SCALE],
  ppo: ({ entropyCoefficient }) => [SCALE, 0, 0, 0, 0, -Number(entropyCoefficient ?? 0) * SCALE],
  group: () => [1],
};

/** The same arguments without the named ones. */
function without(args: CaseArguments, ...names: readonly string[]): CaseArguments {
  return Object.fromEntries(Object.entries(args).filter(([name]) => !names.includes(name)));
}

function gradientCase([title, shape]: readonly [string, TokenLossShape]): GradientCase {
  const data = new CaseData(`gradient of ${title}`);
  const args = tokenLossArguments(data, {
    ...{ ...shape, rows: 9, cols: 4, vocab: 11, count: 7, blockRows: 3, sharpness: 1.5, frozen: false },
    ...(shape.sources && { sources: 3 }),
  });
  const upstream = new Float64Array((args["stats"] as Float64Array).length);
  upstream.set(OBJECTIVES[shape.kind](args));
  return {
    name: `${OP}, ${shape.kind}, ${title}`,
    forward: { op: OP, args: without(args, "dx", "dWeight", "logits") },
    upstream: { stats: upstream },
    backward: { op: OP, args: { ...args, dx: new Float64Array(9 * 4), dWeight: new Float64Array(11 * 4) } },
    gradients: { x: "dx", weight: "dWeight" },
    method: "complex",
  };
}

type Outputs = Record<string, Float64Array>;
type Run = (op: string, args: CaseArguments) => Outputs;

/** The three ops one after another, on the fused op's arguments. */
function separately(run: Run, args: CaseArguments): Outputs {
  const shared = Object.fromEntries(
    ["rows", "cols", "vocab", "count", "temperature", "x", "tokens", "predictions", "sources", "weight"].map(
      (name) => [name, args[name]!],
    ),
  );
  const { logProb, lse, entropy } = args as Record<string, Float64Array>;
  const logits = unset(Number(args["count"]) * Number(args["vocab"]));
  const measured = run("tokenLogProbForward", {
    ...shared,
    logProb: logProb!,
    lse: lse!,
    entropy: entropy!,
    logits,
  });
  const loss = run(...lossOf(args, measured));
  const gradients = {
    dLogProb: loss["dLogProb"]!,
    ...(args["entropyCoefficient"] && { dEntropy: loss["dEntropy"]! }),
    dx: args["dx"]!,
    ...(args["dWeight"] && { dWeight: args["dWeight"] }),
  };
  const {
    lse: _lse,
    entropy: _entropy,
    ...backward
  } = run("tokenLogProbBackward", {
    ...{ ...shared, ...gradients, lse: measured["lse"]!, entropy: measured["entropy"]! },
    logits: measured["logits"]!,
  });
  return { ...measured, ...loss, ...backward };
}

function lossOf(args: CaseArguments, { logProb, entropy }: Outputs): [string, CaseArguments] {
  const { rows, scale, stats, dLogProb } = args as Record<string, Float64Array>;
  const shared = { rows: rows!, stats: stats!, dLogProb: dLogProb!, logProb: logProb! } as CaseArguments;
  const given = (...names: string[]) =>
    Object.fromEntries(names.filter((name) => name in args).map((name) => [name, args[name]!]));
  if ("tokenWeight" in args)
    return ["tokenNllLoss", { ...shared, scale: scale!, weight: args["tokenWeight"]! }];
  if ("sequences" in args) {
    const names = ["sequences", "offsets", "mask", "advantage", "tokenAdvantage", "oldLogProb", "refLogProb"];
    const settings = ["surrogate", "highestRatio", "klCoefficient", "weighKl"];
    return [
      "groupPolicyLoss",
      { ...shared, ...given(...names, ...settings), weight: args["sequenceWeight"]! },
    ];
  }
  const names = ["scale", "clipRange", "entropyCoefficient", "dEntropy", "mask", "oldLogProb"];
  return [
    "ppoPolicyLoss",
    { ...shared, ...given(...names), advantage: args["tokenAdvantage"]!, entropy: entropy! },
  ];
}

const COMPARED = ["logProb", "lse", "entropy", "dLogProb", "dEntropy", "stats", "dx", "dWeight"];

function assertSame(fused: Outputs, separate: Outputs, fields: readonly string[], what: string): void {
  for (const field of fields)
    if (fused[field]) assert.deepEqual(fused[field], separate[field], `${what}: ${field}`);
}

describe("token losses inside the vocabulary's pass", () => {
  for (const each of TOKEN_LOSS_SHAPES) {
    const gradients = gradientCase(each);
    it(gradientTitle(gradients), () => checkGradient(gradients));
  }

  for (const backend of testedBackends.filter((name) => kernels.operators(name).includes(OP))) {
    for (const compute of backend.startsWith("cpu")
      ? (["float32", "bfloat16"] as const)
      : (["float32"] as const)) {
      const run: Run = (op, args) => {
        const converted = toKernelArguments(op, args, "float32");
        if ("weight" in args && "x" in args) converted["compute"] = compute;
        runKernel(backend, op, converted, backend.startsWith("cpu") ? { threads: 2 } : {});
        return decodeOutputs(op, converted, "float32");
      };
      for (const [title, shape] of TOKEN_LOSS_SHAPES) {
        const data = () => new CaseData(`bits of ${title}`);
        it(`${shape.kind}, ${title}: in one block the bits of three ops on ${backend} in ${compute}`, () => {
          const args = tokenLossArguments(data(), { ...shape, blockRows: 1024 });
          assertSame(run(OP, args), separately(run, args), COMPARED, "fused");
        });
        it(`${shape.kind}, ${title}: the same bits without kept logits on ${backend} in ${compute}`, () => {
          const args = tokenLossArguments(data(), shape);
          assertSame(run(OP, without(args, "logits")), run(OP, args), COMPARED, "computed twice");
        });
        it(`${shape.kind}, ${title}: the statistics' and the loss's bits in any blocks on ${backend} in ${compute}`, () => {
          const args = tokenLossArguments(data(), shape);
          // Of rows that predict several tokens the gradients are added up block by block.
          const fields = COMPARED.filter(
            (field) => field !== "dWeight" && !(shape.sources && field === "dx"),
          );
          assertSame(run(OP, args), separately(run, args), fields, "fused");
        });
      }
    }
  }
});
