import { pathToFileURL } from "node:url";
import { messageOf, RlhfError, type RlhfErrorCode } from "../errors.ts";

/**
 * What a file that a user wrote exports. Throws an error of this code when it cannot be imported (TypeScript needs Node 22.18 or later,
 * or tsx).
 *
 * @param what the module, for the message: "the reward module"
 */
export async function importUserModule(
  file: string,
  what: string,
  code: RlhfErrorCode,
): Promise<Readonly<Record<string, unknown>>> {
  try {
    return (await import(pathToFileURL(file).href)) as Readonly<Record<string, unknown>>;
  } catch (error) {
    const isTypeScript = /\.[cm]?ts$/.test(file);
    const hint = isTypeScript ? "; TypeScript needs Node 22.18 or later, or NODE_OPTIONS=--import=tsx" : "";
    throw new RlhfError(
      code,
      `${file}: ${what} cannot be imported: ${messageOf(error)}${hint}`,
      { file },
      { cause: error },
    );
  }
}
