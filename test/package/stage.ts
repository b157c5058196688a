import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, symlinkSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

export const repository = fileURLToPath(new URL("../..", import.meta.url));

/** What a release folder holds before packing; more than may be packed, so that package.json's `files` has work to do. */
const STAGED = [
  "package.json",
  "LICENSE",
  "README.md",
  "binding.gyp",
  "CMakeLists.txt",
  "cmake",
  "csrc",
  "scripts",
];

export interface PackedTarball {
  /** Absolute path of the .tgz. */
  path: string;
  /** Paths of the files inside, relative to the package's root. */
  files: string[];
}

function runNode(script: string, args: string[], cwd: string, env: NodeJS.ProcessEnv = process.env): void {
  execFileSync(process.execPath, [script, ...args], { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
}

/** The first file of that name on PATH. */
function findOnPath(name: string): string {
  const folder = (process.env["PATH"] ?? "").split(delimiter).find((entry) => existsSync(join(entry, name)));
  if (folder === undefined) throw new Error(`${name} is not on PATH`);
  return join(folder, name);
}

/** The surrounding environment without what npm, mocha or a developer's settings added to it. */
function cleanEnvironment(): NodeJS.ProcessEnv {
  const kept = /^npm_config_(?:cache|registry|userconfig)$/i;
  const dropped = /^(?:npm_|NODE_OPTIONS$|NODE_RLHF|NODE_V8_COVERAGE$|PREBUILD|RLHF_|INIT_CWD$)/i;
  const entries = Object.entries(process.env).filter(([name]) => kept.test(name) || !dropped.test(name));
  return Object.fromEntries(entries);
}

/** Builds a release of the working tree in `folder` and packs it. The repository's own build folders stay as they are. */
export function packRelease(folder: string): PackedTarball {
  const staging = join(folder, "staging");
  mkdirSync(staging, { recursive: true });
  for (const name of STAGED) {
    const source = join(repository, name);
    if (existsSync(source)) cpSync(source, join(staging, name), { recursive: true });
  }
  runNode(join(repository, "scripts", "build-ts.cjs"), [join(staging, "dist")], repository);
  runNode(
    join(repository, "node_modules", "prebuildify", "bin.js"),
    ["--napi", "--strip", "--tag-libc"],
    staging,
    {
      ...process.env,
      PREBUILD_NODE_GYP: join(repository, "test", "package", "reuse-build.cjs"),
    },
  );
  const output = execFileSync(
    findOnPath("npm"),
    ["pack", "--ignore-scripts", "--json", "--pack-destination", folder],
    { cwd: staging, env: cleanEnvironment(), encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] },
  );
  const [packed] = JSON.parse(output) as [{ filename: string; files: { path: string }[] }];
  return { path: join(folder, packed.filename), files: packed.files.map((file) => file.path) };
}

/** An environment whose PATH holds node, npm and sh, and so no compiler, CMake, make or Python. */
export function bareEnvironment(folder: string): NodeJS.ProcessEnv {
  const bin = join(folder, "bin");
  mkdirSync(bin, { recursive: true });
  symlinkSync(process.execPath, join(bin, "node"));
  symlinkSync(findOnPath("npm"), join(bin, "npm"));
  symlinkSync(findOnPath("sh"), join(bin, "sh"));
  return { ...cleanEnvironment(), PATH: bin };
}
