import assert from "node:assert/strict";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Chart, chartsOf, readRuns, toSvg } from "../../lib/evaluation/curves.ts";
import { escapeHtml, toHtml } from "../../lib/evaluation/html.ts";
import { evaluate } from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { prompts, tinyModel, tinyTokenizer } from "../trainers/support.ts";

const HOSTILE = `</td><script>alert("1")</script>&'<img src=x onerror=alert(2)>`;

describe("the report as HTML", () => {
  it("draws a curve's points where they belong", () => {
    const chart: Chart = {
      metric: "loss",
      curves: [
        {
          run: "sft",
          points: [
            [0, 1],
            [5, 3],
            [10, 2],
          ],
        },
      ],
    };
    // 58 to 350 pixels across; 3 at 10 and 1 at 176 pixels from the top.
    assert.match(
      toSvg(chart, () => "red"),
      /stroke="red" stroke-width="1.5" points="58.0,176.0 204.0,10.0 350.0,93.0"/,
    );
  });

  it("reads the finite numbers of every metric that runs recorded twice, and averages long curves", async () => {
    await withTemporaryDirectory(async (directory) => {
      const [short, long] = [join(directory, "short.jsonl"), join(directory, "long.jsonl")];
      await writeFile(
        short,
        '{"step":1,"loss":2,"once":1}\n{"step":2,"loss":null}\n{"step":3,"loss":1,"tokens/s":9}\n{"step":4,"tok',
      );
      const lines = Array.from({ length: 600 }, (_, step) => JSON.stringify({ step, loss: step % 2 }));
      await writeFile(long, lines.join("\n"));
      const [chart, ...others] = chartsOf(readRuns({ short, long }));
      assert.deepEqual(others, []);
      assert.deepEqual(chart?.curves[0], {
        run: "short",
        points: [
          [1, 2],
          [3, 1],
        ],
      });
      const points = chart?.curves[1]?.points ?? [];
      assert.equal(points.length, 300);
      assert.ok(points.every(([step, value], i) => step === 2 * i + 0.5 && value === 0.5));
      assert.throws(() => readRuns({ gone: join(directory, "gone.jsonl") }), { code: "ERR_RLHF_IO" });
    });
  });

  it("is one page that loads nothing and escapes what models, users and runs write", async () => {
    await withTemporaryDirectory(async (directory) => {
      const tokenizer = tinyTokenizer();
      using model = await tinyModel(tokenizer, "none");
      const [sft, run] = [join(directory, "sft"), join(directory, "run")];
      await model.save(sft);
      await tokenizer.save(sft);
      const metrics = [1, 2].map((step) => JSON.stringify({ step, [HOSTILE]: step }));
      for (const place of [sft, run]) {
        await mkdir(place, { recursive: true });
        await writeFile(join(place, "metrics.jsonl"), metrics.join("\n"));
      }
      const options = {
        models: { [HOSTILE]: sft },
        prompts: prompts.map((prompt) => ({ prompt: prompt + HOSTILE, metadata: { category: HOSTILE } })),
        maxNewTokens: 4,
        metrics: { [`m${HOSTILE}`]: () => 1 },
        outputDir: join(directory, "report"),
      };
      const report = await evaluate({ ...options, runs: { [`run ${HOSTILE}`]: run } });
      const html = await readFile(join(options.outputDir, "report.html"), "utf8");
      assert.ok(!/<script|<img|<link|<iframe|https?:|url\(|@import/i.test(html));
      for (const text of [HOSTILE, `m${HOSTILE}`, `run ${HOSTILE}`, `${prompts[0]}${HOSTILE}`])
        assert.ok(html.includes(escapeHtml(text)), text);
      // Every tag that is opened is closed, in order.
      const open: string[] = [];
      for (const [, slash, name = "", end] of html.matchAll(/<(\/?)([a-z][a-z0-9]*)(?:[^<>]*?)(\/?)>/g)) {
        if (["meta"].includes(name) || end === "/") continue;
        if (slash === "/") assert.equal(open.pop(), name);
        else open.push(name);
      }
      assert.deepEqual(open, []);
      assert.equal((html.match(/<svg /g) ?? []).length, 1);
      // Without `runs`, the models' own directories are looked at.
      await evaluate(options);
      assert.match(await readFile(join(options.outputDir, "report.html"), "utf8"), /<polyline/);
      assert.ok(!toHtml(report, []).includes("<svg "));
      await assert.rejects(evaluate({ ...options, runs: { none: directory } }), {
        code: "ERR_RLHF_ARGUMENT",
        message: /run "none": .* holds no metrics.jsonl/,
      });
    });
  });
});
