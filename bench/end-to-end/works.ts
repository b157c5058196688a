import {
  CausalLM,
  DPOTrainer,
  PPOTrainer,
  packSequences,
  Random,
  RewardModelTrainer,
  SFTTrainer,
  type Tokenizer,
  trainTokenizer,
} from "../../lib/index.ts";
import type { HfConfig } from "../../lib/model/config.ts";
import type { Compute } from "../ops/op-bench.ts";
import {
  adapterCount,
  generationOperations,
  type Operation,
  optimizerOperations,
  type PassWork,
  passOperations,
  shapeOf,
  weightCount,
} from "./floor.ts";

/** Models of random weights, by the configurations that the named ones have. */
export const MODELS: Readonly<Record<string, HfConfig>> = {
  gpt2: { model_type: "gpt2", n_layer: 12, n_embd: 768, n_head: 12, n_positions: 1024, vocab_size: 50_257 },
  "llama-110m": {
    ...{ model_type: "llama", hidden_size: 768, intermediate_size: 2048, num_hidden_layers: 12 },
    ...{ num_attention_heads: 12, num_key_value_heads: 12, vocab_size: 32_000, tie_word_embeddings: true },
    max_position_embeddings: 1024,
  },
  stories260k: {
    ...{ model_type: "llama", hidden_size: 64, intermediate_size: 172, num_hidden_layers: 5 },
    ...{ num_attention_heads: 8, num_key_value_heads: 4, vocab_size: 512, tie_word_embeddings: true },
    max_position_embeddings: 512,
  },
};

/** What a work is done on. */
export interface WorkPlace {
  readonly model: string;
  readonly compute: Compute;
  readonly threads: number;
  readonly sequences: number;
  readonly length: number;
}

/** A work that is ready to run: one round of it, the tokens that go through it, and what it cannot do without. */
export interface Work {
  readonly run: () => Promise<unknown>;
  readonly tokens: number;
  readonly operations: readonly Operation[];
}

const RANK = 16;
const LORA = { r: RANK, alpha: 32, targetModules: "all-linear" as const };
const PROMPT = 64;
const ANSWER = 128;
const random = new Random(1, "end to end");

const configOf = ({ model }: WorkPlace, eos = 0): HfConfig => ({ ...MODELS[model]!, eos_token_id: eos });

const create = (place: WorkPlace, trainable: "all" | "none", eos?: number): Promise<CausalLM> => {
  const { compute, threads } = place;
  return CausalLM.create(configOf(place, eos), { device: "cpu", compute, threads, trainable });
};

const tokensOf = (length: number, place: WorkPlace): Int32Array => {
  const vocab = Number(MODELS[place.model]!["vocab_size"]);
  return Int32Array.from({ length }, () => 1 + random.integer(vocab - 1));
};

const passWork = (place: WorkPlace, lengths: readonly number[], more: Partial<PassWork>): PassWork => ({
  ...{ lengths, rank: 0, compute: place.compute, trained: "none" },
  predictions: lengths.reduce((total, length) => total + length - 1, 0),
  ...more,
});

/** Forward, backward and AdamW on `sequences` × `length` tokens. */
async function training(place: WorkPlace, trained: "adapter" | "all"): Promise<Work> {
  const model = await create(place, trained === "all" ? "all" : "none");
  const adapter = trained === "adapter" ? "policy" : undefined;
  if (adapter) model.addAdapter(adapter, LORA);
  const optimizer = model.createOptimizer({ ...(adapter && { adapter }) });
  const lengths = new Array<number>(place.sequences).fill(place.length);
  const batch = packSequences(lengths.map((length) => ({ tokens: tokensOf(length, place) })));
  const loss = { kind: "nll", weight: batch.mask, scale: 1 / batch.tokens.length } as const;
  const run = async (): Promise<void> => {
    (await model.forwardBackward(batch, loss, { ...(adapter && { adapter }) })).dispose();
    await optimizer.step({ learningRate: 1e-5 });
    await model.zeroGradients();
  };
  const shape = shapeOf(configOf(place));
  const parameters = adapter ? adapterCount(shape, RANK) : weightCount(shape);
  const work = passWork(place, lengths, { trained, rank: adapter ? RANK : 0 });
  const operations = [...passOperations(shape, work), ...optimizerOperations(parameters)];
  return { run, tokens: batch.tokens.length, operations };
}

async function logProbs(place: WorkPlace): Promise<Work> {
  const model = await create(place, "none");
  const lengths = new Array<number>(place.sequences).fill(place.length);
  const batch = packSequences(lengths.map((length) => ({ tokens: tokensOf(length, place) })));
  const run = async (): Promise<void> => {
    using pass = await model.forward(batch);
    await pass.logProb();
  };
  const operations = passOperations(shapeOf(configOf(place)), passWork(place, lengths, {}));
  return { run, tokens: batch.tokens.length, operations };
}

async function generation(place: WorkPlace, batch: number): Promise<Work> {
  const model = await create(place, "none");
  const prompts = Array.from({ length: batch }, () => tokensOf(PROMPT, place));
  const settings = { maxNewTokens: ANSWER, minNewTokens: ANSWER, stop: [], seed: 1 };
  const work = { compute: place.compute, rank: 0 };
  return {
    run: () => model.generate(prompts, settings),
    tokens: batch * ANSWER,
    operations: generationOperations(shapeOf(configOf(place)), batch, PROMPT, ANSWER, work),
  };
}

/** Letters of which a tokenizer of bytes makes as many tokens. */
const letters = (count: number): string =>
  Array.from({ length: count }, () => String.fromCharCode(97 + random.integer(26))).join("");

const byteTokenizer = (): Tokenizer => trainTokenizer(["a b"], { vocabSize: 260, modelMaxLength: 1024 });

/** A whole step of a trainer with an adapter on all linear layers; half of each sequence is the prompt. */
async function trainer(place: WorkPlace, kind: "sft" | "reward" | "dpo"): Promise<Work> {
  const tokenizer = byteTokenizer();
  const model = await create(place, "none", tokenizer.eosTokenId ?? 0);
  const { sequences, length } = place;
  const half = length >> 1;
  const rows = Array.from({ length: sequences }, () => ({
    ...{ prompt: letters(half), chosen: letters(length - half - 1), rejected: letters(length - half - 1) },
  }));
  const config = { batchSize: sequences, maxSteps: 100, maxLength: length, lora: LORA, seed: 1 };
  const shared = { model, tokenizer, config };
  const made = {
    sft: () =>
      new SFTTrainer({
        ...shared,
        trainData: rows.map(({ prompt, chosen }) => ({ prompt, response: chosen })),
      }),
    reward: () => new RewardModelTrainer({ ...shared, trainData: rows }),
    dpo: () => new DPOTrainer({ ...shared, trainData: rows }),
  }[kind]();
  const shape = shapeOf(configOf(place));
  // Each prompt stands in the batch once, before the answers to it.
  const answers = new Array<number>(kind === "sft" ? 1 : 2).fill(length - half);
  const lengths = Array.from({ length: sequences }, () => [half, ...answers]).flat();
  const contexts = Array.from({ length: sequences }, () => [0, ...answers.map(() => half)]).flat();
  const predictions = kind === "reward" ? 0 : sequences * answers.length * (length - half);
  const batch = { contexts, predictions };
  const step = passOperations(shape, passWork(place, lengths, { ...batch, trained: "adapter", rank: RANK }));
  const reference = passOperations(shape, passWork(place, lengths, batch));
  const operations = [...step, ...optimizerOperations(adapterCount(shape, RANK))];
  return {
    run: () => made.trainStep(),
    tokens: sequences * answers.length * length,
    operations: kind === "dpo" ? [...reference, ...operations] : operations,
  };
}

const ROLLOUTS = 16;
const EPOCHS = 4;

/** An iteration: 16 answers of 64 tokens to prompts of 64, 4 epochs, values from a head on the policy's adapter. */
async function ppo(place: WorkPlace): Promise<Work> {
  const tokenizer = byteTokenizer();
  const model = await create(place, "none", tokenizer.eosTokenId ?? 0);
  const prompts = Array.from({ length: ROLLOUTS }, () => letters(PROMPT));
  const trainer = new PPOTrainer({
    ...{ model, tokenizer, prompts, reward: (_prompt: string, response: string) => response.length },
    config: {
      ...{
        seed: 1,
        numIterations: 100,
        batchSize: ROLLOUTS,
        maxNewTokens: PROMPT,
        minNewTokens: PROMPT,
        stop: [],
      },
      ...{ numPpoEpochs: EPOCHS, numMinibatches: 1, lora: LORA, valueModel: "shared", targetKl: null },
    },
  });
  const shape = shapeOf(configOf(place));
  const lengths = new Array<number>(ROLLOUTS).fill(2 * PROMPT);
  const predictions = ROLLOUTS * PROMPT;
  const adapted = { predictions, rank: RANK };
  const reference = passOperations(shape, passWork(place, lengths, { predictions }));
  const old = passOperations(shape, passWork(place, lengths, adapted));
  const step = passOperations(shape, passWork(place, lengths, { ...adapted, trained: "adapter" }));
  const update = [...step, ...optimizerOperations(adapterCount(shape, RANK))];
  return {
    run: () => trainer.trainStep(),
    tokens: ROLLOUTS * 2 * PROMPT,
    operations: [
      ...generationOperations(shape, ROLLOUTS, PROMPT, PROMPT, { compute: place.compute, rank: RANK }),
      ...[...reference, ...old],
      ...Array.from({ length: EPOCHS }, () => update).flat(),
    ],
  };
}

/** Every work by its name. */
export const WORKS: Readonly<Record<string, (place: WorkPlace) => Promise<Work>>> = {
  "train-lora": (place) => training(place, "adapter"),
  "train-full": (place) => training(place, "all"),
  "log-probs": logProbs,
  "generate-1": (place) => generation(place, 1),
  "generate-8": (place) => generation(place, 8),
  "generate-32": (place) => generation(place, 32),
  sft: (place) => trainer(place, "sft"),
  reward: (place) => trainer(place, "reward"),
  dpo: (place) => trainer(place, "dpo"),
  ppo,
};
