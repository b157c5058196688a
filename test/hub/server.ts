import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** A repository that the server has. */
export interface Repository {
  readonly kind: "model" | "dataset";
  readonly name: string;
  readonly files: Readonly<Record<string, Buffer>>;
  /** Paths whose contents are stored as large files, reached by a redirect. */
  readonly large?: readonly string[];
  /** Only this token may read it. */
  readonly token?: string;
}

export const COMMIT = "0123456789abcdef0123456789abcdef01234567";

/** A server on this machine that speaks the hub's API, with faults on demand. */
export class HubServer {
  readonly requests: string[] = [];
  /** Contents that break off after so many bytes, once each. */
  readonly breakOff = new Map<string, number>();
  /** Statuses of the next answers. */
  readonly failures: number[] = [];
  /** Contents served in place of the right ones. */
  readonly wrong = new Map<string, Buffer>();
  readonly #repositories: readonly Repository[];
  readonly #server: Server;

  constructor(repositories: readonly Repository[]) {
    this.#repositories = repositories;
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Requests for contents so far, as "path bytes=…". */
  get contentRequests(): string[] {
    return this.requests.filter((request) => request.includes("/resolve/") && !request.endsWith("bytes=0-0"));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url ?? "/", this.url);
    const path = decodeURIComponent(url.pathname);
    this.requests.push(`${path} ${request.headers.range ?? ""}`.trim());
    const status = this.failures.shift();
    if (status !== undefined) {
      this.#json(response, status, { error: `fault ${status}` });
      return;
    }
    for (const repository of this.#repositories) {
      const api = `/api/${repository.kind}s/${repository.name}/`;
      const content = `${repository.kind === "model" ? "" : "/datasets"}/${repository.name}/resolve/`;
      if (!path.startsWith(api) && !path.startsWith(content)) continue;
      if (repository.token && request.headers.authorization !== `Bearer ${repository.token}`)
        this.#json(response, 401, { error: "Invalid username or password." });
      else if (path.startsWith(content))
        this.#content(repository, path.slice(content.length), request, response);
      else this.#api(repository, path.slice(api.length), url, response);
      return;
    }
    this.#json(response, 404, { error: "Repository not found" });
  }

  #api(repository: Repository, rest: string, url: URL, response: ServerResponse): void {
    const [what, revision = ""] = rest.split("/");
    if (!["main", "v1", COMMIT].includes(revision)) {
      this.#json(response, 404, { error: `Invalid rev id: ${revision}` });
      return;
    }
    if (what === "revision") {
      this.#json(response, 200, {
        _id: "1",
        id: repository.name,
        sha: COMMIT,
        lastModified: "2024-01-01T00:00:00.000Z",
      });
      return;
    }
    const entries = Object.entries(repository.files).map(([path, bytes]) => ({
      type: "file",
      path,
      size: bytes.length,
      oid: createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex"),
      ...(repository.large?.includes(path)
        ? {
            lfs: {
              oid: createHash("sha256").update(bytes).digest("hex"),
              size: bytes.length,
              pointerSize: 130,
            },
          }
        : {}),
    }));
    // Two pages, as of a repository with many files.
    const half = Math.ceil(entries.length / 2);
    const second = url.searchParams.has("cursor");
    if (!second)
      response.setHeader("Link", `<${this.url}${url.pathname}?${url.searchParams}&cursor=2>; rel="next"`);
    this.#json(response, 200, [
      { type: "directory", path: "data", size: 0, oid: "0" },
      ...(second ? entries.slice(half) : entries.slice(0, half)),
    ]);
  }

  #content(repository: Repository, rest: string, request: IncomingMessage, response: ServerResponse): void {
    const path = rest.slice(rest.indexOf("/") + 1);
    const bytes = this.wrong.get(path) ?? repository.files[path];
    if (!bytes) {
      response.setHeader("X-Error-Code", "EntryNotFound");
      this.#json(response, 404, { error: "Entry not found" });
      return;
    }
    const isProbe = request.headers.range === "bytes=0-0";
    if (repository.large?.includes(path) && !request.url?.includes("cdn=1") && !isProbe) {
      response.writeHead(302, { Location: `${request.url}?cdn=1` }).end();
      return;
    }
    const range = /^bytes=(\d+)-(\d+)?$/.exec(request.headers.range ?? "");
    const [begin, end] = range
      ? [Number(range[1]), Number(range[2] ?? bytes.length - 1) + 1]
      : [0, bytes.length];
    const body = bytes.subarray(begin, end);
    response.writeHead(range ? 206 : 200, {
      ETag: '"x"',
      "Content-Length": body.length,
      ...(range ? { "Content-Range": `bytes ${begin}-${end - 1}/${bytes.length}` } : {}),
    });
    const limit = isProbe ? undefined : this.breakOff.get(path);
    if (limit === undefined) {
      response.end(body);
      return;
    }
    this.breakOff.delete(path);
    response.write(body.subarray(0, limit), () => setTimeout(() => response.destroy(), 20));
  }

  #json(response: ServerResponse, status: number, value: object): void {
    response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(value));
  }
}
