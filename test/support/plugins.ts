import { copyFile, mkdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { withTemporaryDirectory } from "./tiny.ts";

const BUILD = resolve(process.env["RLHF_BUILD_DIR"] ?? join(import.meta.dirname, "../../build"));

/**
 * Runs `body` with a folder for RLHF_BUILD_DIR in which the addon finds another library in the place of the CUDA backend: the emulator, or one
 * that refuses as RLHF_REFUSAL says (csrc/simt/refusing).
 */
export async function withPlugin(
  plugin: "emulated" | "refusing",
  body: (build: string) => Promise<void>,
): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    for (const folder of ["Release", "kernels"]) await mkdir(join(directory, folder));
    const parts = [
      ["Release/rlhf.node", "Release/rlhf.node"],
      [`kernels/${plugin}/librlhf_cuda.so`, "Release/librlhf_cuda.so"],
      ["kernels/rlhf_kernels.node", "kernels/rlhf_kernels.node"],
    ] as const;
    for (const [from, to] of parts) await copyFile(join(BUILD, from), join(directory, to));
    await body(directory);
  });
}
