import { createInterface, type Interface } from "node:readline";
import type { Command } from "commander";
import { isRlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { WeightType } from "../model/model-options.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { AnswerText, Conversation } from "./conversation.ts";
import { describeError } from "./exit.ts";
import { adapterOption, dtypeOption, type ModelOptions, modelOptions, openModel } from "./options.ts";
import { type SamplingOptions, samplingOf, samplingOptions } from "./sampling.ts";

interface ChatOptions extends Omit<ModelOptions, "model">, SamplingOptions {
  readonly dtype: WeightType;
  readonly adapter?: string;
  readonly system?: string;
  readonly turn?: string;
  readonly stopStrings?: readonly string[];
}

const HELP = `/reset begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer; a line that begins with // is sent with one of them
`;

/** `chat`: a conversation with a model, its answers shown as they are made. */
export function addChatCommand(program: Command): void {
  const command = program
    .command("chat")
    .description("talk with a model; /help says how")
    .argument("<model>", "Hugging Face model directory, or hub:owner/name")
    .option("--system <text>", "what the model is told first; needs a chat template")
    .option(
      "--turn <text>",
      "of a model without a chat template: what a message becomes, with {message} in its place",
    )
    .option("--stop-strings <texts...>", "texts that end an answer, beside the end tokens; not part of it");
  const others = modelOptions().filter(({ long }) => long !== "--model");
  for (const option of [...others, dtypeOption(), adapterOption(), ...samplingOptions({ maxNewTokens: 256 })])
    command.addOption(option);
  command.action((model: string, options: ChatOptions) => chat(model, options));
}

async function chat(directory: string, options: ChatOptions): Promise<void> {
  const tokenizer = await Tokenizer.load(directory);
  const { model, adapter } = await openModel({ ...options, model: directory });
  using _model = model;
  // Half of a short context is left for what was said.
  const maxNewTokens = Math.min(options.maxNewTokens, Math.floor(model.maxLength / 2));
  const room = model.maxLength - maxNewTokens;
  const conversation = new Conversation(tokenizer, { ...options, room });
  const { isTTY } = process.stdin;
  const lines = createInterface({ input: process.stdin, output: process.stdout, terminal: isTTY === true });
  const session = new Session({ ...options, maxNewTokens, adapter }, model, tokenizer, conversation, lines);
  if (isTTY) session.tell(HELP);
  await session.run();
}

/** One conversation at a terminal, or with lines from a pipe. */
class Session {
  readonly #options: ChatOptions;
  readonly #model: CausalLM;
  readonly #tokenizer: Tokenizer;
  readonly #conversation: Conversation;
  readonly #lines: Interface;
  readonly #stopStrings: readonly string[];
  #answering: AbortController | null = null;
  #answers = 0;

  constructor(
    options: ChatOptions,
    model: CausalLM,
    tokenizer: Tokenizer,
    conversation: Conversation,
    lines: Interface,
  ) {
    this.#options = options;
    this.#model = model;
    this.#tokenizer = tokenizer;
    this.#conversation = conversation;
    this.#lines = lines;
    const { stopString } = conversation;
    this.#stopStrings = [...(stopString === null ? [] : [stopString]), ...(options.stopStrings ?? [])];
  }

  tell(text: string): void {
    process.stderr.write(text);
  }

  async run(): Promise<void> {
    const interrupt = (): void => {
      if (this.#answering) {
        this.#answering.abort();
        return;
      }
      this.#lines.close();
      process.stdout.write("\n");
    };
    // A terminal that readline listens to gives it Ctrl-C; otherwise the process gets a signal.
    this.#lines.on("SIGINT", interrupt);
    process.on("SIGINT", interrupt);
    try {
      this.#ask();
      for await (const line of this.#lines) {
        if (line === "/exit") break;
        await this.#take(line);
        this.#ask();
      }
    } finally {
      process.off("SIGINT", interrupt);
      this.#lines.close();
    }
  }

  #ask(): void {
    if (!this.#lines.terminal) return;
    this.#lines.setPrompt("> ");
    this.#lines.prompt();
  }

  async #take(line: string): Promise<void> {
    if (line.trim() === "") return;
    if (line === "/reset") {
      this.#conversation.reset();
      return;
    }
    if (line.startsWith("/") && !line.startsWith("//")) {
      this.tell(line === "/help" ? HELP : `there is no ${line}: ${HELP}`);
      return;
    }
    try {
      await this.#answer(line.replace(/^\/\//, "/"));
    } catch (error) {
      if (!isRlhfError(error) || error.code !== "ERR_RLHF_CONTEXT_LENGTH") throw error;
      this.tell(`${describeError(error)}\n`);
    }
  }

  async #answer(message: string): Promise<void> {
    const { tokens, forgotten } = this.#conversation.promptFor(message);
    if (forgotten > 0)
      this.tell(`(the context is full: the first ${forgotten} exchanges that it held are forgotten)\n`);
    const answer = new AnswerText(this.#tokenizer, tokens, this.#stopStrings, (text) => {
      process.stdout.write(text);
    });
    this.#answering = new AbortController();
    try {
      const [generation] = await this.#model.generate([tokens], {
        ...samplingOf(this.#options),
        adapter: this.#options.adapter,
        // The same message again is to have another answer.
        firstStream: this.#answers++,
        tokenizer: this.#tokenizer,
        stop: [...this.#tokenizer.endTokenIds],
        stopStrings: this.#stopStrings,
        onToken: (_, token) => answer.add(token),
        signal: this.#answering.signal,
      });
      answer.finish(generation?.text ?? "");
    } catch (error) {
      if (!isRlhfError(error) || error.code !== "ERR_RLHF_ABORTED") throw error;
    } finally {
      this.#answering = null;
      process.stdout.write("\n");
    }
    this.#conversation.add(message, answer.written);
  }
}
