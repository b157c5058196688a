import { type Command, Option } from "commander";
import { parse as parseYaml } from "yaml";
import { z } from "zod";
import { RlhfError } from "../errors.ts";
import { type StageKind, stageAliases, stageSchemas } from "../pipeline/schema.ts";
import type { FlagSettings } from "../pipeline/settings-file.ts";

function flagOf(key: string): string {
  return `--${key.replaceAll("_", "-")}`;
}

function accepts(schema: z.ZodType, value: unknown): boolean {
  return schema.safeParse(value).success;
}

/** Whether a setting may be a list. */
function takesList(schema: unknown): boolean {
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodNullable) return takesList(schema.unwrap());
  if (schema instanceof z.ZodPipe) return takesList(schema.in);
  if (schema instanceof z.ZodArray || schema instanceof z.ZodTuple) return true;
  return schema instanceof z.ZodUnion && schema.options.some(takesList);
}

/**
 * A flag's text as the value its setting takes: read as YAML ("1e-3" a number, "true" a boolean, "[a, b]" a list) where that fits,
 * else the text itself. What fits neither way goes on as it reads, for the schema to report.
 */
export function flagValue(schema: z.ZodType, words: string | readonly string[] | true): unknown {
  if (words === true) return true;
  const texts = typeof words === "string" ? [words] : words;
  const values = texts.map((text) => readScalar(text));
  const single = values.length === 1;
  const candidates: unknown[] = single ? [texts[0], values[0], values, texts] : [values, texts];
  const fitting = candidates.find((candidate) => accepts(schema, candidate));
  return fitting !== undefined ? fitting : single ? values[0] : values;
}

function readScalar(text: string): unknown {
  try {
    return parseYaml(text) as unknown;
  } catch {
    return text;
  }
}

/** Settings by YAML key, with the schema of each. */
type Shape = Readonly<Record<string, z.ZodType>>;
type Aliases = Readonly<Record<string, string>>;

/** Declares every setting of a stage, and its aliases, as flags of a command. */
export function addStageFlags(command: Command, kind: StageKind): void {
  addFlags(command, stageSchemas[kind].shape, stageAliases[kind]);
}

/** The settings of a stage that were given as flags, by YAML key, aliases resolved. */
export function stageFlags(command: Command, kind: StageKind): FlagSettings {
  return readFlags(command, stageSchemas[kind].shape, stageAliases[kind]);
}

/** What a setting's help says of it: its description, which an optional setting has from the one it wraps, and the words it may be. */
function describeSetting(schema: z.ZodType): string {
  let inner: z.ZodType = schema;
  let text = schema.description;
  while (inner instanceof z.ZodOptional || inner instanceof z.ZodNullable) {
    inner = inner.unwrap() as z.ZodType;
    text ??= inner.description;
  }
  const words = inner instanceof z.ZodEnum ? `(${inner.options.join(", ")})` : "";
  return [text, words].filter((part) => part).join(" ");
}

/** Declares settings and their aliases as flags of a command. */
export function addFlags(command: Command, shape: Shape, aliases: Aliases = {}): void {
  const argumentOf = (schema: z.ZodType): string =>
    accepts(schema, true) ? "[boolean]" : takesList(schema) ? "<values...>" : "<value>";
  for (const [key, schema] of Object.entries(shape))
    command.addOption(new Option(`${flagOf(key)} ${argumentOf(schema)}`, describeSetting(schema)));
  for (const [alias, key] of Object.entries(aliases)) {
    const argument = argumentOf(shape[key] as z.ZodType);
    command.addOption(new Option(`${flagOf(alias)} ${argument}`, `same as ${flagOf(key)}`).hideHelp());
  }
}

/** The settings that were given as flags, by YAML key, aliases resolved. */
export function readFlags(command: Command, shape: Shape, aliases: Aliases = {}): FlagSettings {
  const settings: Record<string, unknown> = {};
  const add = (key: string, name: string): void => {
    const value = command.getOptionValue(attributeName(name)) as string | string[] | true | undefined;
    if (value === undefined) return;
    if (key in settings) {
      throw new RlhfError(
        "ERR_RLHF_USAGE",
        `${flagOf(name)} is another name of ${flagOf(key)}, which is given too`,
        { key },
      );
    }
    settings[key] = flagValue(shape[key] as z.ZodType, value);
  };
  for (const key of Object.keys(shape)) add(key, key);
  for (const [alias, key] of Object.entries(aliases)) add(key, alias);
  return settings;
}

function attributeName(key: string): string {
  return new Option(flagOf(key)).attributeName();
}
