import assert from "node:assert/strict";
import type { Finding } from "../../lib/cli/doctor.ts";
import { withEnvironment } from "../support/kernels.ts";
import { withPlugin } from "../support/plugins.ts";
import { startCommand } from "./support.ts";

/** What doctor finds of CUDA with another library in the place of the CUDA backend. */
async function findCuda(
  plugin: Parameters<typeof withPlugin>[0],
  variable: string,
  value: string,
): Promise<Finding> {
  let found: Finding | undefined;
  await withPlugin(plugin, async (build) => {
    const command = withEnvironment("RLHF_BUILD_DIR", build, () =>
      withEnvironment(variable, value, () => startCommand(["doctor", "--json"])),
    );
    const { code, stdout, stderr } = await command.ended;
    assert.equal(code, 0, stderr);
    found = (JSON.parse(stdout) as Finding[]).find(({ subject }) => subject === "cuda");
  });
  assert.ok(found);
  return found;
}

describe("command line: doctor about CUDA", () => {
  it("says why there is none, what cures it, and what auto takes", async () => {
    const refusal = "9 the NVIDIA driver supports CUDA 12.4\nUpdate the driver";
    const { ok, text, cure } = await findCuda("refusing", "RLHF_REFUSAL", refusal);
    assert.equal(ok, false);
    assert.equal(text, 'the NVIDIA driver supports CUDA 12.4; device "auto" takes the CPU');
    assert.equal(cure, "Update the driver");
  });

  for (const [capability, kernels] of [
    ["80", "compute capability 8.0"],
    ["90", "compute capability 9.0, with Hopper's own kernels"],
  ] as const)
    it(`says which GPU there is, and whether it has kernels of its own: ${capability}`, async () => {
      const { ok, text } = await findCuda("emulated", "RLHF_CUDA_CAPABILITY", capability);
      assert.equal(ok, true);
      assert.match(text, /^simt:apart, emulated; compute capability/);
      assert.ok(text.includes(`; ${kernels}; auto: there is a GPU, but`), text);
    });
});
