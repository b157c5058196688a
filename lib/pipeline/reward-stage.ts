import { join } from "node:path";
import { rewardRows, tokenizeRewardData } from "../data/tokenize.ts";
import type { RewardRow, TokenizedPreference } from "../data/types.ts";
import { CausalLM } from "../model/causal-lm.ts";
import { writeJson } from "../model/files.ts";
import { type Calibration, rewardCalibration } from "../rewards/calibration.ts";
import { RewardEnsemble } from "../rewards/ensemble.ts";
import { memberName, writeEnsemble } from "../rewards/ensemble-files.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { RewardModelTrainer } from "../trainers/reward.ts";
import { isScored } from "../trainers/reward-batch.ts";
import type { RewardConfig } from "../trainers/reward-settings.ts";
import { fittingMaxLength } from "../trainers/settings.ts";
import type { StageSummary } from "./manifest.ts";
import type { StageContext } from "./run.ts";
import type { RewardStage } from "./schema.ts";
import { describeTokenized, loadOptions, stepsOfEpochs, trainerConfig } from "./settings.ts";
import { rewardData, tokenizeSplit } from "./stage-data.ts";
import { beforeAndAfter, trainAndCompare } from "./train.ts";

/** What of the last evaluation goes into a stage's summary. */
const SUMMARIZED = ["eval/accuracy", "eval/ece", "eval/mse"];

/** Trains a reward model, or an ensemble of them, and saves it in the stage's output directory. */
export async function runRewardStage(settings: RewardStage, context: StageContext): Promise<StageSummary> {
  const { members = 1 } = settings;
  return members > 1 ? await trainEnsemble(settings, members, context) : await trainOne(settings, context);
}

async function trainOne(settings: RewardStage, context: StageContext): Promise<StageSummary> {
  const data = await rewardData(settings, context.log);
  const tokenizer = await Tokenizer.load(settings.model_path);
  using model = await CausalLM.load(settings.model_path, loadOptions(settings));
  const { overlong, max_length: maxLength } = settings;
  const limits = { overlong, maxLength: fittingMaxLength(maxLength, model.maxLength) };
  using trainer = new RewardModelTrainer({
    model,
    tokenizer,
    ...(await tokenizeSplit(data, rewardRows(tokenizer, limits), context.signal)),
    config: { maxSteps: stepsOfEpochs(settings), ...trainerConfig<RewardStage, RewardConfig>(settings) },
    outputDir: settings.output_dir,
  });
  context.log(`  ${describeTokenized(trainer.tokenized)}`);
  const comparison = await trainAndCompare(trainer, context);
  await trainer.save(settings.output_dir);
  await saveCalibration(settings.output_dir, trainer.calibration);
  // A new head scores all answers alike, so there is no accuracy before.
  const after = SUMMARIZED.flatMap((name) => {
    const value = comparison.after[name];
    return value === undefined ? [] : [[`${name} after`, value] as const];
  });
  return { ...beforeAndAfter(comparison, "eval/loss"), ...Object.fromEntries(after) };
}

/** Reliability bins of held-out pairs, to be plotted: calibration.json. */
async function saveCalibration(directory: string, calibration: Calibration | null): Promise<void> {
  if (calibration) await writeJson(join(directory, "calibration.json"), calibration);
}

/**
 * Trains the members one after another, each as a stage of its own in `member-<i>` with the seed that follows, so that complete ones are
 * skipped in a run that goes on. All hold out the same rows.
 */
async function trainEnsemble(
  settings: RewardStage,
  members: number,
  context: StageContext,
): Promise<StageSummary> {
  const { members: _, combine, kappa, ...common } = settings;
  const { seed = 0, split_seed: splitSeed = seed } = settings;
  for (let index = 0; index < members; index++) {
    const output = join(settings.output_dir, memberName(index));
    const member = { ...common, seed: seed + index, split_seed: splitSeed, output_dir: output };
    await context.runStage({ kind: "reward", settings: member }, `  member ${index + 1} of ${members}`);
  }
  await writeEnsemble(settings.output_dir, members, { combine, kappa });
  const tokenizer = await Tokenizer.load(settings.model_path);
  await tokenizer.save(settings.output_dir);
  const { eval: heldOut } = await rewardData({ ...settings, split_seed: splitSeed }, () => {});
  return await measureEnsemble(settings, tokenizer, heldOut);
}

/** What the ensemble as a whole makes of held-out pairs. */
async function measureEnsemble(
  settings: RewardStage,
  tokenizer: Tokenizer,
  heldOut: readonly RewardRow[],
): Promise<StageSummary> {
  if (heldOut.length === 0) return {};
  const { device, dtype, compute, micro_batch_tokens: microBatchTokens, overlong } = settings;
  using ensemble = await RewardEnsemble.load(settings.output_dir, { device, dtype, compute });
  const context = Math.min(...ensemble.members.map((member) => member.model.maxLength));
  const limits = {
    maxLength: fittingMaxLength(settings.max_length, context),
    ...(overlong === undefined ? {} : { overlong }),
  };
  const { examples } = tokenizeRewardData(heldOut, tokenizer, limits);
  const pairs = examples.filter((example): example is TokenizedPreference => !isScored(example));
  if (pairs.length === 0) return {};
  const sequences = pairs.flatMap(({ chosen, rejected }) => [chosen.tokens, rejected.tokens]);
  const { scores, spread } = await ensemble.scoreWithSpread(sequences, { microBatchTokens });
  const labels = pairs.map((pair) => (pair.tie ? 0.5 : 1));
  const [chosen, rejected] = [0, 1].map((side) => scores.filter((_, index) => index % 2 === side));
  const calibration = rewardCalibration(chosen ?? [], rejected ?? [], labels);
  await saveCalibration(settings.output_dir, calibration);
  const decided = pairs.flatMap((pair, i) => (pair.tie ? [] : [(chosen?.[i] ?? 0) - (rejected?.[i] ?? 0)]));
  const correct = decided.reduce((sum, d) => sum + (d > 0 ? 1 : d === 0 ? 0.5 : 0), 0);
  return {
    "eval/accuracy after": correct / decided.length,
    "eval/reward_spread after": spread.reduce((sum, value) => sum + value, 0) / spread.length,
  };
}
