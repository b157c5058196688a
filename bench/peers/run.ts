/**
 * Everything of docs/PERFORMANCE.md's tables beside PyTorch, and the tables themselves, which are made from bench/results/PROCESSOR/peers-*.json.
 *
 *   npm run bench:peers                                     writes the tables anew
 *   npm run bench:peers -- all                              measures all of it first (about an hour; nothing else should run)
 *   npm run bench:peers -- dpo ppo-gpt2:bfloat16            measures works by name, in every type or in one
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { CausalLM } from "../../lib/index.ts";
import { MODELS } from "../end-to-end/works.ts";
import type { Compute } from "../ops/op-bench.ts";
import { COMMON_OPTIONS } from "./beside.ts";
import { withAllPeerTables } from "./table.ts";
import { argumentsOf, computesOf, type PeerWork, WORKS } from "./works.ts";

const DOCUMENT = fileURLToPath(new URL("../../docs/PERFORMANCE.md", import.meta.url));

interface Task {
  readonly work: PeerWork;
  readonly compute: Compute;
}

const everything: readonly Task[] = WORKS.flatMap((work) =>
  computesOf(work).map((compute) => ({ work, compute })),
);

/** What a name stands for: "all", a work, or a work in one type. */
function tasksOf(name: string): readonly Task[] {
  if (name === "all") return everything;
  const found = everything.filter(
    ({ work, compute }) => name === work.name || name === `${work.name}:${compute}`,
  );
  if (found.length === 0)
    throw new Error(`there is no work "${name}"; there are ${WORKS.map((work) => work.name).join(", ")}`);
  return found;
}

/** GPT-2 small with random weights, where both sides look for it. */
async function makeModel(): Promise<void> {
  const directory = COMMON_OPTIONS["model-dir"].default;
  if (existsSync(directory)) return;
  using model = await CausalLM.create(MODELS["gpt2"]!, { device: "cpu", seed: 0 });
  await model.save(directory);
}

function measure({ work, compute }: Task): void {
  const script = fileURLToPath(new URL(work.script, import.meta.url));
  console.log(`\n${work.name}:${compute}`);
  const { status } = spawnSync(process.execPath, ["--import", "tsx", script, ...argumentsOf(work, compute)], {
    stdio: "inherit",
  });
  if (status === 0) return;
  process.exitCode = 1;
  console.error(`${work.name}:${compute} failed; its row stays as it was`);
}

const tasks = process.argv.slice(2).flatMap(tasksOf);
if (tasks.length > 0) await makeModel();
for (const task of tasks) measure(task);
writeFileSync(DOCUMENT, withAllPeerTables(readFileSync(DOCUMENT, "utf8")));
console.log(`${DOCUMENT}: table written`);
