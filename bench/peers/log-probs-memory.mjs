/**
 * The most memory that a process takes for token log-probs with the package as a user has it: built, without a compiler of TypeScript.
 * Loads the model, measures each of the batches, and prints bytes. JavaScript, since nothing but the package may be loaded.
 *
 * usage: node bench/peers/log-probs-memory.mjs '{ "directory": "…", "load": { "threads": 2, … }, "batches": [[[1, 2, 3], …], …] }'
 */
import { CausalLM, packSequences } from "../../dist/index.js";

const { directory, load, batches } = JSON.parse(process.argv[2]);
const model = await CausalLM.load(directory, load);
for (const sequences of batches) {
  const pass = await model.forward(packSequences(sequences.map((tokens) => ({ tokens }))));
  await pass.logProb();
  pass.dispose();
}
console.log(1024 * process.resourceUsage().maxRSS);
