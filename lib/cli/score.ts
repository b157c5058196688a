import type { Command } from "commander";
import { RlhfError } from "../errors.ts";
import type { RewardModel } from "../model/reward-model.ts";
import type { RewardEnsemble } from "../rewards/ensemble.ts";
import { withInterrupt } from "./interrupt.ts";
import { writeJsonLines } from "./json-lines.ts";
import { checkSequences, measureSequences, type SequenceLimits } from "./measure.ts";
import { type MeasureOptions, measureOptions } from "./options.ts";

/** What is written of one sequence. */
interface Score {
  /** As the model gives it; of an ensemble, combined. */
  readonly reward: number;
  /** By the mean and deviation that a reward model was saved with. */
  readonly normalized?: number;
  /** How far the members of an ensemble are apart. */
  readonly spread?: number;
}

/** `score`: the reward of sequences under a reward model. */
export function addScoreCommand(program: Command): void {
  const command = program
    .command("score")
    .description(
      "write {tokens, reward} for each sequence, {chosen, rejected, margin} for each pair; answers end in the end-of-sequence token. " +
        "A model that was saved with the mean and deviation of its rewards gives {normalized} too, an ensemble {spread}",
    );
  for (const option of measureOptions()) command.addOption(option);
  command.action((options: MeasureOptions) => withInterrupt((signal) => score(options, signal)));
}

async function score(options: MeasureOptions, signal: AbortSignal): Promise<void> {
  const { loadReward } = await import("../rewards/ensemble.ts");
  const { rewardModels } = await import("../rewards/reward.ts");
  const { device, threads, dtype, compute, microBatchTokens } = options;
  using reward = await loadReward(options.model, { device, threads, dtype, compute });
  const models = rewardModels(reward).map((member) => member.model);
  const limits = {
    maxLength: Math.min(...models.map((model) => model.maxLength)),
    vocabSize: Math.min(...models.map((model) => model.vocabSize)),
  };
  const groups = await readGroups(options, limits);
  const measured = measureSequences(groups.flat(), microBatchTokens, signal, (sequences) =>
    scoreSequences(reward, sequences, microBatchTokens),
  );
  await writeJsonLines(options.output, toRows(groups, measured));
}

/** The sequences of each row of the file: one, or two of a pair. */
async function readGroups(options: MeasureOptions, limits: SequenceLimits): Promise<Int32Array[][]> {
  const { loadScorable, scorableSequences } = await import("../data/scorable.ts");
  const { describePlace } = await import("../data/readers.ts");
  const { Tokenizer } = await import("../tokenizer/tokenizer.ts");
  const rows = await loadScorable(options.dataPath, { onBadRow: options.onBadRow });
  const tokenizer = rows.some((row) => !("tokens" in row)) ? await Tokenizer.load(options.model) : null;
  const { droppedRows, firstDroppedRows } = rows.report;
  const [first] = firstDroppedRows;
  if (first)
    process.stderr.write(
      `score: left out ${droppedRows} pairs; the first is ${describePlace(first)}: ${first.reason}\n`,
    );
  return rows.map((row) => {
    const sequences = scorableSequences(row, tokenizer);
    checkSequences(row, sequences, limits);
    return sequences;
  });
}

async function scoreSequences(
  source: RewardModel | RewardEnsemble,
  sequences: readonly Int32Array[],
  microBatchTokens: number,
): Promise<Score[]> {
  if ("members" in source) {
    const { scores, spread } = await source.scoreWithSpread(sequences, { microBatchTokens });
    return Array.from(scores, (reward, i) => ({ reward, spread: spread[i] as number }));
  }
  const { statistics } = source;
  const scores = await source.score(sequences, { microBatchTokens });
  return Array.from(scores, (reward) =>
    statistics ? { reward, normalized: (reward - statistics.mean) / statistics.deviation } : { reward },
  );
}

async function* toRows(
  groups: readonly Int32Array[][],
  measured: AsyncGenerator<{ tokens: Int32Array; result: Score }>,
): AsyncGenerator<object> {
  const next = async (): Promise<Score & { tokens: number[] }> => {
    const { value, done } = await measured.next();
    if (done) throw new RlhfError("ERR_RLHF_INTERNAL", "score: a sequence was not measured");
    return { tokens: [...value.tokens], ...value.result };
  };
  for (const group of groups) {
    const first = await next();
    if (group.length === 1) {
      yield first;
      continue;
    }
    const rejected = await next();
    yield { chosen: first, rejected, margin: first.reward - rejected.reward };
  }
}
