import { type ChildProcess, fork } from "node:child_process";
import type { Report, Request } from "./worker.ts";

/** How a mutant, or the unchanged code, came out of the tests. */
export interface Verdict {
  /** Of "killed": by a test that failed, by the end of the process, or by a test that did not end. */
  readonly outcome: "survived" | "failed" | "crashed" | "hung";
  readonly test: string;
  readonly message: string;
  readonly passed: number;
  readonly slowestMs: number;
}

type Ended = Report | { readonly kind: "crashed" | "hung" };

/** A worker process and those that take its place: one that a mutant ended, stuck or damaged is not used again. */
export class Runner {
  readonly #worker: string;
  readonly #tests: readonly string[];
  readonly #environment: NodeJS.ProcessEnv;
  /** Of one test; a mutant that takes longer waits for ever. */
  limitMs = 120_000;
  #child: ChildProcess | undefined;
  #isFresh = true;

  constructor(worker: string, tests: readonly string[], environment: NodeJS.ProcessEnv) {
    this.#worker = worker;
    this.#tests = tests;
    this.#environment = environment;
  }

  /** Runs the tests with a mutant. What a used process says against a mutant must hold in a fresh one, where there is a doubt. */
  async run(request: Request): Promise<Verdict> {
    const verdict = await this.#attempt(request);
    return verdict ?? ((await this.#attempt(request)) as Verdict);
  }

  close(): void {
    this.#child?.kill("SIGKILL");
    this.#child = undefined;
  }

  /** Nothing where the process was used before, and may have been at fault. */
  async #attempt(request: Request): Promise<Verdict | undefined> {
    await this.#start();
    const wasFresh = this.#isFresh;
    this.#isFresh = false;
    let test = "";
    const ended = await this.#listen((title) => {
      test = title;
    }, request);
    const counts = { passed: 0, slowestMs: 0 };
    if (ended.kind !== "done") {
      this.close();
      if (!wasFresh) return undefined;
      const outcome = ended.kind === "hung" ? "hung" : "crashed";
      return { ...counts, outcome, test, message: outcome };
    }
    const { failed, passed, slowestMs } = ended;
    if (!failed) return { outcome: "survived", test: "", message: "", passed, slowestMs };
    if (!failed.isRepeatable) {
      this.close();
      if (!wasFresh) return undefined;
    }
    return { outcome: "failed", test: failed.title, message: failed.message, passed, slowestMs };
  }

  async #start(): Promise<void> {
    if (this.#child) return;
    this.#child = fork(this.#worker, [...this.#tests], {
      execArgv: ["--import", "tsx"],
      env: { ...process.env, ...this.#environment },
      stdio: ["ignore", "ignore", "pipe", "ipc"],
    });
    let errors = "";
    this.#child.stderr!.on("data", (text: Buffer) => {
      errors = (errors + text).slice(-4000);
    });
    this.#isFresh = true;
    const ended = await this.#listen(() => undefined);
    if (ended.kind !== "ready") throw new Error(`the tests cannot be loaded:\n${errors}`);
  }

  /** Sends a request, if there is one, and waits for what ends it. */
  #listen(onTest: (title: string) => void, request?: Request): Promise<Ended> {
    const child = this.#child!;
    return new Promise((settle) => {
      let timer: NodeJS.Timeout | undefined;
      const end = (ended: Ended): void => {
        clearTimeout(timer);
        child.off("message", onMessage).off("exit", onExit);
        settle(ended);
      };
      const watch = (): void => {
        clearTimeout(timer);
        timer = setTimeout(() => end({ kind: "hung" }), this.limitMs);
      };
      const onMessage = (report: Report): void => {
        if (report.kind === "test") {
          onTest(report.title);
          watch();
        } else {
          end(report);
        }
      };
      const onExit = (): void => end({ kind: "crashed" });
      child.on("message", onMessage).on("exit", onExit);
      watch();
      if (request) child.send(request);
    });
  }
}
