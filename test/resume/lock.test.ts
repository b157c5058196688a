import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { readdir, readFile, stat, unlink, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { SFTTrainer } from "../../lib/index.ts";
import { runPipeline } from "../../lib/pipeline/run.ts";
import { LOCK_FILE, RunLock } from "../../lib/trainers/run-lock.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { sftRows, tinyModel, tinyTokenizer } from "../trainers/support.ts";
import { runChild } from "./support.ts";

/** Who holds the lock of a directory; this process where nobody does. */
function holderOf(directory: string): Readonly<Record<string, unknown>> & { readonly pid: number } {
  using _lock = existsSync(join(directory, LOCK_FILE)) ? null : RunLock.acquire(directory);
  return JSON.parse(readFileSync(join(directory, LOCK_FILE), "utf8"));
}

/** Intervals that beat when they are told to. */
function useFakeIntervals(): { beat(): void; readonly running: number; restore(): void } {
  const original = [globalThis.setInterval, globalThis.clearInterval] as const;
  const running = new Set<() => void>();
  globalThis.setInterval = ((run: () => void) => {
    running.add(run);
    return { unref: () => run };
  }) as never;
  globalThis.clearInterval = ((run: () => void) => running.delete(run)) as never;
  return {
    beat: () => {
      for (const run of running) run();
    },
    get running() {
      return running.size;
    },
    restore: () => {
      [globalThis.setInterval, globalThis.clearInterval] = original;
    },
  };
}

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
      const alone = await runChild("sft", whole);
      assert.ok(alone.done, alone.stderr);
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
      const own = holderOf(directory);
      const ended = { ...own, pid: 2 ** 22 + 1, started: "1", since: "before" };
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

  it("a lock of another machine is taken over when it has shown no life for two minutes", async () => {
    await withTemporaryDirectory(async (directory) => {
      const file = join(directory, LOCK_FILE);
      // Another boot of a machine of the same name, or a container beside this one, which has a process of the same id.
      const elsewhere = { ...holderOf(directory), place: "another boot" };
      await writeFile(file, JSON.stringify(elsewhere));
      const old = (seconds: number): Promise<void> =>
        utimes(file, Date.now() / 1000 - seconds, Date.now() / 1000 - seconds);
      for (const seconds of [0, 110]) {
        await old(seconds);
        assert.throws(() => RunLock.acquire(directory), {
          code: "ERR_RLHF_LOCKED",
          message: new RegExp(`last sign of life is (${seconds}|${seconds + 1}|${seconds + 2}) s old`),
        });
      }
      await old(121);
      using _lock = RunLock.acquire(directory);
      assert.equal(holderOf(directory).pid, process.pid);
      assert.deepEqual(await readdir(directory), [LOCK_FILE]);
    });
  });

  it("a process that holds a lock shows life, and writes no more once the lock is another's", async () => {
    await withTemporaryDirectory(async (directory) => {
      const file = join(directory, LOCK_FILE);
      const clock = useFakeIntervals();
      try {
        using lock = RunLock.acquire(directory);
        const text = await readFile(file, "utf8");
        await utimes(file, 1, 1);
        clock.beat();
        assert.ok((await stat(file)).mtimeMs > 1000);
        assert.equal(await readFile(file, "utf8"), text);
        lock.requireHeld();
        await writeFile(file, JSON.stringify({ ...holderOf(directory), place: "elsewhere", host: "b" }));
        await utimes(file, 1, 1);
        clock.beat();
        assert.equal((await stat(file)).mtimeMs, 1000, "it is not its own to write");
        assert.throws(() => lock.requireHeld(), { code: "ERR_RLHF_LOCKED", message: / of b, since / });
        lock.release();
        assert.ok(existsSync(file), "nor to remove");
        await unlink(file);
        clock.beat();
        assert.equal(clock.running, 0, "a released lock has no clock");
      } finally {
        clock.restore();
      }
    });
  });

  it("a trainer whose run was taken over stops before it writes a checkpoint", async () => {
    await withTemporaryDirectory(async (directory) => {
      const tokenizer = tinyTokenizer();
      using model = await tinyModel(tokenizer);
      const config = { batchSize: 4, maxSteps: 4, saveSteps: 1 };
      using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config, outputDir: directory });
      const steps = trainer.steps();
      await steps.next();
      await writeFile(join(directory, LOCK_FILE), JSON.stringify({ ...holderOf(directory), place: "b" }));
      await assert.rejects(steps.next(), { code: "ERR_RLHF_LOCKED" });
      assert.ok(existsSync(join(directory, "checkpoint-1")) && !existsSync(join(directory, "checkpoint-2")));
    });
  });

  it("a lock of another machine says what to do; a pipeline's stage keeps to it too", async () => {
    await withTemporaryDirectory(async (directory) => {
      const file = join(directory, LOCK_FILE);
      const holder = { pid: 1, started: null, host: "elsewhere", place: "elsewhere", since: "now" };
      await writeFile(file, JSON.stringify(holder));
      const error = {
        code: "ERR_RLHF_LOCKED",
        message: new RegExp(
          `^${directory}: process 1 of elsewhere, since now, is writing to it; its last sign of life is \\d+ s old\\. Wait .*, or delete ${file}$`,
        ),
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
