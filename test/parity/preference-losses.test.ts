import assert from "node:assert/strict";
import type { DeviceArray, FloatArray } from "../../lib/engine/array.ts";
import { Engine } from "../../lib/engine/engine.ts";
import { tokenNllLoss } from "../../lib/engine/losses.ts";
import * as losses from "../../lib/engine/preference-losses.ts";
import { offsetsOf } from "../ops/cases/case.ts";
import { testDevice } from "../support/tiny.ts";
import { assertAllClose, assertClose } from "./compare.ts";
import { readJson } from "./reference.ts";

interface TokenBatch {
  lengths: number[];
  mask: number[];
  logProb: number[];
  refLogProb: number[];
}

interface Expected {
  loss: number;
  gradient: number[];
  metrics: Record<string, number>;
}

interface DpoCase extends Expected {
  losses: (losses.PreferenceLossType | "sft")[];
  weights: number[];
  settings: {
    beta: number;
    label_smoothing: number;
    ld_alpha: number | null;
    use_weighting: boolean;
    f_divergence_type: losses.FDivergence;
    f_alpha_divergence_coef: number;
    discopop_tau: number;
  };
}

interface CpoCase extends Expected {
  type: "sigmoid" | "hinge" | "ipo" | "simpo";
  settings: { beta: number; cpo_alpha: number; label_smoothing: number; simpo_gamma: number };
}

interface KtoCase extends Expected {
  type: "kto" | "apo_zero_unpaired";
  settings: { beta: number; desirable_weight: number; undesirable_weight: number };
  label: boolean[];
  main: TokenBatch;
  mismatched: TokenBatch;
}

interface Reference {
  trl: string;
  batch: TokenBatch & { lse: number[]; lseHalf: number[] };
  dpo: DpoCase[];
  orpo: (Expected & { beta: number })[];
  cpo: CpoCase[];
  kto: KtoCase[];
}

const TOLERANCE = 1e-5;
const floats = (values: ArrayLike<number>): Float32Array => Float32Array.from(values);

describe("losses of the preference family against TRL's trainers", () => {
  const reference = readJson<Reference>("preference-losses.json");
  const { batch } = reference;
  const offsets = offsetsOf(batch.lengths);
  const mask = floats(batch.mask);
  const tokens = Int32Array.from(batch.lengths, (_, s) =>
    mask.subarray(offsets[s], offsets[s + 1]).reduce((sum, each) => sum + each, 0),
  );
  const pairs = batch.lengths.length / 2;
  const chosen = Int32Array.from({ length: pairs }, (_, pair) => 2 * pair);
  const rejected = chosen.map((sequence) => sequence + 1);
  /** The mask's tokens, or all but the first, of the chosen answers. */
  const ofChosen = (answersOnly: boolean): Float32Array =>
    mask.map((selected, t) => {
      const sequence = offsets.findLastIndex((offset) => offset <= t);
      if (sequence % 2 === 1) return 0;
      return answersOnly ? selected : Number(t > offsets[sequence]!);
    });
  let engine: Engine;
  before(() => {
    engine = Engine.shared({ device: testDevice });
  });

  const sums = async (x: number[], weight: FloatArray, within = offsets): Promise<DeviceArray> =>
    (await losses.sequenceSum(engine, { x: floats(x), weight, offsets: within })).sum;

  /** The NLL of chosen tokens as a mean, `weight` times its gradient by every token's log-prob. */
  async function meanNll(
    weight: number,
    answersOnly: boolean,
  ): Promise<{ loss: number; gradient: DeviceArray }> {
    const selected = ofChosen(answersOnly);
    const count = selected.reduce((sum, each) => sum + each, 0);
    const nll = await tokenNllLoss(engine, {
      logProb: floats(batch.logProb),
      weight: selected,
      scale: weight / count,
    });
    return { loss: nll.stats.loss / count, gradient: nll.dLogProb };
  }

  function assertMetrics(actual: losses.PreferenceStats, expected: Record<string, number>): void {
    const means: Record<string, number> = {
      "rewards/chosen": actual.chosenReward,
      "rewards/rejected": actual.rejectedReward,
      "rewards/accuracies": actual.correct,
      "rewards/margins": actual.margin,
      "logps/chosen": actual.chosenLogProb,
      "logps/rejected": actual.rejectedLogProb,
    };
    // Margins are differences of rewards, and keep the rounding of those.
    const scale = Math.max(...Object.keys(means).map((name) => Math.abs(expected[name]!)));
    for (const [name, sum] of Object.entries(means))
      assertAllClose([sum / actual.pairs], [expected[name]!], TOLERANCE, name, scale);
  }

  for (const { losses: types, weights, settings, ...expected } of reference.dpo) {
    const usual = reference.dpo[0]!.settings;
    const changed = Object.entries(settings).filter(
      ([name, value]) => value !== usual[name as keyof typeof usual],
    );
    const shown = changed.map(([name, value]) => `, ${name} ${value}`).join("");
    it(`DPO ${types.join(" + ")}${shown}`, async () => {
      const { beta, ld_alpha: ldAlpha } = settings;
      const weight =
        ldAlpha === null
          ? mask
          : losses.lengthDesensitizedWeight({ mask, offsets, chosen, rejected, ldAlpha });
      const pairWeight = settings.use_weighting
        ? (
            await losses.wpoWeight(engine, {
              logProb: floats(batch.logProb),
              lse: floats(batch.lse),
              lseHalf: floats(batch.lseHalf),
              mask,
              offsets,
              chosen,
              rejected,
            })
          ).weight
        : undefined;
      const terms: losses.PreferenceLossTerm[] = [];
      let nll: Awaited<ReturnType<typeof meanNll>> | null = null;
      let loss = 0;
      for (const [index, type] of types.entries()) {
        if (type !== "sft") {
          terms.push({ type, weight: weights[index]! });
          continue;
        }
        nll = await meanNll(weights[index]!, true);
        loss += weights[index]! * nll.loss;
      }
      let base: DeviceArray | undefined = nll?.gradient;
      if (terms.length > 0) {
        const preference = await losses.preferenceLoss(engine, {
          losses: terms,
          logProb: await sums(batch.logProb, weight),
          refLogProb: await sums(batch.refLogProb, weight),
          tokens,
          chosen,
          rejected,
          ...(pairWeight && { pairWeight }),
          beta,
          // TRL smooths the labels of these losses alone.
          labelSmoothing: types.some((type) => ["exo_pair", "robust", "aot", "aot_unpaired"].includes(type))
            ? settings.label_smoothing
            : 0,
          fDivergence: settings.f_divergence_type,
          fAlpha: settings.f_alpha_divergence_coef,
          discopopTau: settings.discopop_tau,
          scale: 1 / pairs,
        });
        loss += preference.stats.loss / pairs;
        assertMetrics(preference.stats, expected.metrics);
        const spread = { dSum: preference.dLogProb, weight, offsets, ...(base && { base }) };
        base = (await losses.sequenceSumBackward(engine, spread)).dx;
      }
      assertClose(loss, expected.loss, TOLERANCE, "loss");
      assertAllClose(await base!.read(), expected.gradient, TOLERANCE, "gradient");
    });
  }

  /** A reference-free loss plus the chosen answers' NLL. */
  async function withoutReference(
    args: Pick<losses.PreferenceLossArgs, "losses" | "beta" | "labelSmoothing" | "margin" | "statsPerToken">,
    nllWeight: number,
    answersOnly: boolean,
    expected: Expected,
  ): Promise<void> {
    const nll = await meanNll(nllWeight, answersOnly);
    const preference = await losses.preferenceLoss(engine, {
      ...args,
      logProb: await sums(batch.logProb, mask),
      tokens,
      chosen,
      rejected,
      scale: 1 / pairs,
    });
    const spread = { dSum: preference.dLogProb, weight: mask, offsets, base: nll.gradient };
    const { dx } = await losses.sequenceSumBackward(engine, spread);
    assertClose(preference.stats.loss / pairs + nllWeight * nll.loss, expected.loss, TOLERANCE, "loss");
    if (nllWeight > 0) assertClose(nll.loss, expected.metrics["nll_loss"]!, TOLERANCE, "nll_loss");
    assertAllClose(await dx.read(), expected.gradient, TOLERANCE, "gradient");
    assertMetrics(preference.stats, expected.metrics);
    const ratio = preference.stats["loss/odds_ratio"];
    if (ratio !== undefined)
      assertClose(-ratio / pairs, expected.metrics["log_odds_ratio"]!, TOLERANCE, "log_odds_ratio");
  }

  for (const { beta, ...expected } of reference.orpo) {
    it(`ORPO with beta ${beta}`, () =>
      withoutReference(
        { losses: [{ type: "odds_ratio", weight: beta }], beta, statsPerToken: true },
        1,
        false,
        expected,
      ));
  }

  for (const { type, settings, ...expected } of reference.cpo) {
    const { beta, cpo_alpha: nllWeight, label_smoothing: labelSmoothing, simpo_gamma: margin } = settings;
    it(`CPO ${type} with beta ${beta}, alpha ${nllWeight}, label smoothing ${labelSmoothing}`, () =>
      withoutReference(
        {
          losses: [{ type: type === "simpo" ? "sigmoid_norm" : type }],
          beta,
          labelSmoothing,
          margin: type === "simpo" ? margin : 0,
          statsPerToken: type === "simpo" || type === "ipo",
        },
        nllWeight,
        true,
        expected,
      ));
  }

  for (const { type, settings, label, main, mismatched, ...expected } of reference.kto) {
    it(`KTO ${type} with ${label.filter(Boolean).length} desirable of ${label.length}`, async () => {
      const read = async (values: number[], { mask: weights, lengths }: TokenBatch): Promise<Float32Array> =>
        (await sums(values, floats(weights), offsetsOf(lengths))).read();
      const estimate = losses.mismatchedKl(
        await read(mismatched.logProb, mismatched),
        await read(mismatched.refLogProb, mismatched),
      );
      const kl = type === "kto" ? estimate : 0;
      assertClose(kl, expected.metrics["kl"]!, TOLERANCE, "kl");
      const { dLogProb, stats } = await losses.ktoLoss(engine, {
        logProb: await read(main.logProb, main),
        refLogProb: await read(main.refLogProb, main),
        label: Int32Array.from(label, (desirable) => (desirable ? 1 : -1)),
        kl,
        beta: settings.beta,
        desirableWeight: settings.desirable_weight,
        undesirableWeight: settings.undesirable_weight,
        scale: 1 / label.length,
      });
      const spread = { dSum: dLogProb, weight: floats(main.mask), offsets: offsetsOf(main.lengths) };
      const { dx } = await losses.sequenceSumBackward(engine, spread);
      assertClose(stats.loss / label.length, expected.loss, TOLERANCE, "loss");
      assertAllClose(await dx.read(), expected.gradient, TOLERANCE, "gradient");
      assertClose(stats.chosenReward / stats.desirable, expected.metrics["rewards/chosen"]!, TOLERANCE, "r");
      assertClose(stats.chosenLogProb / stats.desirable, expected.metrics["logps/chosen"]!, TOLERANCE, "l");
      if (stats.undesirable === 0) return;
      const { rejectedReward, rejectedLogProb, undesirable } = stats;
      assertClose(rejectedReward / undesirable, expected.metrics["rewards/rejected"]!, TOLERANCE, "r");
      assertClose(rejectedLogProb / undesirable, expected.metrics["logps/rejected"]!, TOLERANCE, "l");
    });
  }

  it("covers every loss there is", () => {
    const tested = new Set<string>(reference.dpo.flatMap((each) => each.losses));
    tested.add("odds_ratio");
    for (const type of losses.PREFERENCE_LOSS_TYPES) assert.ok(tested.has(type), type);
  });
});
