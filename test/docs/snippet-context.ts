/** What the guide's examples name without making it. Each example gets a copy of this module of its own. */
import {
  type CausalLM,
  FeatureRewardModel,
  loadModel,
  loadSft,
  type Pass,
  PPOTrainer,
  packSequences,
  SFTTrainer,
} from "../../lib/index.ts";
import { preferenceRows, prompts } from "../trainers/support.ts";

export { prompts };
export const { model, tokenizer } = await loadModel("models/base");

async function withPolicy(): Promise<CausalLM> {
  const adapted = (await loadModel("models/base")).model;
  adapted.addAdapter("policy", { r: 4, alpha: 8 });
  return adapted;
}

export const adaptedModel = await withPolicy();
export const optimizer = adaptedModel.createOptimizer({ adapter: "policy" });
export const featureModel = FeatureRewardModel.create({ inputDim: 3 });
export const trainableModel = (await loadModel("models/base", { trainable: "all" })).model;

export const sequences = preferenceRows.slice(0, 4).map((row) => tokenizer.encode(row.prompt + row.chosen));
export const [prompt, chosen, rejected] = sequences as [Int32Array, Int32Array, Int32Array, Int32Array];
export const tokens = sequences[0] as Int32Array;
export const promptLength = 2;
export const batch = packSequences(sequences.map((each) => ({ tokens: each, promptLength })));
export const { mask } = batch;
export const count = mask.reduce((sum, bit) => sum + bit, 0);
export const dLogProb = mask.map((bit) => -bit / count);
export const weight = (t: number): number => mask[t] ?? 0;
export const answerLengths = Int32Array.from(sequences, (each) => each.length - promptLength);
export const refLogProb = new Float32Array(sequences.length).fill(-20);
export const pass: Pass = await trainableModel.forward(batch, { grad: true });

export const reward = (_prompt: string, response: string): number => response.length;
export const myScore = (_first: string, second: unknown): number => String(second).length;
export const myScores = async (pairs: string[][], _signal: AbortSignal): Promise<number[]> =>
  pairs.map(([, response = ""]) => response.length);
export const held = [{ chosen: [0.1, 21, -3], rejected: [0.4, 18, 2] }];

const rows = await loadSft("data/sft.jsonl");
export const sftTrainer = new SFTTrainer({
  model: (await loadModel("models/base", { trainable: "all" })).model,
  tokenizer,
  trainData: rows,
  config: { maxSteps: 1 },
});
export const ppoTrainer = new PPOTrainer({
  model: (await loadModel("models/base", { trainable: "all" })).model,
  tokenizer,
  prompts,
  reward,
  config: { batchSize: prompts.length, maxNewTokens: 4, numIterations: 2 },
});
