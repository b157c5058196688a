import { encodeChatPrompt, encodePrompt } from "../data/encode.ts";
import type { ChatMessage } from "../data/types.ts";
import { RlhfError } from "../errors.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

export interface ConversationOptions {
  /** Most tokens of a prompt. */
  readonly room: number;
  /** What the model is told before everything else; needs a chat template. */
  readonly system?: string;
  /**
   * What a message becomes where there is no chat template: text with "{message}" in its place, ending where the answer begins.
   * Default: the message alone.
   */
  readonly turn?: string;
}

interface Exchange {
  readonly message: string;
  readonly answer: string;
}

const MESSAGE = "{message}";

/** What was said so far, as prompts for the next answer: by the chat template, or turn after turn as text. */
export class Conversation {
  readonly #tokenizer: Tokenizer;
  readonly #options: ConversationOptions;
  #exchanges: Exchange[] = [];

  /** Throws ERR_RLHF_USAGE for options that the tokenizer has no use for. */
  constructor(tokenizer: Tokenizer, options: ConversationOptions) {
    const { system, turn } = options;
    const fail = (problem: string): never => {
      throw new RlhfError("ERR_RLHF_USAGE", problem);
    };
    if (turn !== undefined && !turn.includes(MESSAGE)) fail(`--turn: has no ${MESSAGE} for the message`);
    if (turn !== undefined && tokenizer.chatTemplate !== null)
      fail("--turn: this model has a chat template, which says what a turn looks like");
    if (system !== undefined && tokenizer.chatTemplate === null)
      fail("--system: this model has no chat template that would say where it stands");
    this.#tokenizer = tokenizer;
    this.#options = options;
  }

  get exchanges(): number {
    return this.#exchanges.length;
  }

  /** The beginning of the next turn, at which an answer as text ends; null where there is none. */
  get stopString(): string | null {
    const before = this.#options.turn?.split(MESSAGE)[0]?.trimEnd();
    return before ? before : null;
  }

  reset(): void {
    this.#exchanges = [];
  }

  add(message: string, answer: string): void {
    this.#exchanges.push({ message, answer });
  }

  /**
   * The prompt for the answer to a message. The oldest exchanges are forgotten for good until it fits; `forgotten` says how many.
   * Throws ERR_RLHF_CONTEXT_LENGTH when the message alone is too long.
   */
  promptFor(message: string): { readonly tokens: Int32Array; readonly forgotten: number } {
    for (let forgotten = 0; ; forgotten++) {
      const kept = this.#exchanges.slice(forgotten);
      const tokens = this.#encode(kept, message);
      if (tokens.length <= this.#options.room) {
        this.#exchanges = kept;
        return { tokens, forgotten };
      }
      if (kept.length === 0)
        throw new RlhfError(
          "ERR_RLHF_CONTEXT_LENGTH",
          `the message has ${tokens.length} tokens, and there is room for ${this.#options.room}: shorten it, or lower --max-new-tokens`,
        );
    }
  }

  #encode(exchanges: readonly Exchange[], message: string): Int32Array {
    const { system, turn = MESSAGE } = this.#options;
    if (this.#tokenizer.chatTemplate === null) {
      const asTurn = (text: string): string => turn.split(MESSAGE).join(text);
      const before = exchanges.map((each) => asTurn(each.message) + each.answer).join("");
      return encodePrompt(this.#tokenizer, before + asTurn(message));
    }
    const messages: ChatMessage[] = system === undefined ? [] : [{ role: "system", content: system }];
    for (const each of exchanges)
      messages.push({ role: "user", content: each.message }, { role: "assistant", content: each.answer });
    return encodeChatPrompt(this.#tokenizer, [...messages, { role: "user", content: message }]);
  }
}

/** Tokens of the prompt that the text of those after it may depend on: a leading space, a character of several bytes. */
const CONTEXT_TOKENS = 8;

/**
 * The text of an answer as its tokens come. What may still change is held back: the bytes of an unfinished character, and what may be
 * the beginning of a stop string.
 */
export class AnswerText {
  readonly #tokenizer: Tokenizer;
  readonly #context: Int32Array;
  readonly #stopStrings: readonly string[];
  readonly #write: (text: string) => void;
  readonly #tokens: number[] = [];
  #written = "";

  constructor(
    tokenizer: Tokenizer,
    prompt: Int32Array,
    stopStrings: readonly string[],
    write: (text: string) => void,
  ) {
    this.#tokenizer = tokenizer;
    this.#context = prompt.slice(-CONTEXT_TOKENS);
    this.#stopStrings = stopStrings;
    this.#write = write;
  }

  /** What was written so far. */
  get written(): string {
    return this.#written;
  }

  add(token: number): void {
    this.#tokens.push(token);
    const text = this.#tokenizer.decodeContinuation(this.#context, Int32Array.from(this.#tokens));
    this.#show(text.slice(0, this.#certain(text)));
  }

  /** Writes what was held back of the whole answer. */
  finish(text: string): void {
    this.#show(text);
  }

  #show(text: string): void {
    if (!text.startsWith(this.#written)) return;
    this.#write(text.slice(this.#written.length));
    this.#written = text;
  }

  /** Characters at the beginning that no further token changes. */
  #certain(text: string): number {
    const whole = text.replace(/\uFFFD+$/, "").length;
    let certain = whole;
    for (const stop of this.#stopStrings) {
      const found = text.indexOf(stop);
      if (found >= 0) certain = Math.min(certain, found);
      for (let length = Math.min(stop.length - 1, whole); length > 0; length--)
        if (text.slice(0, whole).endsWith(stop.slice(0, length))) {
          certain = Math.min(certain, whole - length);
          break;
        }
    }
    return certain;
  }
}
