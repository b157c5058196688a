import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { closeSync, openSync, readdirSync, readFileSync, statSync, truncateSync, writeSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { CausalLM, SFTTrainer, TokenDataset, tokenizeSft, trainTokenizer } from "../../lib/index.ts";
import { runPipeline } from "../../lib/pipeline/run.ts";
import type { SftStage } from "../../lib/pipeline/schema.ts";
import { TINY_LLAMA } from "../support/tiny.ts";
import { jsonLines, temporaryDirectory, writeText } from "./support.ts";

const tokenizer = trainTokenizer(["the cat sat on the mat, the cat sat"], { vocabSize: 262 });
const rows = Array.from({ length: 30 }, (_, i) => ({
  prompt: `the cat ${i}`,
  response: ` sat${" on".repeat(i % 5)}`,
}));

describe("TokenDataset", () => {
  const directory = temporaryDirectory();

  it("gives in memory and from files what tokenising at once gives", async () => {
    const options = { maxLength: 12 };
    const { examples, report } = tokenizeSft(rows, tokenizer, options);
    const memory = await TokenDataset.create(rows, tokenizer, options);
    const files = await TokenDataset.create(rows, tokenizer, {
      ...options,
      directory: join(directory, "same"),
    });
    for (const dataset of [memory, files]) {
      assert.deepEqual([dataset.length, dataset.report], [examples.length, report]);
      assert.equal(dataset.longest, Math.max(...examples.map((example) => example.tokens.length)));
      const indices = [7, 0, 7, examples.length - 1];
      assert.deepEqual(
        await dataset.get(indices),
        indices.map((index) => examples[index]),
      );
      await assert.rejects(async () => dataset.get([examples.length]), { code: "ERR_RLHF_ARGUMENT" });
    }
    assert.equal(files.hash, memory.hash);
    assert.equal(files.examples, null);
    const masked = await TokenDataset.create(rows, tokenizer, { ...options, lossOn: "all" });
    assert.notEqual(masked.hash, memory.hash);
    await files.close();
  });

  it("round-trips any example through files", async () => {
    const text = fc.string({ unit: "binary", minLength: 1, maxLength: 40 });
    const row = fc.record({ prompt: text, response: text }, { noNullPrototype: true });
    let made = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(row, { minLength: 1, maxLength: 8 }), async (some) => {
        const { examples } = tokenizeSft(some, tokenizer);
        const target = join(directory, `any-${made++}`);
        const dataset = await TokenDataset.create(some, tokenizer, { directory: target });
        const reopened = await TokenDataset.open(target);
        assert.deepEqual(await reopened.get(examples.map((_, index) => index)), examples);
        await dataset.close();
        await reopened.close();
      }),
      { numRuns: 12 },
    );
  });

  it("is taken as it is where it was made with the same key, and made anew with another", async () => {
    const target = join(directory, "key");
    const make = async (some: typeof rows, key?: string): Promise<number> => {
      const dataset = await TokenDataset.create(some, tokenizer, { directory: target, key });
      await dataset.close();
      return dataset.length;
    };
    assert.equal(await make(rows, "a"), 30);
    assert.equal(await make(rows.slice(0, 3), "a"), 30);
    assert.equal(await make(rows.slice(0, 3), "b"), 3);
    assert.equal(await make(rows.slice(0, 4)), 4);
  });

  it("that was cut off or damaged is not opened", async () => {
    const target = join(directory, "damaged");
    const failing = async function* (): AsyncGenerator<(typeof rows)[number]> {
      yield* rows;
      throw new Error("the source broke");
    };
    await assert.rejects(
      TokenDataset.create(failing(), tokenizer, { directory: target }),
      /the source broke/,
    );
    assert.deepEqual(readdirSync(target), []);
    await assert.rejects(TokenDataset.open(target), {
      code: "ERR_RLHF_DATA",
      message: /no complete data set/,
    });
    await (await TokenDataset.create(rows, tokenizer, { directory: target })).close();
    truncateSync(join(target, "tokens.bin"), 40);
    await assert.rejects(TokenDataset.open(target), {
      code: "ERR_RLHF_DATA",
      message: /make the data set of tokens again/,
    });
  });

  it("can be aborted, and lets the event loop run", async () => {
    const controller = new AbortController();
    const endless = function* (): Generator<(typeof rows)[number]> {
      for (;;) yield* rows;
    };
    // Fires only if tokenising gives way.
    setTimeout(() => controller.abort(), 1);
    await assert.rejects(
      TokenDataset.create(endless(), tokenizer, { signal: controller.signal, maxLength: 8 }),
      {
        code: "ERR_RLHF_ABORTED",
      },
    );
  });

  it("trains like the rows it was made of, bit for bit", async () => {
    const train = async (trainData: typeof rows | TokenDataset): Promise<number[]> => {
      using model = await CausalLM.create(
        { ...TINY_LLAMA, vocab_size: 262 },
        { device: "cpu", trainable: "all" },
      );
      using trainer = new SFTTrainer({
        model,
        tokenizer,
        trainData,
        evalData: trainData,
        config: { batchSize: 4, numEpochs: 2, learningRate: 1e-2 },
      });
      const losses: number[] = [];
      for await (const { metrics } of trainer.steps()) losses.push(metrics.loss!, metrics["eval/loss"] ?? 0);
      return losses;
    };
    const files = await TokenDataset.create(rows, tokenizer, {
      directory: join(directory, "train"),
      maxLength: 64,
    });
    assert.deepEqual(await train(files), await train(rows));
    using model = await CausalLM.create(
      { ...TINY_LLAMA, vocab_size: 262 },
      { device: "cpu", trainable: "all" },
    );
    for (const config of [{ lossOn: "all" as const }, { maxLength: 4 }])
      assert.throws(() => new SFTTrainer({ model, tokenizer, trainData: files, config }), {
        code: "ERR_RLHF_ARGUMENT",
        message: /TokenDataset\.create/,
      });
    await files.close();
  });

  it("makes a streamed stage end in the bytes of one that was held in memory", async () => {
    const start = join(directory, "start");
    using made = await CausalLM.create({ ...TINY_LLAMA, vocab_size: 262 }, { device: "cpu" });
    await made.save(start);
    await tokenizer.save(start);
    const data = writeText(directory, "rows.jsonl", jsonLines(rows));
    const run = async (streaming: boolean): Promise<Buffer> => {
      const output = join(directory, `streaming-${streaming}`);
      const settings = {
        model_path: start,
        data_path: data,
        output_dir: output,
        eval_fraction: 0.2,
        batch_size: 8,
        learning_rate: 1e-3,
        device: "cpu",
        streaming,
      } as SftStage;
      const [result] = await runPipeline([{ kind: "sft", settings }], { log: () => undefined });
      assert.ok(result!.summary["eval/loss after"]! < result!.summary["eval/loss before"]!);
      assert.ok(!readdirSync(output).includes("tokens"), "the tokens are removed at the end");
      return readFileSync(join(output, "model.safetensors"));
    };
    assert.deepEqual(await run(true), await run(false));
  });

  it("reads a file larger than the heap", () => {
    const file = join(directory, "large.jsonl");
    const handle = openSync(file, "w");
    // Rows that are long to read and short to tokenise: the second key is no part of the format.
    const filler = "x".repeat(50_000);
    for (let row = 0; row < 2000; row++)
      writeSync(
        handle,
        `${JSON.stringify({ prompt: `the cat ${row}`, response: " sat", filler: filler + row })}\n`,
      );
    closeSync(handle);
    const heapMegabytes = 48;
    assert.ok(statSync(file).size > 2 * heapMegabytes * 2 ** 20 - 1e6);
    const program = `
      import { streamSft, TokenDataset, trainTokenizer } from ${JSON.stringify(fileURLToPath(new URL("../../lib/index.ts", import.meta.url)))};
      const tokenizer = trainTokenizer(["the cat sat"], { vocabSize: 258 });
      const dataset = await TokenDataset.create(streamSft(${JSON.stringify(file)}), tokenizer, { directory: ${JSON.stringify(join(directory, "large"))} });
      const [last] = await dataset.get([1999]);
      console.log(dataset.length, tokenizer.decode(last.tokens));
      await dataset.close();`;
    const { stdout, stderr, status } = spawnSync(
      process.execPath,
      [`--max-old-space-size=${heapMegabytes}`, "--import", "tsx", "--input-type=module", "--eval", program],
      { encoding: "utf8", cwd: fileURLToPath(new URL("../..", import.meta.url)) },
    );
    assert.equal(status, 0, stderr);
    assert.equal(stdout.trim(), "2000 the cat 1999 sat");
  });
});
