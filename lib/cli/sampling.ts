import { Option } from "commander";
import { integer, number } from "./options.ts";

/** How tokens are drawn, as options of a command. */
export interface SamplingOptions {
  readonly maxNewTokens: number;
  readonly minNewTokens: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly seed: number;
}

/** Of all of a command's options, those. */
export function samplingOf(options: SamplingOptions): SamplingOptions {
  const { maxNewTokens, minNewTokens, temperature, topK, topP, minP, repetitionPenalty, seed } = options;
  return { maxNewTokens, minNewTokens, temperature, topK, topP, minP, repetitionPenalty, seed };
}

/** --max-new-tokens, --temperature and the rest. */
export function samplingOptions(defaults: Pick<SamplingOptions, "maxNewTokens">): Option[] {
  const sampling: [flag: string, description: string, parse: (text: string) => number, value: number][] = [
    ["--max-new-tokens <n>", "longest answer in tokens", integer(1), defaults.maxNewTokens],
    ["--min-new-tokens <n>", "shortest answer", integer(0), 0],
    ["--temperature <t>", "0: always the likeliest token", number(0), 1],
    ["--top-k <k>", "only the k likeliest tokens; 0: all", integer(0), 0],
    ["--top-p <p>", "only the likeliest tokens that hold this probability", number(0, 1), 1],
    ["--min-p <p>", "only tokens with this share of the likeliest one's probability", number(0, 1), 0],
    ["--repetition-penalty <r>", "over 1: tokens that occurred get less likely", number(1e-6), 1],
    ["--seed <n>", "the same seed gives the same answers", integer(0), 0],
  ];
  return sampling.map(([flag, description, parse, value]) =>
    new Option(flag, description).argParser(parse).default(value),
  );
}
