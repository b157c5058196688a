import { RlhfError } from "../errors.ts";

/** What a repository of the hub holds. */
export type HubKind = "model" | "dataset";

/** A parsed `hub:owner/name[/path][@revision]`. */
export interface HubId {
  readonly kind: HubKind;
  /** "owner/name", or "name" alone for repositories of the hub's first years. */
  readonly name: string;
  /** A file or folder in the repository, or how the names of files begin; "" for all of it. */
  readonly path: string;
  readonly revision: string;
}

const PREFIX = "hub:";

/** Whether a path names something on the hub. Throws ERR_RLHF_ARGUMENT for what is no text. */
export function isHubId(path: string): boolean {
  if (typeof path !== "string")
    throw new RlhfError("ERR_RLHF_ARGUMENT", `a path must be a string, got ${String(path)}`);
  return path.startsWith(PREFIX);
}

/** Names of files, folders and repositories: no "..", nothing that leaves the cache. */
const PART = /^(?!\.{1,2}$)[\w.-]+$/;

/** Parses an id. Throws ERR_RLHF_ARGUMENT with the form that was expected. */
export function parseHubId(id: string, kind: HubKind): HubId {
  const [location = "", revision = "main", ...rest] = id.slice(PREFIX.length).split("@");
  const parts = location.split("/");
  const isRevision = revision.split("/").every((part) => PART.test(part));
  if (!isHubId(id) || rest.length > 0 || !isRevision || !parts.every((part) => PART.test(part)))
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `${id}: is no name on the hub; expected hub:owner/name, with a path and a revision if need be: hub:owner/name/data/train.parquet@main`,
      { id },
    );
  return { kind, name: parts.slice(0, 2).join("/"), path: parts.slice(2).join("/"), revision };
}

/** An id as messages show it. */
export function describeHubId({ name, path, revision }: HubId): string {
  return `${PREFIX}${name}${path === "" ? "" : `/${path}`}${revision === "main" ? "" : `@${revision}`}`;
}
