import { createRequire } from "node:module";
import { dirname } from "node:path";

/** require as of this package. */
export const requireFrom = createRequire(import.meta.url);

const manifest = requireFrom.resolve("node-rlhf/package.json");

/** The package's folder, wherever in it this code was built to. */
export const packageRoot = dirname(manifest);

/** The package's version. */
export function packageVersion(): string {
  return (requireFrom(manifest) as { version: string }).version;
}
