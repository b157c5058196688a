/**
 * `npm run test:cuda`: the repository's tests on a GPU. It fails, with the code of what is missing, where there is none.
 *
 *   npm run test:cuda                                   every part
 *   npm run test:cuda -- ops models                     some of them
 *   npm run test:cuda -- ops --grep attention           tests whose name holds a text
 *   npm run test:cuda -- ops --backend simt:apart       the same way on the emulator, for machines without a GPU
 *
 * Parts: ops (the table of cases and the invariance of rows), models (gradients of whole models beside the oracle), parity (PyTorch's
 * recorded results, through the library), quickstart (its pipeline, scaled down), ppo (stories260k learns), memcheck and racecheck (the table
 * of cases under compute-sanitizer, left out where it is not installed unless they are named). What has not ended after --minutes (8.5),
 * all parts together, has failed.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { messageOf } from "../../lib/errors.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** ".ts", or ".js" where the offline kit has compiled everything. */
const EXTENSION = import.meta.url.slice(-3);
const MOCHA = join(dirname(createRequire(import.meta.url).resolve("mocha/package.json")), "bin", "mocha.js");

interface Part {
  /** Test files without their extension, or a folder of them. */
  readonly files: readonly string[];
  readonly grep?: string;
  /** The tool of compute-sanitizer that it runs under. */
  readonly sanitizer?: string;
  /** Whether the library computes on the device, and not only the addon for tests. */
  readonly library?: true;
}

const OPS = ["test/ops/backends", "test/ops/invariance"];
const PARTS: Readonly<Record<string, Part>> = {
  ops: { files: [...OPS, "test/simt/contents", "test/simt/filled-device"] },
  models: { files: ["test/model/gradients"], grep: "CUDA kernels" },
  parity: { files: ["test/parity"], library: true },
  quickstart: { files: ["test/pipeline/quickstart.test"], grep: "quickstart's pipeline", library: true },
  ppo: { files: ["test/learning/happy-words.test"], grep: "PPO", library: true },
  memcheck: { files: OPS.slice(0, 1), sanitizer: "memcheck" },
  racecheck: { files: OPS.slice(0, 1), sanitizer: "racecheck" },
};

function testFiles(name: string): string[] {
  const path = join(ROOT, name);
  if (!existsSync(path)) return [name.endsWith(".test") ? path + EXTENSION : `${path}.test${EXTENSION}`];
  return readdirSync(path)
    .filter((file) => file.endsWith(`.test${EXTENSION}`))
    .sort()
    .map((file) => join(path, file));
}

/** compute-sanitizer on PATH or where CUDA is, if it is installed. */
function findSanitizer(): string | undefined {
  const { PATH = "", CUDA_HOME } = process.env;
  const folders = [
    ...PATH.split(delimiter),
    ...(CUDA_HOME ? [join(CUDA_HOME, "bin")] : []),
    "/usr/local/cuda/bin",
  ];
  return folders.map((folder) => join(folder, "compute-sanitizer")).find((path) => existsSync(path));
}

interface Settings {
  readonly backend: string;
  readonly grep?: string;
  /** When it is ended at the latest, in milliseconds of performance.now(). */
  readonly deadline: number;
}

/** Runs a part in a process of its own; true where every test of it passed. */
function runPart(part: Part, settings: Settings, sanitizer: string | undefined): boolean {
  const grep = settings.grep ?? part.grep;
  const loader = EXTENSION === ".ts" ? ["--import", "tsx"] : [];
  const mocha = [...loader, MOCHA, "--no-config", "--timeout", "480000", "--reporter", "dot", "--fail-zero"];
  const node = [...mocha, ...part.files.flatMap(testFiles), ...(grep ? ["--fgrep", grep] : [])];
  const checked = [
    "--tool",
    part.sanitizer ?? "",
    "--error-exitcode",
    "99",
    "--print-limit",
    "20",
    process.execPath,
  ];
  const [command, args] = sanitizer ? [sanitizer, [...checked, ...node]] : [process.execPath, node];
  const device = part.library ? { RLHF_TEST_DEVICE: "cuda" } : {};
  const run = spawnSync(command, args, {
    cwd: ROOT,
    stdio: "inherit",
    timeout: Math.max(1, Math.ceil(settings.deadline - performance.now())),
    env: { ...process.env, ...device, RLHF_TEST_BACKENDS: settings.backend },
  });
  if (run.signal) console.log(`ended by ${run.signal}${run.error ? ": its time was over (--minutes)" : ""}`);
  return run.status === 0;
}

/** The parts to run, those that were named or all that can be. */
function chosenParts(named: readonly string[], backend: string, sanitizer: string | undefined): string[] {
  const unknown = named.find((name) => !(name in PARTS));
  if (unknown) throw new Error(`no part "${unknown}"; there are ${Object.keys(PARTS).join(", ")}`);
  if (named.length > 0) return [...named];
  const onDevice = Object.keys(PARTS).filter((name) => backend === "cuda" || !PARTS[name]?.library);
  const can = onDevice.filter((name) => backend === "cuda" || !PARTS[name]?.sanitizer);
  if (sanitizer) return can;
  console.log("compute-sanitizer is not installed: memcheck and racecheck are left out");
  return can.filter((name) => !PARTS[name]?.sanitizer);
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      backend: { type: "string", default: "cuda" },
      grep: { type: "string" },
      minutes: { type: "string", default: "8.5" },
    },
  });
  const { backend, grep } = values;
  // Opens the device: without one nothing below could be a pass.
  const { kernels } = await import("../support/kernels.ts");
  const { name, model } = kernels.deviceLimits(backend);
  console.log(
    `${backend}: ${[name, model].filter(Boolean).join(", ")}; ${kernels.operators(backend).length} ops`,
  );
  const sanitizer = findSanitizer();
  const failed: string[] = [];
  const deadline = performance.now() + 60_000 * Number(values.minutes);
  for (const part of chosenParts(positionals, backend, sanitizer)) {
    const description = PARTS[part] as Part;
    if (description.sanitizer && !sanitizer) throw new Error("compute-sanitizer is not installed");
    const began = performance.now();
    console.log(`\n== ${part}`);
    const settings = { backend, deadline, ...(grep !== undefined && { grep }) };
    const passed = runPart(description, settings, description.sanitizer && sanitizer);
    console.log(
      `== ${part}: ${passed ? "passed" : "FAILED"}, ${((performance.now() - began) / 1000).toFixed(0)} s`,
    );
    if (!passed) failed.push(part);
  }
  console.log(failed.length > 0 ? `\nfailed: ${failed.join(", ")}` : "\nall parts passed");
  if (failed.length > 0) process.exitCode = 1;
}

main().catch((error: unknown) => {
  const code = error instanceof Error && "code" in error ? `${error.code}: ` : "";
  console.error(`test:cuda: ${code}${messageOf(error)}`);
  process.exitCode = 1;
});
