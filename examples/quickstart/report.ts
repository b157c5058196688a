/** What the pipeline's evaluate stage measures beside its own metrics, and what its report is to show. */
import { join } from "node:path";
import { loadPreferences } from "../../lib/data/preferences.ts";
import { Random } from "../../lib/data/random.ts";
import type {
  CategoryFunction,
  CheckContext,
  ChecksFunction,
  MetricFunction,
  ModelReport,
  ReportCheck,
} from "../../lib/index.ts";
import { grade } from "./grade.ts";
import type { Pair } from "./make-data.ts";
import { halves, styleAccuracy } from "./style.ts";
import { CATEGORIES } from "./world.ts";

export const metrics: Readonly<Record<string, MetricFunction>> = {
  right: (prompt, response) => grade(prompt, response).right,
};

export const category: CategoryFunction = ({ prompt }) => grade(prompt, "").category;

/** Steps that the last loss is a mean over. */
const LAST_STEPS = 10;

type Figure = number | null | undefined;

const check = (
  name: string,
  figure: Figure,
  requirement: string,
  test: (value: number) => boolean,
): ReportCheck => ({
  name,
  figure: figure ?? null,
  requirement,
  holds: typeof figure === "number" && test(figure),
});
const atLeast = (name: string, figure: Figure, bound: number): ReportCheck =>
  check(name, figure, `at least ${bound}`, (value) => value >= bound);
const atMost = (name: string, figure: Figure, bound: number): ReportCheck =>
  check(name, figure, `at most ${bound}`, (value) => value <= bound);
const above = (name: string, figure: Figure, bound: number): ReportCheck =>
  check(name, figure, `above ${bound}`, (value) => value > bound);
const between = (name: string, figure: Figure, low: number, high: number): ReportCheck =>
  check(name, figure, `${low} to ${high}`, (value) => value >= low && value <= high);

function mean(values: readonly number[]): number | undefined {
  return values.length === 0 ? undefined : values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** What an aligned model is to show beside the SFT model. */
function alignedChecks(
  name: string,
  model: ModelReport | undefined,
  sft: ModelReport | undefined,
): ReportCheck[] {
  const gain = model?.comparison?.differences.right;
  const variety = model && sft ? model.diversity.distinct2 / sft.diversity.distinct2 : undefined;
  return [
    atLeast(`${name}: right answers, above SFT`, gain?.mean, 0.1),
    above(`${name}: the same, lower end of its 95 % interval`, gain?.low, 0),
    atMost(`${name}: KL per answer from SFT, nats`, model?.metrics.kl?.mean, 20),
    atLeast(`${name}: distinct-2, as a share of SFT's`, variety, 0.7),
  ];
}

function trainingChecks({ runs }: CheckContext): ReportCheck[] {
  const recorded = (run: string, metric: string): number[] =>
    (runs[run] ?? []).flatMap(({ metrics: { [metric]: value } }) => (value === undefined ? [] : [value]));
  const loss = recorded("dpo", "loss");
  return [
    above("PPO: clip fraction, mean of the iterations", mean(recorded("ppo", "policy/clipfrac_avg")), 0),
    between("DPO: first loss", loss[0], 0.68, 0.7),
    atMost(`DPO: loss, mean of the last ${LAST_STEPS} steps`, mean(loss.slice(-LAST_STEPS)), 0.6),
    above(
      "DPO: accuracy on phrasings that it was not trained on",
      recorded("dpo", "eval/rewards/accuracies").at(-1),
      0.7,
    ),
  ];
}

/** How well words and length alone tell the chosen answers of held-out pairs. */
async function styleChecks({ outputDir }: CheckContext): Promise<ReportCheck[]> {
  if (outputDir === undefined) throw new Error("the checks need an output directory, with data beside it");
  const load = async (name: string): Promise<readonly Pair[]> =>
    (await loadPreferences(join(outputDir, "../data", name))) as readonly Pair[];
  const [train, held] = [await load("preferences.jsonl"), await load("held-out-preferences.jsonl")];
  const random = new Random(3, "halves");
  return [
    atMost("Words and length: held-out pairs they tell", styleAccuracy(train, held), 0.6),
    atMost(
      "Words and length: the same, one pair of each mirrored two",
      styleAccuracy(halves(train, random), halves(held, random)),
      0.6,
    ),
  ];
}

/** Everything that the quickstart is to show. */
export const checks: ChecksFunction = async ({ models, rewardAccuracy }, context) => {
  const model = (name: string): ModelReport | undefined => models.find((one) => one.name === name);
  const sft = model("sft");
  const belowSft = model("base")?.comparison?.differences.right?.high;
  return [
    ...CATEGORIES.map((name) =>
      atLeast(
        `Reward model: held-out pairs ordered rightly, ${name}`,
        rewardAccuracy.reward?.categories[name]?.mean,
        0.8,
      ),
    ),
    between("SFT: right answers", sft?.metrics.right?.mean, 0.4, 0.7),
    above(
      "SFT: right answers above the pretrained model, lower end of the 95 % interval",
      typeof belowSft === "number" ? -belowSft : null,
      0,
    ),
    ...alignedChecks("DPO", model("dpo"), sft),
    ...alignedChecks("PPO", model("ppo"), sft),
    ...trainingChecks(context),
    ...(await styleChecks(context)),
  ];
};
