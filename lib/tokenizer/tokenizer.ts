import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import type { ChatMessage } from "../data/types.ts";
import { messageOf, RlhfError } from "../errors.ts";
import { localModel } from "../hub/hub.ts";
import { writeFileAtomically } from "../model/files.ts";
import { refuseUnknownOptions } from "../option-names.ts";
import { ADD_TOKENS_OPTIONS, type AddTokensOptions, type NewToken, withAddedTokens } from "./added-tokens.ts";
import { type BackendTokenizer, createBackend, type TokenizerJson } from "./backend.ts";
import { ChatTemplate, type RenderedChat } from "./chat.ts";
import {
  CHAT_OPTIONS,
  type ChatOptions,
  type DecodeOptions,
  ENCODE_OPTIONS,
  type EncodeOptions,
} from "./options.ts";
import { type TokenBytes, tokenBytes } from "./token-bytes.ts";

export type { ChatOptions, DecodeOptions, EncodeOptions };

/** Files that belong to a tokenizer, copied as they are by `save`. */
const TOKENIZER_FILES = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
] as const;

type JsonObject = Readonly<Record<string, unknown>>;

/** Turns text into token ids and back. Reads and writes Hugging Face's tokenizer.json; holds no native memory. */
export class Tokenizer {
  /** Ids lie in [0, vocabSize); a model's embedding may have more rows. */
  readonly vocabSize: number;
  readonly eosTokenId: number | null;
  readonly bosTokenId: number | null;
  /** The padding token; the end-of-sequence token where none is named. */
  readonly padTokenId: number | null;
  /** All tokens that end a generation: generation_config.json may name several. */
  readonly endTokenIds: readonly number[];
  readonly chatTemplate: string | null;
  readonly #backend: BackendTokenizer;
  readonly #json: TokenizerJson;
  readonly #config: JsonObject;
  readonly #files: ReadonlyMap<string, Uint8Array>;
  readonly #template: ChatTemplate | null;
  readonly #modelConfigs: readonly JsonObject[];
  #literal: BackendTokenizer | null = null;
  #bytes: TokenBytes | null = null;

  private constructor(
    files: ReadonlyMap<string, Uint8Array>,
    where: string,
    modelConfigs: readonly JsonObject[],
  ) {
    this.#files = files;
    this.#modelConfigs = modelConfigs;
    this.#json = parseJson(files, "tokenizer.json", where) as unknown as TokenizerJson;
    this.#config = files.has("tokenizer_config.json") ? parseJson(files, "tokenizer_config.json", where) : {};
    this.#backend = createBackend(this.#json, this.#config, join(where, "tokenizer.json"));
    this.vocabSize = 1 + largest(this.#backend.get_vocab(true).values());
    const generationEnds = modelConfigs.flatMap((config) => idList(config.eos_token_id));
    this.eosTokenId = this.#namedToken("eos_token") ?? generationEnds[0] ?? null;
    this.bosTokenId =
      this.#namedToken("bos_token") ??
      modelConfigs.flatMap((config) => idList(config.bos_token_id))[0] ??
      null;
    this.padTokenId =
      this.#namedToken("pad_token") ??
      modelConfigs.flatMap((config) => idList(config.pad_token_id))[0] ??
      this.eosTokenId;
    const ends = this.eosTokenId === null ? generationEnds : [this.eosTokenId, ...generationEnds];
    this.endTokenIds = [...new Set(ends)];
    const source = templateSource(files, this.#config, where);
    this.#template = source === null ? null : new ChatTemplate(source);
    this.chatTemplate = source;
  }

  /**
   * Reads the tokenizer of a model directory: tokenizer.json, and where present tokenizer_config.json, chat_template.jinja,
   * generation_config.json and config.json. Throws ERR_RLHF_TOKENIZER or ERR_RLHF_UNSUPPORTED.
   */
  static async load(path: string): Promise<Tokenizer> {
    const directory = await localModel(path);
    const files = new Map<string, Uint8Array>();
    for (const name of TOKENIZER_FILES) {
      const bytes = await readIfPresent(join(directory, name));
      if (bytes) files.set(name, bytes);
    }
    if (!files.has("tokenizer.json")) {
      if (!(await stat(directory).catch(() => null)))
        throw new RlhfError(
          "ERR_RLHF_TOKENIZER",
          `${directory}: there is no such directory; give the path of a Hugging Face model directory, or hub:owner/name`,
          { directory },
        );
      const hint = files.has("tokenizer.model")
        ? "it has only a SentencePiece tokenizer.model; convert it with transformers (AutoTokenizer…save_pretrained)"
        : "a model directory needs tokenizer.json";
      throw new RlhfError("ERR_RLHF_TOKENIZER", `${directory}: no tokenizer.json found: ${hint}`, {
        directory,
      });
    }
    const modelConfigs: JsonObject[] = [];
    // generation_config.json comes first: it is what generation follows where the two differ.
    for (const name of ["generation_config.json", "config.json"]) {
      const bytes = await readIfPresent(join(directory, name));
      if (bytes) modelConfigs.push(parseJson(new Map([[name, bytes]]), name, directory));
    }
    return new Tokenizer(files, directory, modelConfigs);
  }

  /** A tokenizer from the contents of its two files, e.g. from `trainTokenizer`. */
  static fromJson(tokenizerJson: object, tokenizerConfig: object = {}): Tokenizer {
    const files = new Map([
      ["tokenizer.json", jsonBytes(tokenizerJson)],
      ["tokenizer_config.json", jsonBytes(tokenizerConfig)],
    ]);
    return new Tokenizer(files, "", []);
  }

  /** Text to token ids, Int32Array[T]. Throws ERR_RLHF_ARGUMENT for what is no string. */
  encode(text: string, options: EncodeOptions = {}): Int32Array {
    if (typeof text !== "string")
      throw new RlhfError("ERR_RLHF_ARGUMENT", `encode: text must be a string, got ${String(text)}`);
    refuseUnknownOptions("encode", options, ENCODE_OPTIONS);
    const addSpecialTokens = options.addSpecialTokens ?? true;
    if (options.specialTokensInText === "literal") return this.#encodeLiterally(text, addSpecialTokens);
    return Int32Array.from(this.#backend.encode(text, { add_special_tokens: addSpecialTokens }).ids);
  }

  /** Token ids to text. Ids that the tokenizer does not know (padding rows of an embedding) have no text. */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    refuseUnknownOptions("decode", options, { skipSpecialTokens: true });
    const known = Array.from(ids).filter((id) => this.#backend.id_to_token(id) !== undefined);
    if (known.length === 0) return "";
    return this.#backend.decode(known, {
      skip_special_tokens: options.skipSpecialTokens ?? true,
      // The clean-up removes spaces before punctuation, so that decoding would not undo encoding.
      clean_up_tokenization_spaces: false,
    });
  }

  /**
   * The text that `continuation` adds to that of `prompt`. Decoded alone it would lose its leading space with many tokenizers.
   */
  decodeContinuation(prompt: Int32Array, continuation: Int32Array, options: DecodeOptions = {}): string {
    const tokens = new Int32Array(prompt.length + continuation.length);
    tokens.set(prompt);
    tokens.set(continuation, prompt.length);
    const before = this.decode(prompt, options);
    const text = this.decode(tokens, options);
    return text.startsWith(before) ? text.slice(before.length) : this.decode(continuation, options);
  }

  /** The bytes of every token's text. Throws ERR_RLHF_UNSUPPORTED where the tokenizer's decoder does not work token by token. */
  get tokenBytes(): TokenBytes {
    this.#bytes ??= tokenBytes(this.#json, this.#backend, this.vocabSize);
    return this.#bytes;
  }

  /** The id of a token's exact content, or null. */
  tokenToId(token: string): number | null {
    return this.#backend.token_to_id(token) ?? null;
  }

  /** The content of a token, or null. */
  idToToken(id: number): string | null {
    return this.#backend.id_to_token(id) ?? null;
  }

  /** Contents of the tokens that are special: they steer the model and are no text. */
  get specialTokens(): string[] {
    return (this.#json.added_tokens ?? []).filter((token) => token.special).map((token) => token.content);
  }

  /** The text without anything that spells a special token. */
  stripSpecialTokens(text: string): string {
    let stripped = text;
    let before: string;
    // Removing one occurrence can join the halves of another.
    do {
      before = stripped;
      for (const token of this.specialTokens) stripped = stripped.replaceAll(token, "");
    } while (stripped !== before);
    return stripped;
  }

  /** The text of a conversation in the form the model was trained on. Throws ERR_RLHF_TOKENIZER without a chat template. */
  applyChatTemplate(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    refuseUnknownOptions("applyChatTemplate", options, CHAT_OPTIONS);
    const { addGenerationPrompt = false } = options;
    return this.#chatTemplate().render(
      this.#clean(messages, options),
      addGenerationPrompt,
      this.#templateVariables(),
    );
  }

  /**
   * The text of a conversation and which parts of it the assistant wrote, as {% generation %} in the template or the turns
   * themselves tell. Throws ERR_RLHF_TOKENIZER without a chat template, or with one that rewrites earlier turns.
   */
  renderChat(
    messages: readonly ChatMessage[],
    options: Omit<ChatOptions, "addGenerationPrompt"> = {},
  ): RenderedChat {
    refuseUnknownOptions("renderChat", options, { sanitize: true });
    return this.#chatTemplate().renderWithSpans(this.#clean(messages, options), this.#templateVariables());
  }

  #chatTemplate(): ChatTemplate {
    if (this.#template !== null) return this.#template;
    throw new RlhfError(
      "ERR_RLHF_TOKENIZER",
      "this tokenizer has no chat template; add chat_template to tokenizer_config.json (addTokens can), or give prompts and responses as text",
    );
  }

  #clean(messages: readonly ChatMessage[], options: ChatOptions): readonly ChatMessage[] {
    if (options.sanitize === false) return messages;
    return messages.map((message) => ({ ...message, content: this.stripSpecialTokens(message.content) }));
  }

  /**
   * A tokenizer with more tokens, which take the ids after the largest one; those it has already keep theirs. The model's embedding
   * has to grow with it: `addTokens` does both. Throws ERR_RLHF_ARGUMENT.
   */
  withTokens(
    tokens: readonly (string | NewToken)[],
    options: AddTokensOptions = {},
  ): { tokenizer: Tokenizer; added: ReadonlyMap<string, number> } {
    refuseUnknownOptions("withTokens", options, ADD_TOKENS_OPTIONS);
    const specialTokensMap = this.#files.has("special_tokens_map.json")
      ? parseJson(this.#files, "special_tokens_map.json", "")
      : null;
    const before = { json: this.#json as unknown as JsonObject, config: this.#config, specialTokensMap };
    const { files, added } = withAddedTokens(before, tokens, options, this.vocabSize, (content) =>
      this.tokenToId(content),
    );
    const bytes = new Map(this.#files);
    bytes.set("tokenizer.json", jsonBytes(files.json));
    bytes.set("tokenizer_config.json", jsonBytes(files.config));
    if (files.specialTokensMap) bytes.set("special_tokens_map.json", jsonBytes(files.specialTokensMap));
    // The configuration's template would lose to the file's.
    if (options.chatTemplate !== undefined) bytes.delete("chat_template.jinja");
    bytes.delete("added_tokens.json");
    return { tokenizer: new Tokenizer(bytes, "", this.#modelConfigs), added };
  }

  /** The bytes of one of the tokenizer's files, e.g. "tokenizer.json"; undefined where it has none of that name. */
  file(name: string): Uint8Array | undefined {
    return this.#files.get(name);
  }

  /** Writes the tokenizer's files into a directory, byte for byte as they were read. */
  async save(directory: string): Promise<void> {
    for (const [name, bytes] of this.#files) await writeFileAtomically(join(directory, name), bytes);
  }

  #namedToken(key: string): number | null {
    const content = tokenContent(this.#config[key]);
    return content === null ? null : this.tokenToId(content);
  }

  #templateVariables(): Record<string, string> {
    const variables: Record<string, string> = {};
    for (const key of ["bos_token", "eos_token", "pad_token", "unk_token"]) {
      const content = tokenContent(this.#config[key]);
      if (content !== null) variables[key] = content;
    }
    return variables;
  }

  #encodeLiterally(text: string, addSpecialTokens: boolean): Int32Array {
    if (this.#literal === null) {
      const json = {
        ...this.#json,
        added_tokens: (this.#json.added_tokens ?? []).filter((token) => !token.special),
      };
      this.#literal = createBackend(json, this.#config, "tokenizer.json");
    }
    const ids = this.#literal.encode(text, { add_special_tokens: false }).ids;
    if (!addSpecialTokens) return Int32Array.from(ids);
    const { prefix, suffix } = this.#surroundingTokens();
    return Int32Array.from([...prefix, ...ids, ...suffix]);
  }

  /** What the post-processor puts before and after a text, seen on a probe. */
  #surroundingTokens(): { prefix: readonly number[]; suffix: readonly number[] } {
    const bare = this.#backend.encode("a", { add_special_tokens: false }).ids;
    const full = this.#backend.encode("a", { add_special_tokens: true }).ids;
    for (let start = 0; start + bare.length <= full.length; start++) {
      if (bare.every((id, index) => full[start + index] === id)) {
        return { prefix: full.slice(0, start), suffix: full.slice(start + bare.length) };
      }
    }
    return { prefix: [], suffix: [] };
  }
}

function jsonBytes(value: object): Uint8Array {
  return new TextEncoder().encode(`${JSON.stringify(value, null, 2)}\n`);
}

async function readIfPresent(file: string): Promise<Uint8Array | null> {
  try {
    return await readFile(file);
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return null;
    throw new RlhfError(
      "ERR_RLHF_TOKENIZER",
      `${file}: cannot be read: ${messageOf(error)}`,
      { file },
      { cause: error },
    );
  }
}

function parseJson(files: ReadonlyMap<string, Uint8Array>, name: string, where: string): JsonObject {
  const file = join(where, name);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(files.get(name)));
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_TOKENIZER",
      `${file}: is not JSON: ${messageOf(error)}`,
      { file },
      { cause: error },
    );
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new RlhfError("ERR_RLHF_TOKENIZER", `${file}: must hold a JSON object`, { file });
  }
  return value as JsonObject;
}

/** The largest of many numbers; Math.max(...ids) would overflow the stack for large vocabularies. */
function largest(ids: Iterable<number>): number {
  let result = -1;
  for (const id of ids) result = Math.max(result, id);
  return result;
}

/** Configurations hold token ids as a number, a list or null. */
function idList(value: unknown): number[] {
  const list: readonly unknown[] = Array.isArray(value) ? value : [value];
  return list.filter((id): id is number => typeof id === "number" && Number.isInteger(id) && id >= 0);
}

/** A token in tokenizer_config.json is its content, or an object with it. */
function tokenContent(value: unknown): string | null {
  if (typeof value === "string") return value;
  if (typeof value === "object" && value !== null && "content" in value && typeof value.content === "string")
    return value.content;
  return null;
}

/** The chat template of a model directory: its own file, or tokenizer_config.json's, of several the one named "default". */
function templateSource(
  files: ReadonlyMap<string, Uint8Array>,
  config: JsonObject,
  where: string,
): string | null {
  const file = files.get("chat_template.jinja");
  if (file) return new TextDecoder().decode(file);
  const entry = config.chat_template;
  if (typeof entry === "string") return entry;
  if (entry === undefined || entry === null) return null;
  if (!Array.isArray(entry))
    throw new RlhfError(
      "ERR_RLHF_TOKENIZER",
      `${join(where, "tokenizer_config.json")}: chat_template must be a template or a list of them, got ${JSON.stringify(entry)}`,
      { field: "chat_template" },
    );
  const named = entry.find(
    (item: unknown) => typeof item === "object" && item !== null && "name" in item && item.name === "default",
  ) as { template?: unknown } | undefined;
  return typeof named?.template === "string" ? named.template : null;
}
