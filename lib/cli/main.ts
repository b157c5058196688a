#!/usr/bin/env node
import { EXIT } from "./exit.ts";
import { main } from "./program.ts";

/** Resolves when what was written has left the process, or cannot. */
function written(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    stream.write("", () => resolve());
  });
}

// Whoever read the output may want no more of it, as `head` does. Work goes on when nobody listens: its results are files.
let lost: NodeJS.ErrnoException | undefined;
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") lost ??= error;
});
process.stderr.on("error", () => {});

main(process.argv.slice(2)).then(async (code) => {
  await written(process.stdout);
  if (lost) process.stderr.write(`node-rlhf: the output cannot be written: ${lost.message} [ERR_RLHF_IO]\n`);
  await written(process.stderr);
  // A reward or an environment of the user's may have left timers or connections open, which would keep the process waiting.
  process.exit(lost && code === EXIT.done ? EXIT.failed : code);
});
