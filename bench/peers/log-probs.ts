/**
 * Token log-probs of GPT-2 small, forward only: node-rlhf beside PyTorch, time in turn, then the peak resident memory of a process of
 * its own for each, which loads the model and measures twice. Writes bench/results/PROCESSOR/peers-log-probs-*.json.
 *
 * usage: tsx bench/peers/log-probs.ts [--sequences 4] [--length 256] [--compute float32|bfloat16x3|bfloat16] [--pairs 5] [--threads 2]
 *   [--opponents float32,…]
 */
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { CausalLM, packSequences } from "../../lib/index.ts";
import { besidePeers, COMMON_OPTIONS, computeOf, randomTokens, startOpponent, timed } from "./beside.ts";
import type { Timing } from "./paired.ts";

const { values: options } = parseArgs({
  options: {
    ...COMMON_OPTIONS,
    sequences: { type: "string", default: "4" },
    length: { type: "string", default: "256" },
  },
});
const threads = Number(options.threads);
const tokens = (round: number): number[][] =>
  randomTokens(round, Number(options.sequences), Number(options.length));

async function measure(model: CausalLM, sequences: number[][]): Promise<Timing & { mean: number }> {
  const batch = packSequences(sequences.map((row) => ({ tokens: row })));
  const { result, ...timing } = await timed(async () => {
    using pass = await model.forward(batch);
    return pass.logProb();
  });
  const predicted = batch.tokens.length - sequences.length;
  return { ...timing, mean: result.reduce((sum, value) => sum + value, 0) / predicted };
}

const directory = options["model-dir"];
const compute = computeOf(options);
const loading = {
  device: "cpu",
  threads,
  compute,
  dtype: compute === "bfloat16" ? compute : "float32",
} as const;

/** Peak resident bytes of a process that measures twice: ours and each opponent's. */
async function peakMemory(): Promise<Record<string, number>> {
  const script = fileURLToPath(new URL("log-probs-memory.mjs", import.meta.url));
  const task = JSON.stringify({ directory, load: loading, batches: [tokens(0), tokens(1)] });
  const peaks: Record<string, number> = {
    ours: Number(execFileSync(process.execPath, [script, task]).toString()),
  };
  for (const name of options.opponents.split(",")) {
    await using peer = startOpponent(name, "log_probs.py", [directory, "--threads", options.threads]);
    await peer.read();
    await peer.ask({ tokens: tokens(0) });
    peaks[name] = (await peer.ask<{ peakBytes: number }>({ tokens: tokens(1) })).peakBytes;
  }
  return peaks;
}

const peakBytes = await peakMemory();
using model = await CausalLM.load(directory, loading);
await besidePeers(
  {
    name: `log-probs-${options.sequences}x${options.length}-${options.compute}-${threads}-threads`,
    what: `GPT-2 124M, token log-probs, ${options.sequences} x ${options.length} tokens, ours ${options.compute}`,
    script: "log_probs.py",
    args: [],
    ours: new Map([["ours", (round) => measure(model, tokens(round))]]),
    request: (round) => ({ tokens: tokens(round) }),
    peakBytes,
  },
  options,
);
