import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DATA_FILE, DATA_FILE_KINDS } from "../data/raw-row.ts";
import { isRlhfError, messageOf, RlhfError, throwIfAborted } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { hubCacheDirectory, isThere, RepositoryCache } from "./cache.ts";
import { downloadTo, etagOf, type RemoteFile, sizeOf } from "./download.ts";
import { describeHubId, type HubId, isHubId, parseHubId } from "./id.ts";
import { withLock } from "./lock.ts";

type Library = typeof import("@huggingface/hub");

export interface HubOptions {
  /** Default: HF_HUB_CACHE, HF_HOME or ~/.cache/huggingface, as for Python's huggingface_hub. */
  readonly cacheDirectory?: string;
  /** Takes what the cache has and asks nobody. Default: HF_HUB_OFFLINE. */
  readonly offline?: boolean;
  /** A token that may read the repository. Default: HF_TOKEN. */
  readonly token?: string;
  /** Default: HF_ENDPOINT, else https://huggingface.co. */
  readonly hubUrl?: string;
  readonly signal?: AbortSignal;
  /** Told of each file before it is downloaded; not of those that the cache has. */
  readonly onDownload?: (file: string, bytes: number) => void;
}

const HUB_OPTIONS: NamesOf<HubOptions> = {
  cacheDirectory: true,
  offline: true,
  token: true,
  hubUrl: true,
  signal: true,
  onDownload: true,
};

/** Files of a model that this package reads; other forms of the same weights are not downloaded. */
const MODEL_FILE =
  /^(?:config|generation_config|adapter_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json$|^(?:merges\.txt|tokenizer\.model|chat_template\.jinja|heads\.safetensors|adapter_model\.safetensors)$|^model(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?$/;

const TRUE = /^(?:1|true|yes|on)$/i;
const ATTEMPTS = 3;

interface Connection {
  readonly repo: { readonly type: HubId["kind"]; readonly name: string };
  readonly hubUrl?: string;
  readonly accessToken?: string;
  readonly fetch: typeof fetch;
}

async function importLibrary(): Promise<Library> {
  try {
    return await import("@huggingface/hub");
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_HUB",
      'names on the hub need the optional package @huggingface/hub: run "npm install @huggingface/hub", or download the files yourself and give their path',
      {},
      { cause: error },
    );
  }
}

function connect(id: HubId, options: HubOptions): Connection {
  const { signal } = options;
  const token = options.token ?? process.env.HF_TOKEN;
  const hubUrl = options.hubUrl ?? process.env.HF_ENDPOINT;
  if (token && !token.startsWith("hf_"))
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      'HF_TOKEN must be an access token of the hub, which begins with "hf_"',
    );
  return {
    repo: { type: id.kind, name: id.name },
    ...(hubUrl ? { hubUrl: hubUrl.replace(/\/+$/, "") } : {}),
    ...(token ? { accessToken: token } : {}),
    fetch: (input, init) => fetch(input, signal ? { ...init, signal } : init),
  };
}

function statusOf(error: unknown): number | null {
  return error instanceof Error && "statusCode" in error && typeof error.statusCode === "number"
    ? error.statusCode
    : null;
}

/** What went wrong at the hub, and what to do about it. */
function hubError(id: HubId, error: unknown): RlhfError {
  if (isRlhfError(error)) return error as RlhfError;
  const status = statusOf(error);
  const what = describeHubId(id);
  const details = { id: what, ...(status === null ? {} : { status }) };
  const cures: Readonly<Record<number, string>> = {
    401: `the hub wants to know who asks: the ${id.kind} does not exist, is private, or is gated. Check the name, accept its terms on its page, and set HF_TOKEN to a token that may read it`,
    403: `access is refused: accept the ${id.kind}'s terms on its page, and set HF_TOKEN to a token that may read it`,
    404: `there is no such ${id.kind}, or no such revision "${id.revision}"; check the name`,
    429: "the hub asks for fewer requests; wait, or set HF_TOKEN",
  };
  const cure =
    status === null
      ? "the hub cannot be reached; set HF_HUB_OFFLINE=1 to use what was downloaded before"
      : (cures[status] ?? `the hub failed with status ${status}; try again later`);
  const reason =
    error instanceof Error && error.cause instanceof Error ? error.cause.message : messageOf(error);
  return new RlhfError("ERR_RLHF_HUB", `${what}: ${cure} (${reason})`, details, { cause: error });
}

/** Errors that may pass: no answer, too many requests, a fault of the server, a connection that broke. */
function mayPass(error: unknown): boolean {
  if (isRlhfError(error)) return error.code === "ERR_RLHF_HUB";
  const status = statusOf(error);
  return status === null || status === 429 || status >= 500;
}

/** Tries something at the hub a few times. */
async function withRetries<Result>(
  id: HubId,
  signal: AbortSignal | undefined,
  attempt: () => Promise<Result>,
): Promise<Result> {
  for (let tries = 1; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      throwIfAborted(signal, `downloading ${describeHubId(id)}`);
      if (tries === ATTEMPTS || !mayPass(error)) throw hubError(id, error);
      await sleep(100 * tries ** 2, undefined, signal ? { signal } : {}).catch(() => undefined);
    }
  }
}

async function commitOf(library: Library, id: HubId, connection: Connection): Promise<string> {
  const parameters = {
    ...connection,
    name: id.name,
    revision: id.revision,
    additionalFields: ["sha" as const],
  };
  const info =
    id.kind === "model" ? await library.modelInfo(parameters) : await library.datasetInfo(parameters);
  if (typeof info.sha !== "string" || !/^[0-9a-f]{40}$/.test(info.sha))
    throw new RlhfError("ERR_RLHF_HUB", `${describeHubId(id)}: the hub names no commit for it`);
  return info.sha;
}

async function listFiles(library: Library, connection: Connection, commit: string): Promise<RemoteFile[]> {
  const files: RemoteFile[] = [];
  for await (const entry of library.listFiles({ ...connection, revision: commit, recursive: true }))
    if (entry.type === "file") files.push(entry);
  return files.sort((a, b) => (a.path < b.path ? -1 : 1));
}

async function downloadFile(
  library: Library,
  connection: Connection,
  commit: string,
  file: RemoteFile,
  target: string,
): Promise<void> {
  await downloadTo(target, file, async (start) => {
    // Plain requests can be gone on from; the hub serves files of its newer storage that way too.
    const blob = await library.downloadFile({ ...connection, path: file.path, revision: commit, xet: false });
    if (blob === null) throw new RlhfError("ERR_RLHF_HUB", `${file.path}: is listed, but not there`);
    return blob.slice(start, sizeOf(file)).stream() as unknown as AsyncIterable<Uint8Array>;
  });
}

/** A snapshot of the chosen files of a repository: from the hub, or offline from the cache. */
async function fetchSnapshot(
  id: HubId,
  options: HubOptions,
  choose: (paths: readonly string[]) => readonly string[],
): Promise<{ root: string; paths: readonly string[] }> {
  const cache = new RepositoryCache(options.cacheDirectory ?? hubCacheDirectory(), id);
  if (options.offline ?? TRUE.test(process.env.HF_HUB_OFFLINE ?? "")) {
    const commit = await cache.commitOf(id.revision);
    if (commit === null)
      throw new RlhfError(
        "ERR_RLHF_HUB",
        `${describeHubId(id)}: is not in the cache, and HF_HUB_OFFLINE is set; unset it to download the ${id.kind}`,
        { id: describeHubId(id) },
      );
    return { root: cache.snapshot(commit), paths: choose(await cache.files(commit)) };
  }
  const library = await importLibrary();
  const connection = connect(id, options);
  const { signal, onDownload } = options;
  const [commit, files] = await withRetries(id, signal, async () => {
    const sha = await commitOf(library, id, connection);
    return [sha, await listFiles(library, connection, sha)] as const;
  });
  const chosen = new Set(choose(files.map((file) => file.path)));
  for (const file of files) {
    if (!chosen.has(file.path)) continue;
    const blob = cache.blob(etagOf(file));
    await withLock(`${blob}.lock`, signal, async () => {
      if (await isThere(blob)) return;
      onDownload?.(file.path, sizeOf(file));
      await withRetries(id, signal, () => downloadFile(library, connection, commit, file, blob));
    });
    await cache.link(commit, file.path, etagOf(file));
  }
  await cache.setCommit(id.revision, commit);
  return { root: cache.snapshot(commit), paths: [...chosen] };
}

/**
 * Downloads a model of the hub, `hub:owner/name[/folder][@revision]`, unless the cache has it.
 *
 * @returns the directory with its files
 * Throws ERR_RLHF_HUB, ERR_RLHF_ARGUMENT for an id of another form, ERR_RLHF_ABORTED.
 */
export async function downloadModel(id: string, options: HubOptions = {}): Promise<string> {
  refuseUnknownOptions("downloadModel", options, HUB_OPTIONS);
  const parsed = parseHubId(id, "model");
  const folder = parsed.path === "" ? "" : `${parsed.path}/`;
  const { root } = await fetchSnapshot(parsed, options, (paths) => {
    const chosen = paths.filter(
      (path) => path.startsWith(folder) && MODEL_FILE.test(path.slice(folder.length)),
    );
    if (chosen.some((path) => /^(?:adapter_)?config\.json$/.test(path.slice(folder.length)))) return chosen;
    throw new RlhfError(
      "ERR_RLHF_HUB",
      `${id}: holds no config.json${folder === "" ? "" : ` in ${folder}`}; it is no model in Hugging Face's form`,
      { id },
    );
  });
  return join(root, ...parsed.path.split("/"));
}

/**
 * Downloads files of a data set of the hub unless the cache has them. `hub:owner/name/path` names a file, or all data files whose
 * path begins so ("data/train" for "data/train-00000-of-00002.parquet" and the next); without a path the data set must have one only.
 *
 * @returns paths of the files, in order of their names
 * Throws ERR_RLHF_HUB, ERR_RLHF_ARGUMENT for an id of another form, ERR_RLHF_ABORTED.
 */
export async function downloadDataset(id: string, options: HubOptions = {}): Promise<string[]> {
  refuseUnknownOptions("downloadDataset", options, HUB_OPTIONS);
  const parsed = parseHubId(id, "dataset");
  const { root, paths } = await fetchSnapshot(parsed, options, (all) => {
    if (all.includes(parsed.path)) return [parsed.path];
    const data = all.filter((path) => DATA_FILE.test(path));
    const chosen = data.filter((path) => path.startsWith(parsed.path));
    if (chosen.length === 1 || (chosen.length > 0 && parsed.path !== "")) return chosen;
    const shown = data.slice(0, 20).join(", ");
    throw new RlhfError(
      "ERR_RLHF_HUB",
      data.length === 0
        ? `${id}: has no file of a kind that can be read (${DATA_FILE_KINDS})`
        : `${id}: name ${parsed.path === "" ? "one of its files" : "another path"} after the data set, or how their names begin; it has ${shown}`,
      { id, files: data },
    );
  });
  return paths.map((path) => join(root, ...path.split("/")));
}

/** The path as it is, or the directory of the model on the hub that it names. */
export async function localModel(path: string, options: HubOptions = {}): Promise<string> {
  return isHubId(path) ? downloadModel(path, options) : path;
}

/** The paths as they are, with those that name data on the hub replaced by the files they stand for. */
export async function localData(paths: readonly string[], options: HubOptions = {}): Promise<string[]> {
  const local = await Promise.all(
    paths.map((path) => (isHubId(path) ? downloadDataset(path, options) : [path])),
  );
  return local.flat();
}
