import { createHash } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { CausalLM } from "./causal-lm.ts";

/** Elements to hash between two turns of the event loop: some milliseconds. */
const ELEMENTS_PER_TURN = 4_000_000;

/** SHA-256 of a model's configuration and its parameters' names and values; with `groups`, only of those groups' parameters. */
export async function hashModel(model: CausalLM, groups?: readonly string[]): Promise<string> {
  const hash = createHash("sha256").update(JSON.stringify(model.config));
  const { compute } = model.engine.info;
  if (compute !== "float32") hash.update(compute);
  for (const { name, group } of model.parameters()) {
    if (groups && !groups.includes(group)) continue;
    const values = await model.readParameter(name);
    hash.update(`${name}\0${values.length}\0`);
    for (let start = 0; start < values.length; start += ELEMENTS_PER_TURN) {
      hash.update(values.subarray(start, start + ELEMENTS_PER_TURN));
      await nextTurn();
    }
  }
  return hash.digest("hex");
}
