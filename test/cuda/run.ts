/**
 * `npm run test:cuda`: the repository's tests on a GPU. It fails, with the code of what is missing, where there is none.
 *
 *   npm run test:cuda                                   every part
 *   npm run test:cuda -- ops models                     some of them
 *   npm run test:cuda -- ops --grep attention           tests whose name holds a text
 *   npm run test:cuda -- ops --backend simt:apart       the same way on the emulator, for machines without a GPU
 *
 *   npm run test:cuda -- test/simt/filled-device.test   a file of tests
 *
 * Parts: ops (the table of cases, the invariance of rows and what single ops promise), hopper (what Hopper's own kernels take), models (gradients
 * of whole models beside the oracle), decoding (steps that are recorded and that are not), parity (PyTorch's recorded results, through the
 * library), memory (estimates, and what trainers copy), quickstart (its pipeline, scaled down), ppo (stories260k learns), memcheck and racecheck (the table of cases under
 * compute-sanitizer), memcheck-hopper and racecheck-hopper (Hopper's own kernels under it). Parts that cannot run here are left out unless they
 * are named; the last line then says so, and the exit code is 2. A test that fails is named at once. One that has not ended after --patience seconds, or that takes the process or the device along, has failed, and
 * those behind it are run by another process. What has not ended after --minutes (8.5), all parts together, has failed.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { messageOf } from "../../lib/errors.ts";
import { chosenParts, conclusionOf, type Part, partOf } from "./parts.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** ".ts", or ".js" where the offline kit has compiled everything. */
const EXTENSION = import.meta.url.slice(-3);
const MOCHA = join(dirname(createRequire(import.meta.url).resolve("mocha/package.json")), "bin", "mocha.js");

function testFiles(name: string): string[] {
  const path = join(ROOT, name);
  const file = [`${path}${EXTENSION}`, `${path}.test${EXTENSION}`].find((each) => existsSync(each));
  if (file) return [file];
  return readdirSync(path)
    .filter((each) => each.endsWith(`.test${EXTENSION}`))
    .sort()
    .map((each) => join(path, each));
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
  readonly patience?: number;
  /** When it is ended at the latest, in milliseconds of performance.now(). */
  readonly deadline: number;
}

const NAMES_CHECKED_EVERY = 200; // milliseconds

/** Ends a process, and its group where it leads one: a sanitizer would leave behind what it looks at. */
function end(child: ChildProcess, leadsGroup: boolean): boolean {
  if (!leadsGroup) return child.kill("SIGKILL");
  return child.pid !== undefined && process.kill(-child.pid, "SIGKILL");
}

/** Calls endIt when a process's time is over, or when its test has been the same for too long. */
function watch(endIt: () => boolean, begun: string, patience: number, deadline: number): NodeJS.Timeout {
  const size = statSync(begun).size;
  return setInterval(() => {
    const last = statSync(begun);
    const isOld = last.size > size && Date.now() - last.mtimeMs > 1000 * patience;
    const isTooLong = isOld && !readFileSync(begun, "utf8").endsWith("\n\n"); // which follows a test that has ended
    if (!isTooLong && performance.now() < deadline) return;
    const reason = isTooLong ? `its test takes more than ${patience} s` : "its time was over (--minutes)";
    if (endIt()) console.log(`\nended: ${reason}`);
  }, NAMES_CHECKED_EVERY);
}

/** Runs tests that have not begun yet in a process of their own; its exit code, or null where it was ended. */
async function runRest(
  part: Part,
  settings: Settings,
  sanitizer: string | undefined,
  begun: string,
): Promise<number | null> {
  const grep = settings.grep ?? part.grep;
  const loader = EXTENSION === ".ts" ? ["--import", "tsx"] : [];
  const options = ["--no-config", "--timeout", "480000", "--reporter", "dot", "--fail-zero"];
  const watched = ["--require", join(import.meta.dirname, `watched${EXTENSION}`)];
  const mocha = [...loader, MOCHA, ...options, ...watched];
  const node = [...mocha, ...part.files.flatMap(testFiles), ...(grep ? ["--fgrep", grep] : [])];
  const tool = ["--tool", part.sanitizer ?? "", "--error-exitcode", "99", "--print-limit", "20"];
  const [command, args] = sanitizer
    ? [sanitizer, [...tool, process.execPath, ...node]]
    : [process.execPath, node];
  const device = part.library ? { RLHF_TEST_DEVICE: "cuda" } : {};
  const child = spawn(command, args, {
    cwd: ROOT,
    stdio: "inherit",
    detached: sanitizer !== undefined,
    env: { ...process.env, ...device, RLHF_TEST_BACKENDS: settings.backend, RLHF_TESTS_BEGUN: begun },
  });
  const patience = settings.patience ?? part.patience ?? Number.POSITIVE_INFINITY;
  const timer = watch(() => end(child, sanitizer !== undefined), begun, patience, settings.deadline);
  try {
    const [code] = (await once(child, "exit")) as [number | null];
    return code;
  } finally {
    clearInterval(timer);
  }
}

/** Runs a part; true where every test of it passed. Where a test ends the process, another one goes on behind it. */
async function runPart(part: Part, settings: Settings, sanitizer: string | undefined): Promise<boolean> {
  const directory = mkdtempSync(join(tmpdir(), "rlhf-test-cuda-"));
  const begun = join(directory, "begun");
  writeFileSync(begun, "");
  try {
    for (let isWhole = true, before = ""; ; isWhole = false) {
      const code = await runRest(part, settings, sanitizer, begun);
      if (code !== null) return isWhole && code === 0;
      const names = readFileSync(begun, "utf8");
      console.log(`\nFAILED: ${names.trimEnd().split("\n").at(-1) || "no test had begun"}`);
      if (names === before || performance.now() >= settings.deadline) return false;
      before = names;
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      backend: { type: "string", default: "cuda" },
      grep: { type: "string" },
      minutes: { type: "string", default: "8.5" },
      patience: { type: "string" },
    },
  });
  const { backend, grep } = values;
  // Opens the device: without one nothing below could be a pass.
  const { kernels } = await import("../support/kernels.ts");
  const { name, model, computeCapability } = kernels.deviceLimits(backend);
  console.log(
    `${backend}: ${[name, model].filter(Boolean).join(", ")}; ${kernels.operators(backend).length} ops`,
  );
  const sanitizer = findSanitizer();
  const failed: string[] = [];
  const deadline = performance.now() + 60_000 * Number(values.minutes);
  const { parts, leftOut } = chosenParts(positionals, { backend, computeCapability, sanitizer });
  for (const part of parts) {
    const description = partOf(part) as Part;
    const began = performance.now();
    console.log(`\n== ${part}`);
    const patience = values.patience !== undefined && { patience: Number(values.patience) };
    const settings = { backend, deadline, ...(grep !== undefined && { grep }), ...patience };
    const passed = await runPart(description, settings, description.sanitizer && sanitizer);
    console.log(
      `== ${part}: ${passed ? "passed" : "FAILED"}, ${((performance.now() - began) / 1000).toFixed(0)} s`,
    );
    if (!passed) failed.push(part);
  }
  const { line, exitCode } = conclusionOf(failed, leftOut);
  console.log(`\n${line}`);
  process.exitCode = exitCode;
}

main().catch((error: unknown) => {
  const code = error instanceof Error && "code" in error ? `${error.code}: ` : "";
  console.error(`test:cuda: ${code}${messageOf(error)}`);
  process.exitCode = 1;
});
