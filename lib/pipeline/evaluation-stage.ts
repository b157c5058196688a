import { loadPreferences } from "../data/preferences.ts";
import { loadPrompts } from "../data/prompts.ts";
import { loadSft } from "../data/sft.ts";
import { RlhfError } from "../errors.ts";
import type { ChecksFunction } from "../evaluation/checks.ts";
import { evaluate } from "../evaluation/evaluate.ts";
import type { CategoryFunction, MetricFunction } from "../evaluation/metrics.ts";
import type { EvaluationReport } from "../evaluation/report.ts";
import type { EvaluationSettings } from "./evaluation-schema.ts";
import type { StageSummary } from "./manifest.ts";
import { loadRewardModule } from "./reward-module.ts";
import type { StageContext } from "./run.ts";
import { importUserModule } from "./user-module.ts";

interface MetricsModule {
  readonly metrics?: Readonly<Record<string, MetricFunction>>;
  readonly category?: CategoryFunction;
  readonly checks?: ChecksFunction;
}

/** Imports a module of metrics. Throws ERR_RLHF_CONFIG when it cannot be imported or exports something else. */
async function loadMetrics(file: string): Promise<MetricsModule> {
  const fail = (problem: string): never => {
    throw new RlhfError("ERR_RLHF_CONFIG", `${file}: the metrics module ${problem}`, { file });
  };
  const module = await importUserModule(file, "the metrics module", "ERR_RLHF_CONFIG");
  const { metrics, category, checks } = module;
  const isFunction = (value: unknown): boolean => typeof value === "function";
  const areMetrics =
    typeof metrics === "object" && metrics !== null && Object.values(metrics).every(isFunction);
  if (metrics === undefined && category === undefined && checks === undefined)
    fail("exports none of metrics, category and checks");
  if (metrics !== undefined && !areMetrics) fail("must export metrics as an object of functions");
  if (category !== undefined && !isFunction(category)) fail("must export category as a function");
  if (checks !== undefined && !isFunction(checks)) fail("must export checks as a function");
  return { metrics, category, checks } as MetricsModule;
}

/** Runs an evaluation as its settings say. */
export async function runEvaluation(
  settings: EvaluationSettings,
  { signal, note }: { readonly signal?: AbortSignal; readonly note?: (text: string) => void } = {},
): Promise<EvaluationReport> {
  const { reward_model_path, reward_module, references_path, metrics_module } = settings;
  const { pairs_path } = settings;
  const { metrics, category, checks } = metrics_module === undefined ? {} : await loadMetrics(metrics_module);
  const reward = reward_module === undefined ? reward_model_path : await loadRewardModule(reward_module);
  return await evaluate({
    models: settings.models,
    prompts: await loadPrompts(settings.prompts_path, { limit: settings.max_prompts }),
    outputDir: settings.output_dir,
    baseline: settings.baseline,
    reference: settings.ref_model_path,
    reward,
    heldOutReward: settings.held_out_reward_model_path,
    normalizeReward: settings.normalize_reward,
    pairs: pairs_path === undefined ? undefined : await loadPreferences(pairs_path),
    references: references_path === undefined ? undefined : await loadSft(references_path),
    metrics,
    category,
    checks,
    judges: settings.judges,
    runs: settings.runs,
    numSamples: settings.num_samples,
    numShown: settings.num_shown,
    maxNewTokens: settings.max_new_tokens,
    minNewTokens: settings.min_new_tokens,
    temperature: settings.temperature,
    topK: settings.top_k,
    topP: settings.top_p,
    minP: settings.min_p,
    repetitionPenalty: settings.repetition_penalty,
    microBatchTokens: settings.micro_batch_tokens,
    seed: settings.seed,
    device: settings.device,
    dtype: settings.dtype,
    compute: settings.compute,
    threads: settings.threads,
    signal,
    note,
  });
}

/** Metrics that say how a model answers rather than how well. */
const LEFT_OUT = new Set(["kl", "length", "ended"]);

/** What the checks came to, and each model's rewards and metrics of its own. */
function summaryOf({ models, checks }: EvaluationReport): StageSummary {
  const held = checks.filter(({ holds }) => holds).length;
  const counts = checks.length === 0 ? {} : { "checks that hold": held, checks: checks.length };
  const means = models.flatMap(({ name, metrics }) =>
    Object.entries(metrics).flatMap(([metric, { mean }]) =>
      LEFT_OUT.has(metric) ? [] : [[`${name} ${metric}`, mean]],
    ),
  );
  return { ...counts, ...Object.fromEntries(means) } as StageSummary;
}

/** Compares models that earlier stages made and writes report.json, report.md and report.html in the stage's output directory. */
export async function runEvaluateStage(
  settings: EvaluationSettings,
  { signal, log }: StageContext,
): Promise<StageSummary> {
  const report = await runEvaluation(settings, {
    ...(signal && { signal }),
    note: (text) => log(`  ${text}`),
  });
  return summaryOf(report);
}
