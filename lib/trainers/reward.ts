import { type Tokenized, tokenizePreferences } from "../data/tokenize.ts";
import type { PreferenceRow, TokenizedPreference } from "../data/types.ts";
import { rewardLoss } from "../engine/losses.ts";
import { lastTokens, packSequences } from "../model/batch.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { HeadOptions } from "../model/heads.ts";
import { RewardModel } from "../model/reward-model.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { hashSequences, type TrainedPart } from "./checkpoint.ts";
import {
  checkSettings,
  fittingMaxLength,
  nonNegative,
  oneOfOrObject,
  type Rules,
  withDefaults,
} from "./settings.ts";
import {
  SUPERVISED_DEFAULTS,
  SUPERVISED_RULES,
  type Sums,
  type SupervisedConfig,
  type SupervisedSettings,
  SupervisedTrainer,
} from "./supervised.ts";
import { addNewAdapter, chooseTarget, defaultLearningRate } from "./target.ts";

/**
 * Settings of reward-model training. Default learning rate: 1e-5 for all weights, 1e-4 for an adapter, 1e-3 for the head alone
 * (which is what a frozen model without an adapter trains).
 */
export interface RewardConfig extends SupervisedConfig {
  /** Weight of (chosen + rejected)², which keeps rewards near zero; 0.01 is usual. Default 0. */
  readonly centerCoefficient?: number;
  /** "linear" (default), "mlp" (hidden → hidden/2 → 1 with ReLU), or a head of one's own. */
  readonly head?: "linear" | "mlp" | HeadOptions;
}

export interface RewardModelTrainerOptions {
  /** The model to put a reward head on, or a reward model to train further. */
  readonly model: CausalLM | RewardModel;
  readonly tokenizer: Tokenizer;
  readonly trainData: readonly PreferenceRow[];
  readonly evalData?: readonly PreferenceRow[];
  readonly config?: RewardConfig;
  /** Where metrics.jsonl and checkpoints go. */
  readonly outputDir?: string;
}

const RULES: Rules<RewardConfig> = {
  ...SUPERVISED_RULES,
  centerCoefficient: nonNegative,
  head: oneOfOrObject("linear", "mlp"),
};

const LEARNING_RATES = { full: 1e-5, lora: 1e-4, frozen: 1e-3 };

function headOptions(head: RewardConfig["head"], hidden: number): HeadOptions {
  if (head === "mlp")
    return { kind: "mlp", innerSize: Math.ceil(hidden / 2), activation: "relu", bias: true };
  return head === undefined || head === "linear" ? { kind: "linear", bias: false } : head;
}

/** Bradley-Terry training of a reward model: −log σ(r_chosen − r_rejected − margin), r the head at each sequence's last token. */
export class RewardModelTrainer extends SupervisedTrainer<
  TokenizedPreference,
  SupervisedSettings & RewardConfig
> {
  readonly rewardModel: RewardModel;
  readonly tokenizer: Tokenizer;
  /** What tokenising did to the training data. */
  readonly tokenized: Tokenized<TokenizedPreference>["report"];
  protected readonly name = "reward";
  protected readonly shownMetrics = ["loss", "accuracy", "margin", "eval/accuracy"];
  protected readonly part: TrainedPart;
  protected readonly dataHash: string;

  constructor(options: RewardModelTrainerOptions) {
    const { model: given, tokenizer } = options;
    const config = withDefaults(SUPERVISED_DEFAULTS, options.config ?? {});
    checkSettings(config, RULES);
    const model = given instanceof RewardModel ? given.model : given;
    const target = chooseTarget(model, config, "default");
    const learningRate = config.learningRate ?? defaultLearningRate(target, LEARNING_RATES);
    const maxLength = fittingMaxLength(config.maxLength, model.maxLength);
    const train = tokenizePreferences(options.trainData, tokenizer, { maxLength });
    const evaluation = options.evalData?.length
      ? tokenizePreferences(options.evalData, tokenizer, { maxLength }).examples
      : [];
    super({ ...config, learningRate, maxLength }, options.outputDir, train.examples, evaluation);
    const head = { seed: config.seed, ...headOptions(config.head, model.config.hidden) };
    addNewAdapter(model, target);
    const adapter = target.adapter === undefined ? {} : { adapter: target.adapter };
    this.rewardModel =
      given instanceof RewardModel ? given.with(adapter) : RewardModel.create(model, { head, ...adapter });
    this.tokenizer = tokenizer;
    this.tokenized = train.report;
    this.dataHash = hashSequences(
      train.examples.flatMap((pair) => [pair.chosen.tokens, pair.rejected.tokens]),
    );
    const optimizer = model.createOptimizer({
      ...this.config,
      base: target.kind === "full",
      adapter: target.adapter,
      heads: [this.rewardModel.head],
    });
    this.part = { name: "reward", model, optimizer };
  }

  protected tokensOf(pair: TokenizedPreference): number {
    return pair.chosen.tokens.length + pair.rejected.tokens.length;
  }

  protected lossCount(pairs: readonly TokenizedPreference[]): number {
    return pairs.length;
  }

  protected async runMicroBatch(pairs: readonly TokenizedPreference[], scale: number | null): Promise<Sums> {
    const { model, adapter, head } = this.rewardModel;
    const batch = packSequences(pairs.flatMap((pair) => [pair.chosen, pair.rejected]));
    const training = scale !== null;
    const dropoutSeed = training ? this.dropoutSeed : undefined;
    using pass = await model.forward(batch, {
      adapter,
      head,
      statistics: false,
      grad: training,
      dropoutSeed,
    });
    const last = lastTokens(batch);
    const { dValue, stats } = await rewardLoss(model.engine, {
      value: pass.device.value,
      chosen: last.filter((_, index) => index % 2 === 0),
      rejected: last.filter((_, index) => index % 2 === 1),
      margin: Float32Array.from(pairs, (pair) => pair.margin),
      centering: this.config.centerCoefficient ?? 0,
      scale: scale ?? 0,
    });
    using gradient = dValue;
    if (scale !== null) await pass.backward({ dValue: gradient });
    return stats;
  }

  protected toMetrics(sums: Sums): Metrics {
    const {
      loss = Number.NaN,
      correct = 0,
      margin = 0,
      decided = 0,
      reward = 0,
      rewards = 0,
      pairs = 0,
    } = sums;
    return {
      loss: loss / pairs,
      accuracy: correct / decided,
      margin: margin / decided,
      mean_reward: reward / rewards,
    };
  }

  /** Writes the reward model, an adapter merged into its weights, and the tokenizer; `RewardModel.load` and transformers read it. */
  async save(directory?: string): Promise<void> {
    const target = this.saveDirectory(directory);
    await this.rewardModel.save(target);
    await this.tokenizer.save(target);
  }

  dispose(): void {
    this.part.optimizer.dispose();
  }
}
