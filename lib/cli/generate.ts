import { type Command, Option } from "commander";
import { encodeChatPrompt, encodePrompt } from "../data/encode.ts";
import { loadPrompts } from "../data/prompts.ts";
import type { PromptRow } from "../data/types.ts";
import { RlhfError } from "../errors.ts";
import type { WeightType } from "../model/model-options.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { withInterrupt } from "./interrupt.ts";
import { writeJsonLines } from "./json-lines.ts";
import {
  adapterOption,
  dtypeOption,
  integer,
  type ModelOptions,
  modelOptions,
  number,
  openModel,
} from "./options.ts";

interface GenerateOptions extends ModelOptions {
  readonly dtype: WeightType;
  readonly prompt?: readonly string[];
  readonly promptsPath?: string;
  readonly output?: string;
  readonly numSamples: number;
  readonly maxNewTokens: number;
  readonly minNewTokens: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly seed: number;
  readonly stopStrings?: readonly string[];
  readonly adapter?: string;
}

/** One answer, as `generate` writes it. */
interface GeneratedRow {
  readonly prompt: string;
  readonly response: string;
  readonly tokens: readonly number[];
  readonly finishReason: string;
}

/** `generate`: answers to prompts, as text on stdout or as JSON lines. */
export function addGenerateCommand(program: Command): void {
  const command = program
    .command("generate")
    .description("answer prompts; without --output the texts are printed")
    .option("--prompt <texts...>", "prompts")
    .option(
      "--prompts-path <file>",
      "prompts as strings or {prompt, …} rows: .json, .jsonl, .jsonl.gz or .parquet",
    )
    .option("--stop-strings <texts...>", "texts that end an answer, beside the end tokens; not part of it")
    .option("--output <file>", "JSON lines {prompt, response, tokens, finishReason}");
  for (const option of [...modelOptions(), dtypeOption(), adapterOption(), ...samplingOptions()])
    command.addOption(option);
  command.action((options: GenerateOptions) => withInterrupt((signal) => generate(options, signal)));
}

function samplingOptions(): Option[] {
  const sampling: [flag: string, description: string, parse: (text: string) => number, value: number][] = [
    ["--num-samples <n>", "answers per prompt", integer(1), 1],
    ["--max-new-tokens <n>", "longest answer", integer(1), 64],
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

async function readPrompts(options: GenerateOptions): Promise<PromptRow[]> {
  if ((options.prompt === undefined) === (options.promptsPath === undefined)) {
    throw new RlhfError("ERR_RLHF_USAGE", "generate: give the prompts by either --prompt or --prompts-path");
  }
  if (options.promptsPath === undefined) return (options.prompt ?? []).map((prompt) => ({ prompt }));
  return [...(await loadPrompts(options.promptsPath))];
}

async function generate(options: GenerateOptions, signal: AbortSignal): Promise<void> {
  const prompts = (await readPrompts(options)).flatMap((prompt) =>
    new Array<PromptRow>(options.numSamples).fill(prompt),
  );
  const tokenizer = await Tokenizer.load(options.model);
  const { model, adapter } = await openModel(options);
  using _model = model;
  const encoded = prompts.map(({ prompt, messages }) =>
    messages ? encodeChatPrompt(tokenizer, messages) : encodePrompt(tokenizer, prompt),
  );
  const { maxNewTokens, minNewTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stopStrings } =
    options;
  const answers = await model.generate(encoded, {
    maxNewTokens,
    minNewTokens,
    temperature,
    topK,
    topP,
    minP,
    repetitionPenalty,
    seed,
    adapter,
    tokenizer,
    stop: [...tokenizer.endTokenIds],
    stopStrings,
    signal,
  });
  const rows = answers.map(
    (answer, index): GeneratedRow => ({
      prompt: (prompts[index] as PromptRow).prompt,
      response: answer.text,
      tokens: [...answer.tokens],
      finishReason: answer.finishReason,
    }),
  );
  if (options.output !== undefined) await writeJsonLines(options.output, rows);
  else for (const row of rows) process.stdout.write(`${row.prompt}${row.response}\n`);
}
