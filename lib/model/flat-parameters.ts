import type { Engine } from "../engine/engine.ts";
import { adamW } from "../engine/mlp.ts";
import { RlhfError } from "../errors.ts";
import {
  readSafetensors,
  readTensor,
  type TensorEntry,
  type TensorSource,
  writeSafetensors,
} from "./safetensors.ts";

/*
 * Parameters of small networks: one flat array, of which named tensors are slices, one after the other.
 */

/** One named tensor. */
export interface ParameterSlice {
  readonly name: string;
  readonly shape: readonly number[];
}

export function sliceCount({ shape }: ParameterSlice): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** The slices of an array as tensors to write, `prefix` before their names. */
export function flatTensors(
  values: Float32Array,
  slices: readonly ParameterSlice[],
  prefix = "",
): TensorSource[] {
  let begin = 0;
  return slices.map((slice) => {
    const [from, to] = [begin, begin + sliceCount(slice)];
    begin = to;
    return {
      name: prefix + slice.name,
      shape: slice.shape,
      read: () => Promise.resolve(values.slice(from, to)),
    };
  });
}

/** Puts tensors, one for each slice, back into an array. */
export async function readFlat(
  values: Float32Array,
  slices: readonly ParameterSlice[],
  read: (name: string) => Promise<Float32Array>,
): Promise<void> {
  let at = 0;
  for (const { name } of slices) {
    const tensor = await read(name);
    values.set(tensor, at);
    at += tensor.length;
  }
}

/** Writes an array as a safetensors file. Throws ERR_RLHF_IO. */
export function saveFlat(
  file: string,
  values: Float32Array,
  slices: readonly ParameterSlice[],
): Promise<void> {
  return writeSafetensors(file, flatTensors(values, slices));
}

/** Reads an array from a safetensors file. Throws ERR_RLHF_WEIGHTS, before anything is changed, where the file does not fit. */
export async function loadFlat(
  file: string,
  values: Float32Array,
  slices: readonly ParameterSlice[],
): Promise<void> {
  const { entries } = await readSafetensors(file);
  for (const { name, shape } of slices) {
    const found = entries.get(name);
    if (found?.dtype === "F32" && found.shape.join() === shape.join()) continue;
    const problem = found
      ? `has "${name}" as ${found.dtype} [${found.shape.join(", ")}], expected F32 [${shape.join(", ")}]`
      : `has no tensor "${name}"`;
    throw new RlhfError(
      "ERR_RLHF_WEIGHTS",
      `${file}: ${problem}; it and config.json are of different networks`,
      { file, name },
    );
  }
  const surplus = [...entries.keys()].find((name) => slices.every((slice) => slice.name !== name));
  if (surplus !== undefined)
    throw new RlhfError(
      "ERR_RLHF_WEIGHTS",
      `${file}: has a tensor "${surplus}", which the network of config.json does not have`,
      { file, name: surplus },
    );
  await readFlat(values, slices, (name) => readTensor(entries.get(name) as TensorEntry));
}

export interface FlatAdamWSettings {
  readonly learningRate: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  /** null: gradients are not clipped. */
  readonly maxGradNorm: number | null;
}

/** AdamW of one flat array. */
export class FlatAdamW {
  readonly parameters: Float32Array;
  readonly m: Float32Array;
  readonly v: Float32Array;
  /** Updates made. */
  stepCount = 0;
  readonly #engine: Engine;

  constructor(engine: Engine, parameters: Float32Array) {
    this.#engine = engine;
    this.parameters = parameters;
    this.m = new Float32Array(parameters.length);
    this.v = new Float32Array(parameters.length);
  }

  /** One update; none where the gradient is not finite. Returns the gradient's norm before clipping. */
  async step(gradient: Float32Array, settings: FlatAdamWSettings): Promise<number> {
    const { learningRate, eps, weightDecay, maxGradNorm } = settings;
    const [beta1, beta2] = settings.betas;
    const norm = Math.sqrt(gradient.reduce((sum, value) => sum + value * value, 0));
    if (!Number.isFinite(norm)) return norm;
    const { parameters, m, v } = this;
    const result = await adamW(this.#engine, {
      parameters,
      gradient,
      m,
      v,
      step: this.stepCount + 1,
      learningRate,
      beta1,
      beta2,
      eps,
      weightDecay,
      gradientScale: maxGradNorm === null ? 1 : Math.min(1, maxGradNorm / (norm + 1e-6)),
    });
    for (const [own, updated] of [
      [parameters, result.parameters],
      [m, result.m],
      [v, result.v],
    ] as const) {
      own.set(await updated.read());
      updated.dispose();
    }
    this.stepCount++;
    return norm;
  }

  /** Parameters and moments as tensors: <part>/weight/<name>, <part>/m/<name>, <part>/v/<name>. */
  tensors(part: string, slices: readonly ParameterSlice[]): TensorSource[] {
    return this.#arrays(part).flatMap(([prefix, values]) => flatTensors(values, slices, prefix));
  }

  /** Puts them back. */
  async restore(
    part: string,
    slices: readonly ParameterSlice[],
    read: (name: string) => Promise<Float32Array>,
    stepCount: number,
  ): Promise<void> {
    for (const [prefix, values] of this.#arrays(part))
      await readFlat(values, slices, (name) => read(prefix + name));
    this.stepCount = stepCount;
  }

  #arrays(part: string): [string, Float32Array][] {
    return [
      [`${part}/weight/`, this.parameters],
      [`${part}/m/`, this.m],
      [`${part}/v/`, this.v],
    ];
  }
}
