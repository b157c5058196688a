import { Engine } from "../engine/engine.ts";
import { totalBytes } from "../engine/memory.ts";
import type { MemoryEstimate } from "../model/estimate-memory.ts";

/**
 * The memory of a run that trains a small network: what `run`, on an engine that only counts, makes that one hold, and what the trainer
 * keeps beside it: parameters, gradient and AdamW's moments, and as many bytes of arrays as `run` gives back.
 */
export function estimateFlatRun(
  engine: Engine,
  parameters: number,
  run: () => Promise<number>,
): Promise<MemoryEstimate> {
  return Engine.whilePlanning(engine.options, async (plan) => {
    const beside = await run();
    const { peak } = plan.memory();
    const weights = 4 * parameters;
    const arrays = peak.arrays + beside;
    const bytes = { ...peak, weights, gradients: weights, optimizer: 2 * weights, arrays };
    return { bytes, total: totalBytes(bytes) };
  });
}
