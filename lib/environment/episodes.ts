import { Random } from "../data/random.ts";
import { throwIfAborted } from "../errors.ts";
import { refuseUnknownOptions } from "../option-names.ts";
import type { Environment } from "./environment.ts";
import type { EnvironmentPolicy } from "./policy.ts";
import { stepEnvironment } from "./rollouts.ts";

/** The undiscounted rewards of a whole episode, and its steps. */
export interface Episode {
  readonly return: number;
  readonly length: number;
}

export interface PlayOptions {
  /** What the first observations follow from. Default 0. */
  readonly seed?: number;
  /** Cuts an episode off after so many steps. Default: never. */
  readonly maxSteps?: number;
  readonly signal?: AbortSignal;
}

/**
 * Plays one whole episode in each environment, side by side, with a policy's likeliest actions. Throws ERR_RLHF_ABORTED when the
 * signal is raised.
 */
export async function playEpisodes(
  policy: EnvironmentPolicy,
  environments: readonly Environment[],
  options: PlayOptions = {},
): Promise<Episode[]> {
  refuseUnknownOptions("playEpisodes", options, { seed: true, maxSteps: true, signal: true });
  const { seed = 0, maxSteps = Number.POSITIVE_INFINITY, signal } = options;
  const running = await Promise.all(
    environments.map(async (environment, index) => {
      const first = new Random(seed, `evaluation episode ${index}`).integer(2 ** 31);
      return { environment, observation: await environment.reset(first), return: 0, length: 0 };
    }),
  );
  let active = running;
  while (active.length > 0) {
    throwIfAborted(signal, "evaluation");
    const actions = await policy.act(active.map(({ observation }) => observation));
    const ended = await Promise.all(
      active.map(async (episode, row) => {
        const step = await stepEnvironment(episode.environment, actions[row] as Float32Array);
        episode.observation = step.observation;
        episode.return += step.reward;
        episode.length++;
        return step.terminated || step.truncated || episode.length >= maxSteps;
      }),
    );
    active = active.filter((_, row) => !ended[row]);
  }
  return running.map(({ return: total, length }) => ({ return: total, length }));
}
