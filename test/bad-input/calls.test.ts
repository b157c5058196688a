import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import {
  CausalLM,
  DPOTrainer,
  evaluate,
  FunctionReward,
  GRPOTrainer,
  KTOTrainer,
  loadSft,
  ORPOTrainer,
  PPOTrainer,
  packSequences,
  RLOOTrainer,
  SFTTrainer,
} from "../../lib/index.ts";
import { temporaryDirectory, writeText } from "../data/support.ts";
import { TINY_GPT2, TINY_LLAMA } from "../support/tiny.ts";
import {
  preferenceRows,
  prompts,
  sftRows,
  tinyModel,
  tinyTokenizer,
  weightsOf,
} from "../trainers/support.ts";
import { answers, assertRefused, type BadCase, itRefuses } from "./support.ts";

const LORA = { r: 2, alpha: 4 };

describe("bad input: calls", () => {
  const directory = temporaryDirectory();
  const tokenizer = tinyTokenizer();
  const batch = packSequences([{ tokens: [1, 2, 3] }]);
  let model: CausalLM;
  let expected: number[][];
  before(async () => {
    model = await tinyModel(tokenizer, "none");
    expected = await answers(model);
  });
  after(() => model.dispose());

  const generate =
    (options: object, prompt: unknown = Int32Array.of(1)) =>
    () =>
      model.generate([prompt] as Int32Array[], { maxNewTokens: 1, ...options });
  const generation: BadCase[] = [
    [
      "a prompt of no tokens",
      "ERR_RLHF_ARGUMENT",
      /prompts\[0\] has no tokens/,
      generate({}, new Int32Array(0)),
    ],
    ["prompts that are plain lists", "ERR_RLHF_ARGUMENT", /must be an Int32Array/, generate({}, [1])],
    ["text without a tokenizer", "ERR_RLHF_ARGUMENT", /strings need a tokenizer/, generate({}, "Ann")],
    [
      "a reward function's time-out in another spelling",
      "ERR_RLHF_ARGUMENT",
      /^FunctionReward: unknown option "timeout" \(did you mean "timeoutMs"\?\)/,
      () => new FunctionReward(() => 1, { timeout: 3 } as never),
    ],
    [
      "an option in another spelling",
      "ERR_RLHF_ARGUMENT",
      /^generate: unknown option "temprature" \(did you mean "temperature"\?\); it takes maxNewTokens, /,
      generate({ temprature: 0 }),
    ],
    [
      "a device in another spelling",
      "ERR_RLHF_ARGUMENT",
      /^CausalLM\.load: unknown option "devise" \(did you mean "device"\?\)/,
      () => CausalLM.load(directory, { devise: "cpu" } as never),
    ],
    [
      "a pass through a misspelt adapter",
      "ERR_RLHF_ARGUMENT",
      /^forward: unknown option "adaptr" \(did you mean "adapter"\?\)/,
      () => model.forward(batch, { adaptr: "a" } as never),
    ],
    [
      "a reader's option in another spelling",
      "ERR_RLHF_ARGUMENT",
      /unknown option "onBadrow" \(did you mean "onBadRow"\?\)/,
      () => loadSft("rows.jsonl", { onBadrow: "skip" } as never),
    ],
    [
      "an evaluation's option in another spelling",
      "ERR_RLHF_ARGUMENT",
      /^evaluate: unknown option "maxNewToken" \(did you mean "maxNewTokens"\?\)/,
      () => evaluate({ models: { a: directory }, prompts: ["a"], maxNewToken: 3 } as never),
    ],
    ["no tokens to write", "ERR_RLHF_ARGUMENT", /maxNewTokens is 0, expected/, generate({ maxNewTokens: 0 })],
    [
      "NaN tokens to write",
      "ERR_RLHF_ARGUMENT",
      /maxNewTokens is NaN/,
      generate({ maxNewTokens: Number.NaN }),
    ],
    ["a temperature below 0", "ERR_RLHF_ARGUMENT", /temperature is -1/, generate({ temperature: -1 })],
    ["topP over 1", "ERR_RLHF_ARGUMENT", /topP is 2, expected .* to 1/, generate({ topP: 2 })],
    ["topP of 0", "ERR_RLHF_ARGUMENT", /topP is 0, expected more than 0, up to 1$/, generate({ topP: 0 })],
    [
      "an AbortController for a signal",
      "ERR_RLHF_ARGUMENT",
      /signal must be an AbortSignal \(an AbortController has it as \.signal\), got \[object AbortController\]$/,
      generate({ signal: new AbortController() as unknown as AbortSignal }),
    ],
    [
      "a stop token of another tokenizer",
      "ERR_RLHF_TOKEN_RANGE",
      /stopTokens\[0\] is 99999/,
      generate({ stop: [99999] }),
    ],
    [
      "a prompt that fills the context",
      "ERR_RLHF_CONTEXT_LENGTH",
      /prompts\[0\] has 64 tokens and leaves no room .*: shorten it/,
      generate({}, new Int32Array(64)),
    ],
    [
      "an adapter that is not there",
      "ERR_RLHF_UNKNOWN_NAME",
      /no adapter "x"; it has none/,
      generate({ adapter: "x" }),
    ],
  ];

  const passes: BadCase[] = [
    [
      "a batch of nothing",
      "ERR_RLHF_ARGUMENT",
      /packSequences makes one/,
      () => model.forward(null as never),
    ],
    [
      "a batch of lists",
      "ERR_RLHF_ARGUMENT",
      /Int32Array/,
      () => model.forward({ tokens: [1], offsets: [0, 1] } as never),
    ],
    ["no list of sequences", "ERR_RLHF_ARGUMENT", /\[\{ tokens \}, …\]/, () => packSequences(null as never)],
    [
      "a token over 32 bits",
      "ERR_RLHF_ARGUMENT",
      /token 0 of sequence 0/,
      () => packSequences([{ tokens: [2 ** 33] }]),
    ],
    [
      "a temperature of 0 in a pass",
      "ERR_RLHF_ARGUMENT",
      /above 0, got 0/,
      () => model.forward(batch, { temperature: 0 }),
    ],
    [
      "a head that is not there",
      "ERR_RLHF_UNKNOWN_NAME",
      /no head "x"/,
      () => model.forward(batch, { head: "x" }),
    ],
    [
      "gradients of 64 bits, and the pass is still good",
      "ERR_RLHF_ARGUMENT",
      /dLogProb must be a Float32Array/,
      async () => {
        model.addAdapter("grad", LORA);
        const pass = await model.forward(batch, { grad: true, adapter: "grad" });
        try {
          await pass.backward({ dLogProb: new Float64Array(3) as never });
        } finally {
          await pass.backward({ dLogProb: new Float32Array(3) });
          model.removeAdapter("grad");
        }
      },
    ],
    [
      "a second backward",
      "ERR_RLHF_PASS_CONSUMED",
      /consumed by backward\(\).*run forward\(\) again/,
      async () => {
        using own = await tinyModel(tokenizer);
        const pass = await own.forward(batch, { grad: true });
        await pass.backward({ dLogProb: new Float32Array(3) });
        await pass.backward({ dLogProb: new Float32Array(3) });
      },
    ],
    [
      "a learning rate that is no number",
      "ERR_RLHF_ARGUMENT",
      /learningRate is nan, expected at least 0/,
      async () => {
        using own = await tinyModel(tokenizer);
        await own.createOptimizer().step({ learningRate: Number.NaN });
      },
    ],
    [
      "weights that are not finite, when they are used",
      "ERR_RLHF_NON_FINITE",
      /logits\[0, 0\] is NaN or infinite: the model's weights are damaged or have diverged/,
      async () => {
        using own = await tinyModel(tokenizer);
        await own.writeParameter("model.norm.weight", new Float32Array(24).fill(Number.NaN));
        await answers(own);
      },
    ],
  ];

  const adapterOf = (name: string, config: object) => async () => {
    using other = await CausalLM.create(config as typeof TINY_LLAMA, { device: "cpu" });
    other.addAdapter("a", LORA);
    await other.saveAdapter("a", join(directory, name));
    await model.loadAdapter("theirs", join(directory, name));
  };
  const adapters: BadCase[] = [
    [
      "an adapter without options",
      "ERR_RLHF_ARGUMENT",
      /needs options/,
      () => model.addAdapter("a", undefined as never),
    ],
    [
      "an adapter's rank by its long name",
      "ERR_RLHF_ARGUMENT",
      /^an adapter: unknown option "rank" .*; it takes r, alpha, /,
      () => model.addAdapter("a", { ...LORA, rank: 2 } as never),
    ],
    [
      "an adapter without alpha",
      "ERR_RLHF_ARGUMENT",
      /alpha must be/,
      () => model.addAdapter("a", { r: 2 } as never),
    ],
    [
      "an adapter's directory that is absent",
      "ERR_RLHF_MODEL",
      /adapter_config\.json: does not exist/,
      () => model.loadAdapter("a", join(directory, "none")),
    ],
    [
      "an adapter of a wider model",
      "ERR_RLHF_WEIGHTS",
      /shape/,
      adapterOf("wide", { ...TINY_LLAMA, hidden_size: 48, head_dim: 12 }),
    ],
    [
      "an adapter of a deeper model",
      "ERR_RLHF_WEIGHTS",
      /layers\.2/,
      adapterOf("deep", { ...TINY_LLAMA, num_hidden_layers: 4 }),
    ],
    [
      "an adapter of another family",
      "ERR_RLHF_WEIGHTS",
      /target_modules names .*c_attn.*of another model/,
      adapterOf("gpt2", TINY_GPT2),
    ],
  ];

  const file = writeText(directory, "file", "kept");
  const disposed = async () => {
    const gone = await tinyModel(tokenizer);
    gone.dispose();
    return gone;
  };
  const outputs: BadCase[] = [
    [
      "a model written over a file",
      "ERR_RLHF_IO",
      /file.model\.safetensors: cannot be written/,
      () => model.save(file),
    ],
    [
      "a tokenizer written below a file",
      "ERR_RLHF_IO",
      /cannot be written: ENOTDIR/,
      () => tokenizer.save(join(file, "x")),
    ],
    [
      "saving a model that is disposed",
      "ERR_RLHF_DISPOSED",
      /disposed/,
      async () => (await disposed()).save(join(directory, "gone")),
    ],
    ["generating with one", "ERR_RLHF_DISPOSED", /disposed/, async () => answers(await disposed())],
    [
      "an adapter for one",
      "ERR_RLHF_DISPOSED",
      /disposed/,
      async () => (await disposed()).addAdapter("a", LORA),
    ],
  ];

  const data = { model: null as unknown as CausalLM, tokenizer, trainData: sftRows };
  const make = (Trainer: typeof SFTTrainer | typeof DPOTrainer | typeof KTOTrainer, options: object) => () =>
    new (Trainer as unknown as new (options: object) => object)({ ...data, model, ...options });
  const lora = { lora: { r: 2 } };
  const makePpo = (options: object) => () =>
    new PPOTrainer({
      model,
      tokenizer,
      prompts,
      reward: () => 0,
      config: { ...lora, maxNewTokens: 8 },
      ...options,
    } as never);
  const trainers: BadCase[] = [
    [
      "a trainer without options",
      "ERR_RLHF_ARGUMENT",
      /needs an object with the options model/,
      () => new SFTTrainer(undefined as never),
    ],
    [
      "a trainer without a model",
      "ERR_RLHF_ARGUMENT",
      /the option model is undefined/,
      make(DPOTrainer, { model: undefined }),
    ],
    [
      "a trainer's option in another spelling",
      "ERR_RLHF_ARGUMENT",
      /^SFTTrainer: unknown option "modle" \(did you mean "model"\?\)$/,
      make(SFTTrainer, { modle: 1 }),
    ],
    [
      "a PPO trainer's option in another spelling",
      "ERR_RLHF_ARGUMENT",
      /^PPOTrainer: unknown option "rewards" \(did you mean "reward"\?\)$/,
      makePpo({ rewards: () => 1 }),
    ],
    [
      "a reference where there is none",
      "ERR_RLHF_ARGUMENT",
      /^ORPOTrainer: unknown option "refModel"/,
      () => make(ORPOTrainer as never, { refModel: model })(),
    ],
    [
      "a setting among the options",
      "ERR_RLHF_ARGUMENT",
      /^DPOTrainer: unknown option "beta"; it is a setting: config: \{ beta: … \}$/,
      make(DPOTrainer, { beta: 0.1 }),
    ],
    [
      "settings that are no object",
      "ERR_RLHF_ARGUMENT",
      /^KTOTrainer: the option config must be an object of settings, got 3$/,
      make(KTOTrainer, { config: 3 }),
    ],
    [
      "an output directory that is no path",
      "ERR_RLHF_ARGUMENT",
      /^SFTTrainer: the option outputDir must be the path of a directory, got 7$/,
      make(SFTTrainer, { outputDir: 7 }),
    ],
    [
      "a trainer without a tokenizer",
      "ERR_RLHF_ARGUMENT",
      /the option tokenizer is undefined/,
      make(KTOTrainer, { tokenizer: undefined }),
    ],
    [
      "a trainer without data",
      "ERR_RLHF_ARGUMENT",
      /the option trainData is undefined/,
      make(SFTTrainer, { trainData: undefined }),
    ],
    [
      "a trainer given a path for data",
      "ERR_RLHF_ARGUMENT",
      /the option trainData is rows\.jsonl/,
      make(SFTTrainer, { trainData: "rows.jsonl" }),
    ],
    ...(["model", "tokenizer", "trainData", "evalData"] as const).map(
      (option): BadCase => [
        `a trainer given a promise for ${option}`,
        "ERR_RLHF_ARGUMENT",
        new RegExp(`^SFTTrainer: the option ${option} is a promise: await it first$`),
        make(SFTTrainer, { [option]: Promise.resolve([]) }),
      ],
    ),
    [
      "PPO with a promise for a reward model",
      "ERR_RLHF_ARGUMENT",
      /^PPOTrainer: the option reward is a promise/,
      makePpo({ reward: Promise.resolve(() => 1) }),
    ],
    [
      "PPO with a language model for a reward model",
      "ERR_RLHF_ARGUMENT",
      /^reward must be a RewardModel, a RewardEnsemble, a function/,
      () => makePpo({ reward: model })(),
    ],
    [
      "PPO without a reward",
      "ERR_RLHF_ARGUMENT",
      /the option reward is undefined/,
      makePpo({ reward: undefined }),
    ],
    [
      "PPO with a path for a reward",
      "ERR_RLHF_ARGUMENT",
      /the option reward is rm/,
      makePpo({ reward: "rm" }),
    ],
    [
      "GRPO without prompts",
      "ERR_RLHF_ARGUMENT",
      /GRPOTrainer: the option prompts is undefined/,
      () => new GRPOTrainer({ model, tokenizer, reward: () => 0 } as never),
    ],
    [
      "RLOO without a model",
      "ERR_RLHF_ARGUMENT",
      /RLOOTrainer: the option model is null/,
      () => new RLOOTrainer({ model: null, tokenizer, prompts, reward: () => 0 } as never),
    ],
    [
      "data of no rows",
      "ERR_RLHF_DATA",
      /no row was given/,
      make(SFTTrainer, { config: lora, trainData: [] }),
    ],
    [
      "a row of null",
      "ERR_RLHF_DATA",
      /row 1: is null, expected an object/,
      make(SFTTrainer, { config: lora, trainData: [sftRows[0], null] }),
    ],
    [
      "pairs for SFT",
      "ERR_RLHF_DATA",
      /row 0: "response" must be/,
      make(SFTTrainer, { config: lora, trainData: preferenceRows }),
    ],
    ["answers for DPO", "ERR_RLHF_DATA", /row 0: "chosen" must be/, make(DPOTrainer, { config: lora })],
    ["answers for KTO", "ERR_RLHF_DATA", /row 0: "label" must be/, make(KTOTrainer, { config: lora })],
    [
      "only prompts that fill the context",
      "ERR_RLHF_DATA",
      /no prompt is left: all 1 .* raise it/,
      makePpo({ prompts: ["x".repeat(500)] }),
    ],
    [
      "answers as long as the context",
      "ERR_RLHF_ARGUMENT",
      /maxNewTokens \(64\) leaves no room .*; lower it/,
      makePpo({ config: { ...lora, maxNewTokens: 64 } }),
    ],
    [
      "a setting of text",
      "ERR_RLHF_ARGUMENT",
      /learningRate must be a number .*, got "1e-3"/,
      make(SFTTrainer, { config: { ...lora, learningRate: "1e-3" } }),
    ],
    [
      "a misspelt setting",
      "ERR_RLHF_ARGUMENT",
      /"learningrate" \(did you mean "learningRate"\?\)/,
      make(SFTTrainer, { config: { ...lora, learningrate: 1 } }),
    ],
    [
      "a length over the context",
      "ERR_RLHF_ARGUMENT",
      /maxLength \(1000\) is over the 64 tokens .*lower it/,
      make(SFTTrainer, { config: { ...lora, maxLength: 1000 } }),
    ],
    [
      "a frozen model with nothing to train",
      "ERR_RLHF_ARGUMENT",
      /set config\.lora to train an adapter/,
      make(SFTTrainer, {}),
    ],
  ];

  itRefuses([...generation, ...passes, ...adapters, ...outputs, ...trainers]);

  it("another model's tokenizer is refused in the first step, and the weights stay", async () => {
    using small = await CausalLM.create(TINY_LLAMA, { trainable: "all", device: "cpu" });
    const before = await weightsOf(small);
    using trainer = new SFTTrainer({ model: small, tokenizer, trainData: sftRows });
    await assertRefused(
      () => trainer.trainStep(),
      "ERR_RLHF_TOKEN_RANGE",
      /vocabulary of 61: was another model's tokenizer used/,
    );
    assert.deepEqual(await weightsOf(small), before);
  });

  it("none of it touched the model, or what lay at the paths", async () => {
    assert.deepEqual(await answers(model), expected);
    assert.deepEqual([...model.adapters.keys()], []);
    assert.equal(readFileSync(file, "utf8"), "kept");
    assert.ok(!existsSync(join(directory, "gone")));
  });
});
