import { RlhfError } from "../errors.ts";
import type { NamesOf } from "../option-names.ts";

/** A token to add to a tokenizer. */
export interface NewToken {
  readonly content: string;
  /** Special tokens steer the model and are no text: they are left out of decoded text. Default true. */
  readonly special?: boolean;
}

/** What else changes with the tokens. */
export interface AddTokensOptions {
  /** Jinja text, or "chatml" for the template with <|im_start|> and <|im_end|>, which are then added and end each turn. */
  readonly chatTemplate?: string;
  /** Content of the token that ends a sequence; must be one of the tokenizer's or of those added. */
  readonly eosToken?: string;
  /** Content of the padding token. */
  readonly padToken?: string;
}

export const ADD_TOKENS_OPTIONS: NamesOf<AddTokensOptions> = {
  chatTemplate: true,
  eosToken: true,
  padToken: true,
};

/** ChatML, with marks around what the assistant writes. */
export const CHATML_TEMPLATE =
  "{% for message in messages %}" +
  "{{ '<|im_start|>' + message['role'] + '\\n' }}" +
  "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}" +
  "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}" +
  "{{ '\\n' }}" +
  "{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const CHATML_TOKENS: readonly NewToken[] = [{ content: "<|im_start|>" }, { content: "<|im_end|>" }];

type Json = Readonly<Record<string, unknown>>;

/** The parts of a tokenizer that tokens are added to. */
export interface TokenizerFiles {
  readonly json: Json;
  readonly config: Json;
  /** special_tokens_map.json, where there is one. */
  readonly specialTokensMap: Json | null;
}

/** The tokens and settings that were asked for, with what "chatml" stands for. */
function expand(
  tokens: readonly (string | NewToken)[],
  options: AddTokensOptions,
): { tokens: NewToken[]; options: AddTokensOptions } {
  const given = tokens.map((token) => (typeof token === "string" ? { content: token } : token));
  const isChatml = options.chatTemplate === "chatml";
  const all = isChatml ? [...given, ...CHATML_TOKENS] : given;
  const unique = all.filter(
    (token, index) => all.findIndex(({ content }) => content === token.content) === index,
  );
  const empty = unique.find((token) => token.content.trim() === "");
  if (empty)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      "addTokens: a token must have a content that is not white space",
    );
  return {
    tokens: unique,
    options: isChatml ? { eosToken: "<|im_end|>", ...options, chatTemplate: CHATML_TEMPLATE } : options,
  };
}

function entryOf({ content, special = true }: NewToken): Json {
  return { content, single_word: false, lstrip: false, rstrip: false, normalized: !special, special };
}

/**
 * The files with tokens added, which take the ids from `nextId` on in their order; tokens that the tokenizer has already are left as
 * they are. Throws ERR_RLHF_ARGUMENT for a token without content and for an eosToken or padToken that does not exist.
 *
 * @param idOf the id of a token of the tokenizer so far, or null
 */
export function withAddedTokens(
  files: TokenizerFiles,
  wanted: readonly (string | NewToken)[],
  wantedOptions: AddTokensOptions,
  nextId: number,
  idOf: (content: string) => number | null,
): { files: TokenizerFiles; added: ReadonlyMap<string, number> } {
  const { tokens, options } = expand(wanted, wantedOptions);
  const fresh = tokens.filter((token) => idOf(token.content) === null);
  const added = new Map(fresh.map((token, index) => [token.content, nextId + index]));
  const named: Record<string, string> = {};
  for (const [key, content] of [
    ["eos_token", options.eosToken],
    ["pad_token", options.padToken],
  ] as const) {
    if (content === undefined) continue;
    if (!added.has(content) && idOf(content) === null)
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `addTokens: ${key} ${JSON.stringify(content)} is neither a token of the tokenizer nor one of those added`,
        { token: content },
      );
    named[key] = content;
  }
  const entries = fresh.map((token) => ({ id: added.get(token.content), ...entryOf(token) }));
  const { added_tokens: before = [] } = files.json as { added_tokens?: readonly unknown[] };
  const { added_tokens_decoder: decoder } = files.config as { added_tokens_decoder?: Json };
  const config: Json = {
    ...files.config,
    ...(decoder
      ? {
          added_tokens_decoder: {
            ...decoder,
            ...Object.fromEntries(fresh.map((token) => [String(added.get(token.content)), entryOf(token)])),
          },
        }
      : {}),
    ...named,
    ...(options.chatTemplate === undefined ? {} : { chat_template: options.chatTemplate }),
  };
  return {
    files: {
      json: { ...files.json, added_tokens: [...before, ...entries] },
      config,
      specialTokensMap: files.specialTokensMap && { ...files.specialTokensMap, ...named },
    },
    added,
  };
}
