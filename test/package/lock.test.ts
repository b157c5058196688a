import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { repository } from "./stage.ts";

interface LockedPackage {
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

/** The places where npm looks for a dependency of the package at `path`: any folder from its own up to the root. */
function places(path: string, dependency: string): string[] {
  const parents = path
    .split("/node_modules/")
    .map((_, index, parts) => parts.slice(0, index + 1).join("/node_modules/"));
  return [...parents.map((parent) => `${parent}/node_modules/${dependency}`), `node_modules/${dependency}`];
}

describe("package-lock.json", () => {
  // A lock made on one platform by some versions of npm lacks the optional packages of the others, and `npm ci` refuses it.
  it("has an entry for every dependency, also those of other platforms", () => {
    const lock = JSON.parse(readFileSync(join(repository, "package-lock.json"), "utf8")) as {
      packages: Record<string, LockedPackage>;
    };
    const missing = Object.entries(lock.packages).flatMap(([path, locked]) =>
      Object.keys({ ...locked.dependencies, ...locked.devDependencies, ...locked.optionalDependencies })
        .filter((dependency) => !places(path, dependency).some((place) => place in lock.packages))
        .map((dependency) => `${dependency} of ${path || "the root"}`),
    );
    assert.deepEqual(missing, []);
  });
});
