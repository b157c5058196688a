/**
 * Saves what node-rlhf saves, for load_saved.py to load with transformers and peft: one model of every family, with an adapter
 * of all its linear layers, merged and apart, adapters in other forms, a reward model, and a new one as `init` in YAML makes it.
 *
 * usage: npx tsx test/reference/save_models.ts DIR && /tmp/peers/bin/python test/reference/load_saved.py --cases DIR/cases.json
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type AdapterOptions,
  addTokens,
  CausalLM,
  type ChatMessage,
  packSequences,
  RewardModel,
  type TokenizedExample,
  Tokenizer,
  tokenizeSft,
  trainTokenizer,
} from "../../lib/index.ts";
import { type HfConfig, MODEL_FAMILIES } from "../../lib/model/config.ts";
import { initModel } from "../../lib/pipeline/init-model.ts";
import type { InitConfig } from "../../lib/pipeline/schema.ts";
import { TINY_FAMILIES, TINY_GPT_NEOX, TINY_LLAMA } from "../support/tiny.ts";

/** What load_saved.py compares: a directory, its base model if it is an adapter, and what node-rlhf computes with it. */
interface Case {
  readonly directory: string;
  readonly base?: string;
  readonly tokens: readonly number[];
  readonly logProbs?: readonly number[];
  readonly reward?: number;
  /** A conversation that the directory's tokenizer makes these tokens of, 1 in the mask where the assistant speaks. */
  readonly messages?: readonly ChatMessage[];
  readonly lossMask?: readonly number[];
}

const CONFIGS: Readonly<Record<string, HfConfig>> = {
  ...TINY_FAMILIES,
  "llama-llama3": {
    ...TINY_LLAMA,
    rope_scaling: {
      rope_type: "llama3",
      factor: 4,
      low_freq_factor: 1,
      high_freq_factor: 3,
      original_max_position_embeddings: 16,
    },
  },
  "llama-linear": { ...TINY_LLAMA, rope_scaling: { type: "linear", factor: 3 } },
  "gpt_neox-sequential": { ...TINY_GPT_NEOX, use_parallel_residual: false, tie_word_embeddings: true },
};

const TOKENS = Array.from({ length: 30 }, (_, i) => 3 + ((i * i * 7 + 5 * i) % 47));

async function logProbs(model: CausalLM, adapter?: string): Promise<number[]> {
  using pass = await model.forward(
    packSequences([{ tokens: TOKENS }]),
    adapter === undefined ? {} : { adapter },
  );
  return [...(await pass.logProb())];
}

/** Every parameter a little off its initial value: a bias or a norm's weight that is lost then shows. */
async function disturb(model: CausalLM, group: string): Promise<void> {
  for (const { name, shape, group: own } of model.parameters()) {
    if (own !== group || (shape.length > 1 && group === "base")) continue;
    const values = await model.readParameter(name);
    await model.writeParameter(
      name,
      values.map((value, i) => value + 0.2 * Math.sin(i * 1.7 + name.length)),
    );
  }
}

async function saveFamily(root: string, name: string, config: HfConfig): Promise<Case[]> {
  const paths = {
    base: join(root, name),
    adapter: join(root, `${name}-adapter`),
    merged: join(root, `${name}-merged`),
    reward: join(root, `${name}-reward`),
  };
  using model = await CausalLM.create(config, { seed: 3 });
  await disturb(model, "base");
  await model.save(paths.base);
  const base: Case = { directory: paths.base, tokens: TOKENS, logProbs: await logProbs(model) };
  model.addAdapter("policy", { r: 3, alpha: 6, targetModules: "all-linear", seed: 1 });
  await disturb(model, "adapter:policy");
  const adapted = await logProbs(model, "policy");
  await model.saveAdapter("policy", paths.adapter);
  await model.save(paths.merged, { merge: "policy" });
  using trained = RewardModel.create(model, { head: { bias: false, initStd: 0.5, seed: 4 } });
  // transformers takes no notice of the statistics: it gives the raw scores.
  await trained.measureStatistics([TOKENS, TOKENS.slice(0, 9)].map((tokens) => Int32Array.from(tokens)));
  await trained.save(paths.reward);
  using reward = await RewardModel.load(paths.reward);
  const [score] = await reward.score([Int32Array.from(TOKENS)]);
  return [
    base,
    { directory: paths.adapter, base: paths.base, tokens: TOKENS, logProbs: adapted },
    { directory: paths.merged, tokens: TOKENS, logProbs: adapted },
    { directory: paths.reward, tokens: TOKENS, reward: score as number },
  ];
}

/** Every form of adapter, on the base that was saved. */
const ADAPTER_FORMS: Readonly<Record<string, AdapterOptions>> = {
  rslora: { r: 3, alpha: 2, targetModules: "all-linear", useRslora: true, dropout: 0.1 },
  patterns: { r: 2, alpha: 3, rankPattern: { ".*\\.1\\..*": 5 }, alphaPattern: { ".*\\.0\\..*": 1.5 } },
  expression: { r: 2, alpha: 3, targetModules: ".*\\.1\\..*" },
  block: {
    r: 4,
    alpha: 3,
    targetModules: "all-linear",
    layersToTransform: [1],
    excludeModules: ".*\\.0\\..*",
  },
};

async function saveAdapterForms(root: string, name: string): Promise<Case[]> {
  const base = join(root, name);
  using model = await CausalLM.load(base);
  const cases: Case[] = [];
  for (const [form, options] of Object.entries(ADAPTER_FORMS)) {
    model.addAdapter(form, options);
    await disturb(model, `adapter:${form}`);
    const directory = join(root, `${name}-adapter-${form}`);
    await model.saveAdapter(form, directory);
    cases.push({ directory, base, tokens: TOKENS, logProbs: await logProbs(model, form) });
  }
  using reward = RewardModel.create(model, { adapter: "patterns", head: { initStd: 0.5, bias: false } });
  const [score] = await reward.score([Int32Array.from(TOKENS)]);
  const directory = join(root, `${name}-adapter-reward`);
  await reward.saveAdapter(directory);
  return [...cases, { directory, base, tokens: TOKENS, reward: score as number }];
}

/** A model with tokens and a chat template added. */
async function saveWithTokens(root: string, name: string, config: HfConfig): Promise<Case> {
  const [source, directory] = [join(root, `${name}-text`), join(root, `${name}-chat`)];
  const tokenizer = trainTokenizer(["the cat sat on the mat, the cat sat"], { vocabSize: 262 });
  using model = await CausalLM.create({ ...config, vocab_size: 262 }, { seed: 5 });
  await model.save(source);
  await tokenizer.save(source);
  await addTokens(source, directory, ["<|tool|>"], { chatTemplate: "chatml", padVocabTo: 16 });
  const messages = [
    { role: "user", content: "größe?" },
    { role: "assistant", content: "the cat" },
  ];
  const [example] = tokenizeSft([{ messages }], await Tokenizer.load(directory)).examples;
  const { tokens, lossMask } = example as TokenizedExample;
  using chat = await CausalLM.load(directory);
  using pass = await chat.forward(packSequences([{ tokens }]));
  return {
    directory,
    tokens: [...tokens],
    logProbs: [...(await pass.logProb())],
    messages,
    lossMask: [...lossMask],
  };
}

/** A new model as `init` in YAML makes it. */
async function saveNew(root: string, family: InitConfig["family"]): Promise<Case> {
  const directory = join(root, `new-${family}`);
  const windowed = ["mistral", "qwen2", "qwen3"].includes(family) ? { sliding_window: 4 } : {};
  const init = { family, hidden_size: 24, num_layers: 2, num_heads: 3, vocab_size: 264, ...windowed };
  const { model } = await initModel(init, [{ prompt: "", response: "the cat sat" }], { seed: 1 });
  using created = model;
  await created.save(directory);
  return { directory, tokens: TOKENS, logProbs: await logProbs(created) };
}

const root = process.argv[2];
if (!root) throw new Error("usage: save_models.ts DIR");
const cases: Case[] = [];
for (const [name, config] of Object.entries(CONFIGS)) {
  cases.push(...(await saveFamily(root, name, config)));
  cases.push(...(await saveAdapterForms(root, name)));
}
for (const family of MODEL_FAMILIES) cases.push(await saveNew(root, family));
for (const name of ["gpt2", "llama", "gpt_neox"])
  cases.push(await saveWithTokens(root, name, CONFIGS[name] as HfConfig));
await writeFile(join(root, "cases.json"), JSON.stringify(cases));
