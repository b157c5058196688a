import { Fields, type HfConfig } from "./config-fields.ts";

/** Rotary positions: pair i of a head turns by position · inverseFrequencies[i]; sines and cosines are multiplied by rotaryScale. */
export interface Rotary {
  readonly inverseFrequencies: readonly number[];
  readonly rotaryScale: number;
}

/** Where a family keeps what it has outside rope_parameters. */
export interface RotaryDefaults {
  readonly headDim: number;
  readonly theta: number;
  /** The share of a head that turns; left out: all of it, and a file that says otherwise is refused. */
  readonly partialFactor?: number;
}

/** θ^(−2i/width) for the pairs of `width` elements; of an odd width the last pair reaches one element further. */
export function plainFrequencies(theta: number, width: number): number[] {
  return Array.from({ length: Math.ceil(width / 2) }, (_, i) => theta ** ((-2 * i) / width));
}

/**
 * The rotary settings of a config.json: `rope_parameters` as transformers 5 writes them, or `rope_scaling` (with `rope_type` or
 * the older `type`) of earlier versions. Frequencies follow transformers' definitions of its rope types.
 */
export function readRotary(fields: Fields, defaults: RotaryDefaults): Rotary {
  const rope = ropeFields(fields);
  const theta = rope.positiveNumber("rope_theta", defaults.theta);
  if (defaults.partialFactor === undefined) rope.mustBe("partial_rotary_factor", [1]);
  const share = rope.positiveNumber("partial_rotary_factor", defaults.partialFactor ?? 1);
  const width = Math.trunc(defaults.headDim * share);
  if (width < 1 || 2 * Math.ceil(width / 2) > defaults.headDim)
    throw fields.fail(
      `rotary embedding turns pairs: ${width} elements of heads of ${defaults.headDim} are not possible; use an even head width and a partial_rotary_factor of at most 1`,
    );
  const frequencies = plainFrequencies(theta, width);
  const typeField = rope.has("rope_type") ? "rope_type" : "type";
  const type = rope.get(typeField) ?? "default";
  const scale = typeof type === "string" ? ROPE_TYPES[type] : undefined;
  if (!scale) throw rope.unsupported(typeField, Object.keys(ROPE_TYPES));
  return scale(rope, { frequencies, theta, width, contextLength: contextLength(fields, rope) });
}

/** The dictionary of rotary settings; empty where there is none. */
function ropeFields(fields: Fields): Fields {
  const name = fields.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  const value = fields.get(name) ?? {};
  if (typeof value !== "object" || Array.isArray(value))
    throw fields.fail(`${name} is ${JSON.stringify(value)}, expected an object`);
  const nested = Object.entries(value).find(([, entry]) => typeof entry === "object" && entry !== null);
  const rope = new Fields(value as HfConfig, `${fields.where}: ${name}`);
  if (nested) throw rope.unsupported(nested[0], ["one set of rotary settings for all layers"]);
  return rope;
}

/** The context length that the model was trained with before its positions were scaled. */
function contextLength(fields: Fields, rope: Fields): number {
  const name = "original_max_position_embeddings";
  if (fields.has(name)) return fields.positiveInteger(name);
  return rope.positiveInteger(name, fields.positiveInteger("max_position_embeddings", 2048));
}

interface Unscaled {
  readonly frequencies: readonly number[];
  readonly theta: number;
  readonly width: number;
  readonly contextLength: number;
}

/** Positions are divided by the factor. */
function linear(rope: Fields, { frequencies }: Unscaled): Rotary {
  const factor = rope.positiveNumber("factor");
  return { inverseFrequencies: frequencies.map((frequency) => frequency / factor), rotaryScale: 1 };
}

/** Long waves are stretched by the factor, short ones kept, those between interpolated (Llama 3.1). */
function llama3(rope: Fields, { frequencies, contextLength }: Unscaled): Rotary {
  const factor = rope.positiveNumber("factor");
  const low = rope.positiveNumber("low_freq_factor");
  const high = rope.positiveNumber("high_freq_factor");
  if (high <= low) throw rope.fail(`high_freq_factor is ${high}, expected more than low_freq_factor, ${low}`);
  const inverseFrequencies = frequencies.map((frequency) => {
    const turns = (contextLength * frequency) / (2 * Math.PI); // in the original context
    const keep = Math.min(1, Math.max(0, (turns - low) / (high - low)));
    return keep * frequency + ((1 - keep) * frequency) / factor;
  });
  return { inverseFrequencies, rotaryScale: 1 };
}

/** YaRN (Peng et al. 2023): slow pairs are interpolated, fast ones kept, with a ramp between; attention is sharpened. */
function yarn(rope: Fields, { frequencies, theta, width, contextLength }: Unscaled): Rotary {
  const factor = rope.positiveNumber("factor");
  /** The (fractional) pair that makes so many turns in the original context. */
  const pairOf = (turns: number): number =>
    (width * Math.log(contextLength / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const truncate = rope.flag("truncate", true);
  const first = pairOf(rope.positiveNumber("beta_fast", 32));
  const last = pairOf(rope.positiveNumber("beta_slow", 1));
  const low = Math.max(truncate ? Math.floor(first) : first, 0);
  const high = Math.min(truncate ? Math.ceil(last) : last, width - 1);
  const span = high === low ? 0.001 : high - low;
  const inverseFrequencies = frequencies.map((frequency, pair) => {
    const interpolate = Math.min(1, Math.max(0, (pair - low) / span));
    return (interpolate * frequency) / factor + (1 - interpolate) * frequency;
  });
  return { inverseFrequencies, rotaryScale: attentionFactor(rope, factor) };
}

function attentionFactor(rope: Fields, factor: number): number {
  if (rope.has("attention_factor")) return rope.positiveNumber("attention_factor");
  const sharpen = (weight: number): number => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1);
  if (!rope.get("mscale") || !rope.get("mscale_all_dim")) return sharpen(1);
  return sharpen(rope.positiveNumber("mscale")) / sharpen(rope.positiveNumber("mscale_all_dim"));
}

const ROPE_TYPES: Readonly<Record<string, (rope: Fields, unscaled: Unscaled) => Rotary>> = {
  default: (_, { frequencies }) => ({ inverseFrequencies: frequencies, rotaryScale: 1 }),
  linear,
  llama3,
  yarn,
};
