import * as library from "@huggingface/tokenizers";
import { messageOf, RlhfError } from "../errors.ts";

/** A parsed tokenizer.json, as far as this package looks into it. */
export interface TokenizerJson {
  readonly added_tokens?: readonly {
    readonly id: number;
    readonly content: string;
    readonly special?: boolean;
  }[];
  readonly model: { readonly type?: string; readonly byte_fallback?: boolean };
}

/** What this package uses of the library's tokenizer; its own types do not resolve under "nodenext". */
export interface BackendTokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { readonly ids: readonly number[] };
  decode(
    ids: readonly number[],
    options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean },
  ): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
  get_vocab(withAddedTokens: boolean): Map<string, number>;
}

type BackendConstructor = new (tokenizerJson: object, tokenizerConfig: object) => BackendTokenizer;

const Backend = (library as unknown as { Tokenizer: BackendConstructor }).Tokenizer;

/**
 * Builds the library's tokenizer from parsed files. Throws ERR_RLHF_UNSUPPORTED for kinds it is known to get wrong and
 * ERR_RLHF_TOKENIZER for files it cannot read; `where` names them in messages.
 */
export function createBackend(json: TokenizerJson, config: object, where: string): BackendTokenizer {
  if (json.model?.type === "Unigram" && json.model.byte_fallback === true) {
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      `${where}: Unigram tokenizers with byte_fallback are encoded wrongly by @huggingface/tokenizers; use a model with a BPE tokenizer`,
      { where },
    );
  }
  try {
    // The library writes into what it is given.
    return new Backend(structuredClone(json), structuredClone(config));
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_TOKENIZER",
      `${where}: cannot be used as a tokenizer: ${messageOf(error)}`,
      { where },
      { cause: error },
    );
  }
}
