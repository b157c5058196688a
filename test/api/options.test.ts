import assert from "node:assert/strict";
import * as library from "../../lib/index.ts";
import { CartPole } from "../environment/tasks.ts";
import { sftRows, tinyModel, tinyTokenizer } from "../trainers/support.ts";

type Callable = (...args: never[]) => unknown;

/** The text between the first bracket of a function's source and the one that closes it. */
function parametersOf(source: string): string {
  const start = source.indexOf("(");
  let depth = 0;
  for (let at = start; at < source.length; at++) {
    if ("({[".includes(source[at] as string)) depth++;
    if (")}]".includes(source[at] as string) && --depth === 0) return source.slice(start + 1, at);
  }
  return "";
}

const takesOptions = (source: string): boolean =>
  /\b_?options\b|\bargs\b|\bgradients\b|\bworkload\b|\{/.test(parametersOf(source));

/** Methods and static functions of a class and of those it extends, as "Class#method" and "Class.function" of where they are written. */
function* membersOf(type: Callable & { prototype: object }): Generator<[label: string, body: Callable]> {
  const own = (holder: object): [string, Callable][] =>
    Object.entries(Object.getOwnPropertyDescriptors(holder)).flatMap(([name, { value }]) =>
      typeof value === "function" && name !== "constructor" ? [[name, value as Callable]] : [],
    );
  for (const [name, body] of own(type)) if (name !== "prototype") yield [`${type.name}.${name}`, body];
  for (let proto = type.prototype; proto !== Object.prototype; proto = Object.getPrototypeOf(proto))
    for (const [name, body] of own(proto)) yield [`${proto.constructor.name}#${name}`, body];
}

/** Everything in the package's index that takes an object of options. */
function takers(): string[] {
  const found = new Set<string>();
  for (const [name, value] of Object.entries(library)) {
    if (typeof value !== "function") continue;
    const source = value.toString();
    if (!source.startsWith("class")) {
      if (takesOptions(source)) found.add(name);
      continue;
    }
    const made = source.indexOf("constructor(");
    if (made >= 0 && takesOptions(source.slice(made))) found.add(name);
    for (const [label, body] of membersOf(value as never))
      if (takesOptions(body.toString())) found.add(label);
  }
  return [...found].sort();
}

/** What takes an object, but none of options from outside: protected parts, internal constructors, results, contents of files. */
const OTHERS = [
  ...["CausalLM#emptyCopyOn", "Engine", "LossPass", "Optimizer", "RewardModel", "RlhfError", "RowStream"],
  ...["EnvironmentPPOTrainer#restoreAlgorithmState", "GRPOTrainer#advantagesOf", "RLOOTrainer#advantagesOf"],
  ...["DPOTrainer#makeReady", "KTOTrainer#makeReady", "KTOTrainer#runMicroBatch", "SFTTrainer#toMetrics"],
  ...["Trainer#begin", "TrainingLoop#begin", "TrainingLoop#makeReady"],
  ...["TokenDataset.of", "Tokenizer.fromJson", "mlpParameterCount"],
];

type Call = (options: never) => unknown;
/** A call with the options given, and one of its options. What else it is given does not matter: names are looked at first. */
type Case = readonly [call: Call, option: string];

const {
  CausalLM,
  Engine,
  EnvironmentPolicy,
  EnvironmentPPOTrainer,
  FeatureRewardModel,
  RewardEnsemble,
  RewardModel,
  TokenDataset,
} = library;
const none = [] as never;
const tokenizer = tinyTokenizer();
const path = "no-such-directory";
const NO_TOKENS = new Int32Array(0);

/** Constructors and functions. */
const CASES: Readonly<Record<string, Case>> = {
  BatchReward: [(o) => new library.BatchReward(() => [], o), "batchSize"],
  CalledReward: [(o) => new library.HttpReward("http://127.0.0.1", o), "timeoutMs"],
  CPOTrainer: [(o) => new library.CPOTrainer(o), "trainData"],
  "CausalLM.create": [(o) => CausalLM.create({}, o), "trainable"],
  "CausalLM.load": [(o) => CausalLM.load(path, o), "recomputeLayers"],
  ConsoleProgress: [(o) => new library.ConsoleProgress(o), "totalSteps"],
  DPOTrainer: [(o) => new library.DPOTrainer(o), "refModel"],
  "Engine.shared": [(o) => Engine.shared(o), "threads"],
  "Engine.whilePlanning": [(o) => Engine.whilePlanning(o, async () => 0), "compute"],
  EnvironmentPPOTrainer: [(o) => new EnvironmentPPOTrainer(o), "environment"],
  EnvironmentPolicy: [(o) => new EnvironmentPolicy(none, none, o), "activation"],
  "EnvironmentPolicy.load": [(o) => EnvironmentPolicy.load(path, o), "device"],
  "FeatureRewardModel.create": [(o) => FeatureRewardModel.create(o), "hiddenDim"],
  "FeatureRewardModel.load": [(o) => FeatureRewardModel.load(path, o), "memoryBudget"],
  FeatureRewardTrainer: [(o) => new library.FeatureRewardTrainer(o), "trainData"],
  FunctionReward: [(o) => new library.FunctionReward(() => 0, o), "concurrency"],
  GRPOTrainer: [(o) => new library.GRPOTrainer(o), "prompts"],
  HttpReward: [(o) => new library.HttpReward("http://127.0.0.1", o), "headers"],
  KTOTrainer: [(o) => new library.KTOTrainer(o), "evalData"],
  LoRALinear: [(o) => new library.LoRALinear(o), "useRslora"],
  ORPOTrainer: [(o) => new library.ORPOTrainer(o), "tokenizer"],
  PPOTrainer: [(o) => new library.PPOTrainer(o), "reward"],
  PreferenceDataset: [(o) => new library.PreferenceDataset([], tokenizer, o), "maxLength"],
  RLOOTrainer: [(o) => new library.RLOOTrainer(o), "outputDir"],
  ReinforcePlusPlusTrainer: [(o) => new library.ReinforcePlusPlusTrainer(o), "config"],
  RewardEnsemble: [(o) => new RewardEnsemble([], o), "combine"],
  "RewardEnsemble.load": [(o) => RewardEnsemble.load([path], o), "kappa"],
  "RewardModel.create": [(o) => RewardModel.create(none, o), "adapter"],
  "RewardModel.load": [(o) => RewardModel.load(path, o), "backbone"],
  RewardModelTrainer: [(o) => new library.RewardModelTrainer(o), "trainData"],
  SFTTrainer: [(o) => new library.SFTTrainer(o), "model"],
  SimPOTrainer: [(o) => new library.SimPOTrainer(o), "evalData"],
  "TokenDataset.create": [(o) => TokenDataset.create([], tokenizer, o), "directory"],
  adamW: [(o) => library.adamW(none, o), "weightDecay"],
  addTokens: [(o) => library.addTokens(path, path, [], o), "padVocabTo"],
  computeAdvantages: [(o) => library.computeAdvantages([], [], o), "lambda"],
  computeDpoLoss: [(o) => library.computeDpoLoss([], [], [], [], o), "labelSmoothing"],
  downloadDataset: [(o) => library.downloadDataset("hub:a/b/c", o), "offline"],
  downloadModel: [(o) => library.downloadModel("hub:a/b", o), "cacheDirectory"],
  estimateMemory: [(o) => library.estimateMemory(o), "maxTokens"],
  evaluate: [(o) => library.evaluate(o), "numSamples"],
  gae: [(o) => library.gae(none, o), "lambda"],
  groupPolicyLoss: [(o) => library.groupPolicyLoss(none, o), "highestRatio"],
  isHeldOut: [(o) => library.isHeldOut({}, o), "groupOf"],
  klReward: [(o) => library.klReward(none, o), "estimator"],
  ktoLoss: [(o) => library.ktoLoss(none, o), "desirableWeight"],
  lengthDesensitizedWeight: [(o) => library.lengthDesensitizedWeight(o), "ldAlpha"],
  loadFeatures: [(o) => library.loadFeatures(path, o), "format"],
  loadModel: [(o) => library.loadModel(path, o), "dtype"],
  loadPreferences: [(o) => library.loadPreferences(path, o), "format"],
  loadPrompts: [(o) => library.loadPrompts(path, o), "limit"],
  loadReward: [(o) => library.loadReward(path, o), "combine"],
  loadRewardData: [(o) => library.loadRewardData(path, o), "duplicates"],
  loadScored: [(o) => library.loadScored(path, o), "onBadRow"],
  loadSft: [(o) => library.loadSft(path, o), "onBadRow"],
  loadUnpaired: [(o) => library.loadUnpaired(path, o), "limit"],
  mlpBackward: [(o) => library.mlpBackward(none, o), "parameters"],
  mlpForward: [(o) => library.mlpForward(none, o), "activation"],
  playEpisodes: [(o) => library.playEpisodes(none, [], o), "maxSteps"],
  ppoPolicyLoss: [(o) => library.ppoPolicyLoss(none, o), "dualClip"],
  ppoValueLoss: [(o) => library.ppoValueLoss(none, o), "clipRange"],
  preferenceLoss: [(o) => library.preferenceLoss(none, o), "labelSmoothing"],
  preferenceRows: [(o) => library.preferenceRows(tokenizer, o), "overlong"],
  promptRows: [(o) => library.promptRows(tokenizer, o), "maxLength"],
  rewardLoss: [(o) => library.rewardLoss(none, o), "centering"],
  rewardRows: [(o) => library.rewardRows(tokenizer, o), "overlong"],
  scoredRows: [(o) => library.scoredRows(tokenizer, o), "appendEos"],
  sequenceSum: [(o) => library.sequenceSum(none, o), "weight"],
  sequenceSumBackward: [(o) => library.sequenceSumBackward(none, o), "base"],
  sftRows: [(o) => library.sftRows(tokenizer, o), "lossOn"],
  splitDataset: [(o) => library.splitDataset([], o), "evalFraction"],
  streamPreferences: [(o) => library.streamPreferences(path, o), "duplicates"],
  streamSft: [(o) => library.streamSft(path, o), "limit"],
  tokenNllLoss: [(o) => library.tokenNllLoss(none, o), "scale"],
  tokenizeInSlices: [(o) => library.tokenizeInSlices([], none, o), "signal"],
  tokenizePreferences: [(o) => library.tokenizePreferences([], tokenizer, o), "overlong"],
  tokenizePrompts: [(o) => library.tokenizePrompts([], tokenizer, o), "maxLength"],
  tokenizeRewardData: [(o) => library.tokenizeRewardData([], tokenizer, o), "appendEos"],
  tokenizeScored: [(o) => library.tokenizeScored([], tokenizer, o), "maxLength"],
  tokenizeSft: [(o) => library.tokenizeSft([], tokenizer, o), "lossOn"],
  tokenizeUnpaired: [(o) => library.tokenizeUnpaired([], tokenizer, o), "overlong"],
  trainTokenizer: [(o) => library.trainTokenizer([], o), "vocabSize"],
  unpairedRows: [(o) => library.unpairedRows(tokenizer, o), "maxLength"],
  whiten: [(o) => library.whiten(none, o), "shiftMean"],
  wpoWeight: [(o) => library.wpoWeight(none, o), "lseHalf"],
  "Tokenizer#applyChatTemplate": [(o) => tokenizer.applyChatTemplate([], o), "addGenerationPrompt"],
  "Tokenizer#decode": [(o) => tokenizer.decode([], o), "skipSpecialTokens"],
  "Tokenizer#decodeContinuation": [
    (o) => tokenizer.decodeContinuation(NO_TOKENS, NO_TOKENS, o),
    "skipSpecialTokens",
  ],
  "Tokenizer#encode": [(o) => tokenizer.encode("", o), "addSpecialTokens"],
  "Tokenizer#renderChat": [(o) => tokenizer.renderChat([], o), "sanitize"],
  "Tokenizer#withTokens": [(o) => tokenizer.withTokens([], o), "chatTemplate"],
};

/** Methods of a model, and of what is made of one. */
function casesOf(model: library.CausalLM): Readonly<Record<string, Case>> {
  const reward = RewardModel.create(model);
  const ensemble = new RewardEnsemble([reward]);
  const optimizer = model.createOptimizer({ heads: [reward.head] });
  const forward = (): Promise<library.Pass> =>
    model.forward(library.packSequences([{ tokens: Int32Array.of(1, 2) }]));
  const environment = (): CartPole => new CartPole();
  const control = new EnvironmentPPOTrainer({ environment, config: { numIterations: 1 } });
  const sft = new library.SFTTrainer({ model, tokenizer, trainData: sftRows });
  return {
    applyLoraToModel: [(o) => library.applyLoraToModel(model, o), "targetModules"],
    computeLogProbs: [(o) => library.computeLogProbs(model, none, o), "temperature"],
    "CausalLM#addAdapter": [(o) => model.addAdapter("a", o), "alpha"],
    "CausalLM#addHead": [(o) => model.addHead("h", o), "innerSize"],
    "CausalLM#clone": [(o) => model.clone(o), "merge"],
    "CausalLM#copyAdapter": [(o) => model.copyAdapter("a", "b", o), "trainable"],
    "CausalLM#createOptimizer": [(o) => model.createOptimizer(o), "weightDecay"],
    "CausalLM#forward": [(o) => model.forward(none, o), "temperature"],
    "CausalLM#forwardBackward": [(o) => model.forwardBackward(none, { kind: "nll" } as never, o), "predict"],
    "CausalLM#generate": [(o) => model.generate([], o), "maxNewTokens"],
    "CausalLM#loadAdapter": [(o) => model.loadAdapter("a", path, o), "trainable"],
    "CausalLM#mergeAdapter": [(o) => model.mergeAdapter("a", o), "reversible"],
    "CausalLM#save": [(o) => model.save(path, o), "merge"],
    "CausalLM#saveAdapter": [(o) => model.saveAdapter("a", path, o), "head"],
    "CausalLM#saveForSequenceClassification": [
      (o) => model.saveForSequenceClassification(path, "h", o),
      "padTokenId",
    ],
    "EnvironmentPolicy#act": [(o) => control.policy.act([], o), "random"],
    "Optimizer#step": [(o) => optimizer.step(o), "learningRate"],
    "Pass#backward": [async (o) => (await forward()).backward(o), "dLogProb"],
    "RewardEnsemble#score": [(o) => ensemble.score([], o), "normalize"],
    "RewardEnsemble#scoreWithSpread": [(o) => ensemble.scoreWithSpread([], o), "microBatchTokens"],
    "RewardModel#measureStatistics": [(o) => reward.measureStatistics([], o), "microBatchTokens"],
    "RewardModel#score": [(o) => reward.score([], o), "normalize"],
    "RewardModel#with": [(o) => reward.with(o), "adapter"],
    "RewardModelTrainer#train": [(o) => sft.train(o), "resume"],
    "Trainer#checkMemory": [(o) => sft.checkMemory(o), "progress"],
    "TrainingLoop#prepare": [(o) => sft.prepare(o), "signal"],
    "TrainingLoop#steps": [(o) => sft.steps(o).next(), "progress"],
    "TrainingLoop#train": [(o) => sft.train(o), "signal"],
    ValueHead: [(o) => new library.ValueHead(model, o), "activation"],
    "ValueHead#forward": [(o) => new library.ValueHead(model).forward(none, o), "adapter"],
  };
}

/** An option's name with a letter doubled. */
const misspelt = (option: string): string => option.slice(0, 2) + option.slice(1);

async function refuses([call, option]: Case): Promise<void> {
  const name = misspelt(option);
  const message = new RegExp(`unknown (?:option|setting) "${name}" \\(did you mean "${option}"\\?\\)`);
  await assert.rejects(async () => call({ [name]: 1 } as never), { code: "ERR_RLHF_ARGUMENT", message });
}

describe("options that there are not", () => {
  for (const [name, each] of Object.entries(CASES))
    it(`are refused by ${name}, with the one that was meant`, () => refuses(each));

  it("are refused by the methods of models and trainers", async () => {
    using model = await tinyModel(tokenizer);
    for (const [name, each] of Object.entries(casesOf(model)))
      await refuses(each).catch((error: Error) => {
        throw new Error(`${name}: ${error.message}`, { cause: error });
      });
  });

  it("are refused in workloads, terms and parts of options too", async () => {
    const parts: Case[] = [
      [(generation) => library.estimateMemory({ model: {}, generation }), "promptTokens"],
      [(workload) => library.estimateMemory([workload], {}), "dropout"],
      [(options) => library.estimateMemory([], options), "device"],
      [(term) => library.preferenceLoss(none, { losses: [term] } as never), "lengthNormalized"],
    ];
    for (const part of parts) await refuses(part);
  });

  it("everything in the index that takes options is tried here", async () => {
    using model = await tinyModel(tokenizer);
    const tried = [...OTHERS, ...Object.keys(CASES), ...Object.keys(casesOf(model))].sort();
    assert.deepEqual(takers(), tried);
  });
});
