import { CaseData, type OpCase } from "../ops/cases/case.ts";
import { groupPolicyArguments } from "../ops/cases/group-policy.ts";
import { tokenCases } from "../ops/cases/losses.ts";
import { Expectation } from "../support/compare.ts";
import { cudaBackend } from "../support/kernels.ts";
import { evaluate } from "../support/op-arguments.ts";

/** Sums that several blocks share; a block takes 1,024 elements, or a sequence, and 1,024 blocks share what there is. */

function squaredNormCase(): OpCase {
  const count = 4 * 1024 * 256 + 4001;
  const data = new CaseData("simt many squares");
  return {
    op: "squaredNorm",
    name: `${count} elements, more than one pack for each thread`,
    args: { count, x: data.normal(count), out: new Float64Array(1) },
    criterion: { kind: "relative", bound: 1e-12 },
  };
}

function groupPolicyCase(): OpCase {
  const lengths = Array.from({ length: 1027 }, (_, s) => 2 + (s % 3));
  return {
    op: "groupPolicyLoss",
    name: `${lengths.length} sequences, more than one for some blocks`,
    args: groupPolicyArguments(new CaseData("simt many sequences"), "sequence-mean", "clipped", lengths),
    criterion: { kind: "general", floor: 1 },
  };
}

describe(`sums of many blocks on ${cudaBackend}`, () => {
  for (const opCase of [...tokenCases([1500, 700, 3]), squaredNormCase(), groupPolicyCase()]) {
    it(`${opCase.op}: ${opCase.name}`, () => {
      const expectation = new Expectation(opCase, "float32");
      expectation.verify(evaluate(opCase.op, expectation.args, "float32", cudaBackend), opCase.op);
    });
  }
});
