import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { readMetrics } from "../../lib/monitor/metrics.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { type Outcome, runCommand, runHere, startCommand } from "./support.ts";

const COMMON = "eval_fraction: 0.2, batch_size: 4, learning_rate: 1e-3";

/** A small model, and each way to learn preferences from it, into directories below `runs`. */
function pipeline(runs: string, dpoSteps: number): string {
  return `seed: 1
device: cpu
stages:
  - sft:
      init: { family: llama, hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 264, max_position_embeddings: 64 }
      data_path: pairs.jsonl
      output_dir: ${runs}/sft
      max_steps: 5
  - dpo: { model_path: ${runs}/sft, data_path: pairs.jsonl, output_dir: ${runs}/dpo, ${COMMON}, max_steps: ${dpoSteps}, loss_type: [sigmoid, sft], loss_weights: [1, 0.1], precompute_ref_log_probs: true }
  - kto: { model_path: ${runs}/sft, ref_model: ${runs}/dpo, data_path: thumbs.jsonl, output_dir: ${runs}/kto, ${COMMON}, max_steps: 3, lora_r: 2 }
  - orpo: { model_path: ${runs}/sft, data_path: pairs.jsonl, output_dir: ${runs}/orpo, ${COMMON}, max_steps: 3, nll_on: all }
  - cpo: { model_path: ${runs}/sft, data_path: pairs.jsonl, output_dir: ${runs}/cpo, ${COMMON}, max_steps: 3, lora_r: 2, cpo_alpha: 0.5 }
  - simpo: { model_path: ${runs}/sft, data_path: pairs.jsonl, output_dir: ${runs}/simpo, ${COMMON}, max_steps: 3, simpo_gamma: 1 }
`;
}

describe("command line: learning from preferences", function () {
  this.timeout(240_000);
  const directory = temporaryDirectory();

  before(() => {
    const prompts = ["cat", "dog", "hen", "cow", "pig", "fox", "owl"].flatMap((animal) =>
      ["the", "a", "one"].map((article) => `${article} ${animal}`),
    );
    const pairs = prompts.map((prompt) => ({ prompt, chosen: " sat down", rejected: " ran off" }));
    writeText(directory, "pairs.jsonl", jsonLines(pairs));
    const thumbs = prompts.map((prompt, i) => ({
      prompt,
      completion: i % 2 ? " sat" : " ran",
      label: i % 2 === 1,
    }));
    writeText(directory, "thumbs.jsonl", jsonLines(thumbs));
  });

  function ok(outcome: Outcome): string {
    assert.equal(outcome.code, 0, outcome.stderr);
    return outcome.stderr;
  }

  it("stages dpo, kto, orpo, cpo and simpo train, tell what came of it, and are skipped when complete", async () => {
    const file = writeText(directory, "all.yaml", pipeline("all", 8));
    const first = ok(await runCommand("run", file));
    assert.match(first, /reference log-probs of 21 of 21 examples measured/);
    for (const kind of ["dpo", "orpo", "cpo", "simpo"])
      assert.match(
        first,
        new RegExp(`\\] ${kind}: done in .*: eval/loss before .*, eval/rewards/accuracies after`),
      );
    assert.match(first, /\] kto: done in .*: eval\/loss before/);
    const second = ok(await runCommand("run", file));
    assert.equal(second.match(/complete in .*, skipped/g)?.length, 6, second);
    const [record] = readMetrics(join(directory, "all/dpo/metrics.jsonl"));
    for (const name of ["rewards/chosen", "rewards/margins", "logps/rejected", "entropy", "nll_loss"])
      assert.ok(Number.isFinite(record?.metrics[name]), name);
  });

  it("Ctrl-C ends with 130 after a checkpoint, and going on gives the bytes of a run left alone", async () => {
    const words = (output: string): string[] => [
      "dpo",
      "--sft-model-path",
      join(directory, "all/sft"),
      "--data-path",
      join(directory, "pairs.jsonl"),
      "--output-dir",
      join(directory, output),
      ..."--batch-size 4 --max-steps 200 --learning-rate 1e-3 --loss-type ipo --sync-ref-model".split(" "),
      ..."--ref-model-sync-steps 7 --eval-fraction 0.2".split(" "),
    ];
    ok(await runCommand(...words("alone")));
    const running = startCommand(words("stopped"));
    await running.said("dpo ");
    await running.said("steps/s");
    running.interrupt();
    const stopped = await running.ended;
    assert.equal(stopped.code, 130, stopped.stderr);
    const on = ok(await runCommand(...words("stopped")));
    assert.match(on, /dpo: going on in/);
    const [a, b] = ["alone", "stopped"].map((run) => readFileSync(join(directory, run, "model.safetensors")));
    assert.ok(a!.equals(b!));
  });

  it("what makes no sense is told before anything is loaded", async () => {
    const words = ["dpo", "--model-path", "x", "--data-path", "y", "--output-dir", "z"];
    const cases: [string[], RegExp][] = [
      [["--loss-type", "sigmod"], /--loss-type: expected one or a list of sigmoid, hinge, ipo/],
      [["--loss-type", "sigmoid", "sft", "--loss-weights", "1"], /one weight for each of the 2 losses/],
      [["--beta", "0"], /--beta/],
      [["--lora-alpha", "8"], /has no effect without lora_r/],
      [["--ref-model-path", "z"], /output_dir is ref_model_path too/],
    ];
    for (const [more, message] of cases) {
      const outcome = await runHere(...words, ...more);
      assert.equal(outcome.code, 2, outcome.stderr);
      assert.match(outcome.stderr, message);
    }
  });
});
