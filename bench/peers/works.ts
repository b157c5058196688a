import type { Compute } from "../ops/op-bench.ts";

export interface Aim {
  /** Least ratio of times, PyTorch as it is installed / node-rlhf. */
  readonly installed: number;
  /** The same beside PyTorch at its best. */
  readonly tuned?: number;
  /** Least ratio of peak memory, to both. */
  readonly memory?: number;
  /** Least share of what the memory's bandwidth allows. */
  readonly bandwidth?: number;
}

/** A work that is measured beside PyTorch, in everything that its products are computed in. */
export interface PeerWork {
  /** On the command line, and in the table. */
  readonly name: string;
  readonly title: string;
  /** In bench/peers/, with arguments of its own. */
  readonly script: string;
  readonly args?: readonly string[];
  /** What its result is called, bench/results/PROCESSOR/peers-NAME.json. */
  readonly result: (compute: Compute) => string;
  /** How often it is run in each compute; what is not named is not measured. */
  readonly pairs: Readonly<Partial<Record<Compute, number>>>;
  /** Beside OPPONENTS. */
  readonly moreOpponents?: Readonly<Partial<Record<Compute, readonly string[]>>>;
  readonly aim: Aim;
}

/** PyTorch by what ours computes in: it has nothing between float32 and bfloat16. */
const OPPONENTS: Readonly<Record<Compute, readonly string[]>> = {
  float32: ["float32", "float32+tcmalloc"],
  bfloat16x3: ["float32", "float32+tcmalloc"],
  bfloat16: ["bfloat16", "bfloat16+tcmalloc"],
};

const training = (trained: "full" | "lora-all") => (compute: Compute) =>
  `training-${trained}-${compute}-2-threads`;

const generation = (batch: number, pairs: number, aim: Aim): PeerWork => ({
  name: `generation-${batch}`,
  title: `generation, 64 + 128 tokens, batch ${batch}`,
  script: "generation.ts",
  args: ["--batch", String(batch)],
  result: (compute) => `generation-gpt2-${compute}-batch-${batch}-2-threads`,
  pairs: { float32: pairs, bfloat16x3: pairs, bfloat16: pairs },
  aim,
});

const logProbs = (sequences: number, length: number, pairs: PeerWork["pairs"]): PeerWork => ({
  name: `log-probs-${sequences}x${length}`,
  title: `token log-probs, forward only, ${sequences} × ${length} tokens`,
  script: "log-probs.ts",
  args: ["--sequences", String(sequences), "--length", String(length)],
  result: (compute) => `log-probs-${sequences}x${length}-${compute}-2-threads`,
  pairs,
  aim: { installed: 1.4, tuned: 1.2, memory: 3 },
});

/** In the order of the table. */
export const WORKS: readonly PeerWork[] = [
  {
    name: "training-lora",
    title: "LoRA r 16 on all linears, forward + backward, 4 × 256 tokens",
    script: "gpt2-lora.ts",
    result: training("lora-all"),
    pairs: { float32: 4, bfloat16x3: 4, bfloat16: 4 },
    moreOpponents: {
      float32: ["float32+tcmalloc+compile"],
      bfloat16x3: ["float32+tcmalloc+compile"],
      bfloat16: ["autocast+tcmalloc"],
    },
    aim: { installed: 1.5, tuned: 1.2 },
  },
  {
    name: "training-full",
    title: "all weights, forward + backward, 4 × 256 tokens",
    script: "gpt2-lora.ts",
    args: ["--targets", "none"],
    result: training("full"),
    pairs: { float32: 4, bfloat16x3: 4, bfloat16: 4 },
    aim: { installed: 1.4, tuned: 1.15 },
  },
  logProbs(4, 256, { float32: 4, bfloat16x3: 4, bfloat16: 4 }),
  logProbs(2, 1024, { float32: 3, bfloat16: 3 }),
  generation(1, 3, { installed: 2.3, bandwidth: 0.75 }),
  generation(8, 3, { installed: 4 }),
  generation(32, 2, { installed: 3.5 }),
  {
    name: "generation-stories260k",
    title: "generation with stories260k, batch 1",
    script: "generation.ts",
    args: ["--name", "stories260k", "--vocabulary", "512", "--model-dir", "../shared/models/stories260k"],
    result: (compute) => `generation-stories260k-${compute}-batch-1-2-threads`,
    pairs: { float32: 7 },
    aim: { installed: 20 },
  },
  {
    name: "dpo",
    title: "DPO step with LoRA r 16, 4 pairs of 128 + 2 × 128 tokens, shared prompts, beside TRL",
    script: "dpo.ts",
    result: (compute) => `dpo-lora-${compute}-2-threads`,
    pairs: { float32: 3, bfloat16x3: 3 },
    aim: { installed: 2 },
  },
  {
    name: "ppo-stories260k",
    title:
      "PPO iteration, stories260k, 64 answers of 48 tokens, 4 epochs × 2, all weights, beside tools/plain-ppo.py",
    script: "ppo.ts",
    result: (compute) => `ppo-stories260k-64x48-${compute}-2-threads`,
    pairs: { float32: 5 },
    aim: { installed: 8 },
  },
  {
    name: "ppo-gpt2",
    title: "PPO iteration, 16 × (64 + 64) tokens, LoRA, 4 epochs × 1, beside plain PyTorch",
    script: "ppo-gpt2.ts",
    result: (compute) => `ppo-gpt2-${compute}-2-threads`,
    pairs: { float32: 2, bfloat16x3: 3, bfloat16: 2 },
    aim: { installed: 2.5, memory: 3 },
  },
  {
    name: "ppo-gpt2-saving-memory",
    title: "the same with weights kept in bfloat16 and 1,024 tokens a pass",
    script: "ppo-gpt2.ts",
    args: ["--dtype", "bfloat16", "--micro-batch-tokens", "1024"],
    result: (compute) => `ppo-gpt2-${compute}-2-threads-saving-memory`,
    pairs: { bfloat16: 2 },
    aim: { installed: 2.5, memory: 3 },
  },
  {
    name: "ppo-gpt2-memory-budget",
    title: "the same in float32 with a memory budget of 1,200 MiB and 1,024 tokens a pass",
    script: "ppo-gpt2.ts",
    args: ["--memory-budget", "1200 MiB", "--micro-batch-tokens", "1024"],
    result: (compute) => `ppo-gpt2-${compute}-2-threads-memory-budget`,
    pairs: { float32: 2 },
    aim: { installed: 2.5, memory: 3 },
  },
];

export const computesOf = ({ pairs }: PeerWork): Compute[] => Object.keys(pairs) as Compute[];

/** Arguments of the work's script beside those that both sides share. */
export function argumentsOf(work: PeerWork, compute: Compute): string[] {
  const { args = [], pairs, moreOpponents } = work;
  const opponents = [...OPPONENTS[compute], ...(moreOpponents?.[compute] ?? [])];
  return [
    ...args,
    "--compute",
    compute,
    "--pairs",
    String(pairs[compute]),
    "--opponents",
    opponents.join(","),
  ];
}
