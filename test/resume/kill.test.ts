import assert from "node:assert/strict";
import { join } from "node:path";
import { Random } from "../../lib/data/random.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { type Algorithm, type ChildOptions, contentsOf, runChild } from "./support.ts";

/** Processes to kill: 24 in all. SFT trains a new adapter, GRPO goes on with a trained one, the others train all weights. */
const KILLS: readonly [Algorithm, number][] = [
  ["sft", 5],
  ["dpo", 5],
  ["ppo", 6],
  ["grpo", 5],
  ["environment", 3],
];

/**
 * The next moment to kill a process at, of a run that has so many events: at a step or call that changes files, exactly, or some
 * milliseconds after it.
 */
function nextMoment(random: Random, events: number): ChildOptions {
  const event = 1 + random.integer(Math.ceil(0.6 * events));
  if (random.integer(2) === 0) return { killAt: event };
  return { killAfter: { event, milliseconds: random.integer(6) } };
}

describe("runs that are killed", () => {
  for (const [algorithm, kills] of KILLS) {
    it(`${algorithm}: end in the same bytes, after ${kills} times SIGKILL, as one left alone`, async () => {
      await withTemporaryDirectory(async (directory) => {
        const whole = join(directory, "whole");
        const alone = await runChild(algorithm, whole);
        assert.ok(alone.done, alone.stderr);
        const expected = await contentsOf(whole);
        const random = new Random(11, `kill ${algorithm}`);
        let killed = 0;
        for (let chain = 0; killed < kills; chain++) {
          const outputDir = join(directory, `killed-${chain}`);
          const moments: ChildOptions[] = [];
          for (let done = false; !done; ) {
            const moment = killed < kills ? nextMoment(random, alone.events.length) : {};
            const run = await runChild(algorithm, outputDir, moment);
            assert.ok(run.done || run.signal === "SIGKILL", run.stderr);
            for (const [rollout, response] of run.rollouts)
              assert.equal(
                response,
                alone.rollouts.get(rollout),
                `${rollout} after ${JSON.stringify(moments)}`,
              );
            done = run.signal === null;
            if (!done) {
              killed++;
              moments.push(moment);
            }
          }
          const after = `after ${JSON.stringify(moments)}`;
          const actual = await contentsOf(outputDir);
          assert.deepEqual([...actual.keys()], [...expected.keys()], after);
          for (const [file, content] of actual)
            assert.deepEqual(content, expected.get(file), `${file} ${after}`);
        }
      });
    });
  }
});
