import { pathToFileURL } from "node:url";
import { loadPrompts } from "../data/prompts.ts";
import { loadSft } from "../data/sft.ts";
import { messageOf, RlhfError } from "../errors.ts";
import { evaluate } from "../evaluation/evaluate.ts";
import type { CategoryFunction, MetricFunction } from "../evaluation/metrics.ts";
import type { EvaluationReport } from "../evaluation/report.ts";
import type { EvaluationSettings, NamedPaths } from "./evaluation-settings.ts";
import { loadRewardModule } from "./reward-module.ts";

function byName(named: NamedPaths): Readonly<Record<string, string>> {
  if (!Array.isArray(named)) return named;
  return Object.fromEntries(
    named.map((pair) => [pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1)]),
  );
}

interface MetricsModule {
  readonly metrics?: Readonly<Record<string, MetricFunction>>;
  readonly category?: CategoryFunction;
}

/** Imports a module of metrics. Throws ERR_RLHF_CONFIG when it cannot be imported or exports something else. */
async function loadMetrics(file: string): Promise<MetricsModule> {
  const fail = (problem: string, cause?: unknown): never => {
    throw new RlhfError("ERR_RLHF_CONFIG", `${file}: the metrics module ${problem}`, { file }, { cause });
  };
  let module: { metrics?: unknown; category?: unknown } = {};
  try {
    module = (await import(pathToFileURL(file).href)) as typeof module;
  } catch (error) {
    fail(
      `cannot be imported: ${messageOf(error)}; TypeScript needs Node 22.18 or later, or NODE_OPTIONS=--import=tsx`,
      error,
    );
  }
  const { metrics, category } = module;
  const isFunction = (value: unknown): boolean => typeof value === "function";
  const areMetrics =
    typeof metrics === "object" && metrics !== null && Object.values(metrics).every(isFunction);
  if (metrics === undefined && category === undefined) fail("exports neither metrics nor category");
  if (metrics !== undefined && !areMetrics) fail("must export metrics as an object of functions");
  if (category !== undefined && !isFunction(category)) fail("must export category as a function");
  return { metrics, category } as MetricsModule;
}

/** Runs an evaluation as its settings say. */
export async function runEvaluation(
  settings: EvaluationSettings,
  { signal, note }: { readonly signal?: AbortSignal; readonly note?: (text: string) => void } = {},
): Promise<EvaluationReport> {
  const { reward_model_path, reward_module, references_path, metrics_module } = settings;
  const { metrics, category } = metrics_module === undefined ? {} : await loadMetrics(metrics_module);
  const reward = reward_module === undefined ? reward_model_path : await loadRewardModule(reward_module);
  return await evaluate({
    models: byName(settings.models),
    prompts: await loadPrompts(settings.prompts_path, { limit: settings.max_prompts }),
    outputDir: settings.output_dir,
    baseline: settings.baseline,
    reference: settings.ref_model_path,
    reward,
    heldOutReward: settings.held_out_reward_model_path,
    normalizeReward: settings.normalize_reward,
    references: references_path === undefined ? undefined : await loadSft(references_path),
    metrics,
    category,
    judges: settings.judges,
    runs: settings.runs === undefined ? undefined : byName(settings.runs),
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
    threads: settings.threads,
    signal,
    note,
  });
}
