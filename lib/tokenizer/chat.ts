import { Template } from "@huggingface/jinja";
import type { ChatMessage } from "../data/types.ts";
import { messageOf, RlhfError } from "../errors.ts";

/** A compiled chat template: Jinja text that turns messages into the string a model was trained on. */
export class ChatTemplate {
  readonly source: string;
  readonly #template: Template;

  constructor(source: string) {
    this.source = source;
    try {
      this.#template = new Template(source);
    } catch (error) {
      throw new RlhfError(
        "ERR_RLHF_TOKENIZER",
        `the chat template is not valid Jinja: ${messageOf(error)}`,
        {},
        { cause: error },
      );
    }
  }

  /** Renders messages; `variables` are the names templates expect beside them, e.g. bos_token. */
  render(
    messages: readonly ChatMessage[],
    addGenerationPrompt: boolean,
    variables: Readonly<Record<string, string>>,
  ): string {
    try {
      return this.#template.render({ ...variables, messages, add_generation_prompt: addGenerationPrompt });
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
