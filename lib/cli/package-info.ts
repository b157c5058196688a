import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** The package's folder: two above this file, in the sources and when compiled. */
export const packageRoot = fileURLToPath(new URL("../..", import.meta.url));

/** The package's version. */
export function packageVersion(): string {
  const file = new URL("../../package.json", import.meta.url);
  return (JSON.parse(readFileSync(file, "utf8")) as { version: string }).version;
}
