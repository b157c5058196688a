#!/usr/bin/env node
import { EXIT } from "./exit.ts";
import { main } from "./program.ts";

/** Resolves when what was written has left the process, or cannot. */
function written(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    stream.write("", () => resolve());
  });
}

// Whoever read the results wants no more of them, as `head` does.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(EXIT.done);
  process.stderr.write(`node-rlhf: the output cannot be written: ${error.message} [ERR_RLHF_IO]\n`);
  process.exit(EXIT.failed);
});
// Work goes on when nobody listens to what is told of it: its results are files.
process.stderr.on("error", () => {});

main(process.argv.slice(2)).then(async (code) => {
  await Promise.all([written(process.stdout), written(process.stderr)]);
  // A reward or an environment of the user's may have left timers or connections open, which would keep the process waiting.
  process.exit(code);
});
