import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { main as runMain } from "../../lib/cli/program.ts";

/** The root of the repository. */
export const repository = fileURLToPath(new URL("../..", import.meta.url));
/** The command line's source. */
export const mainFile = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunningCommand {
  /** Sends SIGINT, as Ctrl-C does. */
  interrupt(): void;
  /** Resolves when stderr holds a text; rejects when the command ends first. */
  said(text: string): Promise<void>;
  readonly ended: Promise<Outcome>;
}

/** Starts the command line from its sources; with `isRead` false nobody reads its output, as when `head` has gone. */
export function startCommand(words: readonly string[], isRead = true): RunningCommand {
  const child = spawn(process.execPath, ["--import", "tsx", mainFile, ...words], {
    cwd: repository,
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  if (!isRead) child.stdout.destroy();
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk.toString();
  });
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const ended = new Promise<Outcome>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr }));
  });
  const said = (text: string): Promise<void> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        if (stderr.includes(text)) resolve();
      };
      child.stderr.on("data", look);
      child.on("close", () => reject(new Error(`the command ended without saying "${text}": ${stderr}`)));
      look();
    });
  return { interrupt: () => child.kill("SIGINT"), said, ended };
}

/** Runs the command line to its end. */
export function runCommand(...words: string[]): Promise<Outcome> {
  return startCommand(words).ended;
}

/** Runs the command line in this process: for what ends before any work begins. */
export async function runHere(...words: string[]): Promise<Pick<Outcome, "code" | "stderr">> {
  let stderr = "";
  const code = await runMain(words, (text) => {
    stderr += text;
  });
  return { code, stderr };
}
