import { readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import {
  type Document,
  isMap,
  isNode,
  isScalar,
  LineCounter,
  type Node,
  type Pair,
  parseDocument,
  visit,
} from "yaml";
import { z } from "zod";
import { messageOf, RlhfError } from "../errors.ts";
import { isHubId } from "../hub/id.ts";
import { closest, didYouMean } from "../suggest.ts";
import { pathKeys } from "./paths.ts";
import {
  pipelineSchema,
  type Stage,
  type StageKind,
  stageAliases,
  stageKinds,
  stageSchemas,
} from "./schema.ts";

type Path = readonly PropertyKey[];

/** A parsed YAML file that can say where each of its values stands. */
export class SettingsFile {
  readonly file: string;
  readonly #document: Document;
  readonly #lines: LineCounter;

  private constructor(file: string, document: Document, lines: LineCounter) {
    this.file = file;
    this.#document = document;
    this.#lines = lines;
  }

  /** Parses YAML text; syntax errors and doubled keys are ERR_RLHF_CONFIG with file:line:column. */
  static parse(text: string, file: string): SettingsFile {
    const lines = new LineCounter();
    const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
    const settings = new SettingsFile(file, document, lines);
    const error = document.errors[0];
    if (error) throw settings.#errorAt(error.pos[0], error.message);
    return settings;
  }

  static async read(file: string): Promise<SettingsFile> {
    let text: string;
    try {
      text = new TextDecoder("utf-8", { fatal: true }).decode(await readFile(file));
    } catch (error) {
      throw new RlhfError(
        "ERR_RLHF_CONFIG",
        `${file}: cannot be read: ${messageOf(error)}`,
        { file },
        { cause: error },
      );
    }
    return SettingsFile.parse(text, file);
  }

  get value(): unknown {
    try {
      return this.#document.toJS() as unknown;
    } catch (error) {
      throw this.#errorAt(this.#brokenAlias(), messageOf(error));
    }
  }

  /** Where an alias (*name) stands that no anchor was set for; the file's beginning where there is none. */
  #brokenAlias(): number {
    let at = 0;
    visit(this.#document, {
      Alias: (_, alias) => {
        if (alias.resolve(this.#document)) return undefined;
        at = alias.range?.[0] ?? 0;
        return visit.BREAK;
      },
    });
    return at;
  }

  /** Replaces the aliases among the keys of a mapping by the keys they stand for. */
  renameKeys(path: Path, aliases: Readonly<Record<string, string>>): void {
    const map = this.#nodeAt(path);
    if (!isMap(map)) return;
    for (const pair of map.items) {
      const key = keyOf(pair);
      const target = key !== null && Object.hasOwn(aliases, key) ? aliases[key] : undefined;
      if (target === undefined || !isScalar(pair.key)) continue;
      if (map.has(target))
        throw this.error(
          path,
          `"${key}" is another name of "${target}", which is given too`,
          key ?? undefined,
        );
      pair.key.value = target;
    }
  }

  /** Makes relative paths under the keys of a mapping absolute, from this file's directory. */
  resolvePaths(value: Record<string, unknown>): void {
    for (const [key, entry] of Object.entries(value))
      if (pathKeys.has(key)) value[key] = this.#absolute(entry);
  }

  /** Paths in a value, a list or a mapping; what is no text stays, for the schema to report. */
  #absolute(entry: unknown): unknown {
    if (typeof entry === "string")
      return isHubId(entry) ? entry : resolve(dirname(resolve(this.file)), entry);
    if (Array.isArray(entry))
      return entry.map((item) => (typeof item === "string" ? this.#absolute(item) : item));
    if (typeof entry !== "object" || entry === null) return entry;
    return Object.fromEntries(Object.entries(entry).map(([name, item]) => [name, this.#absolute(item)]));
  }

  /** An ERR_RLHF_CONFIG that points at a value, or at one key of a mapping. */
  error(path: Path, message: string, key?: string): RlhfError {
    return this.#errorAt(this.#offsetOf(path, key), message);
  }

  /** file:line:column of a value, or of one key of a mapping. */
  place(path: Path, key?: string): string {
    return this.#placeAt(this.#offsetOf(path, key)).text;
  }

  /** What a schema found wrong, one line for each problem, with the place it stands at and what was probably meant. */
  schemaError(error: z.ZodError, allowedKeys: (path: Path) => readonly string[]): RlhfError {
    const misspelt = new Set<string>();
    const withUnknownKeys = new Set<string>();
    for (const issue of error.issues) {
      if (issue.code !== "unrecognized_keys") continue;
      withUnknownKeys.add(JSON.stringify(issue.path));
      for (const key of issue.keys)
        misspelt.add(JSON.stringify([...issue.path, closest(key, allowedKeys(issue.path))]));
    }
    const problems = error.issues.flatMap((issue): RlhfError[] => {
      if (issue.code === "unrecognized_keys") {
        const candidates = allowedKeys(issue.path);
        return issue.keys.map((key) =>
          this.error(issue.path, `unknown key "${key}"${didYouMean(key, candidates)}`, key),
        );
      }
      // A required key that is there in another spelling has been reported as unknown.
      if (isMissing(issue) && misspelt.has(JSON.stringify(issue.path))) return [];
      // What a check across keys finds wrong may be the work of the unknown one.
      if (issue.code === "custom" && withUnknownKeys.has(JSON.stringify(issue.path))) return [];
      return [this.error(issue.path, `${nameOf(issue.path)}${describeIssue(issue)}`)];
    });
    problems.sort(
      (a, b) =>
        Number(a.details.line) - Number(b.details.line) ||
        Number(a.details.column) - Number(b.details.column),
    );
    const first = problems[0] as RlhfError;
    return new RlhfError(
      "ERR_RLHF_CONFIG",
      problems.map((problem) => problem.message).join("\n"),
      first.details,
    );
  }

  #nodeAt(path: Path): unknown {
    return path.length === 0 ? this.#document.contents : this.#document.getIn(path as unknown[], true);
  }

  /** Offset of a value; of a missing one, that of the nearest mapping around it. */
  #offsetOf(path: Path, key?: string): number {
    for (let length = path.length; length >= 0; length--) {
      const node = this.#nodeAt(path.slice(0, length));
      if (key !== undefined && length === path.length && isMap(node)) {
        const pair = node.items.find((item) => keyOf(item) === key);
        if (pair && isNode(pair.key)) return startOf(pair.key);
      }
      if (isNode(node)) return startOf(node);
    }
    return 0;
  }

  #placeAt(offset: number): { text: string; where: { file: string; line: number; column: number } } {
    const { line, col } = this.#lines.linePos(offset);
    const where = { file: this.file, line: Math.max(1, line), column: Math.max(1, col) };
    return { text: `${where.file}:${where.line}:${where.column}`, where };
  }

  #errorAt(offset: number, message: string): RlhfError {
    const { text, where } = this.#placeAt(offset);
    return new RlhfError("ERR_RLHF_CONFIG", `${text}: ${message}`, where);
  }
}

/** What is said of a key that has to be there. */
const MISSING = "is required";

function startOf(node: Node): number {
  return node.range?.[0] ?? 0;
}

function keyOf(pair: Pair): string | null {
  return isScalar(pair.key) ? String(pair.key.value) : null;
}

/** "key: ", of a list's element "key[0]: "; nothing for the file as a whole and for a stage. */
function nameOf(path: Path): string {
  const last = path.at(-1);
  if (typeof last !== "number") return last === undefined ? "" : `${String(last)}: `;
  const list = path.at(-2);
  return list === undefined || list === "stages" ? "" : `${String(list)}[${last}]: `;
}

function isMissing(issue: z.core.$ZodIssue): boolean {
  if (issue.message === MISSING) return true;
  return issue.code === "invalid_type" && issue.message.endsWith("received undefined");
}

/** An issue's message in words that fit a configuration file. */
export function describeIssue(issue: z.core.$ZodIssue): string {
  if (isMissing(issue)) return MISSING;
  return issue.message.replace(/^Invalid (input|option): /, "");
}

/** Keys that a stage knows, its aliases included. */
export function stageKeys(kind: StageKind): string[] {
  return [...Object.keys(stageSchemas[kind].shape), ...Object.keys(stageAliases[kind])];
}

function keysOfInit(): string[] {
  const init = stageSchemas.sft.shape.init.unwrap();
  return Object.keys(init.shape);
}

/** Says what to do with a stage, or its settings alone, where a pipeline should be. */
function refuseStage(raw: unknown, settings: SettingsFile): void {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw) || "stages" in raw) return;
  const keys = Object.keys(raw).filter((key) => !Object.hasOwn(pipelineSchema.shape, key));
  const stage = stageKinds.find((kind) => keys.includes(kind));
  const kinds = stageKinds.filter((kind) => keys.every((key) => stageKeys(kind).includes(key)));
  // `init` is a stage, and beside others a key of sft.
  if (stage !== undefined && (keys.length === 1 || kinds.length === 0))
    throw settings.error([], `a stage stands in a list: write "stages:" before "- ${stage}:"`, stage);
  if (keys.length > 0 && kinds.length > 0)
    throw settings.error(
      [],
      `these are settings of one stage (${kinds.join(", ")}): run it with "node-rlhf ${kinds[0]} --config ${settings.file}"`,
    );
}

/** Reads and checks a pipeline file: `{seed, device, dtype, stages: [{sft: …}, {reward: …}, {ppo: …}]}`. */
export async function readPipeline(file: string): Promise<Stage[]> {
  const settings = await SettingsFile.read(file);
  const raw = settings.value;
  refuseStage(raw, settings);
  const rawStages =
    typeof raw === "object" && raw !== null && "stages" in raw && Array.isArray(raw.stages) ? raw.stages : [];
  rawStages.forEach((_, index) => {
    for (const kind of stageKinds) settings.renameKeys(["stages", index, kind], stageAliases[kind]);
  });
  const parsed = pipelineSchema.safeParse(settings.value);
  if (!parsed.success) {
    throw settings.schemaError(parsed.error, (path) => {
      if (path.length === 0) return Object.keys(pipelineSchema.shape);
      if (path.length === 2) return stageKinds;
      return path.length === 3 ? stageKeys(path[2] as StageKind) : keysOfInit();
    });
  }
  const { stages, ...defaults } = parsed.data;
  return stages.map((entry, index) => {
    const kind = stageKinds.find((candidate) => entry[candidate] !== undefined) as StageKind;
    const stage: Record<string, unknown> = { ...defaults, ...entry[kind] };
    settings.resolvePaths(stage);
    return { kind, settings: stage, at: settings.place(["stages", index], kind) } as unknown as Stage;
  });
}

/** Settings given as flags, by YAML key. */
export type FlagSettings = Readonly<Record<string, unknown>>;

/** Checks one stage from an optional YAML file of its keys and from flags, which win. */
export async function readStage(
  kind: StageKind,
  file: string | undefined,
  flags: FlagSettings,
): Promise<Stage> {
  const settings = await readSettings(kind, stageSchemas[kind], file, flags);
  return { kind, settings } as unknown as Stage;
}

/** The settings of a stage as above, of which any may be missing. */
export async function readPartialStage(
  kind: StageKind,
  file: string | undefined,
  flags: FlagSettings,
): Promise<Readonly<Record<string, unknown>>> {
  const shape: z.ZodRawShape = stageSchemas[kind].shape;
  return readSettings(kind, z.strictObject(shape).partial(), file, flags);
}

/** Checks the settings of a stage from an optional YAML file and from flags, which win. */
async function readSettings(
  kind: StageKind,
  schema: z.ZodType<object>,
  file: string | undefined,
  flags: FlagSettings,
): Promise<Readonly<Record<string, unknown>>> {
  let fromFile: Record<string, unknown> = {};
  let settings: SettingsFile | null = null;
  if (file !== undefined) {
    settings = await SettingsFile.read(file);
    settings.renameKeys([], stageAliases[kind]);
    const value = settings.value ?? {};
    if (typeof value !== "object" || Array.isArray(value))
      throw settings.error([], `expected a mapping of ${kind} settings`);
    if ("stages" in value)
      throw settings.error([], `this is a pipeline: run it with "node-rlhf run ${file}"`, "stages");
    fromFile = { ...value };
    settings.resolvePaths(fromFile);
  }
  const parsed = schema.safeParse({ ...fromFile, ...flags });
  if (parsed.success) return parsed.data as Readonly<Record<string, unknown>>;
  const issue = parsed.error.issues[0] as z.core.$ZodIssue;
  const key = issue.path[0] === undefined ? null : String(issue.path[0]);
  // A missing setting is reported by its flag unless there is a file to put it into.
  const isFileIssue = settings !== null && (key === null || !(key in flags));
  if (settings !== null && isFileIssue) {
    throw settings.schemaError(parsed.error, (path) => (path.length === 0 ? stageKeys(kind) : keysOfInit()));
  }
  const name = key === null ? kind : `--${key.replaceAll("_", "-")}`;
  throw new RlhfError("ERR_RLHF_USAGE", `${name}: ${nameOf(issue.path.slice(1))}${describeIssue(issue)}`, {
    key,
  });
}
