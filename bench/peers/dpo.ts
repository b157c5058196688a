/**
 * A DPO step with LoRA on GPT-2 small: 4 pairs, prompts of 128 tokens that both answers share, answers of 128, the reference measured
 * with the adapter off: node-rlhf's DPOTrainer beside TRL's, optimizer step included, in turn. Writes bench/results/PROCESSOR/peers-dpo-*.json.
 *
 * usage: tsx bench/peers/dpo.ts [--compute float32|bfloat16x3|bfloat16] [--pairs 5] [--threads 2] [--opponents float32,float32+tcmalloc,…]
 */
import { parseArgs } from "node:util";
import type { TokenizedExample, TokenizedPreference } from "../../lib/data/types.ts";
import { CausalLM, DPOTrainer, Tokenizer } from "../../lib/index.ts";
import { besidePeers, COMMON_OPTIONS, computeOf, randomTokens, timed } from "./beside.ts";
import type { Timing } from "./paired.ts";

const PAIRS = 4;
const PROMPT = 128;
const ANSWER = 128;

const { values: options } = parseArgs({
  options: {
    ...COMMON_OPTIONS,
    /** Only for the trainers' sake, which ask for one: the tokens are given. */
    tokenizer: { type: "string", default: "../shared/models/stories260k" },
  },
});
const rounds = Number(options.pairs) + Number(options["warm-up"]);

const texts = Array.from({ length: rounds * PAIRS }, (_, index) => {
  const [prompt, chosen, rejected] = randomTokens(1000 * index, 3, PROMPT);
  return { prompt: prompt!, chosen: chosen!.slice(0, ANSWER), rejected: rejected!.slice(0, ANSWER) };
});

function example(prompt: number[], answer: number[]): TokenizedExample {
  const tokens = Int32Array.from([...prompt, ...answer]);
  return {
    tokens,
    promptLength: prompt.length,
    lossMask: Uint8Array.from(tokens, (_, i) => Number(i >= PROMPT)),
  };
}

const examples: TokenizedPreference[] = texts.map(({ prompt, chosen, rejected }) => ({
  chosen: example(prompt, chosen),
  rejected: example(prompt, rejected),
  margin: 0,
}));
const count = examples.length;
const report = {
  examples: count,
  tokens: count * 2 * (PROMPT + ANSWER),
  truncated: 0,
  dropped: 0,
  firstDropped: [],
  boundaryMerges: 0,
};

const compute = computeOf(options);
using model = await CausalLM.load(options["model-dir"], {
  device: "cpu",
  threads: Number(options.threads),
  compute,
});
using trainer = new DPOTrainer({
  model,
  tokenizer: await Tokenizer.load(options.tokenizer),
  trainData: { examples, report },
  config: {
    batchSize: PAIRS,
    numEpochs: 1,
    learningRate: 5e-6,
    schedule: "constant",
    lora: { r: 16, alpha: 32, targetModules: ["c_attn", "c_proj", "c_fc"] },
  },
});
const steps = trainer.steps();

async function ourStep(): Promise<Timing & { loss: number | undefined }> {
  const { result, ...timing } = await timed(() => steps.next());
  if (result.done) throw new Error("there are fewer steps than rounds");
  return { ...timing, loss: result.value.metrics["loss"] };
}

/** TRL's trainer gets all pairs before its first step. */
const first = { pairs: texts, batchSize: PAIRS };
await besidePeers(
  {
    name: `dpo-lora-${compute}-${options.threads}-threads`,
    what: `GPT-2 124M, DPO step with LoRA r 16 on all linears, ${PAIRS} pairs of ${PROMPT} + 2 x ${ANSWER} tokens, ours ${compute}`,
    script: "dpo.py",
    args: ["--tokenizer", options.tokenizer],
    ours: new Map([["ours", ourStep]]),
    greeting: first,
    request: () => ({}),
  },
  options,
);
await steps.return();
