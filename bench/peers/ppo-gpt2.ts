/**
 * A PPO iteration on GPT-2 small: 16 prompts of 64 tokens, answers of 64, LoRA r 16 on all linears, values from a linear head on the
 * policy, 4 epochs of one minibatch: node-rlhf beside a plain PyTorch PPO of the same shape, in turn; and the peak resident memory of
 * each process. Writes bench/results/PROCESSOR/peers-ppo-gpt2-*.json.
 *
 * usage: tsx bench/peers/ppo-gpt2.ts [--compute float32|bfloat16x3|bfloat16] [--dtype float32|bfloat16] [--micro-batch-tokens 4096] [--memory-budget 1200MiB] [--pairs 3] [--threads 2] [--opponents float32+tcmalloc,…]
 */
import { existsSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import type { TokenizedPrompt } from "../../lib/data/types.ts";
import { CausalLM, PPOTrainer, Tokenizer } from "../../lib/index.ts";
import { besidePeers, COMMON_OPTIONS, computeOf, randomTokens, timed } from "./beside.ts";
import type { Timing } from "./paired.ts";

const PROMPTS = 16;
const PROMPT = 64;
const NEW_TOKENS = 64;
const VOCABULARY = 50257;

const { values: options } = parseArgs({
  options: {
    ...COMMON_OPTIONS,
    dtype: { type: "string", default: "float32" },
    "micro-batch-tokens": { type: "string", default: "4096" },
    "memory-budget": { type: "string" },
  },
});
const iterations = Number(options.pairs) + Number(options["warm-up"]);
const compute = computeOf(options);
const dtype = options.dtype as "float32" | "bfloat16";
const microBatchTokens = Number(options["micro-batch-tokens"]);
const memoryBudget = options["memory-budget"];
/** Ours as it is without settings that save memory, or with which of them. */
const saving = [
  ...(dtype === "float32" ? [] : [`weights in ${dtype}`]),
  ...(memoryBudget === undefined ? [] : [`a budget of ${memoryBudget}`]),
  ...(microBatchTokens >= PROMPTS * (PROMPT + NEW_TOKENS) ? [] : [`${microBatchTokens} tokens a pass`]),
];
const directory = options["model-dir"];

/** A tokenizer of made-up words, one for each of GPT-2's tokens: the model knows no words either. */
async function madeUpTokenizer(): Promise<Tokenizer> {
  const path = `${directory}/tokenizer.json`;
  const vocab = Object.fromEntries(Array.from({ length: VOCABULARY }, (_, id) => [`w${id} `, id]));
  const model = { type: "BPE", unk_token: null, vocab, merges: [] };
  const nothing = {
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: null,
  };
  if (!existsSync(path)) writeFileSync(path, JSON.stringify({ version: "1.0", ...nothing, model }));
  return Tokenizer.load(directory);
}

/** The share of tokens with an even number: only what is cheap on both sides. */
function evenShare(_prompt: string, response: string): number {
  const ids = response.match(/\d+/g) ?? [];
  return ids.filter((id) => Number(id) % 2 === 0).length / Math.max(1, ids.length);
}

const examples: TokenizedPrompt[] = Array.from({ length: iterations }, (_, round) =>
  randomTokens(round, PROMPTS, PROMPT),
)
  .flat()
  .map((tokens) => ({ tokens: Int32Array.from(tokens), row: { prompt: "" } }));
const tokens = examples.length * PROMPT;
const report = {
  examples: examples.length,
  tokens,
  truncated: 0,
  dropped: 0,
  firstDropped: [],
  boundaryMerges: 0,
};

const tokenizer = await madeUpTokenizer();
const threads = Number(options.threads);
using model = await CausalLM.load(directory, { device: "cpu", threads, compute, dtype });
using trainer = new PPOTrainer({
  model,
  tokenizer,
  reward: evenShare,
  prompts: { examples, report },
  config: {
    numIterations: iterations,
    batchSize: PROMPTS,
    microBatchTokens,
    memoryBudget,
    shufflePrompts: false,
    maxNewTokens: NEW_TOKENS,
    minNewTokens: NEW_TOKENS,
    stop: [],
    numPpoEpochs: 4,
    numMinibatches: 1,
    targetKl: null,
    learningRate: 1e-5,
    lora: { r: 16, alpha: 32, targetModules: ["c_attn", "c_proj", "c_fc"] },
    valueModel: "shared",
    valueHead: "linear",
  },
});
const steps = trainer.steps();

async function ourIteration(): Promise<Timing & { metrics: object; peakBytes: number }> {
  const { result, ...timing } = await timed(() => steps.next());
  if (result.done) throw new Error("there are fewer iterations than rounds");
  return { ...timing, metrics: result.value.metrics, peakBytes: 1024 * process.resourceUsage().maxRSS };
}

await besidePeers(
  {
    name: `ppo-gpt2-${compute}-${threads}-threads${memoryBudget === undefined ? (saving.length > 0 ? "-saving-memory" : "") : "-memory-budget"}`,
    what: `GPT-2 124M, PPO iteration of ${PROMPTS} x (${PROMPT} + ${NEW_TOKENS}) tokens, LoRA, 4 epochs, ours ${[compute, ...saving].join(", ")}`,
    script: "ppo_gpt2.py",
    args: [],
    ours: new Map([["ours", ourIteration]]),
    request: (round) => ({ tokens: randomTokens(round, PROMPTS, PROMPT), newTokens: NEW_TOKENS }),
  },
  options,
);
await steps.return();
