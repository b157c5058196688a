import { readFile } from "node:fs/promises";
import type { Command } from "commander";
import { messageOf, RlhfError } from "../errors.ts";
import { integer } from "./options.ts";

interface AddTokensCommandOptions {
  readonly model: string;
  readonly output: string;
  readonly tokens?: readonly string[];
  readonly textTokens?: readonly string[];
  readonly chatTemplate?: string;
  readonly eosToken?: string;
  readonly padToken?: string;
  readonly padVocabTo?: number;
}

/** `add-tokens`: a model directory with more tokens, in its tokenizer and its embeddings. */
export function addAddTokensCommand(program: Command): void {
  program
    .command("add-tokens")
    .description("write a model directory with tokens added to its tokenizer and its embeddings")
    .requiredOption("--model <directory>", "Hugging Face model directory")
    .requiredOption("--output <directory>", "where to write the result")
    .option("--tokens <contents...>", "special tokens, e.g. <|im_start|>")
    .option("--text-tokens <contents...>", "tokens that are text")
    .option("--chat-template <template>", '"chatml", or a file with a Jinja template')
    .option("--eos-token <content>", "token that ends a sequence from now on")
    .option("--pad-token <content>", "padding token")
    .option("--pad-vocab-to <n>", "rounds the embedding's rows up to a multiple", integer(1))
    .action(runAddTokens);
}

async function readTemplate(template: string | undefined): Promise<string | undefined> {
  if (template === undefined || template === "chatml") return template;
  try {
    return await readFile(template, "utf8");
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_IO",
      `--chat-template: ${template}: cannot be read: ${messageOf(error)}`,
      { path: template },
      { cause: error },
    );
  }
}

async function runAddTokens(options: AddTokensCommandOptions): Promise<void> {
  const { addTokens } = await import("../model/add-tokens.ts");
  const { model, output, tokens = [], textTokens = [], eosToken, padToken, padVocabTo } = options;
  const chatTemplate = await readTemplate(options.chatTemplate);
  if (tokens.length + textTokens.length === 0 && chatTemplate === undefined)
    throw new RlhfError("ERR_RLHF_USAGE", "add-tokens: give --tokens, --text-tokens or --chat-template");
  const contents = [...tokens, ...textTokens.map((content) => ({ content, special: false }))];
  const result = await addTokens(model, output, contents, {
    ...(chatTemplate === undefined ? {} : { chatTemplate }),
    ...(eosToken === undefined ? {} : { eosToken }),
    ...(padToken === undefined ? {} : { padToken }),
    ...(padVocabTo === undefined ? {} : { padVocabTo }),
  });
  const added = [...result.added].map(([content, id]) => `${id} ${content}`);
  process.stderr.write(
    `${output}: ${added.length === 0 ? "no token was new" : `added ${added.join(", ")}`}; ${result.vocabSize} rows\n`,
  );
}
