import assert from "node:assert/strict";
import { appendFileSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { formatDuration, formatNumber, formatRate } from "../../lib/monitor/format.ts";
import { MetricsWriter, readMetrics } from "../../lib/monitor/metrics.ts";
import { ConsoleProgress, type ProgressStream } from "../../lib/monitor/progress.ts";
import { temporaryDirectory } from "../data/support.ts";

describe("metrics file", () => {
  const directory = temporaryDirectory();

  it("holds one JSON object per step and creates its directory", () => {
    const file = join(directory, "new/metrics.jsonl");
    {
      using writer = new MetricsWriter(file);
      writer.write(1, { loss: 2.5, "objective/kl": 0 });
      writer.write(2, { loss: Number.NaN });
    }
    assert.equal(
      readFileSync(file, "utf8"),
      '{"step":1,"loss":2.5,"objective/kl":0}\n{"step":2,"loss":null}\n',
    );
    assert.deepEqual(readMetrics(file)[1], { step: 2, metrics: { loss: Number.NaN } });
  });

  it("of a resumed run goes on after the step it resumes at, without a line that was cut off", () => {
    const file = join(directory, "resumed.jsonl");
    const first = new MetricsWriter(file);
    for (const step of [1, 2, 3]) first.write(step, { loss: step });
    first.close();
    appendFileSync(file, '{"step":4,"lo');
    const second = new MetricsWriter(file, 2);
    second.write(3, { loss: 30 });
    second.close();
    assert.deepEqual(
      readMetrics(file).map((record) => record.metrics.loss),
      [1, 2, 30],
    );
  });

  it("refuses writes after close, and a path that is no directory", () => {
    const file = join(directory, "closed.jsonl");
    const writer = new MetricsWriter(file);
    writer.close();
    assert.throws(() => writer.write(1, {}), { code: "ERR_RLHF_DISPOSED" });
    assert.throws(() => new MetricsWriter(join(file, "below.jsonl")), { code: "ERR_RLHF_IO" });
  });
});

describe("console progress", () => {
  /** A stream that remembers, and a clock that is set. */
  function setUp(isTTY: boolean): { stream: ProgressStream; text: () => string; clock: { seconds: number } } {
    let written = "";
    const stream = { isTTY, columns: 200, write: (text: string) => (written += text) };
    return { stream, text: () => written, clock: { seconds: 0 } };
  }

  it("tells steps, metrics, speed and time left", () => {
    const { stream, text, clock } = setUp(false);
    const progress = new ConsoleProgress({ label: "sft", totalSteps: 100, stream, now: () => clock.seconds });
    clock.seconds = 2;
    progress.update(10, { loss: 2.31415, lr: 1e-5 }, 4000);
    assert.equal(
      text(),
      "sft 10/100 10% | loss 2.314  lr 1.0e-5 | 5.00 steps/s, 2000 tokens/s | 0:18 left\n",
    );
  });

  it("off a terminal writes a line every ten seconds and the last one, without control characters", () => {
    const { stream, text, clock } = setUp(false);
    const progress = new ConsoleProgress({
      label: "ppo",
      totalSteps: 30,
      stream,
      show: ["kl"],
      now: () => clock.seconds,
    });
    for (let step = 1; step <= 30; step++) {
      clock.seconds = step;
      progress.update(step, { loss: 1, kl: step });
    }
    progress.finish();
    const lines = text().trimEnd().split("\n");
    assert.deepEqual(
      lines.map((line) => line.split(" ")[1]),
      ["1/30", "11/30", "21/30", "30/30"],
    );
    assert.match(lines[3]!, /^ppo 30\/30 100% \| kl 30 \| 1\.00 steps\/s$/);
    assert.ok(!text().includes("\x1b") && !text().includes("\r"));
  });

  it("on a terminal redraws one line, keeps notes, and ends with a line break", () => {
    const { stream, text, clock } = setUp(true);
    const progress = new ConsoleProgress({ label: "sft", totalSteps: 3, stream, now: () => clock.seconds });
    clock.seconds = 1;
    progress.update(1, { loss: 3 });
    progress.note("checkpoint written");
    clock.seconds = 2;
    progress.update(2, { loss: 2 });
    progress.finish();
    const [first, ...rest] = text().split("\r\x1b[K").slice(1);
    assert.match(first!, /^sft 1\/3/);
    assert.equal(rest[0], "checkpoint written\n");
    assert.match(rest.at(-1)!, /^sft 2\/3 .*\n$/);
  });

  it("shows the last step of a run that was stopped between two lines", () => {
    const { stream, text, clock } = setUp(false);
    const progress = new ConsoleProgress({ label: "sft", totalSteps: 9, stream, now: () => clock.seconds });
    progress.update(1, {});
    clock.seconds = 1;
    progress.update(2, {});
    progress.finish();
    assert.deepEqual(
      text()
        .trimEnd()
        .split("\n")
        .map((line) => line.split(" ")[1]),
      ["1/9", "2/9"],
    );
  });
});

describe("number formats", () => {
  it("durations, metrics and rates", () => {
    assert.deepEqual(
      [formatDuration(7), formatDuration(754), formatDuration(10930), formatDuration(Number.NaN)],
      ["0:07", "12:34", "3:02:10", "?"],
    );
    assert.deepEqual([0, 3, 2.31415, 1e-5, 12400.4, Number.NaN].map(formatNumber), [
      "0",
      "3",
      "2.314",
      "1.0e-5",
      "12,400",
      "NaN",
    ]);
    assert.deepEqual([1.5, 532.4, 12345, 1.2e6].map(formatRate), ["1.50", "532", "12.3 k", "1.20 M"]);
  });
});
