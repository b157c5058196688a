/**
 * A process that has the suite's tests loaded and runs those that are asked for, again and again, each time with one mutant. Mocha's
 * loading takes longer than most of the tests.
 */
import Mocha from "mocha";

/** What the parent asks for: the tests whose titles match, with a mutant, or with none (−1). */
export interface Request {
  readonly mutant: number;
  readonly tests: string;
}

/** What it is told: each test before it runs, and in the end the one that failed, if one did. */
export type Report =
  | { readonly kind: "ready" }
  | { readonly kind: "test"; readonly title: string }
  | { readonly kind: "done"; readonly passed: number; readonly slowestMs: number; readonly failed?: Failure };

export interface Failure {
  readonly title: string;
  readonly message: string;
  /** Whether the test passes again without the mutant: if not, the process is damaged, and its word worth nothing. */
  readonly isRepeatable: boolean;
}

/** Says nothing: what happens goes to the parent. */
class Silent extends Mocha.reporters.Base {}

const mocha = new Mocha({ timeout: 0, bail: true, reporter: Silent });
mocha.cleanReferencesAfterRun(false);

const report = (message: Report): void => void process.send?.(message);

interface Outcome {
  passed: number;
  slowestMs: number;
  failed?: { readonly title: string; readonly message: string };
}

function runTests({ mutant, tests }: Request): Promise<Outcome> {
  process.env["RLHF_MUTANT"] = String(mutant);
  mocha.grep(new RegExp(tests));
  const outcome: Outcome = { passed: 0, slowestMs: 0 };
  return new Promise((settle) => {
    const runner = mocha.run(() => settle(outcome));
    runner.on("test", (test) => report({ kind: "test", title: test.fullTitle() }));
    runner.on("pass", (test) => {
      outcome.passed++;
      outcome.slowestMs = Math.max(outcome.slowestMs, test.duration ?? 0);
    });
    runner.on("fail", (test, error: Error) => {
      outcome.failed = { title: test.fullTitle(), message: error.message };
    });
  });
}

const exactly = (title: string): string => `^${title.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}$`;

async function answer(request: Request): Promise<void> {
  const { failed, ...counts } = await runTests(request);
  if (!failed) return report({ kind: "done", ...counts });
  const again = await runTests({ mutant: -1, tests: exactly(failed.title) });
  const isRepeatable = again.passed === 1 && !again.failed;
  report({ kind: "done", ...counts, failed: { ...failed, isRepeatable } });
}

for (const file of process.argv.slice(2)) mocha.addFile(file);
await mocha.loadFilesAsync();
process.on("message", (request) => void answer(request as Request));
process.on("disconnect", () => process.exit());
report({ kind: "ready" });
