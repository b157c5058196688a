import assert from "node:assert/strict";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { LOCK_FILE } from "../../lib/trainers/run-lock.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { contentsOf, runChild } from "./support.ts";

describe("a checkpoint that cannot be written", () => {
  it("is ERR_RLHF_IO, leaves the last one whole and no parts, and the run goes on once there is room", async () => {
    await withTemporaryDirectory(async (directory) => {
      const [whole, outputDir] = [join(directory, "whole"), join(directory, "failed")];
      const alone = await runChild("sft", whole);
      assert.ok(alone.done, alone.stderr);
      const first = await runChild("sft", outputDir, { killAt: alone.events.indexOf("step 5") + 1 });
      assert.equal(first.signal, "SIGKILL");
      const before = await contentsOf(outputDir);
      assert.ok(before.delete(LOCK_FILE), "a killed process leaves its lock");
      const { size } = await stat(join(whole, "checkpoint-12", "state.safetensors"));
      const failed = await runChild("sft", outputDir, { fileBlocks: Math.floor(size / 512 / 2) });
      assert.equal(failed.error?.code, "ERR_RLHF_IO", failed.stderr);
      assert.match(failed.error?.message ?? "", /checkpoint-6.*state\.safetensors: cannot be written: EFBIG/);
      const after = await contentsOf(outputDir);
      assert.deepEqual([...after.keys()], [...before.keys()]);
      for (const [file, bytes] of before)
        if (file.startsWith("checkpoint-")) assert.deepEqual(after.get(file), bytes, file);
      assert.ok(before.has(join("checkpoint-4", "state.safetensors")));
      const resumed = await runChild("sft", outputDir);
      assert.ok(resumed.done, resumed.stderr);
      assert.deepEqual(await contentsOf(outputDir), await contentsOf(whole));
    });
  });
});
