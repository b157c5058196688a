/**
 * Forward + backward of a GPT-2-small shape (12 layers, 768 wide, vocabulary 50,257) on 4 × 256 tokens, 2 threads, in float32, or with
 * matrix products in bfloat16 (PyTorch: "autocast" on float32 weights, or weights and activations in "bfloat16"): node-rlhf beside PyTorch's eager CPU run, in turn. Writes bench/results/gpt2-lora-*.json.
 *
 * usage: tsx bench/peers/gpt2-lora.ts [--targets attention|all|none] [--precision float32|autocast|bfloat16] [--pairs 9] [--threads 2]
 *   [--compile] [--tcmalloc]
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { CausalLM, packSequences } from "../../lib/index.ts";
import { type Comparison, type PairedResult, type Timing, timePaired } from "./paired.ts";
import { Peer } from "./peer.ts";

const SEQUENCES = 4;
const LENGTH = 256;
const VOCABULARY = 50257;
const TARGETS: Record<string, string[]> = { attention: ["c_attn"], all: ["c_attn", "c_proj", "c_fc"] };
const TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4";

const { values: options } = parseArgs({
  options: {
    targets: { type: "string", default: "all" },
    precision: { type: "string", default: "float32" },
    pairs: { type: "string", default: "9" },
    threads: { type: "string", default: "2" },
    compile: { type: "boolean", default: false },
    tcmalloc: { type: "boolean", default: false },
    "model-dir": { type: "string", default: `${tmpdir()}/gpt2-small-random` },
  },
});

function randomTokens(round: number): number[][] {
  let state = 12345 + round;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * VOCABULARY);
  };
  return Array.from({ length: SEQUENCES }, () => Array.from({ length: LENGTH }, next));
}

/** One forward and backward of ours with the same loss as the peer's: mean negative log-likelihood of predicted tokens. */
async function ourStep(model: CausalLM, adapter: string | undefined, sequences: number[][]) {
  const batch = packSequences(sequences.map((row) => ({ tokens: row })));
  const predicted = SEQUENCES * (LENGTH - 1);
  const dLogProb = new Float32Array(batch.tokens.length).fill(-1 / predicted);
  const began = performance.now();
  const cpuBegan = process.cpuUsage();
  const pass = await model.forward(batch, { adapter, grad: true });
  const logProb = await pass.logProb();
  await pass.backward({ dLogProb });
  const seconds = (performance.now() - began) / 1000;
  const cpu = process.cpuUsage(cpuBegan);
  const loss = -logProb.reduce((sum, value) => sum + value, 0) / predicted;
  return { seconds, cpuSeconds: (cpu.user + cpu.system) / 1e6, loss };
}

async function main(): Promise<void> {
  const peerArguments = [options["model-dir"], "--targets", options.targets, "--threads", options.threads];
  peerArguments.push("--precision", options.precision);
  if (options.compile) peerArguments.push("--compile");
  await using peer = new Peer(
    "gpt2_lora.py",
    peerArguments,
    options.tcmalloc ? { LD_PRELOAD: TCMALLOC } : {},
  );
  const { ready } = await peer.read<{ ready: string }>();

  const adapter = options.targets === "none" ? undefined : "policy";
  using model = await CausalLM.load(options["model-dir"], {
    device: "cpu",
    threads: Number(options.threads),
    compute: options.precision === "float32" ? "float32" : "bfloat16",
    trainable: adapter === undefined ? "all" : "none",
  });
  if (adapter !== undefined) {
    model.addAdapter(adapter, { r: 16, alpha: 32, targetModules: TARGETS[options.targets]! });
  }

  const losses = { ours: 0, theirs: 0 };
  const result = await timePaired(
    Number(options.pairs),
    2,
    async (round) => {
      const { loss, ...timing } = await ourStep(model, adapter, randomTokens(round));
      losses.ours = loss;
      return timing;
    },
    async (round) => {
      const { loss, ...timing } = await peer.ask<Timing & { loss: number }>({ tokens: randomTokens(round) });
      losses.theirs = loss;
      return timing;
    },
  );
  report(ready, losses, result);
}

function report(peer: string, losses: { ours: number; theirs: number }, result: PairedResult): void {
  const precision = options.precision === "float32" ? "" : options.precision;
  const variant = [
    options.targets,
    precision,
    options.compile && "compile",
    options.tcmalloc && "tcmalloc",
  ].filter(Boolean);
  const record = {
    what: `GPT-2 124M, ${options.precision}, forward + backward, 4 x 256 tokens`,
    targets: options.targets === "none" ? "full training" : TARGETS[options.targets],
    cpu: cpus()[0]?.model,
    cores: cpus().length,
    threads: Number(options.threads),
    loadAverage: loadavg()[0],
    peer: `${peer}${options.compile ? ", torch.compile" : ", eager"}${options.tcmalloc ? ", tcmalloc" : ""}`,
    losses,
    ...result,
  };
  const directory = fileURLToPath(new URL("../results/", import.meta.url));
  mkdirSync(directory, { recursive: true });
  writeFileSync(
    `${directory}gpt2-lora-${variant.join("-")}-${options.threads}-threads.json`,
    `${JSON.stringify(record, null, 1)}\n`,
  );
  const line = (what: string, { ours, theirs, ratio, interval }: Comparison): string =>
    `  ${what}: ours ${ours.toFixed(3)}, PyTorch ${theirs.toFixed(3)}, PyTorch/ours ${ratio.toFixed(3)}` +
    ` [${interval.map((bound) => bound.toFixed(3)).join(", ")}]`;
  console.log(`${record.what}, LoRA on ${options.targets}, ${record.threads} threads, ${record.peer}`);
  console.log(line("seconds", result.seconds));
  console.log(line("processor seconds", result.cpuSeconds));
  console.log(`  losses ${losses.ours.toFixed(6)}, ${losses.theirs.toFixed(6)}`);
}

await main();
