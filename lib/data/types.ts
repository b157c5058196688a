/** One turn of a conversation. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/** Text as it is, or turns of a conversation, which the tokenizer's chat template renders. */
export type TextOrMessages = string | readonly ChatMessage[];

/**
 * One example to imitate. `{text}` rows arrive as an empty prompt and the text as response; `{document, target}` rows as prompt
 * and response, preference rows as prompt and chosen answer. A row with `messages` is trained on its assistant turns, one whose
 * prompt and response are lists of messages on the assistant turns of the response; both need a tokenizer with a chat template.
 */
export type SftRow =
  | { readonly prompt: TextOrMessages; readonly response: TextOrMessages }
  | { readonly messages: readonly ChatMessage[] };

/** Two answers to one prompt, of which the first was preferred. Lists of messages need a tokenizer with a chat template. */
export interface PreferenceRow {
  readonly prompt: TextOrMessages;
  readonly chosen: TextOrMessages;
  readonly rejected: TextOrMessages;
  /** By how much the scores should differ at least; 0 where the data does not say. */
  readonly margin?: number;
  /** Both answers were judged alike, so that "chosen" is only the first; such rows are read with `ties: "keep"` alone. */
  readonly tie?: boolean;
}

/** One answer and whether it was desirable, without a second one to compare it with. */
export interface UnpairedRow {
  readonly prompt: TextOrMessages;
  readonly completion: TextOrMessages;
  readonly label: boolean;
}

/** One answer and its score. */
export interface ScoredRow {
  readonly prompt: TextOrMessages;
  readonly response: TextOrMessages;
  readonly score: number;
}

/** What a reward model learns from: pairs of answers, answers with a score, or both in one data set. */
export type RewardRow = PreferenceRow | ScoredRow;

/** A prompt to answer; keys of the row other than the prompt are kept for reward functions to read. */
export interface PromptRow {
  /** The text; of a conversation, what its last message says. */
  readonly prompt: string;
  /** The conversation to continue, rendered by the tokenizer's chat template in place of `prompt`. */
  readonly messages?: readonly ChatMessage[];
  readonly metadata?: Readonly<Record<string, unknown>>;
}

/** The forms a row can have; "auto" looks at the first good row of each file. */
export type SftFormat =
  | "prompt-response"
  | "prompt-completion"
  | "document-target"
  | "text"
  | "messages"
  | PreferenceFormat;
export type PreferenceFormat = "prompt-chosen-rejected" | "hh-rlhf" | "chat-pair" | "chatbot-arena";
export type UnpairedFormat = "prompt-completion-label" | PreferenceFormat;
export type ScoredFormat = "prompt-response-score";
export type RewardFormat = PreferenceFormat | ScoredFormat;
export type PromptFormat = "string" | "prompt" | "messages";
export type SequenceFormat = "tokens" | "prompt-response";
export type FeatureFormat = "features-score" | "features-chosen-rejected";
export type DataFormat =
  | SftFormat
  | UnpairedFormat
  | ScoredFormat
  | PromptFormat
  | SequenceFormat
  | FeatureFormat;

/** Where a row stands. */
export interface RowPlace {
  readonly file: string;
  /** The line it starts on, counted from 1; of a .parquet file the number of the row. */
  readonly line: number;
}

/** A row that does not have the form it should. */
export interface BadRow extends RowPlace {
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
  /** Rows whose two answers were judged alike (dropped unless `ties` is "keep"). */
  readonly ties: number;
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
  /** Well-formed rows that were left out. */
  readonly droppedRows: number;
  /** The first of them with the reason (all are counted, at most 20 are kept here). */
  readonly firstDroppedRows: readonly BadRow[];
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
  /** Both answers were judged alike. */
  readonly tie?: boolean;
}

/** A tokenised answer and whether it was desirable. */
export interface TokenizedUnpaired extends TokenizedExample {
  readonly label: boolean;
}

/** A tokenised answer and its score. */
export interface TokenizedScored extends TokenizedExample {
  readonly score: number;
}

/** What a reward model learns from, tokenised. */
export type TokenizedReward = TokenizedPreference | TokenizedScored;

/** A tokenised prompt and the row it came from. */
export interface TokenizedPrompt {
  readonly tokens: Int32Array;
  readonly row: PromptRow;
}
