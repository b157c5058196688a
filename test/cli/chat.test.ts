import assert from "node:assert/strict";
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { AnswerText, Conversation } from "../../lib/cli/conversation.ts";
import { addTokens, CausalLM, Tokenizer } from "../../lib/index.ts";
import { temporaryDirectory } from "../data/support.ts";
import { TINY_LLAMA } from "../support/tiny.ts";
import { tinyModel, tinyTokenizer } from "../trainers/support.ts";
import { mainFile, repository, runHere } from "./support.ts";

const TURN = "\n\nHuman: {message}\n\nAssistant:";

describe("chat", () => {
  const directory = temporaryDirectory();
  const plain = join(directory, "plain");
  const chatml = join(directory, "chatml");
  const large = join(directory, "large");
  const tokenizer = tinyTokenizer();

  before(async () => {
    using model = await tinyModel(tokenizer);
    await model.save(plain);
    await tokenizer.save(plain);
    await addTokens(plain, chatml, [], { chatTemplate: "chatml" });
    const config = {
      ...TINY_LLAMA,
      vocab_size: tokenizer.vocabSize,
      hidden_size: 256,
      num_hidden_layers: 6,
      max_position_embeddings: 32768,
    };
    using slow = await CausalLM.create(config, { seed: 1, device: "cpu" });
    await slow.save(large);
    await tokenizer.save(large);
  });

  const start = (...words: string[]): ChildProcessWithoutNullStreams =>
    spawn(process.execPath, ["--import", "tsx", mainFile, "chat", ...words], { cwd: repository });

  /** All that a process writes, and its exit code. */
  async function outcomeOf(
    child: ChildProcessWithoutNullStreams,
  ): Promise<{ stdout: string; stderr: string; code: number }> {
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => {
      stdout += chunk.toString();
    });
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    const [code] = (await once(child, "close")) as [number];
    return { stdout, stderr, code };
  }

  it("answers lines as generate does, keeps what was said, and forgets it on /reset", async () => {
    const child = start(plain, "--temperature", "0", "--max-new-tokens", "6", "--turn", "Q:{message} A:");
    child.stdin.end("Ann\nBen\n/reset\nAnn\n/nonsense\n");
    const { stdout, stderr, code } = await outcomeOf(child);
    assert.equal(code, 0, stderr);
    assert.match(stderr, /there is no \/nonsense: \/reset begins anew/);
    using model = await CausalLM.load(plain, { device: "cpu" });
    const answer = async (prompt: string): Promise<string> => {
      const options = { tokenizer, maxNewTokens: 6, temperature: 0, stopStrings: ["Q:"] };
      return (await model.generate([prompt], options))[0]?.text as string;
    };
    const first = await answer("Q:Ann A:");
    const second = await answer(`Q:Ann A:${first}Q:Ben A:`);
    assert.equal(stdout, `${first}\n${second}\n${first}\n`);
  });

  it("Ctrl-C stops an answer and not the conversation", async () => {
    const child = start(large, "--max-new-tokens", "30000", "--min-new-tokens", "30000");
    const ended = outcomeOf(child);
    child.stdin.write("Ann\n");
    await once(child.stdout, "data");
    child.kill("SIGINT");
    child.stdin.end("/exit\n");
    const { stdout, code } = await ended;
    assert.equal(code, 0);
    assert.ok(stdout.endsWith("\n") && (await tokensIn(stdout)) < 29_000, `${stdout.length} characters`);
  });

  async function tokensIn(text: string): Promise<number> {
    return tokenizer.encode(text).length;
  }

  it("what does not fit the model is wrong usage", async () => {
    for (const [words, message] of [
      [[plain, "--system", "Be kind."], /--system: this model has no chat template/],
      [[plain, "--turn", "Human:"], /--turn: has no \{message\}/],
      [[chatml, "--turn", TURN], /--turn: this model has a chat template/],
    ] as const) {
      const { code, stderr } = await runHere("chat", ...words);
      assert.equal(code, 2, stderr);
      assert.match(stderr, message);
    }
  });

  it("a conversation is rendered by the chat template, or turn after turn", async () => {
    const withTemplate = await Tokenizer.load(chatml);
    const messages = [
      { role: "system", content: "Be kind." },
      { role: "user", content: "Hi" },
      { role: "assistant", content: "Hello" },
      { role: "user", content: "Who?" },
    ] as const;
    const chat = new Conversation(withTemplate, { room: 500, system: "Be kind." });
    chat.add("Hi", "Hello");
    assert.equal(
      withTemplate.decode(chat.promptFor("Who?").tokens, { skipSpecialTokens: false }),
      withTemplate.applyChatTemplate(messages, { addGenerationPrompt: true }),
    );
    assert.equal(chat.stopString, null);

    const text = new Conversation(tokenizer, { room: 500, turn: TURN });
    text.add("Hi", " Hello");
    const expected = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Who?\n\nAssistant:";
    assert.equal(tokenizer.decode(text.promptFor("Who?").tokens), expected);
    assert.equal(text.stopString, "\n\nHuman:");
  });

  it("forgets the oldest exchanges when the context is full", () => {
    const one = tokenizer.encode("wants").length;
    const chat = new Conversation(tokenizer, { room: 4 * one });
    for (let i = 0; i < 4; i++) chat.add("wants", "");
    assert.equal(chat.promptFor("wants").forgotten, 1);
    assert.equal(chat.exchanges, 3);
    assert.equal(chat.promptFor("wants").forgotten, 0);
    assert.throws(() => chat.promptFor("wants".repeat(9)), { code: "ERR_RLHF_CONTEXT_LENGTH" });
  });

  it("text comes as soon as nothing can change it any more", () => {
    const written: string[] = [];
    const prompt = tokenizer.encode("Ann wants");
    const answer = new AnswerText(tokenizer, prompt, ["\nEnd"], (text) => written.push(text));
    const bytes = [" é", "!", "\n", "E", "n", "x"].flatMap((text) => [...tokenizer.encode(text)]);
    for (const token of bytes) answer.add(token);
    const shown = written.filter((text) => text !== "");
    assert.ok(shown.length >= 3, JSON.stringify(shown));
    assert.ok(!shown.join("|").includes("\uFFFD"), "no half of a character");
    assert.ok(shown.includes("\nEnx"), "what might have been a stop string is held back until it is none");
    answer.finish(" é!\nEnx…");
    assert.equal(written.join(""), " é!\nEnx…");
    assert.equal(answer.written, " é!\nEnx…");

    const cut: string[] = [];
    const stopped = new AnswerText(tokenizer, prompt, ["\nEnd"], (text) => cut.push(text));
    for (const token of tokenizer.encode("a\nEnd and more")) stopped.add(token);
    stopped.finish("a");
    assert.equal(cut.join(""), "a");
  });
});
