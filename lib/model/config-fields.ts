import type { Activation } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";

/** The content of a Hugging Face config.json. */
export type HfConfig = Readonly<Record<string, unknown>>;

const ACTIVATIONS: Readonly<Record<string, Activation>> = {
  gelu_new: "gelu_tanh",
  gelu_pytorch_tanh: "gelu_tanh",
  gelu_fast: "gelu_tanh",
  gelu: "gelu",
  relu: "relu",
  silu: "silu",
  swish: "silu",
};

/** Reads fields of a config.json; errors name the file, the field and its value. */
export class Fields {
  readonly #config: HfConfig;
  readonly where: string;

  constructor(config: HfConfig, where: string) {
    this.#config = config;
    this.where = where;
  }

  /** ERR_RLHF_MODEL: the file is wrong. */
  fail(problem: string): RlhfError {
    return new RlhfError("ERR_RLHF_MODEL", `${this.where}: ${problem}`, { file: this.where });
  }

  /** ERR_RLHF_UNSUPPORTED: the file asks for what is not there. */
  unsupported(name: string, supported: readonly unknown[]): RlhfError {
    const value = JSON.stringify(this.#config[name]);
    const list = supported.map((allowed) => JSON.stringify(allowed)).join(", ");
    return new RlhfError("ERR_RLHF_UNSUPPORTED", `${this.where}: ${name} is ${value}; supported: ${list}`, {
      file: this.where,
      field: name,
    });
  }

  get(name: string): unknown {
    return this.#config[name];
  }

  /** True when the field holds something other than null. */
  has(name: string): boolean {
    return (this.#config[name] ?? null) !== null;
  }

  positiveInteger(name: string, fallback?: number, limit = 0x7fffffff): number {
    const value = this.#config[name] ?? fallback;
    if (typeof value !== "number" || !Number.isInteger(value) || value < 1)
      throw this.fail(`${name} is ${JSON.stringify(value)}, expected a positive integer`);
    // The engine counts sizes with 32 bits; lists by layer are made from some of them.
    if (value > limit) throw this.fail(`${name} is ${value}, expected at most ${limit}`);
    return value;
  }

  positiveNumber(name: string, fallback?: number): number {
    const value = this.#config[name] ?? fallback;
    if (typeof value !== "number" || !(value > 0) || !Number.isFinite(value))
      throw this.fail(`${name} is ${JSON.stringify(value)}, expected a positive number`);
    return value;
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.#config[name] ?? fallback;
    if (typeof value !== "boolean")
      throw this.fail(`${name} is ${JSON.stringify(value)}, expected true or false`);
    return value;
  }

  activation(name: string, fallback: string): Activation {
    const value = this.#config[name] ?? fallback;
    const activation = typeof value === "string" ? ACTIVATIONS[value] : undefined;
    if (!activation)
      throw this.fail(
        `${name} is ${JSON.stringify(value)}; supported are ${Object.keys(ACTIVATIONS).join(", ")}`,
      );
    return activation;
  }

  /** Refuses a setting that would change what the model computes. */
  mustBe(name: string, allowed: readonly unknown[]): void {
    if (this.has(name) && !allowed.includes(this.#config[name])) throw this.unsupported(name, allowed);
  }
}
