import { Template } from "@huggingface/jinja";
import type { ChatMessage } from "../data/types.ts";
import { messageOf, RlhfError } from "../errors.ts";

/** A conversation as text, and which parts of it the assistant wrote. */
export interface RenderedChat {
  readonly text: string;
  /** Begin and end, in characters of `text`, of what the assistant wrote, in order. */
  readonly assistant: readonly (readonly [begin: number, end: number])[];
}

type Variables = Readonly<Record<string, string>>;

/** Non-characters of Unicode, which no text holds, put where {% generation %} begins and ends. */
const BEGIN = "\uFDD0";
const END = "\uFDD1";
const MARKER = /\{%(-?)\s*(end)?generation\s*(-?)%\}/g;

/**
 * The template with {% generation %} and {% endgeneration %} made to print marks. They stay inside block tags, so that white space
 * around them is treated as around the tags that they replace.
 */
function withMarks(source: string): string | null {
  if (source.search(MARKER) < 0) return null;
  return source.replace(MARKER, (_, left: string, end: string | undefined, right: string) => {
    const mark = end === undefined ? BEGIN : END;
    return `{%${left} if true %}{{ "${mark}" }}{% endif ${right}%}`;
  });
}

function compile(source: string): Template {
  try {
    return new Template(source);
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_TOKENIZER",
      `the chat template is not valid Jinja: ${messageOf(error)}`,
      {},
      { cause: error },
    );
  }
}

/** A compiled chat template: Jinja text that turns messages into the string a model was trained on. */
export class ChatTemplate {
  readonly source: string;
  readonly #template: Template;
  readonly #marked: Template | null;

  constructor(source: string) {
    this.source = source;
    this.#template = compile(source);
    const marked = withMarks(source);
    this.#marked = marked === null ? null : compile(marked);
  }

  /** Renders messages; `variables` are the names templates expect beside them, e.g. bos_token. */
  render(messages: readonly ChatMessage[], addGenerationPrompt: boolean, variables: Variables): string {
    return this.#run(this.#template, messages, addGenerationPrompt, variables);
  }

  /**
   * Renders messages and finds what the assistant wrote: between {% generation %} and {% endgeneration %} where the template has
   * them, else what each assistant message adds to the conversation before it with the generation prompt. Throws
   * ERR_RLHF_TOKENIZER when a template without the marks rewrites earlier turns, so that this cannot be told.
   */
  renderWithSpans(messages: readonly ChatMessage[], variables: Variables): RenderedChat {
    if (this.#marked !== null) return this.#renderMarked(this.#marked, messages, variables);
    const text = this.render(messages, false, variables);
    const assistant: [number, number][] = [];
    for (const [index, message] of messages.entries()) {
      if (message.role !== "assistant") continue;
      const before = this.render(messages.slice(0, index), true, variables);
      const after = this.render(messages.slice(0, index + 1), false, variables);
      if (!after.startsWith(before) || !text.startsWith(after)) throw rewritesTurns(index);
      assistant.push([before.length, after.length]);
    }
    return { text, assistant };
  }

  #renderMarked(marked: Template, messages: readonly ChatMessage[], variables: Variables): RenderedChat {
    const clean = messages.map((message) => ({
      ...message,
      content: message.content.replaceAll(BEGIN, "").replaceAll(END, ""),
    }));
    const parts = this.#run(marked, clean, false, variables).split(/([\uFDD0\uFDD1])/);
    const assistant: [number, number][] = [];
    let text = "";
    let begin: number | null = null;
    for (const part of parts) {
      if (part === BEGIN) begin = text.length;
      else if (part === END && begin !== null) {
        assistant.push([begin, text.length]);
        begin = null;
      } else text += part;
    }
    return { text, assistant };
  }

  #run(
    template: Template,
    messages: readonly ChatMessage[],
    addGenerationPrompt: boolean,
    variables: Variables,
  ): string {
    try {
      return template.render({ ...variables, messages, add_generation_prompt: addGenerationPrompt });
    } catch (error) {
      throw new RlhfError(
        "ERR_RLHF_TOKENIZER",
        `the chat template refused the messages: ${messageOf(error)}`,
        {},
        { cause: error },
      );
    }
  }
}

function rewritesTurns(index: number): RlhfError {
  return new RlhfError(
    "ERR_RLHF_TOKENIZER",
    `the chat template rewrites earlier turns of a conversation, so that what the assistant says in message ${index} cannot be told apart; put {% generation %} and {% endgeneration %} around the assistant's text in chat_template, or use rows of text {prompt, response}`,
    { message: index },
  );
}
