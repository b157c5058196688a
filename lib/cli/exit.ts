import { isRlhfError, messageOf } from "../errors.ts";

/** Exit codes of the command line. */
export const EXIT = { done: 0, failed: 1, usage: 2, interrupted: 130 } as const;

/** The exit code that tells what an error was. */
export function exitCodeOf(error: unknown): number {
  if (!isRlhfError(error)) return EXIT.failed;
  if (error.code === "ERR_RLHF_ABORTED") return EXIT.interrupted;
  return error.code === "ERR_RLHF_CONFIG" || error.code === "ERR_RLHF_USAGE" ? EXIT.usage : EXIT.failed;
}

/** What the user is shown of an error: the message and code of ours, the stack of anything unforeseen. */
export function describeError(error: unknown): string {
  if (isRlhfError(error)) return `${error.message} [${error.code}]`;
  return error instanceof Error && error.stack !== undefined ? error.stack : messageOf(error);
}
