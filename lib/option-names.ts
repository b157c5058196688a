import { RlhfError } from "./errors.ts";
import { didYouMean } from "./suggest.ts";

/** The names of all options of a call; the compiler sees to it that none is missing. */
export type NamesOf<Options> = { readonly [Name in keyof Options]-?: true };

/** Throws ERR_RLHF_ARGUMENT for an option that is a promise: an `await` was forgotten, as JavaScript allows. */
export function refusePromises(call: string, options: object): void {
  const promised = Object.entries(options).find(([, value]) => value instanceof Promise)?.[0];
  if (promised === undefined) return;
  throw new RlhfError("ERR_RLHF_ARGUMENT", `${call}: the option ${promised} is a promise: await it first`, {
    option: promised,
  });
}

/**
 * Throws ERR_RLHF_ARGUMENT, with the name that was probably meant, for an option that a call does not have: TypeScript sees it in a
 * literal, JavaScript nowhere, and it would be left unread.
 */
export function refuseUnknownOptions<Options>(
  call: string,
  options: Options | undefined,
  names: NamesOf<Options>,
): void {
  const unknown = Object.keys(options ?? {}).find((name) => !Object.hasOwn(names, name));
  if (unknown === undefined) {
    refusePromises(call, options ?? {});
    return;
  }
  const known = Object.keys(names);
  throw new RlhfError(
    "ERR_RLHF_ARGUMENT",
    `${call}: unknown option "${unknown}"${didYouMean(unknown, known)}; it takes ${known.join(", ")}`,
    { option: unknown },
  );
}
