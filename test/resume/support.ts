import { type ChildProcess, spawn } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { readMetrics } from "../../lib/index.ts";

const CHILD = fileURLToPath(new URL("child.ts", import.meta.url));

export type Algorithm = "sft" | "dpo" | "ppo" | "grpo" | "environment";

/** How a child ended, and what it told. */
export interface ChildRun {
  readonly signal: NodeJS.Signals | null;
  readonly code: number | null;
  /** Steps, and calls that change files. */
  readonly events: readonly string[];
  readonly done: boolean;
  readonly error: { readonly code: string; readonly message: string } | null;
  /** Responses by phase, step and prompt. */
  readonly rollouts: ReadonlyMap<string, string>;
  readonly stderr: string;
}

export interface ChildOptions {
  /** The child ends itself in place of this event. */
  readonly killAt?: number;
  /** The child is killed from here when this event was told, so many milliseconds later. */
  readonly killAfter?: { readonly event: number; readonly milliseconds: number };
  /** Called with the child when it has told this event. */
  readonly after?: { readonly event: string; readonly act: (child: ChildProcess) => void };
  /** Most bytes of a file, in units of 512; writes beyond fail with EFBIG. */
  readonly fileBlocks?: number;
}

/** Runs test/resume/child.ts to its end, whichever that is. */
export async function runChild(
  algorithm: Algorithm,
  outputDir: string,
  options: ChildOptions = {},
): Promise<ChildRun> {
  const { killAt, killAfter, after, fileBlocks } = options;
  const command = [process.execPath, "--import", "tsx", CHILD, algorithm, outputDir];
  // POSIX has the limit in units of 512 bytes; exec keeps the process's id.
  const limited = ["-c", `ulimit -f ${fileBlocks} && exec "$@"`, "sh", ...command];
  const [program, args] =
    fileBlocks === undefined ? [command[0] as string, command.slice(1)] : ["sh", limited];
  const env = { ...process.env, ...(killAt === undefined ? {} : { KILL_AT: String(killAt) }) };
  const child = spawn(program, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  const ended = new Promise<[number | null, NodeJS.Signals | null]>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code, signal) => resolve([code, signal]));
  });
  let stderr = "";
  child.stderr.on("data", (data) => {
    stderr += data;
  });
  const events: string[] = [];
  let [done, error] = [false, null];
  const rollouts = new Map<string, string>();
  for await (const line of createInterface({ input: child.stdout })) {
    const [what, text] = [line.slice(0, line.indexOf(" ")), line.slice(line.indexOf(" ") + 1)];
    if (line === "done") done = true;
    else if (what === "error") error = JSON.parse(text);
    else if (what === "event") {
      if (events.push(text) === killAfter?.event)
        setTimeout(() => child.kill("SIGKILL"), killAfter.milliseconds);
      if (text === after?.event) after.act(child);
    } else if (what === "rollout" && text.endsWith("]")) {
      const [phase, step, prompt, response] = JSON.parse(text);
      rollouts.set(JSON.stringify([phase, step, prompt]), response);
    }
  }
  const [code, signal] = await ended;
  return { signal, code, events, done, error, rollouts, stderr };
}

/** All files below a directory with their bytes in hexadecimal; of metrics everything but the speed. */
export async function contentsOf(directory: string): Promise<Map<string, unknown>> {
  const contents = new Map<string, unknown>();
  const entries = await readdir(directory, { withFileTypes: true, recursive: true });
  for (const entry of entries.filter((each) => each.isFile())) {
    const path = join(entry.parentPath, entry.name);
    const metrics = entry.name === "metrics.jsonl";
    contents.set(
      relative(directory, path),
      metrics ? metricsOf(path) : (await readFile(path)).toString("hex"),
    );
  }
  return new Map([...contents].sort(([a], [b]) => (a < b ? -1 : 1)));
}

function metricsOf(file: string): unknown[] {
  return readMetrics(file).map(({ step, metrics }) => {
    const { "tokens/s": _speed, ...others } = metrics;
    return { step, ...others };
  });
}
