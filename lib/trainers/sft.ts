import { TokenDataset } from "../data/token-dataset.ts";
import { type TokenizeReport, type TokenizeSftOptions, tokenizeSft } from "../data/tokenize.ts";
import type { SftRow, TokenizedExample } from "../data/types.ts";
import { tokenNllLoss } from "../engine/losses.ts";
import { RlhfError } from "../errors.ts";
import { packSequences } from "../model/batch.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { adamWOptions } from "../model/optimizer.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { TrainedPart } from "./checkpoint.ts";
import type { TrainerWorkload } from "./memory.ts";
import { checkOptions, TRAINER_OPTIONS } from "./options.ts";
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
  /** Rows, which are tokenised at once, or a data set that was tokenised with `TokenDataset.create`, which may be larger than memory. */
  readonly trainData: readonly SftRow[] | TokenDataset;
  readonly evalData?: readonly SftRow[] | TokenDataset;
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

/** The data set that was given, if it fits the settings, or one made of the rows that were. */
function datasetOf(
  data: readonly SftRow[] | TokenDataset,
  tokenizer: Tokenizer,
  options: TokenizeSftOptions & { readonly maxLength: number },
  config: SFTConfig,
): TokenDataset {
  if (!(data instanceof TokenDataset)) return TokenDataset.of(tokenizeSft(data, tokenizer, options));
  const set = (["overlong", "lossOn"] as const).find((name) => config[name] !== undefined);
  if (set !== undefined)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.${set} has no effect on a TokenDataset; give it to TokenDataset.create`,
      { name: set },
    );
  if (data.longest > options.maxLength)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `the data set has an example of ${data.longest} tokens, over maxLength ${options.maxLength}; give maxLength to TokenDataset.create`,
      { longest: data.longest, maxLength: options.maxLength },
    );
  return data;
}

/** Supervised fine-tuning: the mean negative log-likelihood of the response tokens. */
export class SFTTrainer extends SupervisedTrainer<TokenizedExample, SupervisedSettings & SFTConfig> {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  /** What tokenising did to the training data. */
  readonly tokenized: TokenizeReport;
  protected readonly name = "sft";
  protected readonly shownMetrics = ["loss", "eval/loss", "lr", "epoch"];
  protected readonly part: TrainedPart;
  protected readonly dataHash: string;
  readonly #target: TrainingTarget;

  constructor(options: SFTTrainerOptions) {
    checkOptions("SFTTrainer", options, TRAINER_OPTIONS, RULES);
    const { model, tokenizer } = options;
    const config = withDefaults(SUPERVISED_DEFAULTS, options.config ?? {});
    checkSettings(config, RULES);
    const target = chooseTarget(model, config, "default");
    if (target.kind === "frozen") throw nothingToTrain();
    const learningRate = config.learningRate ?? defaultLearningRate(target, LEARNING_RATES);
    const { overlong, lossOn } = config;
    const maxLength = fittingMaxLength(config.maxLength, model.maxLength);
    const tokenize = { maxLength, ...(overlong ? { overlong } : {}), ...(lossOn ? { lossOn } : {}) };
    const given = options.config ?? {};
    const train = datasetOf(options.trainData, tokenizer, tokenize, given);
    const evaluation = options.evalData?.length
      ? datasetOf(options.evalData, tokenizer, tokenize, given)
      : null;
    super(
      { ...config, learningRate, maxLength },
      options.outputDir,
      train.examples ?? train,
      evaluation?.examples ?? evaluation ?? [],
    );
    this.model = model;
    this.tokenizer = tokenizer;
    this.tokenized = train.report;
    this.dataHash = train.hash;
    this.#target = target;
    addNewAdapter(model, target);
    const optimizer = model.createOptimizer({ ...adamWOptions(this.config), adapter: target.adapter });
    this.part = { name: "model", model, optimizer };
  }

  protected override memoryWorkloads(): readonly TrainerWorkload[] {
    return super.memoryWorkloads().map((workload) => ({ ...workload, lossInside: true, dropout: true }));
  }

  protected tokensOf(example: TokenizedExample): number {
    return example.tokens.length;
  }

  protected lossCount(examples: readonly TokenizedExample[]): number {
    return examples.reduce((sum, { lossMask }) => sum + lossMask.reduce((count, bit) => count + bit, 0), 0);
  }

  protected async runMicroBatch(examples: readonly TokenizedExample[], scale: number | null): Promise<Sums> {
    const batch = packSequences(examples);
    const { adapter } = this.#target;
    if (scale !== null) {
      const loss = { kind: "nll", weight: batch.mask, scale } as const;
      const { dropoutSeed } = this;
      using pass = await this.model.forwardBackward(batch, loss, { adapter, dropoutSeed, predict: "masked" });
      return pass.stats;
    }
    using pass = await this.model.forward(batch, { adapter, predict: "masked" });
    const { dLogProb, stats } = await tokenNllLoss(this.model.engine, {
      logProb: pass.device.logProb,
      weight: batch.mask,
      scale: 0,
    });
    dLogProb.dispose();
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

  protected override release(): void {
    this.part.optimizer.dispose();
  }
}
