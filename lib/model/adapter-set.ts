import { call, callAsync, type NativeLinearLayer, type NativeModel } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import { localModel } from "../hub/hub.ts";
import {
  type AdaptedLayer,
  type AdapterInfo,
  type AdapterOptions,
  linearModuleNames,
  mergeLora,
  resolveAdapter,
  toNativeAdapter,
  withoutUnknownNames,
} from "./adapters.ts";
import { type PeftOrigin, readPeftDirectory, savePeftDirectory } from "./peft.ts";
import type { TensorEntry, TensorSource } from "./safetensors.ts";
import { loadParameters, readParameter } from "./weights.ts";

export interface MergeOptions {
  /** Keeps a copy of the weights that change, so that `unmergeAdapter` can restore their exact bits. Default false. */
  readonly reversible?: boolean;
}

export interface AdapterLoadOptions {
  /** False: the adapter gets no gradients. Default true. */
  readonly trainable?: boolean;
  /** The name that a reward model's head in the directory gets; it must be given if there is one. */
  readonly head?: string;
}

/** The named adapters of one model. CausalLM documents the methods. */
export class AdapterSet {
  readonly #native: NativeModel;
  readonly #infos = new Map<string, AdapterInfo>();
  #merged: { readonly name: string; readonly info: AdapterInfo } | null = null;
  #layers: readonly NativeLinearLayer[] | null = null;

  constructor(handle: NativeModel) {
    this.#native = handle;
  }

  get infos(): ReadonlyMap<string, AdapterInfo> {
    return this.#infos;
  }

  get layers(): readonly NativeLinearLayer[] {
    this.#layers ??= call(() => this.#native.linearLayers());
    return this.#layers;
  }

  get moduleNames(): string[] {
    return linearModuleNames(this.layers);
  }

  get(name: string): AdapterInfo {
    const info = this.#infos.get(name);
    if (info) return info;
    if (this.#merged?.name === name)
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `adapter "${name}" is merged into the weights: unmergeAdapter("${name}") first`,
        { name },
      );
    throw new RlhfError(
      "ERR_RLHF_UNKNOWN_NAME",
      `the model has no adapter "${name}"; it has ${[...this.#infos.keys()].join(", ") || "none"}`,
      { name },
    );
  }

  add(name: string, options: AdapterOptions): void {
    this.#add(name, resolveAdapter(options, this.layers), options.seed);
  }

  #add(name: string, info: AdapterInfo, seed?: number): void {
    call(() => this.#native.addAdapter(name, toNativeAdapter(info, seed)));
    this.#infos.set(name, info);
  }

  /** Adds untrained adapters of the same names and forms as another model's. */
  addAllOf(other: AdapterSet): void {
    for (const [name, info] of other.infos) this.#add(name, info);
  }

  remove(name: string): void {
    call(() => this.#native.removeAdapter(name));
    this.#infos.delete(name);
  }

  async copy(from: string, to: string, trainable: boolean): Promise<void> {
    const info = this.get(from);
    await callAsync(() => this.#native.copyAdapter(from, to, trainable));
    this.#infos.set(to, { ...info, trainable });
  }

  async merge(name: string, { reversible = false }: MergeOptions): Promise<void> {
    const info = this.get(name);
    await callAsync(() => this.#native.mergeAdapter(name, reversible));
    this.#infos.delete(name);
    if (reversible) this.#merged = { name, info };
  }

  async unmerge(name: string): Promise<void> {
    const merged = this.#merged;
    await callAsync(() => this.#native.unmergeAdapter(name));
    if (merged) this.#infos.set(merged.name, merged.info);
    this.#merged = null;
  }

  /** Loads a PEFT directory; gives back the reward head that it holds. */
  async load(
    name: string,
    path: string,
    { trainable = true }: AdapterLoadOptions,
  ): Promise<TensorEntry | null> {
    const directory = await localModel(path);
    const { options, tensors, score } = await readPeftDirectory(directory);
    const known = withoutUnknownNames({ ...options, trainable }, this.layers);
    const names = options.targetModules;
    if (Array.isArray(names) && names.length > 0 && known.targetModules?.length === 0)
      throw new RlhfError(
        "ERR_RLHF_WEIGHTS",
        `${directory}: target_modules names ${names.join(", ")}, of which this model has none, but ${this.moduleNames.join(", ")}; it is an adapter of another model`,
        { directory, targetModules: names },
      );
    this.#add(name, resolveAdapter(known, this.layers));
    try {
      const entries = new Map([...tensors].map(([parameter, entry]) => [`${name}:${parameter}`, entry]));
      const expected = call(() => this.#native.parameters()).filter(
        ({ group }) => group === `adapter:${name}`,
      );
      const names = new Set(expected.map((parameter) => parameter.name));
      const surplus = [...entries].find(([parameter]) => !names.has(parameter))?.[1];
      if (surplus)
        throw new RlhfError(
          "ERR_RLHF_WEIGHTS",
          `${surplus.path}: tensor "${surplus.name}" belongs to no layer that target_modules names in this model; it is an adapter of another one`,
          { tensor: surplus.name },
        );
      await loadParameters(this.#native, expected, { entries, metadata: {} }, directory);
    } catch (error) {
      this.remove(name);
      throw error;
    }
    return score;
  }

  async save(
    name: string,
    directory: string,
    origin: Pick<PeftOrigin, "baseModel" | "score">,
  ): Promise<void> {
    const info = this.get(name);
    const transposed = this.layers.some((layer) => layer.transposed);
    const sources = [...this.#factors(name)].map(([parameter, source]) => ({ ...source, name: parameter }));
    await savePeftDirectory(directory, info, { ...origin, transposed }, sources);
  }

  /** lora_A and lora_B of an adapter, by their names without the adapter's. */
  #factors(name: string): Map<string, TensorSource> {
    const own = call(() => this.#native.parameters()).filter(({ group }) => group === `adapter:${name}`);
    return new Map(
      own.map((parameter) => [
        parameter.name.slice(name.length + 1),
        { name: parameter.name, shape: parameter.shape, read: () => readParameter(this.#native, parameter) },
      ]),
    );
  }

  /** The base's tensors with an adapter merged in as they are read. */
  mergedInto(base: readonly TensorSource[], name: string): TensorSource[] {
    const { layers } = this.get(name);
    const factors = this.#factors(name);
    const stored = new Map(this.layers.map((layer) => [layer.module, layer.transposed]));
    return base.map((source) => {
      const module = source.name.replace(/\.weight$/, "");
      const [a, b] = [factors.get(`${module}.lora_A`), factors.get(`${module}.lora_B`)];
      if (!a || !b) return source;
      const layer = layers.get(module) as AdaptedLayer;
      const read = async (): Promise<Float32Array> =>
        mergeLora(await source.read(), await a.read(), await b.read(), layer, stored.get(module) ?? false);
      return { name: source.name, shape: source.shape, read };
    });
  }
}
