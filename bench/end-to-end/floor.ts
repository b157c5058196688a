import type { ModelConfig } from "../../lib/engine/native.ts";
import type { HfConfig } from "../../lib/model/config.ts";
import type { Compute } from "../ops/op-bench.ts";

/** Operations and bytes that one op of a pass cannot do without. */
export interface Operation {
  readonly flops: number;
  readonly bytes: number;
  /** A product with a weight, which `compute: "bfloat16"` is for; attention's products are float32. */
  readonly ofWeight?: boolean;
}

/** What the machine reaches: operations a second by type, bytes a second. */
export interface Machine {
  readonly peak: Readonly<Record<Compute, number>>;
  readonly bandwidth: number;
}

/** Sizes of a model, and of a linear layer's weights [outputs, inputs] of each layer. */
export interface Shape
  extends Pick<
    ModelConfig,
    "layers" | "hidden" | "heads" | "kvHeads" | "headDim" | "intermediate" | "vocab"
  > {
  readonly gated: boolean;
  readonly linears: readonly (readonly [outputs: number, inputs: number])[];
}

export function shapeOf(config: HfConfig): Shape {
  const gated = config["model_type"] !== "gpt2";
  const at = (...names: string[]): number => Number(names.map((name) => config[name]).find((n) => n));
  const hidden = at("hidden_size", "n_embd");
  const heads = at("num_attention_heads", "n_head");
  const kvHeads = gated ? at("num_key_value_heads", "num_attention_heads") : heads;
  const headDim = hidden / heads;
  const intermediate = gated ? at("intermediate_size") : 4 * hidden;
  const attention: [number, number][] = [
    [(heads + 2 * kvHeads) * headDim, hidden],
    [hidden, heads * headDim],
  ];
  const mlp: [number, number][] = [
    [(gated ? 2 : 1) * intermediate, hidden],
    [hidden, intermediate],
  ];
  return {
    ...{ layers: at("num_hidden_layers", "n_layer"), hidden, heads, kvHeads, headDim, intermediate, gated },
    ...{ vocab: at("vocab_size"), linears: [...attention, ...mlp] },
  };
}

/** Weights of the layers and the head; what norms and biases have is left out. */
export function weightCount({ layers, linears, vocab, hidden }: Shape): number {
  return layers * linears.reduce((sum, [m, k]) => sum + m * k, 0) + vocab * hidden;
}

/** Rank r on every linear layer of the layers. Fused layers have an adapter for each part: at least one A is counted. */
export function adapterCount({ layers, linears }: Shape, rank: number): number {
  return layers * linears.reduce((sum, [m, k]) => sum + rank * (m + k), 0);
}

/** A packed batch and what is done with it. */
export interface PassWork {
  readonly lengths: readonly number[];
  /** Tokens of a shared prompt that each sequence continues; 0 if left out. */
  readonly contexts?: readonly number[];
  /** Tokens whose log-prob is wanted; 0 leaves the head out. */
  readonly predictions: number;
  readonly rank: number;
  readonly compute: Compute;
  /** What is trained; "none" has no backward pass. */
  readonly trained: "none" | "adapter" | "all";
}

const FLOAT = 4;
const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
const repeat = (count: number, operations: Operation[]): Operation[] =>
  Array.from({ length: count }, () => operations).flat();
const moves = (floats: number): Operation => ({ flops: 0, bytes: FLOAT * floats });

/** Bytes of a weight as products read it: frozen ones are packed in what they are computed in. */
const weightBytes = (elements: number, { compute, trained }: Pick<PassWork, "compute" | "trained">): number =>
  elements * (compute === "bfloat16" && trained !== "all" ? 2 : FLOAT);

function linearForward(tokens: number, m: number, k: number, work: PassWork): Operation {
  const flops = 2 * tokens * (m * k + work.rank * (m + k));
  return { flops, bytes: weightBytes(m * k, work) + FLOAT * tokens * (m + k), ofWeight: true };
}

/** dx, then the gradients of the factors or of the weight. */
function linearBackward(tokens: number, m: number, k: number, work: PassWork): Operation[] {
  const dx = linearForward(tokens, m, k, work);
  if (work.trained === "all") {
    const bytes = FLOAT * (tokens * (m + k) + 2 * m * k);
    return [dx, { flops: 2 * tokens * m * k, bytes, ofWeight: true }];
  }
  return [dx, { flops: 2 * tokens * work.rank * (m + k), bytes: FLOAT * tokens * (m + k), ofWeight: true }];
}

/** Scores and the sum of values, of the pairs that see each other. */
function attentionForward({ lengths, contexts = [] }: PassWork, shape: Shape): Operation {
  const { heads, kvHeads, headDim } = shape;
  const pairs = sum(lengths.map((length, s) => (length * (length + 1)) / 2 + length * (contexts[s] ?? 0)));
  return {
    flops: 4 * pairs * heads * headDim,
    bytes: FLOAT * sum(lengths) * 2 * (heads + kvHeads) * headDim,
  };
}

/** A forward pass, and with `trained` the backward pass after it. */
export function passOperations(shape: Shape, work: PassWork): Operation[] {
  const { layers, hidden, intermediate, gated, vocab, linears } = shape;
  const tokens = sum(work.lengths);
  const attention = attentionForward(work, shape);
  const layer = [
    ...linears.map(([m, k]) => linearForward(tokens, m, k, work)),
    ...[attention, moves(4 * tokens * hidden)],
    ...(gated ? [moves(3 * tokens * intermediate)] : []),
  ];
  const head = linearForward(work.predictions, vocab, hidden, { ...work, rank: 0 });
  // Logits need not be written: statistics are taken as they come.
  const headOnce = { ...head, bytes: head.bytes - FLOAT * work.predictions * vocab };
  const forward = [...repeat(layers, layer), moves(2 * tokens * hidden)];
  if (work.predictions > 0) forward.push(headOnce);
  if (work.trained === "none") return forward;
  const layerBackward = [
    ...linears.flatMap(([m, k]) => linearBackward(tokens, m, k, work)),
    { flops: 2.5 * attention.flops, bytes: 2.5 * attention.bytes },
    moves(6 * tokens * hidden),
    moves((gated ? 5 : 3) * tokens * intermediate),
  ];
  const headBackward =
    work.predictions > 0 ? linearBackward(work.predictions, vocab, hidden, { ...work, rank: 0 }) : [];
  // Logits are kept or computed again, whichever costs less: here they are kept, written once and read once.
  const kept = work.predictions > 0 ? [moves(work.predictions * vocab)] : [];
  return [...forward, ...repeat(layers, layerBackward), ...kept, ...headBackward];
}

/** AdamW: gradient, parameter and two moments are read, the last three and the zeroed gradient written. */
export const optimizerOperations = (parameters: number): Operation[] => [moves(8 * parameters)];

/** A prompt's pass for each sequence, then one token for each at a time. */
export function generationOperations(
  shape: Shape,
  batch: number,
  prompt: number,
  newTokens: number,
  work: Pick<PassWork, "compute" | "rank">,
): Operation[] {
  const { layers, heads, kvHeads, headDim, vocab, hidden, linears } = shape;
  const decoding: PassWork = { ...work, lengths: [], predictions: batch, trained: "none" };
  const operations = passOperations(shape, { ...decoding, lengths: new Array<number>(batch).fill(prompt) });
  for (let step = 1; step < newTokens; step++) {
    const seen = batch * (prompt + step);
    const attention = { flops: 4 * seen * heads * headDim, bytes: FLOAT * 2 * seen * kvHeads * headDim };
    const layer = [...linears.map(([m, k]) => linearForward(batch, m, k, decoding)), attention];
    operations.push(...repeat(layers, layer), linearForward(batch, vocab, hidden, { ...decoding, rank: 0 }));
  }
  return operations;
}

/** Σ max(FLOP / peak, bytes / bandwidth): the least seconds that the operations take one after another. */
export function floorOf(operations: readonly Operation[], compute: Compute, machine: Machine): number {
  return sum(
    operations.map(({ flops, bytes, ofWeight }) =>
      Math.max(flops / machine.peak[ofWeight ? compute : "float32"], bytes / machine.bandwidth),
    ),
  );
}
