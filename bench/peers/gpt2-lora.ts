/**
 * Forward + backward of a GPT-2-small shape (12 layers, 768 wide, vocabulary 50,257) on 4 × 256 tokens, in float32, or with matrix
 * products in bfloat16: node-rlhf beside PyTorch, in turn. Writes bench/results/PROCESSOR/peers-training-*.json.
 *
 * usage: tsx bench/peers/gpt2-lora.ts [--targets attention|all|none] [--compute float32|bfloat16x3|bfloat16] [--pairs 5] [--threads 2]
 *   [--opponents float32,float32+tcmalloc,autocast,bfloat16+tcmalloc+compile,…]
 */
import { parseArgs } from "node:util";
import { CausalLM, packSequences } from "../../lib/index.ts";
import { besidePeers, COMMON_OPTIONS, computeOf, randomTokens, timed } from "./beside.ts";
import type { Timing } from "./paired.ts";

const SEQUENCES = 4;
const LENGTH = 256;
const TARGETS: Record<string, string[]> = { attention: ["c_attn"], all: ["c_attn", "c_proj", "c_fc"] };

const { values: options } = parseArgs({
  options: { ...COMMON_OPTIONS, targets: { type: "string", default: "all" } },
});

/** What our trainers do of one forward and backward with the peer's loss: mean negative log-likelihood of predicted tokens. */
async function ourStep(
  model: CausalLM,
  adapter: string | undefined,
  sequences: number[][],
): Promise<Timing & { loss: number }> {
  const batch = packSequences(sequences.map((row) => ({ tokens: row })));
  const predicted = SEQUENCES * (LENGTH - 1);
  const loss = { kind: "nll", weight: batch.mask, scale: 1 / predicted } as const;
  const { result, ...timing } = await timed(async () => {
    using pass = await model.forwardBackward(batch, loss, { adapter });
    return pass.stats.loss;
  });
  return { ...timing, loss: result / predicted };
}

/** The model, in one of the types that its frozen weights can be kept in. */
async function load(dtype: "float32" | "bfloat16", adapter: string | undefined): Promise<CausalLM> {
  const model = await CausalLM.load(options["model-dir"], {
    device: "cpu",
    threads: Number(options.threads),
    compute: computeOf(options),
    trainable: adapter === undefined ? "all" : "none",
    dtype,
  });
  if (adapter !== undefined)
    model.addAdapter(adapter, { r: 16, alpha: 32, targetModules: TARGETS[options.targets]! });
  return model;
}

const adapter = options.targets === "none" ? undefined : "policy";
/** Ours; with a frozen base in bfloat16 also with its weights kept so. */
const models = new Map([["ours", await load("float32", adapter)]]);
if (adapter !== undefined && options.compute === "bfloat16")
  models.set("ours, weights kept in bfloat16", await load("bfloat16", adapter));
const what = adapter === undefined ? "all weights" : `LoRA r 16 on ${TARGETS[options.targets]}`;
await besidePeers(
  {
    name: `training-${adapter === undefined ? "full" : `lora-${options.targets}`}-${options.compute}-${options.threads}-threads`,
    what: `GPT-2 124M, forward + backward, 4 x 256 tokens, ${what}, ours ${options.compute}`,
    script: "gpt2_lora.py",
    args: ["--targets", options.targets],
    ours: new Map(
      [...models].map(([name, model]) => [
        name,
        (round) => ourStep(model, adapter, randomTokens(round, SEQUENCES, LENGTH)),
      ]),
    ),
    request: (round) => ({ tokens: randomTokens(round, SEQUENCES, LENGTH) }),
  },
  options,
);
for (const model of models.values()) model.dispose();
