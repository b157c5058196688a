import type { ChatMessage, TextOrMessages } from "./types.ts";

/** What is wrong with one row; becomes a bad row with file and line. */
export class RowProblem extends Error {}

/** Why a well-formed row is left out. */
export class RowDropped extends Error {}

type JsonRecord = Readonly<Record<string, unknown>>;

/** True for JSON objects. */
export function isRecord(value: unknown): value is JsonRecord {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The name of a value's type as JSON knows it. */
export function describeType(value: unknown): string {
  if (value === null) return "null";
  return Array.isArray(value) ? "an array" : typeof value;
}

/** The row as an object; anything else is a problem that says what was expected. */
export function recordOf(value: unknown, expected: string): JsonRecord {
  if (!isRecord(value)) throw new RowProblem(`is ${describeType(value)}; expected ${expected}`);
  return value;
}

/** The string under a key; anything else is a problem of the row. */
export function stringField(row: JsonRecord, key: string): string {
  const value = row[key];
  if (value === undefined) throw new RowProblem(`"${key}" is missing`);
  if (typeof value !== "string")
    throw new RowProblem(`"${key}" must be a string, got ${describeType(value)}`);
  return value;
}

/** The finite number under a key; anything else is a problem of the row. */
export function numberField(row: JsonRecord, key: string): number {
  const value = row[key];
  if (value === undefined) throw new RowProblem(`"${key}" is missing`);
  if (typeof value !== "number" || !Number.isFinite(value))
    throw new RowProblem(`"${key}" must be a finite number, got ${describeType(value)}`);
  return value;
}

/** The messages under a key, checked: each an object with a role and a content of strings. */
export function messagesField(row: JsonRecord, key: string): ChatMessage[] {
  const value = row[key];
  if (value === undefined) throw new RowProblem(`"${key}" is missing`);
  if (!Array.isArray(value)) throw new RowProblem(`"${key}" must be an array, got ${describeType(value)}`);
  if (value.length === 0) throw new RowProblem(`"${key}" is empty`);
  return value.map((message: unknown, index) => {
    if (!isRecord(message) || typeof message.role !== "string" || typeof message.content !== "string")
      throw new RowProblem(`"${key}[${index}]" must be {role, content} with two strings`);
    return { role: message.role, content: message.content };
  });
}

/** The string or messages under a key. A single {role, content} counts as a list of one, {text} or {content} as a string. */
export function textOrMessagesField(row: JsonRecord, key: string): TextOrMessages {
  const value = row[key];
  if (Array.isArray(value)) return messagesField(row, key);
  if (!isRecord(value)) return stringField(row, key);
  if ("role" in value) return messagesField({ [key]: [value] }, key);
  for (const inner of ["text", "content"]) {
    const text = value[inner];
    if (typeof text === "string") return text;
  }
  throw new RowProblem(`"${key}" must be a string, a list of messages or an object with "text" or "content"`);
}

/** The text, or a problem where it is white space only or has no message with words. */
export function nonEmpty<Value extends TextOrMessages>(value: Value, key: string): Value {
  if (isBlank(value)) throw new RowProblem(`"${key}" is empty`);
  return value;
}

/** White space only, in a list of messages in every one. */
export function isBlank(value: TextOrMessages): boolean {
  return typeof value === "string"
    ? value.trim() === ""
    : value.every((message) => message.content.trim() === "");
}

/**
 * A prompt and what replies to it, both as text or both as messages: where only one is a list, the other becomes a message of the
 * user or the assistant. A reply as messages must begin with the assistant, since that is what a model is asked to write.
 */
export function promptAndReplies<Key extends string>(
  prompt: TextOrMessages,
  replies: Readonly<Record<Key, TextOrMessages>>,
): { prompt: TextOrMessages } & Record<Key, TextOrMessages> {
  const entries = Object.entries<TextOrMessages>(replies) as [Key, TextOrMessages][];
  if (typeof prompt === "string" && entries.every(([, reply]) => typeof reply === "string"))
    return { prompt, ...replies };
  const turns = (value: TextOrMessages, role: string): readonly ChatMessage[] =>
    typeof value === "string" ? [{ role, content: value }] : value;
  const asMessages = entries.map(([key, reply]) => {
    const messages = turns(reply, "assistant");
    if (messages[0]?.role !== "assistant")
      throw new RowProblem(`"${key}" must begin with an assistant message, got "${messages[0]?.role}"`);
    return [key, messages] as const;
  });
  const replied = Object.fromEntries(asMessages) as unknown as Record<Key, TextOrMessages>;
  return { prompt: turns(prompt, "user"), ...replied };
}

/** True where two texts or conversations are the same. */
export function sameText(a: TextOrMessages, b: TextOrMessages): boolean {
  return typeof a === "string" || typeof b === "string" ? a === b : JSON.stringify(a) === JSON.stringify(b);
}
