import { copyFile, mkdir, readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { RlhfError } from "../errors.ts";
import { refuseUnknownOptions } from "../option-names.ts";
import { ADD_TOKENS_OPTIONS, type AddTokensOptions, type NewToken } from "../tokenizer/added-tokens.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { readJsonIfPresent, writeJson } from "./files.ts";
import { resizeVocabulary } from "./resize-vocabulary.ts";

export interface AddTokensToModelOptions extends AddTokensOptions {
  /** Rounds the embedding's rows up to a multiple, e.g. 64: matrix products like such sizes. */
  readonly padVocabTo?: number;
}

/** What `addTokens` did. */
export interface AddedTokens {
  /** Ids of the tokens that are new, by content. */
  readonly added: ReadonlyMap<string, number>;
  /** Rows of the embedding, the padding included. */
  readonly vocabSize: number;
}

/** Files that are written anew, those that a training stage writes about itself, and weights in other forms. */
const LEFT_OUT =
  /^(?:config|generation_config|stage)\.json$|^metrics\.jsonl$|^(?:tokenizer|special_tokens_map|added_tokens|chat_template)|\.(?:safetensors(?:\.index\.json)?|bin|pt|pth|gguf|onnx|msgpack|h5|tmp)$/;

/**
 * Adds tokens to the tokenizer and the embeddings of a model directory and writes the result as another directory, which this package
 * and transformers load. The rows of new tokens, of the embedding and of an output head that is not tied to it, are the mean of the
 * rows before: a token unlike any other, and as likely as the average one. Rows that padded the vocabulary are used up first.
 *
 * Under LoRA the embeddings stay as they are; train all weights where the model has to learn what a new token means.
 *
 * Throws ERR_RLHF_ARGUMENT, ERR_RLHF_TOKENIZER, ERR_RLHF_MODEL, ERR_RLHF_WEIGHTS or ERR_RLHF_IO.
 */
export async function addTokens(
  directory: string,
  outputDirectory: string,
  tokens: readonly (string | NewToken)[],
  options: AddTokensToModelOptions = {},
): Promise<AddedTokens> {
  refuseUnknownOptions("addTokens", options, { ...ADD_TOKENS_OPTIONS, padVocabTo: true });
  const { padVocabTo = 1, ...changes } = options;
  if (resolve(directory) === resolve(outputDirectory))
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      "addTokens: the output directory must be another than the model's",
    );
  if (!Number.isInteger(padVocabTo) || padVocabTo < 1)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `addTokens: padVocabTo must be a positive integer, got ${padVocabTo}`,
    );
  const config = await readJsonIfPresent(join(directory, "config.json"), "ERR_RLHF_MODEL");
  if (!config)
    throw new RlhfError("ERR_RLHF_MODEL", `${directory}: holds no config.json; give a model directory`, {
      directory,
    });
  const before = await Tokenizer.load(directory);
  const { tokenizer, added } = before.withTokens(tokens, changes);
  await mkdir(outputDirectory, { recursive: true });
  const vocabSize = await resizeVocabulary(directory, outputDirectory, {
    known: before.vocabSize,
    wanted: tokenizer.vocabSize,
    multipleOf: padVocabTo,
  });
  await copyOtherFiles(directory, outputDirectory);
  await tokenizer.save(outputDirectory);
  const ids = endIds(tokenizer, options);
  const generation = await readJsonIfPresent(join(directory, "generation_config.json"), "ERR_RLHF_MODEL");
  if (generation) await writeJson(join(outputDirectory, "generation_config.json"), { ...generation, ...ids });
  // Last: without it the directory is no model.
  await writeJson(join(outputDirectory, "config.json"), { ...config, vocab_size: vocabSize, ...ids });
  return { added, vocabSize };
}

/** The ids that configurations name, where the tokens changed. */
function endIds(tokenizer: Tokenizer, options: AddTokensOptions): Record<string, number | null> {
  const changesEnd = options.eosToken !== undefined || options.chatTemplate === "chatml";
  return {
    ...(changesEnd ? { eos_token_id: tokenizer.eosTokenId } : {}),
    ...(options.padToken === undefined ? {} : { pad_token_id: tokenizer.padTokenId }),
  };
}

/** Copies what neither holds the vocabulary nor is written anew: heads, licences. */
async function copyOtherFiles(from: string, to: string): Promise<void> {
  for (const entry of await readdir(from, { withFileTypes: true }))
    if (entry.isFile() && (!LEFT_OUT.test(entry.name) || entry.name === "heads.safetensors"))
      await copyFile(join(from, entry.name), join(to, entry.name));
}
