import * as library from "@huggingface/tokenizers";
import { messageOf, RlhfError } from "../errors.ts";

/** A parsed tokenizer.json, as far as this package looks into it. */
export interface TokenizerJson {
  readonly added_tokens?: readonly {
    readonly id: number;
    readonly content: string;
    readonly special?: boolean;
  }[];
  readonly model: {
    readonly type?: string;
    readonly byte_fallback?: boolean;
    readonly vocab?: unknown;
    readonly merges?: unknown;
  };
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

/** The models of a tokenizer.json that the library knows; it takes any other for one of old files. */
const MODEL_TYPES = ["BPE", "Unigram", "WordLevel", "WordPiece"];

/** Throws for what the library takes without a word and then encodes wrongly. */
function checkModel({ model }: TokenizerJson, where: string): void {
  if (typeof model !== "object" || model === null) return; // The library says so.
  const { type, vocab, merges } = model;
  if (type !== undefined && !MODEL_TYPES.includes(type))
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      `${where}: model.type is ${JSON.stringify(type)}; supported are ${MODEL_TYPES.join(", ")}`,
      { where, field: "model.type" },
    );
  const fail = (field: string, expected: string): never => {
    throw new RlhfError("ERR_RLHF_TOKENIZER", `${where}: model.${field} ${expected}; copy the file again`, {
      where,
      field: `model.${field}`,
    });
  };
  if (type === "Unigram" && !Array.isArray(vocab)) fail("vocab", "must be a list of tokens and scores");
  if (type !== undefined && type !== "Unigram") {
    if (typeof vocab !== "object" || vocab === null || Array.isArray(vocab))
      fail("vocab", "must be an object of tokens and ids");
    const bad = Object.entries(vocab ?? {}).find(([, id]) => !Number.isInteger(id) || (id as number) < 0);
    if (bad) fail("vocab", `gives ${JSON.stringify(bad[0])} the id ${JSON.stringify(bad[1])}`);
  }
  const isMerge = (merge: unknown): boolean =>
    typeof merge === "string" ||
    (Array.isArray(merge) && merge.length === 2 && merge.every((part) => typeof part === "string"));
  if (type === "BPE" && Array.isArray(merges) && !merges.every(isMerge))
    fail("merges", "must hold pairs of tokens only");
}

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
  checkModel(json, where);
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
