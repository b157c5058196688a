import type { Split } from "../data/split.ts";
import {
  preferenceRows,
  type RowTokenizer,
  type Tokenized,
  type TokenizeReport,
  unpairedRows,
} from "../data/tokenize.ts";
import type { TokenizedPreference } from "../data/types.ts";
import { CausalLM } from "../model/causal-lm.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type CPOConfig, CPOTrainer, type SimPOConfig, SimPOTrainer } from "../trainers/cpo.ts";
import { type DPOConfig, DPOTrainer } from "../trainers/dpo.ts";
import { type KTOConfig, KTOTrainer } from "../trainers/kto.ts";
import { type ORPOConfig, ORPOTrainer } from "../trainers/orpo.ts";
import { PREFERENCE_DEFAULTS } from "../trainers/preference-settings.ts";
import { type CommonSettings, fittingMaxLength } from "../trainers/settings.ts";
import type { Trainer } from "../trainers/trainer.ts";
import type { StageSummary } from "./manifest.ts";
import { openPolicy, savePolicy } from "./policy-model.ts";
import type { StageContext } from "./run.ts";
import type { CpoStage, DpoStage, KtoStage, OrpoStage, SimpoStage } from "./schema.ts";
import { describeTokenized, stepsOfEpochs, trainerConfig } from "./settings.ts";
import { preferenceData, tokenizeSplit, unpairedData } from "./stage-data.ts";
import { beforeAndAfter, trainAndCompare } from "./train.ts";

type StageTrainer = Trainer<CommonSettings> & { readonly tokenized: TokenizeReport };

/** How the sequences of a stage are limited. */
interface TokenizeStageOptions {
  readonly maxLength: number;
  readonly overlong: "truncate" | "drop";
}

/** What every trainer of these stages is made with. */
interface TrainerInputs<Example> {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  readonly trainData: Tokenized<Example>;
  readonly evalData?: Tokenized<Example>;
  readonly outputDir: string;
}

/** Trains and saves. The held-out loss before and after, and how often the chosen answer is preferred then, tell how it went. */
async function trainAndSave<Row, Example>(
  settings: OrpoStage | KtoStage,
  context: StageContext,
  data: Split<Row>,
  rowTokenizer: (tokenizer: Tokenizer, options: TokenizeStageOptions) => RowTokenizer<Row, Example>,
  makeTrainer: (inputs: TrainerInputs<Example>) => StageTrainer,
): Promise<StageSummary> {
  const { model_path: directory, output_dir: outputDir } = settings;
  const tokenizer = await Tokenizer.load(directory);
  using model = await openPolicy(directory, settings);
  const { overlong = PREFERENCE_DEFAULTS.overlong, max_length: maxLength } = settings;
  const limits = { overlong, maxLength: fittingMaxLength(maxLength, model.maxLength) };
  const tokenized = await tokenizeSplit(data, rowTokenizer(tokenizer, limits), context.signal);
  using trainer = makeTrainer({ model, tokenizer, ...tokenized, outputDir });
  context.log(`  ${describeTokenized(trainer.tokenized)}`);
  const comparison = await trainAndCompare(trainer, context);
  await savePolicy(trainer, settings);
  const accuracy = comparison.after["eval/rewards/accuracies"];
  return {
    ...beforeAndAfter(comparison, "eval/loss"),
    ...beforeAndAfter(comparison, "eval/rewards/margins"),
    ...(accuracy === undefined ? {} : { "eval/rewards/accuracies after": accuracy }),
  };
}

/** The stage's reference model, where it names one. */
async function openReference(settings: DpoStage | KtoStage): Promise<CausalLM | undefined> {
  const { ref_model_path: directory, device, dtype, compute } = settings;
  return directory === undefined ? undefined : CausalLM.load(directory, { device, dtype, compute });
}

async function runOnPairs(
  settings: DpoStage | OrpoStage | CpoStage | SimpoStage,
  context: StageContext,
  makeTrainer: (inputs: TrainerInputs<TokenizedPreference>) => StageTrainer,
): Promise<StageSummary> {
  return trainAndSave(
    settings,
    context,
    await preferenceData(settings, context.log),
    preferenceRows,
    makeTrainer,
  );
}

/** Aligns a policy with pairs of answers, by DPO or a loss of its kin. */
export async function runDpoStage(settings: DpoStage, context: StageContext): Promise<StageSummary> {
  const refModel = await openReference(settings);
  using _reference = refModel;
  const config = { maxSteps: stepsOfEpochs(settings), ...trainerConfig<DpoStage, DPOConfig>(settings) };
  return await runOnPairs(settings, context, (inputs) => new DPOTrainer({ ...inputs, config, refModel }));
}

/** Aligns a policy with answers that were judged good or bad. */
export async function runKtoStage(settings: KtoStage, context: StageContext): Promise<StageSummary> {
  const refModel = await openReference(settings);
  using _reference = refModel;
  const config = { maxSteps: stepsOfEpochs(settings), ...trainerConfig<KtoStage, KTOConfig>(settings) };
  const data = await unpairedData(settings, context.log);
  return await trainAndSave(
    settings,
    context,
    data,
    unpairedRows,
    (inputs) => new KTOTrainer({ ...inputs, config, refModel }),
  );
}

export function runOrpoStage(settings: OrpoStage, context: StageContext): Promise<StageSummary> {
  const config = { maxSteps: stepsOfEpochs(settings), ...trainerConfig<OrpoStage, ORPOConfig>(settings) };
  return runOnPairs(settings, context, (inputs) => new ORPOTrainer({ ...inputs, config }));
}

export function runCpoStage(settings: CpoStage, context: StageContext): Promise<StageSummary> {
  const config = { maxSteps: stepsOfEpochs(settings), ...trainerConfig<CpoStage, CPOConfig>(settings) };
  return runOnPairs(settings, context, (inputs) => new CPOTrainer({ ...inputs, config }));
}

export function runSimpoStage(settings: SimpoStage, context: StageContext): Promise<StageSummary> {
  const config = { maxSteps: stepsOfEpochs(settings), ...trainerConfig<SimpoStage, SimPOConfig>(settings) };
  return runOnPairs(settings, context, (inputs) => new SimPOTrainer({ ...inputs, config }));
}
