import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readdir, readFile, utimes, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { runPipeline } from "../../lib/pipeline/run.ts";
import { LOCK_FILE, RunLock } from "../../lib/trainers/run-lock.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { runChild } from "./support.ts";

describe("two processes and one output directory", () => {
  it("the second is told of the first, and goes on from its checkpoints once it is gone", async () => {
    await withTemporaryDirectory(async (directory) => {
      const [outputDir, whole] = [join(directory, "shared"), join(directory, "whole")];
      let told: Promise<unknown> | undefined;
      const first = await runChild("sft", outputDir, {
        after: {
          event: "step 4",
          act: (child) => {
            child.kill("SIGSTOP");
            told = runChild("sft", outputDir)
              .then(({ error }) => {
                assert.equal(error?.code, "ERR_RLHF_LOCKED");
                assert.match(error.message, new RegExp(`^${outputDir}: process ${child.pid}, since 2`));
              })
              .finally(() => child.kill("SIGKILL"));
          },
        },
      });
      assert.ok(told);
      await told;
      assert.equal(first.signal, "SIGKILL");
      assert.ok(existsSync(join(outputDir, LOCK_FILE)), "a killed process leaves its lock");
      const second = await runChild("sft", outputDir);
      assert.ok(second.done, second.stderr);
      assert.ok(second.events.includes("step 5") && !second.events.includes("step 3"));
      assert.ok(!existsSync(join(outputDir, LOCK_FILE)));
      await runChild("sft", whole);
      for (const file of ["final/model.safetensors", "checkpoint-12/state.safetensors"])
        assert.deepEqual(await readFile(join(outputDir, file)), await readFile(join(whole, file)), file);
    });
  });

  it("a lock is held several times in one process, and is gone when all have let go", async () => {
    await withTemporaryDirectory(async (directory) => {
      const first = RunLock.acquire(directory);
      const second = RunLock.acquire(directory);
      first.release();
      first.release();
      assert.deepEqual(await readdir(directory), [LOCK_FILE]);
      second.release();
      assert.deepEqual(await readdir(directory), []);
    });
  });

  it("locks of processes that ended, of others that have got their id, and cut-off ones are taken over", async () => {
    await withTemporaryDirectory(async (directory) => {
      const file = join(directory, LOCK_FILE);
      const ended = { pid: 2 ** 22 + 1, started: "1", host: hostname(), since: "before" };
      const left = [ended, ...(existsSync("/proc/self/stat") ? [{ ...ended, pid: process.pid }] : [])];
      for (const holder of left) {
        await writeFile(file, JSON.stringify(holder));
        using _lock = RunLock.acquire(directory);
        assert.equal(JSON.parse(await readFile(file, "utf8")).pid, process.pid);
      }
      await writeFile(file, "{");
      assert.throws(() => RunLock.acquire(directory), { code: "ERR_RLHF_LOCKED" });
      await utimes(file, 1, 1);
      using _lock = RunLock.acquire(directory);
      assert.deepEqual(await readdir(directory), [LOCK_FILE]);
    });
  });

  it("a lock of another machine is not, and the file to delete is named; a pipeline's stage keeps to it too", async () => {
    await withTemporaryDirectory(async (directory) => {
      const file = join(directory, LOCK_FILE);
      await writeFile(file, JSON.stringify({ pid: 1, started: null, host: "elsewhere", since: "now" }));
      const error = {
        code: "ERR_RLHF_LOCKED",
        message: `${directory}: process 1 of elsewhere, since now, is writing to it; name another output directory, or, if that process no longer runs, delete ${file}`,
      };
      assert.throws(() => RunLock.acquire(directory), error);
      const data = join(directory, "rows.jsonl");
      await writeFile(data, JSON.stringify({ prompt: "a", response: "b" }));
      const init = {
        family: "llama" as const,
        hidden_size: 8,
        num_layers: 1,
        num_heads: 1,
        num_kv_heads: 1,
        vocab_size: 260,
      };
      const settings = { init, data_path: data, output_dir: directory };
      await assert.rejects(runPipeline([{ kind: "sft", settings }], { log: () => {} }), error);
      assert.ok(!existsSync(join(directory, "stage.json")), "nothing was written");
    });
  });
});
