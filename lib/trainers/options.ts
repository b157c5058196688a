import { RlhfError } from "../errors.ts";
import { refusePromises } from "../option-names.ts";
import { didYouMean } from "../suggest.ts";

/** All options that a trainer's constructor takes. */
export type OptionNames<Options> = { readonly [Name in keyof Options]-?: "required" | "optional" };

/** The options that most trainers have. */
export const TRAINER_OPTIONS = {
  model: "required",
  tokenizer: "required",
  trainData: "required",
  evalData: "optional",
  config: "optional",
  outputDir: "optional",
} as const;

function fail(trainer: string, problem: string, option?: string): never {
  throw new RlhfError("ERR_RLHF_ARGUMENT", `${trainer}${problem}`, option === undefined ? {} : { option });
}

function isGiven(value: unknown): boolean {
  return value !== null && ["object", "function"].includes(typeof value);
}

/**
 * Throws ERR_RLHF_ARGUMENT, naming it, for an option that the trainer does not have, and for one left out that it cannot do without,
 * as JavaScript allows. `settings` are the names that belong into `config`.
 */
export function checkOptions<Options extends object>(
  trainer: string,
  options: Options,
  names: OptionNames<Options>,
  settings: Readonly<Record<string, unknown>>,
): void {
  const known = Object.keys(names) as (keyof Options & string)[];
  const required = known.filter((name) => names[name] === "required");
  if (!isGiven(options)) fail(trainer, ` needs an object with the options ${required.join(", ")}`);
  const unknown = Object.keys(options).find((name) => !Object.hasOwn(names, name));
  if (unknown !== undefined) {
    const hint = Object.hasOwn(settings, unknown)
      ? `; it is a setting: config: { ${unknown}: … }`
      : didYouMean(unknown, known);
    fail(trainer, `: unknown option "${unknown}"${hint}`, unknown);
  }
  refusePromises(trainer, options);
  const missing = required.find((name) => !isGiven(options[name]));
  if (missing !== undefined)
    fail(
      trainer,
      `: the option ${missing} is ${String(options[missing])}; needed are ${required.join(", ")}`,
      missing,
    );
  const { config, outputDir } = options as { readonly config?: unknown; readonly outputDir?: unknown };
  if (config !== undefined && (!isGiven(config) || Array.isArray(config)))
    fail(trainer, `: the option config must be an object of settings, got ${String(config)}`, "config");
  if (outputDir !== undefined && (typeof outputDir !== "string" || outputDir === ""))
    fail(
      trainer,
      `: the option outputDir must be the path of a directory, got ${JSON.stringify(outputDir)}`,
      "outputDir",
    );
}
