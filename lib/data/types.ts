/** One turn of a conversation. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/**
 * One example to imitate. `{text}` rows arrive as an empty prompt and the text as response; `{document, target}` rows as prompt
 * and response, preference rows as prompt and chosen answer. A row with `messages` is trained on its assistant turns and needs a tokenizer with a chat template.
 */
export type SftRow =
  | { readonly prompt: string; readonly response: string }
  | { readonly messages: readonly ChatMessage[] };

/** Two answers to one prompt, of which the first was preferred. */
export interface PreferenceRow {
  readonly prompt: string;
  readonly chosen: string;
  readonly rejected: string;
  /** By how much the scores should differ at least; 0 where the data does not say. */
  readonly margin?: number;
}

/** A prompt to answer; keys of the row other than the prompt are kept for reward functions to read. */
export interface PromptRow {
  readonly prompt: string;
  readonly metadata?: Readonly<Record<string, unknown>>;
}

/** The forms a row can have; "auto" looks at the first good row of each file. */
export type SftFormat = "prompt-response" | "document-target" | "text" | "messages" | PreferenceFormat;
export type PreferenceFormat = "prompt-chosen-rejected" | "hh-rlhf";
export type PromptFormat = "string" | "prompt";
export type SequenceFormat = "tokens" | "prompt-response";
export type DataFormat = SftFormat | PromptFormat | SequenceFormat;

/** A row that does not have the form it should. */
export interface BadRow {
  readonly file: string;
  /** Counted from 1. */
  readonly line: number;
  readonly reason: string;
}

/** Why well-formed preference rows were left out, or what is notable about them. */
export interface PreferenceCounts {
  /** Rows whose prompt holds more than one human turn (kept). */
  readonly multiTurn: number;
  /** Whole-dialogue rows whose two dialogues do not share the text before the last answer (dropped). */
  readonly differingPrompts: number;
  /** Rows with an answer of white space only (dropped). */
  readonly emptyReply: number;
  /** Rows whose two answers are the same (dropped). */
  readonly identical: number;
}

/** What reading a data set found. */
export interface DataReport {
  readonly files: readonly string[];
  readonly formats: readonly DataFormat[];
  /** Rows read, bad ones included; blank lines are not rows. */
  readonly rowsRead: number;
  readonly rowsKept: number;
  readonly badRows: number;
  /** The first bad rows (all are counted, at most 20 are kept here). */
  readonly firstBadRows: readonly BadRow[];
  /** Preference data only. */
  readonly preferences?: PreferenceCounts;
}

/** Rows of a data set, with the report of how they were read: an array with one property more. */
export type Dataset<Row> = readonly Row[] & { readonly report: DataReport };

/** One sequence ready for training. */
export interface TokenizedExample {
  /** Int32Array[T]: prompt, response and, unless it was cut off, the end-of-sequence token. */
  readonly tokens: Int32Array;
  /** Tokens before the first one that is trained on. */
  readonly promptLength: number;
  /** Uint8Array[T]: 1 where predicting this token counts in the loss; always 0 at index 0, which nothing predicts. */
  readonly lossMask: Uint8Array;
}

/** Two tokenised answers to one prompt; `promptLength` is the same in both. */
export interface TokenizedPreference {
  readonly chosen: TokenizedExample;
  readonly rejected: TokenizedExample;
  readonly margin: number;
}

/** A tokenised prompt and the row it came from. */
export interface TokenizedPrompt {
  readonly tokens: Int32Array;
  readonly row: PromptRow;
}
