import { resolve } from "node:path";
import { messageOf, RlhfError } from "../errors.ts";
import { packageRoot, requireFrom } from "../package-root.ts";

/** Another build than the default one, such as the sanitized build in build/sanitize (`node-rlhf-build --sanitize`). */
const buildDirectory = process.env["RLHF_BUILD_DIR"];

function loadOrExplain(load: () => unknown, cure: string): unknown {
  try {
    return load();
  } catch (error) {
    const platform = `${process.platform}-${process.arch}, Node ${process.versions.node}`;
    throw new RlhfError(
      "ERR_RLHF_NO_BINARY",
      `The native engine of node-rlhf could not be loaded on ${platform}: ${messageOf(error).trim()}\n${cure}`,
      { platform: process.platform, arch: process.arch },
      { cause: error },
    );
  }
}

/**
 * Loads rlhf.node: a build in build/Release if there is one, else the prebuilt binary for this platform.
 * Throws ERR_RLHF_NO_BINARY, with the reason and the command that mends it.
 */
export function loadBinary(): unknown {
  const load = (): unknown => {
    if (buildDirectory) return requireFrom(resolve(buildDirectory, "Release", "rlhf.node"));
    const nodeGypBuild = requireFrom("node-gyp-build") as (packageDirectory: string) => unknown;
    return nodeGypBuild(packageRoot);
  };
  return loadOrExplain(
    load,
    "To compile it here (CMake and a C++20 compiler are needed): " +
      "npm install --save-dev cmake-js node-addon-api && npx node-rlhf-build",
  );
}

/**
 * Loads rlhf_kernels.node, raw access to every op on every backend for the repository's own tests and benchmarks.
 * It exists in a clone only. Throws ERR_RLHF_NO_BINARY where it has not been built.
 */
export function loadKernelsBinary(): unknown {
  const directory = buildDirectory ? resolve(buildDirectory) : resolve(packageRoot, "build");
  return loadOrExplain(
    () => requireFrom(resolve(directory, "kernels", "rlhf_kernels.node")),
    "It is part of the repository's build, not of the published package: npm run build:native",
  );
}
