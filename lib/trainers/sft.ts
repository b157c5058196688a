import { type Tokenized, tokenizeSft } from "../data/tokenize.ts";
import type { SftRow, TokenizedExample } from "../data/types.ts";
import { tokenNllLoss } from "../engine/losses.ts";
import { packSequences } from "../model/batch.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { hashSequences, type TrainedPart } from "./checkpoint.ts";
import { checkSettings, fittingMaxLength, flag, oneOf, type Rules, withDefaults } from "./settings.ts";
import {
  SUPERVISED_DEFAULTS,
  SUPERVISED_RULES,
  type Sums,
  type SupervisedConfig,
  type SupervisedSettings,
  SupervisedTrainer,
} from "./supervised.ts";
import {
  addNewAdapter,
  chooseTarget,
  defaultLearningRate,
  nothingToTrain,
  saveTarget,
  type TrainingTarget,
} from "./target.ts";

/** Settings of supervised fine-tuning. Default learning rate: 2e-5 for all weights, 2e-4 for an adapter. */
export interface SFTConfig extends SupervisedConfig {
  /** What happens to examples over maxLength. Default "truncate". */
  readonly overlong?: "truncate" | "drop";
  /** Tokens to learn: the response (default), or the prompt too. */
  readonly lossOn?: "completion" | "all";
  /** Whether `save` merges an adapter into the weights (default), or writes the adapter alone in PEFT's format. */
  readonly saveMerged?: boolean;
}

export interface SFTTrainerOptions {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  readonly trainData: readonly SftRow[];
  readonly evalData?: readonly SftRow[];
  readonly config?: SFTConfig;
  /** Where metrics.jsonl and checkpoints go. */
  readonly outputDir?: string;
}

const RULES: Rules<SFTConfig> = {
  ...SUPERVISED_RULES,
  overlong: oneOf("truncate", "drop"),
  lossOn: oneOf("completion", "all"),
  saveMerged: flag,
};

const LEARNING_RATES = { full: 2e-5, lora: 2e-4 };

/** Supervised fine-tuning: the mean negative log-likelihood of the response tokens. */
export class SFTTrainer extends SupervisedTrainer<TokenizedExample, SupervisedSettings & SFTConfig> {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  /** What tokenising did to the training data. */
  readonly tokenized: Tokenized<TokenizedExample>["report"];
  protected readonly name = "sft";
  protected readonly shownMetrics = ["loss", "eval/loss", "lr", "epoch"];
  protected readonly part: TrainedPart;
  protected readonly dataHash: string;
  readonly #target: TrainingTarget;

  constructor(options: SFTTrainerOptions) {
    const { model, tokenizer } = options;
    const config = withDefaults(SUPERVISED_DEFAULTS, options.config ?? {});
    checkSettings(config, RULES);
    const target = chooseTarget(model, config, "default");
    if (target.kind === "frozen") throw nothingToTrain();
    const learningRate = config.learningRate ?? defaultLearningRate(target, LEARNING_RATES);
    const { overlong, lossOn } = config;
    const maxLength = fittingMaxLength(config.maxLength, model.maxLength);
    const tokenize = { maxLength, ...(overlong ? { overlong } : {}), ...(lossOn ? { lossOn } : {}) };
    const train = tokenizeSft(options.trainData, tokenizer, tokenize);
    const evaluation = options.evalData?.length
      ? tokenizeSft(options.evalData, tokenizer, tokenize).examples
      : [];
    super({ ...config, learningRate, maxLength }, options.outputDir, train.examples, evaluation);
    this.model = model;
    this.tokenizer = tokenizer;
    this.tokenized = train.report;
    this.dataHash = hashSequences(train.examples.map((example) => example.tokens));
    this.#target = target;
    addNewAdapter(model, target);
    const optimizer = model.createOptimizer({ ...this.config, adapter: target.adapter });
    this.part = { name: "model", model, optimizer };
  }

  protected tokensOf(example: TokenizedExample): number {
    return example.tokens.length;
  }

  protected lossCount(examples: readonly TokenizedExample[]): number {
    return examples.reduce((sum, { lossMask }) => sum + lossMask.reduce((count, bit) => count + bit, 0), 0);
  }

  protected async runMicroBatch(examples: readonly TokenizedExample[], scale: number | null): Promise<Sums> {
    const batch = packSequences(examples);
    using pass = await this.model.forward(batch, {
      adapter: this.#target.adapter,
      grad: scale !== null,
      dropoutSeed: scale === null ? undefined : this.dropoutSeed,
      predict: "masked",
    });
    const { dLogProb, stats } = await tokenNllLoss(this.model.engine, {
      logProb: pass.device.logProb,
      weight: batch.mask,
      scale: scale ?? 0,
    });
    using gradient = dLogProb;
    if (scale !== null) await pass.backward({ dLogProb: gradient });
    return stats;
  }

  protected toMetrics({ loss = Number.NaN, weight = 0 }: Sums): Metrics {
    return { loss: loss / weight };
  }

  /**
   * Writes model and tokenizer as a directory that transformers loads. An adapter is merged into the weights, which makes the
   * result the base of the next stage; with `saveMerged: false` it is written alone, as peft does.
   */
  async save(directory?: string): Promise<void> {
    const { saveMerged } = this.config;
    await saveTarget(this.model, this.tokenizer, this.#target, this.saveDirectory(directory), { saveMerged });
  }

  dispose(): void {
    this.part.optimizer.dispose();
  }
}
