/**
 * What packAnswers saves on preference pairs: forward and backward of a random model of GPT-2 small's widths, with each prompt once
 * or with a copy for each of its two answers. Both are run in turn. Times are medians, on the clock and of the processor; the
 * processor's also holds on a machine that does other work.
 *
 *   npm run bench -- shared-prompts --threads 1
 */
import { parseArgs } from "node:util";
import { CausalLM, type PackedBatch, packAnswers, packSequences, Random } from "../lib/index.ts";

const { values } = parseArgs({
  options: {
    threads: { type: "string", default: "1" },
    layers: { type: "string", default: "4" },
    runs: { type: "string", default: "3" },
  },
});
const PAIRS = 2;
const ANSWER = 48;
const VOCAB = 50_257;
const config = {
  model_type: "gpt2",
  n_layer: Number(values.layers),
  n_embd: 768,
  n_head: 12,
  n_positions: 1024,
  vocab_size: VOCAB,
};
const random = new Random(1, "shared prompts");
const tokens = (length: number): Int32Array => Int32Array.from({ length }, () => random.integer(VOCAB));

interface Seconds {
  readonly clock: number;
  readonly processor: number;
}

/** Times a forward and a backward pass over the answers' log-probs. */
async function step(model: CausalLM, batch: PackedBatch): Promise<Seconds> {
  const [start, used] = [performance.now(), process.cpuUsage()];
  const pass = await model.forward(batch, { grad: true, predict: "masked" });
  await pass.logProb();
  await pass.backward({ dLogProb: batch.mask });
  const { user, system } = process.cpuUsage(used);
  return { clock: (performance.now() - start) / 1e3, processor: (user + system) / 1e6 };
}

/** "slow → fast s (ratio×)" of medians. */
function compare(slow: Seconds[], fast: Seconds[], kind: keyof Seconds): string {
  const median = (times: Seconds[]): number =>
    times.map((time) => time[kind]).sort((a, b) => a - b)[times.length >> 1] as number;
  return `${kind} ${median(slow).toFixed(2)} → ${median(fast).toFixed(2)} s (${(median(slow) / median(fast)).toFixed(2)}×)`;
}

const create = () =>
  CausalLM.create(config, { device: "cpu", threads: Number(values.threads), trainable: "all" });
using copying = await create();
using sharing = await create();
const MiB = (model: CausalLM): number => (model.memory()["activations"] as number) / 2 ** 20;

console.log(
  `${PAIRS} pairs, answers of ${ANSWER} tokens, ${config.n_layer} layers, ${values.threads} thread(s)`,
);
for (const ratio of [1, 2, 4, 8]) {
  const prompts = Array.from({ length: PAIRS }, () => ({
    prompt: tokens(ratio * ANSWER),
    answers: [tokens(ANSWER), tokens(ANSWER)],
  }));
  const shared = packAnswers(prompts);
  const copies = packSequences(
    prompts.flatMap(({ prompt, answers }) =>
      answers.map((answer) => ({
        tokens: Int32Array.of(...prompt, ...answer),
        promptLength: prompt.length,
      })),
    ),
  );
  await step(copying, copies);
  await step(sharing, shared);
  const times: { copies: Seconds[]; shared: Seconds[] } = { copies: [], shared: [] };
  for (let run = 0; run < Number(values.runs); run++) {
    times.copies.push(await step(copying, copies));
    times.shared.push(await step(sharing, shared));
  }
  console.log(
    `prompt:answer ${ratio}:1  tokens ${copies.tokens.length} → ${shared.tokens.length}` +
      `  ${compare(times.copies, times.shared, "processor")}  ${compare(times.copies, times.shared, "clock")}` +
      `  activations ${MiB(copying).toFixed(0)} → ${MiB(sharing).toFixed(0)} MiB (${(MiB(copying) / MiB(sharing)).toFixed(2)}×)`,
  );
}
