/** The public API of node-rlhf. */

// Models

export type { AdapterLoadOptions, MergeOptions } from "./model/adapter-set.ts";
export type { AdaptedLayer, AdapterInfo, AdapterOptions } from "./model/adapters.ts";
export { type AddedTokens, type AddTokensToModelOptions, addTokens } from "./model/add-tokens.ts";
export { CausalLM } from "./model/causal-lm.ts";
export {
  estimateMemory,
  type GenerationWorkload,
  type MemoryEstimate,
  type ModelWorkload,
} from "./model/estimate-memory.ts";
export type { GenerateOptions, Generation } from "./model/generation.ts";
export type { HeadInfo, HeadOptions } from "./model/heads.ts";
export { type LoadedModel, loadModel } from "./model/load-model.ts";
export { LoRALinear, type LoRALinearOptions } from "./model/lora-linear.ts";
export type {
  CreateOptions,
  ForwardOptions,
  KlDirection,
  LoadOptions,
  OptimizerOptions,
  Parameter,
  SaveOptions,
  WeightType,
} from "./model/model-options.ts";
export {
  type RewardLoadOptions,
  RewardModel,
  type RewardModelOptions,
  type ScoreOptions,
} from "./model/reward-model.ts";
export type { RewardStatistics } from "./model/reward-statistics.ts";
export { ValueHead } from "./model/value-head.ts";

// Trainers

export type {
  ContinuousEnvironment,
  DiscreteEnvironment,
  Environment,
  EnvironmentSpaces,
  EnvironmentStep,
} from "./environment/environment.ts";
export { type Episode, type PlayOptions, playEpisodes } from "./environment/episodes.ts";
export {
  type Transition,
  type TransitionFeatures,
  withRewardModel,
} from "./environment/learned-reward.ts";
export { type ActOptions, EnvironmentPolicy } from "./environment/policy.ts";
export type { EnvironmentPPOConfig } from "./environment/settings.ts";
export { type Calibration, type ReliabilityBin, rewardCalibration } from "./rewards/calibration.ts";
export {
  type AnswerToScore,
  type BatchRewardCallOptions,
  CalledReward,
  type RewardCallOptions,
} from "./rewards/calls.ts";
export {
  type EnsembleCombination,
  type EnsembleOptions,
  type EnsembleScores,
  loadReward,
  RewardEnsemble,
} from "./rewards/ensemble.ts";
export {
  type FeatureRewardConfig,
  FeatureRewardModel,
  type FeatureRewardModelOptions,
  type FeatureScale,
} from "./rewards/feature-reward-model.ts";
export {
  BatchReward,
  type BatchRewardFunction,
  FunctionReward,
  type RewardContext,
  type RewardFunction,
  type RewardRequest,
} from "./rewards/function-reward.ts";
export { HttpReward, type HttpRewardOptions } from "./rewards/http-reward.ts";
export type { RewardSource } from "./rewards/reward.ts";
export { type CPOConfig, CPOTrainer, type SimPOConfig, SimPOTrainer } from "./trainers/cpo.ts";
export { type DPOConfig, DPOTrainer, type DPOTrainerOptions } from "./trainers/dpo.ts";
export type { DpoLoss, FDivergence } from "./trainers/dpo-losses.ts";
export {
  EnvironmentPPOTrainer,
  type EnvironmentPPOTrainerOptions,
} from "./trainers/environment-ppo.ts";
export type { Experience } from "./trainers/experience.ts";
export {
  type FeaturePair,
  FeatureRewardTrainer,
  type FeatureRewardTrainerConfig,
  type FeatureRewardTrainerOptions,
  type FeatureRow,
  type ScoredFeatures,
} from "./trainers/feature-reward.ts";
export { groupAdvantages, leaveOneOutAdvantages, type RewardScale } from "./trainers/group-advantages.ts";
export type { GroupMinibatch } from "./trainers/group-metrics.ts";
export type {
  GRPOConfig,
  GroupConfig,
  LossAggregation,
  ReinforceBaseline,
  ReinforcePlusPlusConfig,
  RLOOConfig,
} from "./trainers/group-settings.ts";
export type {
  GroupExperience,
  GroupTrainer,
  GroupUpdate,
  MeasuredGroups,
} from "./trainers/group-trainer.ts";
export { GRPOTrainer } from "./trainers/grpo.ts";
export { type KTOConfig, KTOTrainer, type KTOTrainerOptions } from "./trainers/kto.ts";
export type { OnlineTrainer, OnlineTrainerOptions } from "./trainers/online.ts";
export { type ORPOConfig, ORPOTrainer } from "./trainers/orpo.ts";
export type { PairTrainerOptions } from "./trainers/pairs.ts";
export { PPOTrainer, type PPOTrainerOptions, type PpoUpdate } from "./trainers/ppo.ts";
export type { PpoMinibatch } from "./trainers/ppo-metrics.ts";
export type { PPOConfig, PpoUpdateConfig } from "./trainers/ppo-settings.ts";
export { ReinforcePlusPlusTrainer } from "./trainers/reinforce-plus-plus.ts";
export { RewardModelTrainer, type RewardModelTrainerOptions } from "./trainers/reward.ts";
export type { HeadInit, RewardConfig, RewardLossConfig, RewardPairLoss } from "./trainers/reward-settings.ts";
export { RLOOTrainer } from "./trainers/rloo.ts";
export type { RolloutConfig } from "./trainers/rollout-settings.ts";
export type { Rollout } from "./trainers/rollouts.ts";
export type { LoopConfig, LoraSettings, TrainerConfig } from "./trainers/settings.ts";
export { type SFTConfig, SFTTrainer, type SFTTrainerOptions } from "./trainers/sft.ts";
export type { TrainingStep, TrainOptions, TrainResult } from "./trainers/trainer.ts";

// Evaluation

export type { CheckContext, ChecksFunction, ReportCheck } from "./evaluation/checks.ts";
export {
  type Diversity,
  distinctN,
  lengthStatistics,
  measureDiversity,
  pairwiseJaccard,
  repetitionRate,
  selfBleuScores,
  type Words,
  wordEntropy,
} from "./evaluation/diversity.ts";
export { evaluate } from "./evaluation/evaluate.ts";
export type { CategoryFunction, MetricFunction } from "./evaluation/metrics.ts";
export type { EvaluateOptions, EvaluationReward } from "./evaluation/plan.ts";
export type { EvaluatedModel, LoadedPolicy, Sampling } from "./evaluation/policy.ts";
export type { Comparison, EvaluationReport, ModelReport, Sample } from "./evaluation/report.ts";
export type { RewardAccuracy } from "./evaluation/reward-accuracy.ts";
export {
  type ByPrompt,
  type Estimate,
  estimateMean,
  pairedDifferences,
  type WinRate,
  wilsonInterval,
  winRate,
} from "./evaluation/statistics.ts";

// Tokenizers and data

export { planMicroBatches } from "./data/batching.ts";
export { loadFeatures } from "./data/features.ts";
export { loadScored, loadUnpaired } from "./data/labelled.ts";
export {
  type PaddedPreferences,
  type PaddedSequences,
  PreferenceDataset,
} from "./data/preference-dataset.ts";
export { type LoadPreferencesOptions, loadPreferences, streamPreferences } from "./data/preferences.ts";
export { loadPrompts } from "./data/prompts.ts";
export { Random } from "./data/random.ts";
export { type LoadOptions as DataOptions, type OnBadRow, placeOf, RowStream } from "./data/readers.ts";
export { type LoadRewardOptions, loadRewardData } from "./data/reward-data.ts";
export { loadSft, streamSft } from "./data/sft.ts";
export { isHeldOut, type Split, type SplitOptions, splitDataset } from "./data/split.ts";
export { TokenDataset, type TokenDatasetOptions } from "./data/token-dataset.ts";
export {
  preferenceRows,
  promptRows,
  type RowTokenizer,
  rewardRows,
  scoredRows,
  sftRows,
  type Tokenized,
  type TokenizeOptions,
  type TokenizeReport,
  type TokenizeSftOptions,
  tokenizePreferences,
  tokenizePrompts,
  tokenizeRewardData,
  tokenizeScored,
  tokenizeSft,
  tokenizeUnpaired,
  unpairedRows,
} from "./data/tokenize.ts";
export { tokenizeInSlices } from "./data/tokenize-slices.ts";
export type * from "./data/types.ts";
export { downloadDataset, downloadModel, type HubOptions } from "./hub/hub.ts";
export { type AddTokensOptions, CHATML_TEMPLATE, type NewToken } from "./tokenizer/added-tokens.ts";
export type { RenderedChat } from "./tokenizer/chat.ts";
export {
  type ChatOptions,
  type DecodeOptions,
  type EncodeOptions,
  Tokenizer,
} from "./tokenizer/tokenizer.ts";
export { trainTokenizer } from "./tokenizer/train.ts";

// The low level: passes, gradients, optimizers, losses, and the functions that tutorials name

export { DeviceArray, type FloatArray } from "./engine/array.ts";
export type { ComputeType } from "./engine/compute-type.ts";
export { chooseDevice, type DeviceChoice, type DeviceName } from "./engine/device.ts";
export {
  Engine,
  type EngineOptions,
  type TransformerEngineOptions,
} from "./engine/engine.ts";
export * from "./engine/losses.ts";
export {
  type CopyCount,
  describeMemory,
  type EngineCopies,
  type EngineMemory,
  type MemoryBudget,
  type MemoryBytes,
  type MemoryUse,
} from "./engine/memory.ts";
export * from "./engine/mlp.ts";
export * from "./engine/preference-losses.ts";
export { type PackedBatch, packSequences, previousTokens, type SequenceInput } from "./model/batch.ts";
export {
  type ForwardBackwardOptions,
  type GroupTokenLoss,
  LossPass,
  type NllTokenLoss,
  type PpoTokenLoss,
  type TokenLoss,
  type TokenLossStats,
  type ValueLoss,
} from "./model/forward-backward.ts";
export {
  type AdamWOptions,
  type Moments,
  Optimizer,
  type StepOptions,
  type StepResult,
} from "./model/optimizer.ts";
export { Pass, type PassArrays, type PassGradients } from "./model/pass.ts";
export { answerValues, type PackedAnswers, packAnswers, type SharedPrompt } from "./model/shared-prompts.ts";
export * from "./trainers/functions.ts";

// Metrics and errors

export { ERROR_CODES, isRlhfError, RlhfError, type RlhfErrorCode } from "./errors.ts";
export { type Metrics, type MetricsRecord, MetricsWriter, readMetrics } from "./monitor/metrics.ts";
export { ConsoleProgress, type ProgressReporter, silentProgress } from "./monitor/progress.ts";
