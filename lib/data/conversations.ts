import { describeType, isRecord, messagesField, promptAndReplies, RowDropped, RowProblem } from "./fields.ts";
import type { ChatMessage, PreferenceRow } from "./types.ts";

type JsonRecord = Readonly<Record<string, unknown>>;

function sameMessage(a: ChatMessage | undefined, b: ChatMessage | undefined): boolean {
  return a !== undefined && b !== undefined && a.role === b.role && a.content === b.content;
}

/**
 * Two whole conversations as the prompt they share and two replies: all messages up to the first that differ, less those of the
 * assistant at its end, so that replies begin with the assistant.
 */
export function splitConversations(
  first: readonly ChatMessage[],
  second: readonly ChatMessage[],
): [prompt: ChatMessage[], first: ChatMessage[], second: ChatMessage[]] {
  let shared = 0;
  while (sameMessage(first[shared], second[shared])) shared++;
  // Equal conversations have all messages in common; their last answer is still an answer.
  if (shared === first.length || shared === second.length) shared--;
  while (shared > 0 && first[shared]?.role !== "assistant") shared--;
  return [first.slice(0, shared), first.slice(shared), second.slice(shared)];
}

function pairOf(first: readonly ChatMessage[], second: readonly ChatMessage[]): PreferenceRow {
  const [prompt, chosen, rejected] = splitConversations(first, second);
  if (prompt.length === 0)
    throw new RowProblem("has two conversations that do not begin with the same message to reply to");
  return promptAndReplies(prompt, { chosen, rejected });
}

/**
 * {prompt?, chosen, rejected} with lists of messages. The lists are replies where they begin with the assistant and whole
 * conversations, which the prompt begins too, where they do not.
 */
export function readChatPair(row: JsonRecord): PreferenceRow {
  const chosen = messagesField(row, "chosen");
  const rejected = messagesField(row, "rejected");
  if (chosen[0]?.role !== "assistant" || row.prompt === undefined) return pairOf(chosen, rejected);
  const prompt = typeof row.prompt === "string" ? row.prompt : messagesField(row, "prompt");
  return promptAndReplies(prompt, { chosen, rejected });
}

/** Whether "chosen" and "rejected" of a row are lists of messages. */
export function isChatPair(row: JsonRecord): boolean {
  return Array.isArray(row.chosen) && Array.isArray(row.rejected);
}

const TIES: ReadonlySet<unknown> = new Set(["tie", "tie (bothbad)", "both_bad"]);

/** {conversation_a, conversation_b, winner} of the Chatbot Arena: winner is model_a, model_b, tie or tie (bothbad). */
export function readArena(row: JsonRecord): PreferenceRow {
  const a = messagesField(row, "conversation_a");
  const b = messagesField(row, "conversation_b");
  switch (row.winner) {
    case "model_a":
      return pairOf(a, b);
    case "model_b":
      return pairOf(b, a);
    default:
      if (TIES.has(row.winner)) return { ...pairOf(a, b), tie: true };
      throw new RowProblem(
        `"winner" must be "model_a", "model_b", "tie" or "tie (bothbad)", got ${JSON.stringify(row.winner) ?? describeType(row.winner)}`,
      );
  }
}

/** Whether a row is a battle of the Chatbot Arena. */
export function isArena(value: unknown): boolean {
  return isRecord(value) && "conversation_a" in value && "conversation_b" in value;
}

/** The row, unless both answers were judged alike and such rows are not wanted. */
export function withoutTie(row: PreferenceRow, keepTies: boolean): PreferenceRow {
  if (row.tie && !keepTies) throw new RowDropped('is a tie (kept with ties: "keep")');
  return row;
}
