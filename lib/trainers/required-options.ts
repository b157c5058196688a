import { RlhfError } from "../errors.ts";

/** Throws ERR_RLHF_ARGUMENT, naming it, when an option that a trainer cannot do without was left out, as JavaScript allows. */
export function requireOptions<Options extends object>(
  trainer: string,
  options: Options,
  names: readonly (keyof Options & string)[],
): void {
  const needed = names.join(", ");
  if (typeof options !== "object" || options === null)
    throw new RlhfError("ERR_RLHF_ARGUMENT", `${trainer} needs an object with the options ${needed}`);
  const missing = names.find(
    (name) => options[name] === null || !["object", "function"].includes(typeof options[name]),
  );
  if (missing !== undefined)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `${trainer}: the option ${missing} is ${String(options[missing])}; needed are ${needed}`,
      { option: missing },
    );
}
