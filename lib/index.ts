/** The public API of node-rlhf. */

export { planMicroBatches } from "./data/batching.ts";
// Data
export { loadPreferences } from "./data/preferences.ts";
export { loadPrompts } from "./data/prompts.ts";
export { Random } from "./data/random.ts";
export { loadSft } from "./data/sft.ts";
export { splitDataset } from "./data/split.ts";
export { tokenizePreferences, tokenizePrompts, tokenizeSft } from "./data/tokenize.ts";
export type {
  ChatMessage,
  DataReport,
  Dataset,
  PreferenceRow,
  PromptRow,
  SftRow,
  TokenizedExample,
  TokenizedPreference,
} from "./data/types.ts";
export type { FloatArray } from "./engine/array.ts";
export { DeviceArray } from "./engine/array.ts";
export type { DeviceName, EngineOptions } from "./engine/engine.ts";
export { Engine } from "./engine/engine.ts";
export type { KlEstimator } from "./engine/losses.ts";
export {
  bradleyTerryLoss,
  gae,
  klReward,
  ppoPolicyLoss,
  ppoValueLoss,
  tokenNllLoss,
  whiten,
} from "./engine/losses.ts";
export type { RlhfErrorCode } from "./errors.ts";
export { ERROR_CODES, isRlhfError, RlhfError } from "./errors.ts";
export type { AdapterInfo, AdapterOptions } from "./model/adapters.ts";
export type { PackedBatch, SequenceInput } from "./model/batch.ts";
// The low level: passes, gradients, optimizers, losses
export { packSequences } from "./model/batch.ts";
export type {
  CreateOptions,
  ForwardOptions,
  LoadOptions,
  OptimizerOptions,
  Parameter,
  SaveOptions,
} from "./model/causal-lm.ts";
// Models
export { CausalLM } from "./model/causal-lm.ts";
export type { GenerateOptions, Generation } from "./model/generation.ts";
export type { HeadInfo, HeadOptions } from "./model/heads.ts";
export type { AdamWOptions, Moments, StepOptions, StepResult } from "./model/optimizer.ts";
export { Optimizer } from "./model/optimizer.ts";
export type { PassArrays, PassGradients } from "./model/pass.ts";
export { Pass } from "./model/pass.ts";
export type { RewardLoadOptions, RewardModelOptions, ScoreOptions } from "./model/reward-model.ts";
export { RewardModel } from "./model/reward-model.ts";
export type { Metrics, MetricsRecord } from "./monitor/metrics.ts";
// Metrics and errors
export { MetricsWriter, readMetrics } from "./monitor/metrics.ts";
export type { ProgressReporter } from "./monitor/progress.ts";
export { ConsoleProgress, silentProgress } from "./monitor/progress.ts";
export type { RewardContext, RewardFunction, RewardSource } from "./rewards/reward.ts";
export type { ChatOptions, DecodeOptions, EncodeOptions } from "./tokenizer/tokenizer.ts";
// Tokenizers
export { Tokenizer } from "./tokenizer/tokenizer.ts";
export { trainTokenizer } from "./tokenizer/train.ts";
export {
  computeAdvantages,
  computeLogProbs,
  computePreferenceLoss,
  findTargetModules,
  getLoraParameters,
  printTrainableParameters,
} from "./trainers/functions.ts";
export type { Experience, PPOTrainerOptions, PpoUpdate } from "./trainers/ppo.ts";
export { PPOTrainer } from "./trainers/ppo.ts";
export type { PpoMinibatch } from "./trainers/ppo-metrics.ts";
export type { PPOConfig } from "./trainers/ppo-settings.ts";
export type { RewardConfig, RewardModelTrainerOptions } from "./trainers/reward.ts";
export { RewardModelTrainer } from "./trainers/reward.ts";
export type { Rollout } from "./trainers/rollouts.ts";
export type { LoraSettings, TrainerConfig } from "./trainers/settings.ts";
export type { SFTConfig, SFTTrainerOptions } from "./trainers/sft.ts";
// Trainers
export { SFTTrainer } from "./trainers/sft.ts";
export type { TrainingStep, TrainOptions, TrainResult } from "./trainers/trainer.ts";
