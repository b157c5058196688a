import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface, type Interface } from "node:readline";
import { fileURLToPath } from "node:url";

/** The Python of ../shared/tools/peer-venv.sh; PEER_PYTHON names another. */
export const PYTHON = process.env["PEER_PYTHON"] ?? "/tmp/peers/bin/python";

/** A long-lived Python process that answers every JSON line with a JSON line. */
export class Peer implements AsyncDisposable {
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #reader: Interface;

  /** `script` lies beside this file, or where a path from here says. */
  constructor(
    script: string,
    args: readonly string[],
    environment: Record<string, string> = {},
    python: string = PYTHON,
  ) {
    const path = fileURLToPath(new URL(script, import.meta.url));
    this.#process = spawn(python, [path, ...args], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, ...environment },
    });
    this.#reader = createInterface({ input: this.#process.stdout! });
    this.#lines = this.#reader[Symbol.asyncIterator]();
  }

  /** The next line it prints. */
  async read<T>(): Promise<T> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error("the Python process ended early; its message stands above");
    return JSON.parse(value) as T;
  }

  /** Sends a line that has no answer. */
  tell(message: unknown): void {
    this.#process.stdin!.write(`${JSON.stringify(message)}\n`);
  }

  async ask<T>(request: unknown): Promise<T> {
    this.tell(request);
    return this.read<T>();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#reader.close();
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const ended = once(this.#process, "exit");
    this.#process.stdin!.end();
    await ended;
  }
}
