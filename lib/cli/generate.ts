import { type Command, Option } from "commander";
import { encodeChatPrompt, encodePrompt } from "../data/encode.ts";
import { loadPrompts } from "../data/prompts.ts";
import { describePlace, placeOf } from "../data/readers.ts";
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
  openModel,
} from "./options.ts";
import { type SamplingOptions, samplingOf, samplingOptions } from "./sampling.ts";

interface GenerateOptions extends ModelOptions, SamplingOptions {
  readonly dtype: WeightType;
  readonly prompt?: readonly string[];
  readonly promptsPath?: string;
  readonly output?: string;
  readonly numSamples: number;
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
  const sampling = samplingOptions({ maxNewTokens: 64 });
  for (const option of [...modelOptions(), dtypeOption(), adapterOption(), samplesOption(), ...sampling])
    command.addOption(option);
  command.action((options: GenerateOptions) => withInterrupt((signal) => generate(options, signal)));
}

function samplesOption(): Option {
  return new Option("--num-samples <n>", "answers per prompt").argParser(integer(1)).default(1);
}

async function readPrompts(options: GenerateOptions): Promise<PromptRow[]> {
  if ((options.prompt === undefined) === (options.promptsPath === undefined)) {
    throw new RlhfError("ERR_RLHF_USAGE", "generate: give the prompts by either --prompt or --prompts-path");
  }
  if (options.promptsPath === undefined) return (options.prompt ?? []).map((prompt) => ({ prompt }));
  return [...(await loadPrompts(options.promptsPath))];
}

/** Throws, with its place in the file, for a prompt that fills the context. */
function checkRoom(prompts: readonly PromptRow[], encoded: readonly Int32Array[], maxLength: number): void {
  const index = encoded.findIndex((tokens) => tokens.length >= maxLength);
  if (index < 0) return;
  const row = prompts[index] as PromptRow;
  const found = placeOf(row);
  const place = found === undefined ? JSON.stringify(`${row.prompt.slice(0, 40)}…`) : describePlace(found);
  const length = (encoded[index] as Int32Array).length;
  throw new RlhfError(
    "ERR_RLHF_CONTEXT_LENGTH",
    `${place}: the prompt has ${length} tokens and leaves no room for an answer in the model's context of ${maxLength}: shorten it`,
    { ...found },
  );
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
  checkRoom(prompts, encoded, model.maxLength);
  const answers = await model.generate(encoded, {
    ...samplingOf(options),
    adapter,
    tokenizer,
    stop: [...tokenizer.endTokenIds],
    stopStrings: options.stopStrings,
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
