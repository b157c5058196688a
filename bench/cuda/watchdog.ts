import { Worker } from "node:worker_threads";

/** Looks at the clock on a thread of its own: a kernel that does not end holds the main thread inside the driver. */
const CLOCK = `
const { parentPort, workerData } = require("node:worker_threads");
const { writeSync } = require("node:fs");
let current = "";
parentPort.on("message", (name) => { current = name; });
setTimeout(() => {
  writeSync(2, "\\nended: " + (current || "what was begun") + " had not ended after " + workerData.seconds + " s\\n");
  process.kill(process.pid, "SIGKILL");
}, 1000 * workerData.seconds);
`;

/** Ends the process after so many seconds unless it is stopped, and names what was going on. */
export class Watchdog {
  readonly #worker: Worker;

  constructor(seconds: number) {
    this.#worker = new Worker(CLOCK, { eval: true, workerData: { seconds } });
    this.#worker.unref();
  }

  /** What is going on from here on. */
  watch(name: string): void {
    this.#worker.postMessage(name);
  }

  async stop(): Promise<void> {
    await this.#worker.terminate();
  }
}
