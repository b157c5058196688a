import assert from "node:assert/strict";
import { mkdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CausalLM, type CreateOptions, Tokenizer } from "../../lib/index.ts";
import { temporaryDirectory } from "../data/support.ts";
import { TINY_GPT2, TINY_LLAMA } from "../support/tiny.ts";
import { tinyModel, tinyTokenizer } from "../trainers/support.ts";
import {
  answers,
  type BadCase,
  itRefuses,
  readTensorFile,
  type TensorFile,
  Variants,
  writeTensorFile,
} from "./support.ts";

const WEIGHTS = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const NORM = "model.norm.weight";

describe("bad input: model directories", () => {
  const directory = temporaryDirectory();
  const base = join(directory, "base");
  const variants = new Variants(base, directory);
  let model: CausalLM;
  let expected: number[][];

  before(async () => {
    const tokenizer = tinyTokenizer();
    model = await tinyModel(tokenizer, "none");
    await model.save(base);
    await tokenizer.save(base);
    expected = await answers(model);
  });

  after(() => model.dispose());

  const load = (path: string) => CausalLM.load(path, { device: "cpu" });
  const loadWith = (damage: (path: string) => void) => () => load(variants.make(damage));
  const withTensors = (change: (file: TensorFile) => Buffer | undefined, announced?: number) =>
    loadWith((copy) => {
      const path = join(copy, WEIGHTS);
      const file = readTensorFile(path);
      const data = change(file) ?? file.data;
      writeTensorFile(path, file.header, data, announced);
    });
  const withHeader = (change: (header: TensorFile["header"]) => void) =>
    withTensors(({ header }) => void change(header));
  const withIndex = (index: unknown) =>
    loadWith((copy) => writeFileSync(join(copy, INDEX), JSON.stringify(index)));
  const withConfig = (more: object) => () =>
    load(variants.withJson<object>("config.json", (config) => ({ ...config, ...more })));
  const entry = (header: TensorFile["header"], name: string) => header[name] as Record<string, unknown>;

  const weights: BadCase[] = [
    [
      "a header of another length than it says",
      "ERR_RLHF_WEIGHTS",
      /model\.safetensors: has a header that is not valid JSON/,
      withTensors(() => undefined, 100),
    ],
    [
      "weights of integers",
      "ERR_RLHF_WEIGHTS",
      /"model\.norm\.weight" is I32; supported are F32/,
      withHeader((header) => {
        entry(header, NORM).dtype = "I32";
      }),
    ],
    [
      "weights of 8-bit floats",
      "ERR_RLHF_WEIGHTS",
      /has dtype "F8_E4M3"; known are/,
      withHeader((header) => {
        entry(header, NORM).dtype = "F8_E4M3";
      }),
    ],
    [
      "a dtype that is the name of a method",
      "ERR_RLHF_WEIGHTS",
      /has dtype "toString"; known are/,
      withHeader((header) => {
        entry(header, NORM).dtype = "toString";
      }),
    ],
    [
      "a tensor laid over its neighbour",
      "ERR_RLHF_WEIGHTS",
      /overlap/,
      withHeader((header) => {
        entry(header, NORM).data_offsets = [0, 96];
      }),
    ],
    [
      "a vector of another shape with as many bytes",
      "ERR_RLHF_WEIGHTS",
      /has shape \[4, 6\], but config\.json asks for \[24\]/,
      withHeader((header) => {
        entry(header, NORM).shape = [4, 6];
      }),
    ],
    [
      "metadata that is a list",
      "ERR_RLHF_WEIGHTS",
      /__metadata__ that is not an object of strings/,
      withTensors(({ header }) => {
        Object.assign(header, { __metadata__: ["pt"] });
        return undefined;
      }),
    ],
    [
      "an infinite weight",
      "ERR_RLHF_WEIGHTS",
      /model\.safetensors: model\.embed_tokens\.weight holds a value that is not finite at element 100/,
      withTensors(({ header, data }) => {
        const [begin] = entry(header, "model.embed_tokens.weight").data_offsets as [number, number];
        const changed = Buffer.from(data);
        changed.writeFloatLE(Number.POSITIVE_INFINITY, begin + 400);
        return changed;
      }),
    ],
    [
      "a pointer of git-lfs in place of weights",
      "ERR_RLHF_WEIGHTS",
      /in a file of 43; it is truncated or not a safetensors file/,
      loadWith((copy) => writeFileSync(join(copy, WEIGHTS), "version https://git-lfs.github.com/spec/v1\n")),
    ],
    [
      "a directory in place of weights",
      "ERR_RLHF_WEIGHTS",
      /model\.safetensors: is not a file/,
      loadWith((copy) => {
        rmSync(join(copy, WEIGHTS));
        mkdirSync(join(copy, WEIGHTS));
      }),
    ],
    [
      "pickled weights alone",
      "ERR_RLHF_MODEL",
      /pickled \.bin files are not read: convert them/,
      loadWith((copy) => {
        rmSync(join(copy, WEIGHTS));
        writeFileSync(join(copy, "pytorch_model.bin"), "");
      }),
    ],
    [
      "a file of no tensors",
      "ERR_RLHF_WEIGHTS",
      /21 of 21 tensors are missing, first "model\.embed_tokens\.weight"/,
      loadWith((copy) => writeTensorFile(join(copy, WEIGHTS), {}, Buffer.alloc(0))),
    ],
    [
      "fewer layers in config.json than in the weights",
      "ERR_RLHF_WEIGHTS",
      /model\.safetensors: tensor "model\.layers\.1\..*" is of a layer that config\.json does not count: it has 1 layers$/,
      withConfig({ num_hidden_layers: 1 }),
    ],
    [
      "an index whose shard is absent",
      "ERR_RLHF_WEIGHTS",
      /index\.json: places "model\.norm\.weight" in gone\.safetensors, which is not in the folder; copy all/,
      withIndex({ weight_map: { [NORM]: "gone.safetensors" } }),
    ],
    ["an index without a map", "ERR_RLHF_WEIGHTS", /index\.json: has no weight_map/, withIndex({})],
    ["an index whose map is a list", "ERR_RLHF_WEIGHTS", /has no weight_map/, withIndex({ weight_map: [] })],
    [
      "damaged heads",
      "ERR_RLHF_WEIGHTS",
      /heads\.safetensors: its metadata does not describe its heads/,
      loadWith((copy) => writeTensorFile(join(copy, "heads.safetensors"), {}, Buffer.alloc(0))),
    ],
  ];

  const configurations: BadCase[] = [
    [
      "a path that is a number",
      "ERR_RLHF_ARGUMENT",
      /a path must be a string, got 5/,
      () => load(5 as never),
    ],
    [
      "a path of a file",
      "ERR_RLHF_MODEL",
      /config\.json: cannot be read: ENOTDIR/,
      () => load(join(base, "config.json")),
    ],
    [
      "a config.json that is no text",
      "ERR_RLHF_MODEL",
      /config\.json: is not valid JSON/,
      loadWith((copy) => writeFileSync(join(copy, "config.json"), Buffer.of(0xff, 0xfe, 0x7b))),
    ],
    [
      "a generation_config.json that breaks off",
      "ERR_RLHF_MODEL",
      /generation_config\.json: is not valid JSON/,
      loadWith((copy) => writeFileSync(join(copy, "generation_config.json"), "{")),
    ],
    [
      "layers without end",
      "ERR_RLHF_MODEL",
      /config\.json: num_hidden_layers is 1000000000, expected at most 65536/,
      withConfig({ num_hidden_layers: 1e9 }),
    ],
    [
      "a vocabulary over 32 bits",
      "ERR_RLHF_MODEL",
      /config\.json: vocab_size is 1099511627776, expected at most 2147483647/,
      withConfig({ vocab_size: 2 ** 40 }),
    ],
    [
      "an end token given as text",
      "ERR_RLHF_MODEL",
      /config\.json: eos_token_id is "<\/s>", expected a token id or a list/,
      withConfig({ eos_token_id: "</s>" }),
    ],
    [
      "quantised weights",
      "ERR_RLHF_UNSUPPORTED",
      /quantization_config.*use the model that was quantised/,
      withConfig({ quantization_config: { quant_method: "gptq" } }),
    ],
    [
      "no configuration at all",
      "ERR_RLHF_MODEL",
      /config: is null, expected the object of a config\.json/,
      () => CausalLM.create(null as never),
    ],
    [
      "a model of no layers",
      "ERR_RLHF_MODEL",
      /n_layer is 0, expected a positive integer/,
      () => CausalLM.create({ ...TINY_GPT2, n_layer: 0 }),
    ],
  ];

  const options: [object, BadCase[1], RegExp][] = [
    [{ device: "tpu" }, "ERR_RLHF_ARGUMENT", /device must be "auto", "cpu" or "cuda", got "tpu"/],
    [{ dtype: "int8" }, "ERR_RLHF_UNSUPPORTED", /dtype "int8".*use one of float32, bfloat16, float16/],
    [{ trainable: "some" }, "ERR_RLHF_ARGUMENT", /trainable must be "all" or "none", got "some"/],
    [{ threads: -3 }, "ERR_RLHF_ARGUMENT", /threads must be from 1 to 1024, got -3/],
    [{ memoryBudget: "lots" }, "ERR_RLHF_ARGUMENT", /memoryBudget must be .*"12GiB", got "lots"/],
    [{ seed: Number.NaN }, "ERR_RLHF_ARGUMENT", /seed must be an integer/],
  ];
  const createOptions = options.map(
    ([option, code, message]): BadCase => [
      `the option ${Object.keys(option)} ${Object.values(option)}`,
      code,
      message,
      () => CausalLM.create(TINY_LLAMA, option as CreateOptions),
    ],
  );

  const loadTokenizer = (damage: (path: string) => void) => () => Tokenizer.load(variants.make(damage));
  interface TokenizerFile {
    model: Record<string, unknown> & { vocab: Record<string, unknown> };
    [key: string]: unknown;
  }
  const withTokenizer = (change: (content: TokenizerFile) => void) => () =>
    Tokenizer.load(
      variants.withJson<TokenizerFile>("tokenizer.json", (content) => {
        change(content);
        return content;
      }),
    );
  const tokenizers: BadCase[] = [
    [
      "a tokenizer.json that breaks off",
      "ERR_RLHF_TOKENIZER",
      /tokenizer\.json: is not JSON/,
      loadTokenizer((copy) => truncateSync(join(copy, "tokenizer.json"), 500)),
    ],
    [
      "a vocabulary that is a list",
      "ERR_RLHF_TOKENIZER",
      /tokenizer\.json: model\.vocab must be an object/,
      withTokenizer(({ model }) => Object.assign(model, { vocab: [] })),
    ],
    [
      "a negative token id",
      "ERR_RLHF_TOKENIZER",
      /model\.vocab gives "a" the id -5; copy the file again/,
      withTokenizer(({ model }) => Object.assign(model.vocab, { a: -5 })),
    ],
    [
      "a token id of text",
      "ERR_RLHF_TOKENIZER",
      /model\.vocab gives "a" the id "x"/,
      withTokenizer(({ model }) => Object.assign(model.vocab, { a: "x" })),
    ],
    [
      "merges of one token",
      "ERR_RLHF_TOKENIZER",
      /model\.merges must hold pairs/,
      withTokenizer(({ model }) => Object.assign(model, { merges: [["a"]] })),
    ],
    [
      "merges that are a number",
      "ERR_RLHF_TOKENIZER",
      /tokenizer\.json: cannot be used as a tokenizer/,
      withTokenizer(({ model }) => Object.assign(model, { merges: 5 })),
    ],
    [
      "a tokenizer of an unknown kind",
      "ERR_RLHF_UNSUPPORTED",
      /model\.type is "Foo"; supported are BPE, Unigram/,
      withTokenizer(({ model }) => Object.assign(model, { type: "Foo" })),
    ],
    [
      "added tokens that are none",
      "ERR_RLHF_TOKENIZER",
      /tokenizer\.json: cannot be used/,
      withTokenizer((content) => Object.assign(content, { added_tokens: [null] })),
    ],
    [
      "a tokenizer_config.json that is a list",
      "ERR_RLHF_TOKENIZER",
      /tokenizer_config\.json: must hold a JSON object/,
      loadTokenizer((copy) => writeFileSync(join(copy, "tokenizer_config.json"), "[]")),
    ],
    [
      "a chat template that is a number",
      "ERR_RLHF_TOKENIZER",
      /tokenizer_config\.json: chat_template must be a template/,
      () =>
        Tokenizer.load(
          variants.withJson<object>("tokenizer_config.json", (c) => ({ ...c, chat_template: 5 })),
        ),
    ],
    [
      "text that is none",
      "ERR_RLHF_ARGUMENT",
      /encode: text must be a string, got undefined/,
      () => tinyTokenizer().encode(undefined as never),
    ],
  ];

  itRefuses([...weights, ...configurations, ...createOptions, ...tokenizers]);

  it("none of it touched the model or its files", async () => {
    assert.deepEqual(await answers(model), expected);
    using again = await CausalLM.load(base, { device: "cpu" });
    assert.deepEqual(await answers(again), expected);
  });
});
