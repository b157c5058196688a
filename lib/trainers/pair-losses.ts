import type { Engine } from "../engine/engine.ts";
import { type PreferenceLossArgs, preferenceLoss } from "../engine/preference-losses.ts";
import type { NllTokens } from "./pair-batch.ts";
import type { Sums } from "./supervised.ts";

/** What a pair trainer minimises: losses of pairs, and the negative log-likelihood of chosen answers. */
export interface PairObjective {
  readonly losses: PreferenceLossArgs["losses"];
  readonly settings: Pick<
    PreferenceLossArgs,
    "beta" | "labelSmoothing" | "margin" | "fDivergence" | "fAlpha" | "discopopTau" | "statsPerToken"
  >;
  /** The likelihood is a mean over its tokens in the window. */
  readonly nll: { readonly tokens: NllTokens; readonly weight: number };
  /** Weight of the tokens that the longer answer of a pair has more. */
  readonly ldAlpha?: number | undefined;
  /** Whether pairs are weighted by their likelihood (Zhou et al. 2024, WPO). */
  readonly weighted?: boolean | undefined;
}

/** What is known of P pairs when their losses are computed; arrays of answers hold chosen and rejected in turn. */
export interface PairTerms {
  /** [2·P]. */
  readonly logProb: Float32Array;
  readonly refLogProb: Float32Array | undefined;
  /** [P]. */
  readonly pairWeight: Float32Array | undefined;
  /** [2·P]: tokens of each answer. */
  readonly tokens: Int32Array;
}

/** What losses say of P pairs: the gradient of each answer's log-prob, [2·P], and sums. */
export interface Judgement {
  readonly dLogProb: Float32Array;
  readonly stats: Sums;
}

/** Computes the losses of pairs; `scale` multiplies gradients. */
export async function judgePairs(
  engine: Engine,
  { losses, settings }: PairObjective,
  terms: PairTerms,
  scale: number,
): Promise<Judgement> {
  const pairs = terms.tokens.length / 2;
  const { dLogProb, stats } = await preferenceLoss(engine, {
    losses,
    ...settings,
    ...terms,
    chosen: Int32Array.from({ length: pairs }, (_, i) => 2 * i),
    rejected: Int32Array.from({ length: pairs }, (_, i) => 2 * i + 1),
    scale,
  });
  using gradient = dLogProb;
  return { dLogProb: await gradient.read(), stats };
}

/** The terms of each pair by itself. */
export function splitTerms({ logProb, refLogProb, pairWeight, tokens }: PairTerms): PairTerms[] {
  return Array.from({ length: tokens.length / 2 }, (_, i) => ({
    logProb: logProb.subarray(2 * i, 2 * i + 2),
    refLogProb: refLogProb?.subarray(2 * i, 2 * i + 2),
    pairWeight: pairWeight?.subarray(i, i + 1),
    tokens: tokens.subarray(2 * i, 2 * i + 2),
  }));
}

/** The terms of several pairs, all with a reference and a weight or all without. */
export function joinTerms(parts: readonly PairTerms[]): PairTerms {
  const join = (read: (terms: PairTerms) => Float32Array | undefined): Float32Array | undefined =>
    parts.some((part) => read(part) === undefined)
      ? undefined
      : Float32Array.from(parts.flatMap((part) => [...(read(part) as Float32Array)]));
  return {
    logProb: join(({ logProb }) => logProb) as Float32Array,
    refLogProb: join(({ refLogProb }) => refLogProb),
    pairWeight: join(({ pairWeight }) => pairWeight),
    tokens: Int32Array.from(parts.flatMap(({ tokens }) => [...tokens])),
  };
}
