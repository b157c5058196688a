import { join } from "node:path";
import { loadPrompts } from "../data/prompts.ts";
import { promptRows } from "../data/tokenize.ts";
import type { PromptRow, TokenizedPrompt } from "../data/types.ts";
import { RlhfError } from "../errors.ts";
import { type MetricsRecord, readMetrics } from "../monitor/metrics.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { PPOTrainer } from "../trainers/ppo.ts";
import { PPO_DEFAULTS, type PPOConfig } from "../trainers/ppo-settings.ts";
import { fittingMaxLength } from "../trainers/settings.ts";
import type { StageSummary } from "./manifest.ts";
import { openPolicy, savePolicy } from "./policy-model.ts";
import { closeReward, openReward } from "./reward-source.ts";
import type { StageContext } from "./run.ts";
import type { PpoStage } from "./schema.ts";
import { describeReport, stepsOfEpochs, trainerConfig } from "./settings.ts";
import { tokenizeSplit } from "./stage-data.ts";
import { beforeAndAfter, trainAndCompare } from "./train.ts";

/** Single iterations are noisy: the summary takes the mean over this many at each end. */
const SUMMARY_ITERATIONS = 5;

/** Aligns a policy with PPO and saves it in the stage's output directory. */
export async function runPpoStage(settings: PpoStage, context: StageContext): Promise<StageSummary> {
  const prompts = await loadPrompts(settings.prompts_path, { onBadRow: settings.on_bad_row });
  context.log(`  ${describeReport(prompts.report)}`);
  const evalPath = settings.eval_prompts_path;
  const held = evalPath === undefined ? [] : await loadPrompts(evalPath, { onBadRow: settings.on_bad_row });
  const tokenizer = await Tokenizer.load(settings.model_path);
  using model = await openPolicy(settings.model_path, settings);
  const reward = await openReward(settings, model);
  const { num_epochs: _epochs, ...trainerSettings } = settings;
  const { max_new_tokens: maxNewTokens = PPO_DEFAULTS.maxNewTokens } = settings;
  try {
    const maxLength = fittingMaxLength(settings.max_length, model.maxLength, maxNewTokens);
    const rows = { train: prompts, eval: held };
    const tokenized = await tokenizeSplit<PromptRow, TokenizedPrompt>(
      rows,
      promptRows(tokenizer, { maxLength }),
      context.signal,
    );
    using trainer = new PPOTrainer({
      model,
      tokenizer,
      reward,
      prompts: tokenized.trainData,
      evalPrompts: tokenized.evalData,
      config: {
        numIterations: stepsOfEpochs(settings),
        ...trainerConfig<Omit<PpoStage, "num_epochs">, PPOConfig>(trainerSettings),
        ...stopConfig(settings, tokenizer),
      },
      outputDir: settings.output_dir,
    });
    const { dropped } = trainer.tokenized;
    if (dropped > 0)
      context.log(`  ${dropped} prompts left out as longer than ${trainer.config.maxLength} tokens`);
    const comparison = await trainAndCompare(trainer, context);
    await savePolicy(trainer, settings);
    return {
      ...summarize(settings.output_dir),
      ...beforeAndAfter(comparison, "eval/objective/scores"),
      ...beforeAndAfter(comparison, "eval/objective/kl"),
    };
  } finally {
    closeReward(reward);
  }
}

/** Means over the first and the last iterations, of this run and of those it went on from. */
function summarize(outputDir: string): StageSummary {
  const records = readMetrics(join(outputDir, "metrics.jsonl"));
  const window = Math.max(1, Math.min(SUMMARY_ITERATIONS, Math.floor(records.length / 2)));
  const mean = (chosen: readonly MetricsRecord[], name: string): number =>
    chosen.reduce((sum, { metrics }) => sum + (metrics[name] ?? Number.NaN), 0) / chosen.length;
  const [first, last] = [records.slice(0, window), records.slice(-window)];
  return {
    "objective/scores first iterations": mean(first, "objective/scores"),
    "objective/scores last iterations": mean(last, "objective/scores"),
    "objective/kl last iterations": mean(last, "objective/kl"),
  };
}

/** Tokens to stop at may be given by id or by content. */
function stopConfig(settings: PpoStage, tokenizer: Tokenizer): { stop?: number[] } {
  if (settings.stop === undefined) return {};
  const stop = settings.stop.map((token) => {
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
