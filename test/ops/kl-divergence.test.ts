import assert from "node:assert/strict";
import { relativeDistance } from "../support/compare.ts";
import { isCudaBackend, type KernelType, kernels, testedBackends } from "../support/kernels.ts";
import { type CaseArguments, evaluate, toKernelArguments } from "../support/op-arguments.ts";
import { CaseData, unset } from "./cases/case.ts";
import {
  KL_DIRECTION,
  type KlDivergenceShape,
  klDivergenceBackwardArguments,
  klDivergenceForwardArguments,
  policyAndReference,
} from "./cases/kl-divergence.ts";

const DIRECTIONS = ["reverse", "forward"] as const;

/** log softmax of each predicted token's logits, written out: [token → log-probs]. */
function logProbs(args: CaseArguments): Map<number, number[]> {
  const { cols, vocab, temperature } = args as Record<string, number>;
  const [x, weight] = [args["x"] as Float64Array, args["weight"] as Float64Array];
  const result = new Map<number, number[]>();
  for (const [index, t] of (args["predictions"] as Int32Array).entries()) {
    const row = (args["sources"] as Int32Array)[index]! * cols!;
    const z = Array.from({ length: vocab! }, (_, v) => {
      let sum = 0;
      for (let c = 0; c < cols!; c++) sum += x[row + c]! * weight[v * cols! + c]!;
      return sum / temperature!;
    });
    const largest = Math.max(...z);
    const lse = largest + Math.log(z.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
    result.set(
      t,
      z.map((logit) => logit - lse),
    );
  }
  return result;
}

/** Σ a·(log a − log b), the textbook's sum. */
function textbook(logA: readonly number[], logB: readonly number[]): number {
  return logA.reduce((sum, logarithm, v) => sum + Math.exp(logarithm) * (logarithm - logB[v]!), 0);
}

const STEP = 1e-30;

/**
 * d Σ dKl·kl / d input[i] by complex steps through both ops: lse follows from what is moved, as it does in a model. Each evaluation
 * goes hidden states → lse → kl.
 */
function numericalGradient(
  policy: CaseArguments,
  divergence: CaseArguments,
  input: "x" | "weight",
  dKl: Float64Array,
): Float64Array {
  const first = toKernelArguments("tokenLogProbForward", policy, "complex128");
  const second = toKernelArguments("klDivergenceForward", divergence, "complex128");
  const [moved, seen] = [first[input] as Float64Array, second[input] as Float64Array];
  return (policy[input] as Float64Array).map((_, i) => {
    moved[2 * i + 1] = STEP;
    seen[2 * i + 1] = STEP;
    kernels.run("ref", "tokenLogProbForward", first);
    kernels.run("ref", "klDivergenceForward", {
      ...second,
      lse: first["lse"]!,
      ...(second["logits"] && { logits: first["logits"]! }),
    });
    moved[2 * i + 1] = 0;
    seen[2 * i + 1] = 0;
    let sum = 0;
    for (const t of policy["predictions"] as Int32Array)
      sum += (dKl[t]! * (second["kl"] as Float64Array)[2 * t + 1]!) / STEP;
    return sum;
  });
}

function checkEqualModels(backend: string, type: KernelType): void {
  for (const direction of DIRECTIONS) {
    const data = new CaseData("KL of equal models");
    const shape = { rows: 40, cols: 72, vocab: 301, count: 30, temperature: 0.7, near: 0, direction };
    const forward = klDivergenceForwardArguments(data, shape);
    const { kl } = evaluate("klDivergenceForward", forward, type, backend);
    for (const t of forward["predictions"] as Int32Array) assert.equal(kl![t], 0, `${direction}, token ${t}`);
    const backward = {
      ...klDivergenceBackwardArguments(data, forward, { dWeight: true }),
      kl: new Float64Array(shape.rows),
      dx: new Float64Array(shape.rows * shape.cols),
      dWeight: new Float64Array(shape.vocab * shape.cols),
    };
    const gradients = evaluate("klDivergenceBackward", backward, type, backend);
    for (const field of ["dx", "dWeight"])
      assert.ok(
        gradients[field]!.every((value) => value === 0),
        `${direction}, ${field}`,
      );
  }
}

describe("full-distribution KL divergence", () => {
  for (const direction of DIRECTIONS)
    it(`is the textbook's sum over the vocabulary, ${direction}`, () => {
      for (const sources of [0, 3]) {
        const shape: KlDivergenceShape = {
          rows: 9,
          cols: 5,
          refCols: 7,
          vocab: 23,
          count: 6,
          temperature: 0.8,
          direction,
          ...(sources > 0 && { sources }),
        };
        const { policy, reference } = policyAndReference(new CaseData("naive KL"), shape);
        const { kl } = evaluate(
          "klDivergenceForward",
          klDivergenceForwardArguments(new CaseData("naive KL"), shape),
        );
        const [p, q] = [logProbs(policy), logProbs(reference)];
        for (const [t, logPolicy] of p) {
          const expected =
            direction === "reverse" ? textbook(logPolicy, q.get(t)!) : textbook(q.get(t)!, logPolicy);
          assert.ok(expected > 0.1);
          assert.ok(Math.abs(kl![t]! - expected) < 1e-13, `token ${t}: ${kl![t]}, expected ${expected}`);
        }
        assert.equal(kl!.filter((value) => !Number.isNaN(value)).length, 6, "only predictions are written");
      }
    });

  for (const direction of DIRECTIONS)
    for (const [label, more] of [
      ["", {}],
      [", logits kept", { keepLogits: true }],
      [", several tokens from a row, a wider reference", { sources: 2, refCols: 8 }],
    ] as const)
      it(`${direction}${label}: gradients of x and weight by complex differences`, () => {
        const shape = { rows: 7, cols: 5, vocab: 11, count: 4, temperature: 0.7, sharpness: 1.5 };
        const whole = { ...shape, ...more, direction };
        const { policy } = policyAndReference(new CaseData(`gradient ${direction}`), whole);
        const data = new CaseData(`gradient ${direction}`);
        const forward = klDivergenceForwardArguments(data, whole);
        assert.deepEqual(forward["x"], policy["x"]);
        const backward = klDivergenceBackwardArguments(data, forward, { dWeight: true });
        const dKl = backward["dKl"] as Float64Array;
        const { dx, dWeight } = evaluate("klDivergenceBackward", {
          ...backward,
          dx: new Float64Array(35),
          dWeight: new Float64Array(55),
        });
        for (const [input, analytic] of [
          ["x", dx],
          ["weight", dWeight],
        ] as const) {
          const numerical = numericalGradient(policy, forward, input, dKl);
          assert.ok(
            numerical.some((value) => Math.abs(value) > 1e-3),
            `the gradient of ${input} is 0`,
          );
          const distance = relativeDistance(analytic!, numerical);
          assert.ok(distance <= 1e-10, `d${input}: relative distance ${distance.toExponential(2)}`);
        }
      });

  it("adds to dx and dWeight, and leaves kept logits as they are", () => {
    const data = new CaseData("accumulation of KL");
    const shape = { rows: 7, cols: 5, vocab: 11, count: 4, keepLogits: true, direction: "reverse" as const };
    const forward = klDivergenceForwardArguments(data, shape);
    const args = klDivergenceBackwardArguments(data, forward, { dWeight: true });
    const before = evaluate("klDivergenceBackward", {
      ...args,
      dx: new Float64Array(35),
      dWeight: new Float64Array(55),
    });
    for (const backend of kernels.backends().filter((name) => name === "ref" || name.startsWith("cpu"))) {
      const type = backend === "ref" ? "float64" : "float32";
      const converted = toKernelArguments("klDivergenceBackward", args, type);
      const logits = (converted["logits"] as Float64Array).slice();
      kernels.run(backend, "klDivergenceBackward", converted);
      assert.deepEqual(converted["logits"], logits, backend);
      for (const field of ["dx", "dWeight"] as const) {
        const sum = before[field]!.map((value, i) => value + (args[field] as Float64Array)[i]!);
        const distance = relativeDistance(Float64Array.from(converted[field] as Float64Array), sum);
        assert.ok(distance < (type === "float64" ? 1e-14 : 1e-6), `${backend}: ${field}`);
      }
    }
  });

  it("is exactly 0 between a model and itself, and never negative near it", () => {
    for (const backend of kernels.backends().filter((name) => name === "ref" || name.startsWith("cpu")))
      for (const direction of DIRECTIONS)
        for (const near of [0, 1e-6, 1e-4, 1e-2]) {
          const data = new CaseData(`KL near 0 ${near}`);
          const shape = { rows: 65, cols: 16, vocab: 700, count: 64, near, sharpness: 4, direction };
          const args = klDivergenceForwardArguments(data, shape);
          const type = backend === "ref" ? "float64" : "float32";
          const exact = evaluate("klDivergenceForward", args)["kl"]!;
          const { kl } = evaluate("klDivergenceForward", args, type, backend);
          for (const t of args["predictions"] as Int32Array) {
            if (near === 0) assert.equal(kl![t], 0, backend);
            assert.ok(kl![t]! >= 0, `${backend}: ${kl![t]} at ${near}`);
            // The logits' own rounding moves a divergence δ by about ε·√δ.
            const allowed = 1e-14 + 4e-6 * Math.sqrt(exact[t]!) + 1e-11;
            if (backend !== "ref")
              assert.ok(
                Math.abs(kl![t]! - exact[t]!) <= allowed,
                `${backend}: ${kl![t]}, exactly ${exact[t]}`,
              );
          }
        }
  });

  it("pulls apart where one side says what the other would not", () => {
    // π = (1 − ε, ε) against π_ref = (½, ½): log 2 in reverse; forward grows without bound, −½·log(4ε(1 − ε)).
    const epsilon = 1e-9;
    const args = {
      rows: 2,
      cols: 2,
      refCols: 2,
      vocab: 2,
      count: 1,
      temperature: 1,
      x: Float64Array.of(Math.log(1 - epsilon), Math.log(epsilon), 0, 0),
      refX: Float64Array.of(Math.log(0.5), Math.log(0.5), 0, 0),
      predictions: Int32Array.of(1),
      sources: Int32Array.of(0),
      weight: Float64Array.of(1, 0, 0, 1),
      refWeight: Float64Array.of(1, 0, 0, 1),
      lse: new Float64Array(2),
      refLse: new Float64Array(2),
      kl: unset(2),
    };
    const kl = (direction: keyof typeof KL_DIRECTION): number =>
      evaluate("klDivergenceForward", { ...args, direction: KL_DIRECTION[direction] })["kl"]![1]!;
    assert.ok(Math.abs(kl("reverse") - Math.log(2)) < 1e-7);
    assert.ok(Math.abs(kl("forward") + Math.log(4 * epsilon * (1 - epsilon)) / 2) < 1e-9);
  });

  // As a PPO run's at its first update. It hangs on rounding both models' logits alike.
  for (const backend of testedBackends.filter((name) =>
    kernels.operators(name).includes("klDivergenceForward"),
  ))
    for (const type of isCudaBackend(backend) ? (["float32", "bfloat16"] as const) : (["float32"] as const))
      it(`of equal models is exactly 0, as are its gradients, on ${backend} in ${type}`, () =>
        checkEqualModels(backend, type));
});
