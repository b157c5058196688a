import type { NamesOf } from "../option-names.ts";

export interface EncodeOptions {
  /** Adds what the tokenizer's post-processor adds, e.g. a leading beginning-of-sequence token. Default true. */
  readonly addSpecialTokens?: boolean;
  /**
   * What text that spells a special token becomes. "parse" (default): that token, as in transformers. "literal": ordinary
   * tokens, so that text from users cannot end a sequence or forge a turn.
   */
  readonly specialTokensInText?: "parse" | "literal";
}

export interface DecodeOptions {
  /** Leaves special tokens out of the text. Default true. */
  readonly skipSpecialTokens?: boolean;
}

export interface ChatOptions {
  /** Ends the text where the assistant is to speak. Default false. */
  readonly addGenerationPrompt?: boolean;
  /** Removes text that spells special tokens from the messages' contents. Default true. */
  readonly sanitize?: boolean;
}

export const ENCODE_OPTIONS: NamesOf<EncodeOptions> = { addSpecialTokens: true, specialTokensInText: true };
export const CHAT_OPTIONS: NamesOf<ChatOptions> = { addGenerationPrompt: true, sanitize: true };
