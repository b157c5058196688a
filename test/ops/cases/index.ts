import type { KernelType } from "../../support/kernels.ts";
import { attentionCases } from "./attention.ts";
import type { OpCase } from "./case.ts";
import { decodeCases } from "./decode.ts";
import { dropoutCases } from "./dropout.ts";
import { elementwiseCases } from "./elementwise.ts";
import { groupPolicyCases } from "./group-policy.ts";
import { klDivergenceCases } from "./kl-divergence.ts";
import { linearCases } from "./linear.ts";
import { lossCases } from "./losses.ts";
import { normCases } from "./norm.ts";
import { optimizerCases } from "./optimizer.ts";
import { preferenceCases } from "./preference.ts";
import { tokenLogProbCases } from "./token-log-prob.ts";
import { tokenLossCases } from "./token-loss.ts";

/** The one table: what every backend is held to. */
export const opCases: readonly OpCase[] = [
  ...elementwiseCases,
  ...normCases,
  ...linearCases,
  ...dropoutCases,
  ...attentionCases,
  ...tokenLogProbCases,
  ...tokenLossCases,
  ...klDivergenceCases,
  ...lossCases,
  ...groupPolicyCases,
  ...preferenceCases,
  ...optimizerCases,
  ...decodeCases,
];

/** Whether a case can be run in an element type: parameters in float16 are copies of master weights. */
export function existsIn(type: KernelType, { op, args }: OpCase): boolean {
  return op !== "adamW" || type !== "float16" || "master" in args;
}
