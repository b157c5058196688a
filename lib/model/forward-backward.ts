import { type FloatArray, toNative } from "../engine/array.ts";
import type {
  GroupPolicyLossArgs,
  GroupPolicyStat,
  PpoPolicyLossArgs,
  PpoPolicyStat,
  PpoValueLossArgs,
  PpoValueStat,
  TokenNllLossArgs,
} from "../engine/losses.ts";
import { callAsync, type NativeLossSums, type NativeModel } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { type PackedBatch, predictionsOf, valueRowsOf } from "./batch.ts";
import { FORWARD_OPTIONS, type ForwardOptions } from "./model-options.ts";
import { Pass } from "./pass.ts";

/** Negative log-likelihood, as `tokenNllLoss`. */
export interface NllTokenLoss extends Omit<TokenNllLossArgs, "logProb"> {
  readonly kind: "nll";
}

/** PPO's clipped policy loss with an entropy bonus, as `ppoPolicyLoss`. */
export interface PpoTokenLoss extends Omit<PpoPolicyLossArgs, "logProb" | "entropy" | "mask"> {
  readonly kind: "ppo";
  /** Default: the batch's. */
  readonly mask?: FloatArray;
}

/** The policy losses without a value function whose ratios are those of tokens, as `groupPolicyLoss`. */
export interface GroupTokenLoss extends Omit<GroupPolicyLossArgs, "logProb" | "mask" | "offsets" | "level"> {
  readonly kind: "group";
  /** Default: the batch's. */
  readonly mask?: FloatArray;
}

/** A loss whose gradient at a token depends on that token alone; its log-prob and entropy are what the pass computes. */
export type TokenLoss = NllTokenLoss | PpoTokenLoss | GroupTokenLoss;

interface StatsOf {
  nll: "loss" | "weight";
  ppo: PpoPolicyStat;
  group: GroupPolicyStat;
}

/** The sums that a loss reports. */
export type TokenLossStats<Loss extends TokenLoss> = { readonly [Stat in StatsOf[Loss["kind"]]]: number };

/** A loss of the head's values, as `ppoValueLoss`. */
export interface ValueLoss extends Omit<PpoValueLossArgs, "value" | "mask"> {
  /** Default: the batch's. */
  readonly mask?: FloatArray;
}

export interface ForwardBackwardOptions
  extends Pick<ForwardOptions, "adapter" | "head" | "temperature" | "predict" | "values" | "dropoutSeed"> {
  /** A loss of the head's values, beside that of the tokens. Needs `head`. */
  readonly value?: ValueLoss;
}

/** Sums over the tokens, as the losses' own functions report them. */
export interface LossSums<Loss extends TokenLoss = TokenLoss> {
  readonly stats: TokenLossStats<Loss>;
  /** Those of the value loss; null without one. */
  readonly valueStats: { readonly [Stat in PpoValueStat]: number } | null;
}

function toSums<Loss extends TokenLoss>({ stats, valueStats }: NativeLossSums): LossSums<Loss> {
  return { stats, valueStats: valueStats ?? null } as unknown as LossSums<Loss>;
}

/** The result of `CausalLM.forwardBackward`: the arrays of a pass whose gradients were added already, and the losses' sums. */
export class LossPass<Loss extends TokenLoss = TokenLoss> extends Pass implements LossSums<Loss> {
  readonly stats: LossSums<Loss>["stats"];
  readonly valueStats: LossSums<Loss>["valueStats"];

  constructor({ pass, ...sums }: Awaited<ReturnType<NativeModel["forwardBackward"]>>) {
    super(pass);
    const { stats, valueStats } = toSums<Loss>(sums);
    this.stats = stats;
    this.valueStats = valueStats;
  }
}

const { grad, keepLogits, statistics, keepDistribution, reference, klDirection, ...PASS_OPTIONS } =
  FORWARD_OPTIONS;
const OPTIONS: NamesOf<ForwardBackwardOptions> = { ...PASS_OPTIONS, value: true };
const VALUE: NamesOf<ValueLoss> = { oldValue: true, returns: true, mask: true, clipRange: true, scale: true };
const LOSSES: { readonly [Kind in TokenLoss["kind"]]: NamesOf<Extract<TokenLoss, { kind: Kind }>> } = {
  nll: { kind: true, weight: true, scale: true },
  ppo: {
    kind: true,
    oldLogProb: true,
    advantage: true,
    mask: true,
    clipRange: true,
    dualClip: true,
    entropyCoefficient: true,
    scale: true,
  },
  group: {
    kind: true,
    oldLogProb: true,
    refLogProb: true,
    advantage: true,
    tokenAdvantage: true,
    weight: true,
    mask: true,
    surrogate: true,
    lowestRatio: true,
    highestRatio: true,
    klCoefficient: true,
    weighKl: true,
  },
};

/** A loss as the addon takes it: arrays on the device by their handles, the batch's mask where there is none. */
function unwrapped(loss: object, { mask }: PackedBatch): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries({ mask, ...loss }).map(([name, value]) => [name, toNative(value)]),
  );
}

function checkLoss(loss: TokenLoss): void {
  if (!Object.hasOwn(LOSSES, loss?.kind))
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `forwardBackward: the loss's kind must be ${Object.keys(LOSSES).join(", ")}, got ${String(loss?.kind)}`,
    );
  refuseUnknownOptions<object>(`forwardBackward's loss "${loss.kind}"`, loss, LOSSES[loss.kind]);
}

/** What `CausalLM.forwardBackward` does. */
export async function forwardBackward<Loss extends TokenLoss>(
  model: NativeModel,
  batch: PackedBatch,
  loss: Loss,
  options: ForwardBackwardOptions,
): Promise<LossPass<Loss>> {
  checkLoss(loss);
  refuseUnknownOptions("forwardBackward", options, OPTIONS);
  if (options.value) refuseUnknownOptions("forwardBackward's value", options.value, VALUE);
  const {
    adapter = "",
    head = "",
    temperature = 1,
    dropoutSeed,
    predict = "all",
    values = "all",
    value,
  } = options;
  const { tokens, offsets, parents } = batch;
  const predictions = predictionsOf(batch, predict);
  const valueRows = valueRowsOf(batch, values);
  const result = await callAsync(() =>
    model.forwardBackward(
      { tokens, offsets, ...(parents && { parents }), predictions, ...(valueRows && { valueRows }) },
      { adapter, head, temperature, dropoutSeed },
      unwrapped(loss, batch),
      value && unwrapped(value, batch),
    ),
  );
  return new LossPass<Loss>(result);
}

/**
 * What `forwardBackward` does after its forward pass, on one of the same batch that was made before with `grad`, statistics and no
 * reference; consumes it.
 */
export async function lossBackward<Loss extends TokenLoss>(
  pass: Pass,
  batch: PackedBatch,
  loss: Loss,
  value?: ValueLoss,
): Promise<LossSums<Loss>> {
  checkLoss(loss);
  try {
    return toSums(
      await callAsync(() =>
        pass.native.lossBackward(unwrapped(loss, batch), value && unwrapped(value, batch)),
      ),
    );
  } finally {
    pass.dispose();
  }
}
