import { uniformArray } from "../ops/op-bench.ts";
import { BFLOAT16, bfloat16Array, type CudaBench } from "./cuda-bench.ts";

// The ops that go through the vocabulary: a head's logits, and what is made of them.

/** A head's sizes; all rows but the last predict. */
interface Head {
  readonly rows: number;
  readonly cols: number;
  readonly vocab: number;
}

const productOf = ({ rows, cols, vocab }: Head): number => 2 * (rows - 1) * cols * vocab;

const tokensOf = (rows: number, vocab: number): Int32Array =>
  Int32Array.from({ length: rows }, (_, n) => (n * 7919) % vocab);

function headArguments({ rows, cols, vocab }: Head) {
  return {
    ...{ ...BFLOAT16, rows, cols, vocab, count: rows - 1, temperature: 1 },
    predictions: Int32Array.from({ length: rows - 1 }, (_, p) => p + 1),
    sources: Int32Array.from({ length: rows - 1 }, (_, p) => p),
    ...{ x: bfloat16Array(rows * cols), weight: bfloat16Array(vocab * cols, 0.02) },
    // With this the probabilities are neither all 0 nor infinite.
    lse: new Float32Array(rows).fill(Math.log(vocab)),
  };
}

/** Log-probs of the next tokens, whose logits need not stand in memory. */
function tokenLogProb({ rows, cols, vocab }: Head): CudaBench[] {
  const shared = () => ({
    ...headArguments({ rows, cols, vocab }),
    ...{ tokens: tokensOf(rows, vocab), entropy: new Float32Array(rows) },
  });
  const product = productOf({ rows, cols, vocab });
  const label = `${rows - 1}×${cols}×${vocab}`;
  const size = { rows, cols, vocab };
  return [
    {
      ...{
        op: "tokenLogProbForward",
        label,
        flops: product,
        ownKernelsFor: 90,
        peer: { kind: "logProb", ...size },
      },
      args: () => ({ ...shared(), logProb: new Float32Array(rows) }),
    },
    {
      ...{
        op: "tokenLogProbBackward",
        label: `${label}, dx`,
        flops: 2 * product,
        ownKernelsFor: 90,
        updated: ["dx"],
      },
      args: () => ({ ...shared(), dLogProb: uniformArray(rows), dx: bfloat16Array(rows * cols) }),
      peer: { kind: "logProbBackward", ...size },
    },
  ];
}

/** Predictions whose logits stand at a time. */
const LOSS_BLOCK = 1024;

/** The likelihood's loss inside the vocabulary's pass: logits, dx and dW are three products. */
function tokenLoss(head: Head): CudaBench {
  const { rows, cols, vocab } = head;
  const blockRows = Math.min(LOSS_BLOCK, rows - 1);
  return {
    ...{
      op: "tokenLossForwardBackward",
      label: `${rows - 1}×${cols}×${vocab}, dx and dW`,
      ownKernelsFor: 90,
    },
    ...{ flops: 3 * productOf(head), bytes: { logits: 0 }, updated: ["dx", "dWeight"] },
    args: () => ({
      ...{ ...headArguments(head), tokens: tokensOf(rows, vocab), kind: 0, scale: 1 / rows, blockRows },
      ...{ tokenWeight: uniformArray(rows), logProb: uniformArray(rows), entropy: uniformArray(rows) },
      ...{
        dLogProb: uniformArray(rows),
        stats: new Float32Array(2),
        logits: uniformArray(blockRows * vocab),
      },
      ...{ dx: bfloat16Array(rows * cols), dWeight: uniformArray(vocab * cols) },
    }),
  };
}

/** Two products forward, the policy's logits and the reference's, and a third backward. */
function klDivergence(head: Head): CudaBench[] {
  const { rows, cols, vocab } = head;
  const forward = () => {
    const args = headArguments(head);
    return {
      ...{ ...args, refCols: cols, refWeightType: "bfloat16", refCompute: "bfloat16", refLse: args.lse },
      ...{ refX: bfloat16Array(rows * cols), refWeight: bfloat16Array(vocab * cols, 0.02) },
      kl: uniformArray(rows),
    };
  };
  const backward = () => ({ ...forward(), dKl: uniformArray(rows), dx: bfloat16Array(rows * cols) });
  const label = `${rows - 1}×${cols}×${vocab}, reverse`;
  const [ahead, back] = [2 * productOf(head), 3 * productOf(head)];
  return [
    { op: "klDivergenceForward", label, flops: ahead, args: forward, ownKernelsFor: 90 },
    {
      ...{
        op: "klDivergenceBackward",
        label: `${label}, dx`,
        flops: back,
        args: backward,
        ownKernelsFor: 90,
      },
      updated: ["dx"],
    },
  ];
}

/** Draws from distributions as sharp as those of models. */
function draw(rows: number, vocab: number, label: string, settings: object): CudaBench {
  return {
    ...{ op: "sample", label: `${rows}×${vocab}, ${label}` },
    args: () => ({
      ...{ type: "float32", rows, vocab, temperature: 1, seed: 1n, ...settings },
      ...{ streams: new BigInt64Array(rows), positions: new Int32Array(rows) },
      logits: uniformArray(rows * vocab).map((x) => 12 * x ** 3),
      ...{ token: new Int32Array(rows), logProb: new Float32Array(rows) },
    }),
  };
}

const DRAWN_ROWS = 64;

export function headBenches(rows: number, cols: number, vocab: number): CudaBench[] {
  const head = { rows, cols, vocab };
  return [
    ...tokenLogProb(head),
    tokenLoss(head),
    ...klDivergence(head),
    draw(DRAWN_ROWS, vocab, "greedy", { temperature: 0 }),
    draw(DRAWN_ROWS, vocab, "temperature 1", {}),
    draw(DRAWN_ROWS, vocab, "top-k 50", { topK: 50 }),
    draw(DRAWN_ROWS, vocab, "top-p 0.9", { topP: 0.9 }),
  ];
}
