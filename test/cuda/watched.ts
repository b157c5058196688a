/**
 * What test:cuda loads into mocha (--require), since a kernel that hangs, or one after which the device refuses everything, leaves no other
 * trace: the name of each test is in the file RLHF_TESTS_BEGUN before it runs, with an empty line once it has ended; failures are told as they
 * come, and a process whose device is lost ends at once. Tests that are in the file when it starts are left out, so that a process goes on
 * where another ended.
 */
import { appendFileSync, readFileSync } from "node:fs";
import type { Context, Suite, Test } from "mocha";
import { messageOf } from "../../lib/errors.ts";
import { cudaBackend, kernels } from "../support/kernels.ts";

const BEGUN = process.env["RLHF_TESTS_BEGUN"] ?? "";

/** One line. */
const nameOf = (test: Test): string => test.fullTitle().replaceAll("\n", " ");

function leaveOut(suite: Suite, names: ReadonlySet<string>): void {
  suite.tests = suite.tests.filter((test) => !names.has(nameOf(test)));
  for (const each of suite.suites) leaveOut(each, names);
}

/** Why the device does nothing any more, if so. */
function reasonOfLoss(): string | undefined {
  try {
    kernels.deviceCopySeconds(cudaBackend, 64, 1);
    return undefined;
  } catch (error) {
    return messageOf(error);
  }
}

export const mochaHooks = {
  beforeAll(this: Context): void {
    const begun = new Set(readFileSync(BEGUN, "utf8").split("\n"));
    leaveOut((this.test as Test).parent as Suite, begun);
  },
  beforeEach(this: Context): void {
    appendFileSync(BEGUN, `${nameOf(this.currentTest as Test)}\n`);
  },
  afterEach(this: Context): void {
    const test = this.currentTest as Test;
    appendFileSync(BEGUN, "\n");
    if (test.state !== "failed") return;
    console.log(`\nFAILED: ${nameOf(test)}\n  ${messageOf(test.err)}`);
    const reason = reasonOfLoss();
    if (reason === undefined) return;
    console.log(`the device is lost: ${reason}`);
    process.kill(process.pid, "SIGKILL");
  },
};
