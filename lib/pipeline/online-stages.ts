import { join } from "node:path";
import { loadPrompts } from "../data/prompts.ts";
import { promptRows } from "../data/tokenize.ts";
import type { PromptRow, TokenizedPrompt } from "../data/types.ts";
import { RlhfError } from "../errors.ts";
import { type MetricsRecord, readMetrics } from "../monitor/metrics.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { GRPOConfig, ReinforcePlusPlusConfig, RLOOConfig } from "../trainers/group-settings.ts";
import { GRPOTrainer } from "../trainers/grpo.ts";
import type { OnlineTrainerOptions } from "../trainers/online.ts";
import { PPOTrainer } from "../trainers/ppo.ts";
import type { PPOConfig } from "../trainers/ppo-settings.ts";
import { ReinforcePlusPlusTrainer } from "../trainers/reinforce-plus-plus.ts";
import { RLOOTrainer } from "../trainers/rloo.ts";
import { ROLLOUT_DEFAULTS } from "../trainers/rollout-settings.ts";
import { fittingMaxLength } from "../trainers/settings.ts";
import type { Trainer } from "../trainers/trainer.ts";
import type { StageSummary } from "./manifest.ts";
import { openPolicy, savePolicy } from "./policy-model.ts";
import { closeReward, openReward } from "./reward-source.ts";
import type { StageContext } from "./run.ts";
import type { GrpoStage, PpoStage, ReinforcePlusPlusStage, RlooStage } from "./schema.ts";
import { describeReport, stepsOfEpochs, trainerConfig } from "./settings.ts";
import { tokenizeSplit } from "./stage-data.ts";
import { beforeAndAfter, trainAndCompare } from "./train.ts";

/** Single iterations are noisy: the summary takes the mean over this many at each end. */
const SUMMARY_ITERATIONS = 5;

/** What a trainer is made of, but for its settings; those here are no keys of the trainer's own, and its settings come over them. */
type Given = Omit<OnlineTrainerOptions<never>, "config"> & {
  readonly config: { readonly numIterations?: number; readonly stop?: number[] };
};

type OnlineStage = PpoStage | GrpoStage | RlooStage | ReinforcePlusPlusStage;

type OnlineStageTrainer = Trainer & { readonly tokenized: { readonly dropped: number } };

/** Aligns a policy by answers that it samples, and saves it in the stage's output directory. */
async function trainAndSave(
  settings: OnlineStage,
  context: StageContext,
  makeTrainer: (given: Given) => OnlineStageTrainer,
): Promise<StageSummary> {
  const prompts = await loadPrompts(settings.prompts_path, { onBadRow: settings.on_bad_row });
  context.log(`  ${describeReport(prompts.report)}`);
  const evalPath = settings.eval_prompts_path;
  const held = evalPath === undefined ? [] : await loadPrompts(evalPath, { onBadRow: settings.on_bad_row });
  const tokenizer = await Tokenizer.load(settings.model_path);
  using model = await openPolicy(settings.model_path, settings);
  const reward = await openReward(settings, model);
  try {
    const { max_length: length, max_new_tokens: maxNewTokens = ROLLOUT_DEFAULTS.maxNewTokens } = settings;
    const maxLength = fittingMaxLength(length, model.maxLength, maxNewTokens);
    const tokenized = await tokenizeSplit<PromptRow, TokenizedPrompt>(
      { train: prompts, eval: held },
      promptRows(tokenizer, { maxLength }),
      context.signal,
    );
    using trainer = makeTrainer({
      model,
      tokenizer,
      reward,
      prompts: tokenized.trainData,
      evalPrompts: tokenized.evalData,
      config: { numIterations: stepsOfEpochs(settings), ...stopConfig(settings.stop, tokenizer) },
      outputDir: settings.output_dir,
    });
    const { dropped } = trainer.tokenized;
    if (dropped > 0)
      context.log(`  ${dropped} prompts left out as longer than ${trainer.config.maxLength} tokens`);
    const comparison = await trainAndCompare(trainer, context);
    await savePolicy(trainer, settings);
    return {
      ...summarize(settings),
      ...beforeAndAfter(comparison, "eval/objective/scores"),
      ...beforeAndAfter(comparison, "eval/objective/kl"),
    };
  } finally {
    closeReward(reward);
  }
}

/** Means over the first and the last iterations, of this run and of those it went on from. */
function summarize({ output_dir: outputDir, shape_rewards: shaped }: OnlineStage): StageSummary {
  const records = readMetrics(join(outputDir, "metrics.jsonl"));
  // Scores less their own running mean show no progress.
  const scores = shaped ? "objective/raw_scores" : "objective/scores";
  const window = Math.max(1, Math.min(SUMMARY_ITERATIONS, Math.floor(records.length / 2)));
  const mean = (chosen: readonly MetricsRecord[], name: string): number =>
    chosen.reduce((sum, { metrics }) => sum + (metrics[name] ?? Number.NaN), 0) / chosen.length;
  const [first, last] = [records.slice(0, window), records.slice(-window)];
  const kl = mean(last, "objective/kl");
  return {
    [`${scores} first iterations`]: mean(first, scores),
    [`${scores} last iterations`]: mean(last, scores),
    // Not measured where no reference is kept.
    ...(Number.isNaN(kl) ? {} : { "objective/kl last iterations": kl }),
  };
}

/** Tokens to stop at may be given by id or by content. */
function stopConfig(
  tokens: readonly (number | string)[] | undefined,
  tokenizer: Tokenizer,
): { stop?: number[] } {
  if (tokens === undefined) return {};
  const stop = tokens.map((token) => {
    const id = typeof token === "number" ? token : tokenizer.tokenToId(token);
    if (id === null) {
      throw new RlhfError(
        "ERR_RLHF_CONFIG",
        `stop: the tokenizer has no token ${JSON.stringify(token)}; give a token's id or exact content`,
        { token },
      );
    }
    return id;
  });
  return { stop };
}

/** Aligns a policy with PPO. */
export function runPpoStage(settings: PpoStage, context: StageContext): Promise<StageSummary> {
  const { num_epochs: _, ...keys } = settings;
  const config = trainerConfig<Omit<PpoStage, "num_epochs">, PPOConfig>(keys);
  return trainAndSave(
    settings,
    context,
    (given) => new PPOTrainer({ ...given, config: { ...given.config, ...config } }),
  );
}

/** The same with GRPO. */
export function runGrpoStage(settings: GrpoStage, context: StageContext): Promise<StageSummary> {
  const { num_epochs: _, ...keys } = settings;
  const config = trainerConfig<Omit<GrpoStage, "num_epochs">, GRPOConfig>(keys);
  return trainAndSave(
    settings,
    context,
    (given) => new GRPOTrainer({ ...given, config: { ...given.config, ...config } }),
  );
}

/** The same with RLOO. */
export function runRlooStage(settings: RlooStage, context: StageContext): Promise<StageSummary> {
  const { num_epochs: _, ...keys } = settings;
  const config = trainerConfig<Omit<RlooStage, "num_epochs">, RLOOConfig>(keys);
  return trainAndSave(
    settings,
    context,
    (given) => new RLOOTrainer({ ...given, config: { ...given.config, ...config } }),
  );
}

/** The same with REINFORCE++. */
export function runReinforcePlusPlusStage(
  settings: ReinforcePlusPlusStage,
  context: StageContext,
): Promise<StageSummary> {
  const { num_epochs: _, ...keys } = settings;
  const config = trainerConfig<Omit<ReinforcePlusPlusStage, "num_epochs">, ReinforcePlusPlusConfig>(keys);
  return trainAndSave(
    settings,
    context,
    (given) => new ReinforcePlusPlusTrainer({ ...given, config: { ...given.config, ...config } }),
  );
}
