/**
 * Sampling 128 tokens after prompts of 64: node-rlhf beside transformers' generate, in turn. At batch 1 also as a share of what the
 * memory's bandwidth allows, taken in the same rounds by reading as many bytes as the weights have. Writes
 * bench/results/PROCESSOR/peers-generation-*.json.
 *
 * usage: tsx bench/peers/generation.ts [--batch 1] [--compute float32|bfloat16x3|bfloat16] [--pairs 5] [--threads 2] [--opponents float32,…]
 *   [--model-dir DIR] [--vocabulary 50257] [--name gpt2]
 */
import { parseArgs } from "node:util";
import { CausalLM } from "../../lib/index.ts";
import { kernels } from "../../test/support/kernels.ts";
import { uniformArray } from "../ops/op-bench.ts";
import { besidePeers, COMMON_OPTIONS, computeOf, randomTokens, timed } from "./beside.ts";
import { median, type Timing } from "./paired.ts";
import { Peer } from "./peer.ts";

const PROMPT = 64;
const NEW_TOKENS = 128;

const { values: options } = parseArgs({
  options: {
    ...COMMON_OPTIONS,
    batch: { type: "string", default: "1" },
    vocabulary: { type: "string", default: "50257" },
    name: { type: "string", default: "gpt2" },
  },
});
const batch = Number(options.batch);
const threads = Number(options.threads);
const compute = computeOf(options);

function prompts(round: number): number[][] {
  return randomTokens(round, batch, PROMPT, Number(options.vocabulary));
}

async function generate(model: CausalLM, round: number): Promise<Timing & { newTokens: number }> {
  const given = prompts(round).map((prompt) => Int32Array.from(prompt));
  const { result, ...timing } = await timed(() =>
    model.generate(given, { maxNewTokens: NEW_TOKENS, stop: [], seed: round }),
  );
  return { ...timing, newTokens: Math.min(...result.map(({ tokens }) => tokens.length)) };
}

/** Bytes of the matrices that every new token has to read: all weights but the embeddings of tokens that are not its own. */
function readBytes(model: CausalLM): number {
  const { hfConfig } = model;
  const weights = model
    .parameters()
    .filter(({ name }) => !name.endsWith("wpe.weight"))
    .filter(({ name }) => hfConfig.tie_word_embeddings !== false || !name.endsWith("embed_tokens.weight"))
    .reduce((sum, { shape }) => sum + shape.reduce((product, size) => product * size, 1), 0);
  return weights * (model.dtype === "float32" ? 4 : 2);
}

/** Seconds to read `bytes` once on all threads, by PyTorch's sum or our sum of squares, whichever is faster now. */
async function readSeconds(reader: Peer, bytes: number): Promise<number> {
  const { readSeconds: summed } = await reader.ask<{ readSeconds: number }>({ read: bytes });
  const backend = kernels.backends().find((name) => name.startsWith("cpu"))!;
  const x = uniformArray(Math.ceil(bytes / 4));
  const args = { type: "float32", count: x.length, x, out: new Float64Array(1) };
  return Math.min(summed, ...kernels.bench(backend, "squaredNorm", args, 5, { threads }).seconds);
}

const ways = compute === "bfloat16" ? (["bfloat16", "float32"] as const) : (["float32"] as const);
const models = new Map<string, CausalLM>();
for (const dtype of ways)
  models.set(
    dtype === ways[0] ? "ours" : `ours, weights kept in ${dtype}`,
    await CausalLM.load(options["model-dir"], { device: "cpu", threads, compute, dtype }),
  );
const bytes = readBytes(models.get("ours")!);
/** At batch 1 the weights are read for every token, and these are larger than what caches hold. */
const fromMemory = batch === 1 && bytes > 1e8;
const limits: number[] = [];
await using reader = new Peer("generation.py", [options["model-dir"], "--threads", options.threads]);
await reader.read();
await besidePeers(
  {
    name: `generation-${options.name}-${compute}-batch-${batch}-${threads}-threads`,
    what: `${options.name}, ${batch} x (${PROMPT} + ${NEW_TOKENS}) tokens, sampling, ours ${compute}`,
    script: "generation.py",
    args: [],
    ours: new Map([...models].map(([name, model]) => [name, (round) => generate(model, round)])),
    request: (round) => ({ tokens: prompts(round), newTokens: NEW_TOKENS }),
    beforeRound: async () => {
      if (fromMemory) limits.push(NEW_TOKENS * (await readSeconds(reader, bytes)));
    },
    record: { bandwidthLimitSeconds: limits, bytesPerToken: bytes },
    after: (timings) => {
      if (!fromMemory) return;
      const [limit, ours] = [median(limits), median(timings.get("ours")!.map(({ seconds }) => seconds))];
      const gigabytes = (NEW_TOKENS * bytes) / limit / 1e9;
      console.log(
        `  reading ${(bytes / 1e6).toFixed(0)} MB a token at ${gigabytes.toFixed(1)} GB/s: ${limit.toFixed(3)} s, ours ${((100 * limit) / ours).toFixed(0)} % of the limit`,
      );
    },
  },
  options,
);
for (const model of models.values()) model.dispose();
