import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { repository } from "./stage.ts";

interface LockedPackage {
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
  readonly peerDependencies?: Readonly<Record<string, string>>;
}

const read = (file: string): unknown => JSON.parse(readFileSync(join(repository, file), "utf8"));
const lock = read("package-lock.json") as { packages: Record<string, LockedPackage> };

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
    const missing = Object.entries(lock.packages).flatMap(([path, locked]) =>
      Object.keys({ ...locked.dependencies, ...locked.devDependencies, ...locked.optionalDependencies })
        .filter((dependency) => !places(path, dependency).some((place) => place in lock.packages))
        .map((dependency) => `${dependency} of ${path || "the root"}`),
    );
    assert.deepEqual(missing, []);
  });

  // Where they differ, `npm ci` refuses the lock, and `npm install` writes it anew in every clone.
  it("asks for what package.json asks for", () => {
    const { dependencies, devDependencies, peerDependencies } = read("package.json") as LockedPackage;
    const root = lock.packages[""]!;
    assert.deepEqual(
      [root.dependencies, root.devDependencies, root.peerDependencies],
      [dependencies, devDependencies, peerDependencies],
    );
  });
});
