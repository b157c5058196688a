import { setImmediate as nextTurn } from "node:timers/promises";
import type { NativeAdapterConfig, NativeLinearLayer } from "../engine/native.ts";
import { messageOf, RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { didYouMean } from "../suggest.ts";

/**
 * A LoRA adapter (Hu et al. 2021): y += scale·(x·Aᵀ)·Bᵀ on some of the linear layers, scale = alpha/r. The settings mean what they mean
 * in peft's LoraConfig.
 */
export interface AdapterOptions {
  /** Rank. */
  readonly r: number;
  readonly alpha: number;
  /**
   * The layers: a list of module paths or ends of them ("q_proj", "attn.c_proj"), "all-linear", or another string, a regular
   * expression that matches whole paths. Default: the attention's projections.
   */
  readonly targetModules?: readonly string[] | string | undefined;
  /** Layers to leave out, named likewise. */
  readonly excludeModules?: readonly string[] | string | undefined;
  /** Numbers of the blocks to adapt; not with a regular expression. Default: all. */
  readonly layersToTransform?: readonly number[] | undefined;
  /** Rank and alpha of single layers, by regular expressions that match ends of paths; the first that matches counts. */
  readonly rankPattern?: Readonly<Record<string, number>> | undefined;
  readonly alphaPattern?: Readonly<Record<string, number>> | undefined;
  /** scale = alpha/√r (Kalajdzievski 2023). Default false. */
  readonly useRslora?: boolean | undefined;
  /** Probability with which training drops an element of a layer's input on its way into A. Default 0. */
  readonly dropout?: number | undefined;
  /** False: the adapter gets no gradients. Default true. */
  readonly trainable?: boolean | undefined;
  /** Seed of A's initial values; B begins at zero. Default 0. */
  readonly seed?: number | undefined;
}

const ADAPTER_OPTIONS: NamesOf<AdapterOptions> = {
  r: true,
  alpha: true,
  targetModules: true,
  excludeModules: true,
  layersToTransform: true,
  rankPattern: true,
  alphaPattern: true,
  useRslora: true,
  dropout: true,
  trainable: true,
  seed: true,
};

/** What an adapter puts on one layer. */
export interface AdaptedLayer {
  readonly rank: number;
  /** Of B·A. */
  readonly scale: number;
}

/** An adapter as a model holds it: its options with all defaults filled in. */
export interface AdapterInfo {
  readonly r: number;
  readonly alpha: number;
  readonly targetModules: readonly string[] | string;
  readonly excludeModules?: readonly string[] | string | undefined;
  readonly layersToTransform?: readonly number[] | undefined;
  readonly rankPattern: Readonly<Record<string, number>>;
  readonly alphaPattern: Readonly<Record<string, number>>;
  readonly useRslora: boolean;
  readonly dropout: number;
  readonly trainable: boolean;
  /** By module path. */
  readonly layers: ReadonlyMap<string, AdaptedLayer>;
}

const ALL_LINEAR = "all-linear";

function unknownName(message: string, details: Readonly<Record<string, unknown>>): RlhfError {
  return new RlhfError("ERR_RLHF_UNKNOWN_NAME", message, details);
}

/** Python's notation of named groups and of the ends of a text, as JavaScript writes them. */
function toJavaScript(pattern: string): string {
  return pattern
    .replace(/\(\?P</g, "(?<")
    .replace(/\(\?P=(\w+)\)/g, "\\k<$1>")
    .replace(/\\A/g, "^")
    .replace(/\\Z/g, "$");
}

function compile(setting: string, pattern: string, whole: string): RegExp {
  try {
    return new RegExp(whole);
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `${setting}: "${pattern}" is not a regular expression: ${messageOf(error)}`,
      { setting, pattern },
    );
  }
}

/** Whether a module is named by a list of paths or ends of them, or matches a regular expression as a whole. */
function moduleMatcher(setting: string, modules: readonly string[] | string): (module: string) => boolean {
  if (typeof modules !== "string")
    return (module) => modules.some((name) => module === name || module.endsWith(`.${name}`));
  const pattern = compile(setting, modules, `^(?:${toJavaScript(modules)})$`);
  return (module) => pattern.test(module);
}

/** The value of the first pattern that matches an end of the module's path. */
function patternLookup(
  setting: string,
  patterns: Readonly<Record<string, number>>,
  fallback: number,
): (module: string) => number {
  const compiled = Object.entries(patterns).map(
    ([key, value]) => [compile(setting, key, `^(?:(?:.*\\.)?(?:${toJavaScript(key)}))$`), value] as const,
  );
  return (module) => compiled.find(([pattern]) => pattern.test(module))?.[1] ?? fallback;
}

/** The number of the block that a module stands in: the first number of its path. */
function blockOf(module: string): number {
  return Number(/\.(\d+)\./.exec(module)?.[1] ?? Number.NaN);
}

/** The last parts of module paths, as many as it takes to name these layers and no others, each once. */
function commonEnds(layers: readonly NativeLinearLayer[], all: readonly NativeLinearLayer[]): string[] {
  const wanted = new Set(layers.map((layer) => layer.module));
  const ends = layers.map(({ module }) => {
    const parts = module.split(".");
    for (let count = 1; count < parts.length; count++) {
      const end = parts.slice(-count).join(".");
      if (all.every((other) => !other.module.endsWith(`.${end}`) || wanted.has(other.module))) return end;
    }
    return module;
  });
  return [...new Set(ends)];
}

/** What `targetModules` may name in short: the last parts of the layers' paths. */
export function linearModuleNames(layers: readonly NativeLinearLayer[]): string[] {
  return commonEnds(layers, layers);
}

/** The options without the names and patterns that match no layer, which peft ignores. */
export function withoutUnknownNames(
  options: AdapterOptions,
  all: readonly NativeLinearLayer[],
): AdapterOptions {
  const { targetModules, rankPattern = {}, alphaPattern = {} } = options;
  const used = (setting: string, patterns: Readonly<Record<string, number>>): Record<string, number> =>
    Object.fromEntries(Object.entries(patterns).filter(([key]) => matchesAny(setting, key, all)));
  const names =
    typeof targetModules === "object" ? targetModules.filter((name) => isNamed(name, all)) : targetModules;
  return {
    ...options,
    targetModules: names,
    rankPattern: used("rankPattern", rankPattern),
    alphaPattern: used("alphaPattern", alphaPattern),
  };
}

/**
 * Decides which layers an adapter has, with which ranks and scales. Throws ERR_RLHF_UNKNOWN_NAME for names and patterns that match
 * nothing, ERR_RLHF_ARGUMENT for values out of range.
 */
export function resolveAdapter(options: AdapterOptions, all: readonly NativeLinearLayer[]): AdapterInfo {
  if (typeof options !== "object" || options === null)
    throw new RlhfError("ERR_RLHF_ARGUMENT", "an adapter needs options: { r: 16, alpha: 32 }");
  // Another adapter's description is what to make one like it from.
  const { layers: _, ...own } = options as Partial<AdapterInfo> & AdapterOptions;
  refuseUnknownOptions("an adapter", own, ADAPTER_OPTIONS);
  const { r, alpha, excludeModules, layersToTransform } = options;
  const { rankPattern = {}, alphaPattern = {}, useRslora = false, dropout = 0, trainable = true } = options;
  const targetModules = targetsOf(options, all);
  checkOptions(options, targetModules);
  const modules = all.map((layer) => layer.module);
  checkNames({ targetModules, rankPattern, alphaPattern }, all);
  const targeted = moduleMatcher("targetModules", targetModules);
  const excluded = excludeModules?.length
    ? moduleMatcher("excludeModules", excludeModules)
    : (): boolean => false;
  const blocks = layersToTransform?.length ? new Set(layersToTransform) : null;
  const rankOf = patternLookup("rankPattern", rankPattern, r);
  const alphaOf = patternLookup("alphaPattern", alphaPattern, alpha);
  const layers = new Map<string, AdaptedLayer>();
  for (const module of modules) {
    if (!targeted(module) || excluded(module) || (blocks && !blocks.has(blockOf(module)))) continue;
    const rank = rankOf(module);
    layers.set(module, { rank, scale: alphaOf(module) / (useRslora ? Math.sqrt(rank) : rank) });
  }
  if (layers.size === 0)
    throw unknownName(
      `targetModules: no layer is left to adapt; ${describeTargets(targetModules)}, and the model has ${linearModuleNames(all).join(", ")}`,
      { targetModules, excludeModules, layersToTransform },
    );
  const given = {
    ...(excludeModules && { excludeModules }),
    ...(layersToTransform && { layersToTransform }),
  };
  return {
    r,
    alpha,
    targetModules,
    ...given,
    rankPattern,
    alphaPattern,
    useRslora,
    dropout,
    trainable,
    layers,
  };
}

/** The targets by name or expression, the default and the shorthand written out. */
function targetsOf(
  { targetModules }: AdapterOptions,
  all: readonly NativeLinearLayer[],
): readonly string[] | string {
  if (targetModules === ALL_LINEAR) return linearModuleNames(all);
  const attention = all.filter((layer) => layer.attention);
  return targetModules ?? commonEnds(attention, all);
}

function describeTargets(targetModules: readonly string[] | string): string {
  return typeof targetModules === "string"
    ? `"${targetModules}" is a regular expression that must match whole module paths (for names, give a list)`
    : `asked for were ${targetModules.join(", ")}`;
}

function checkOptions(options: AdapterOptions, targetModules: readonly string[] | string): void {
  const fail = (message: string): RlhfError => new RlhfError("ERR_RLHF_ARGUMENT", message);
  const { r, alpha, layersToTransform, rankPattern = {}, alphaPattern = {} } = options;
  const ranks = Object.entries({ r, ...prefixed("rankPattern", rankPattern) });
  for (const [name, rank] of ranks)
    if (!Number.isSafeInteger(rank) || rank < 1)
      throw fail(`an adapter's ${name} must be a positive integer, got ${rank}`);
  for (const [name, value] of Object.entries({ alpha, ...prefixed("alphaPattern", alphaPattern) }))
    if (typeof value !== "number" || !Number.isFinite(value))
      throw fail(`an adapter's ${name} must be a finite number, got ${value}`);
  if (layersToTransform?.length && typeof targetModules === "string")
    throw fail("layersToTransform needs targetModules as a list; put the blocks into the regular expression");
}

function prefixed(name: string, values: Readonly<Record<string, number>>): Record<string, number> {
  return Object.fromEntries(Object.entries(values).map(([key, value]) => [`${name}["${key}"]`, value]));
}

function isNamed(name: string, all: readonly NativeLinearLayer[]): boolean {
  const matches = moduleMatcher("targetModules", [name]);
  return all.some((layer) => matches(layer.module));
}

function matchesAny(setting: string, pattern: string, all: readonly NativeLinearLayer[]): boolean {
  const found = patternLookup(setting, { [pattern]: 1 }, 0);
  return all.some((layer) => found(layer.module) === 1);
}

/** Throws for a name or pattern that no layer matches. */
function checkNames(
  { targetModules, ...patterns }: Pick<AdapterInfo, "targetModules" | "rankPattern" | "alphaPattern">,
  all: readonly NativeLinearLayer[],
): void {
  const known = linearModuleNames(all);
  for (const name of typeof targetModules === "string" ? [] : targetModules)
    if (!isNamed(name, all))
      throw unknownName(
        `targetModules: "${name}" is not a linear layer of this model${didYouMean(name, known)}; it has ${known.join(", ")}`,
        { module: name, known },
      );
  for (const [setting, values] of Object.entries(patterns))
    for (const pattern of Object.keys(values))
      if (!matchesAny(setting, pattern, all))
        throw unknownName(
          `${setting}: "${pattern}" matches no linear layer of this model; it has ${known.join(", ")}`,
          { pattern, known },
        );
}

/** An adapter as the engine wants it. */
export function toNativeAdapter(info: AdapterInfo, seed = 0): NativeAdapterConfig {
  const layers = [...info.layers].map(([module, layer]) => ({ module, ...layer }));
  return { layers, dropout: info.dropout, trainable: info.trainable, seed };
}

/** Multiply-adds between two turns of the event loop: some milliseconds. */
const WORK_PER_TURN = 4_000_000;

/**
 * What a merged layer's weight is: W + scale·B·A, in W's own layout. Lets the event loop go on in between.
 *
 * @param weight [out, in], or [in, out] when `transposed`; a copy is returned
 * @param a lora_A, [rank, in]   @param b lora_B, [out, rank]
 */
export async function mergeLora(
  weight: Float32Array,
  a: Float32Array,
  b: Float32Array,
  { rank, scale }: AdaptedLayer,
  transposed: boolean,
): Promise<Float32Array> {
  const inputs = a.length / rank;
  const outputs = b.length / rank;
  const merged = weight.slice();
  const row = new Float64Array(inputs);
  const rowsPerTurn = Math.ceil(WORK_PER_TURN / (inputs * rank));
  for (let o = 0; o < outputs; o++) {
    if (o % rowsPerTurn === rowsPerTurn - 1) await nextTurn();
    row.fill(0);
    for (let k = 0; k < rank; k++) {
      const factor = scale * (b[o * rank + k] as number);
      for (let i = 0; i < inputs; i++) row[i] = (row[i] as number) + factor * (a[k * inputs + i] as number);
    }
    for (let i = 0; i < inputs; i++) {
      const at = transposed ? i * outputs + o : o * inputs + i;
      merged[at] = (merged[at] as number) + (row[i] as number);
    }
  }
  return merged;
}
