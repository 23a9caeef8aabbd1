/** A file that has the answers in itself: built as `file`, the page asks these and no server. */

/** Whether this is the code of such a file. */
export const inFile = import.meta.env.MODE === "file";

interface Entry {
  path: string;
  body: unknown;
  status: number;
  /** The answer: gzip, base64. */
  data: string;
}

interface Contents {
  title: string;
  /** The path of what the file shows. */
  place: string[];
  /** What the reader has to know of it. */
  note: string;
  /** When it was made, as ISO 8601. */
  made: string;
  version: string;
  answers: Entry[];
  /** By SHA-256, as `data:` URLs. */
  pictures: Record<string, string>;
}

export const contents: Contents | null = inFile ? (JSON.parse(document.getElementById("contents")?.textContent ?? "null") as Contents | null) : null;
const known = new Map((contents?.answers ?? []).map((entry) => [question(entry.path, entry.body), entry]));

/** Whether a question has an answer: a server answers all. */
export function answers(path: string, body: unknown = null): boolean {
  return !inFile || known.has(question(path, body));
}

/** A logged picture that is in the file. */
export function picture(sha256: string): string | undefined {
  return contents?.pictures[sha256];
}

/** The answer as a server would give it. */
export async function embedded(path: string, body: unknown = null): Promise<Response> {
  const entry = known.get(question(path, body));
  if (!entry) return Response.json({ error: { message: "This is not in the file." } }, { status: 404 });
  const packed = Uint8Array.from(atob(entry.data), (letter) => letter.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(await new Response(plain).arrayBuffer(), { status: entry.status });
}

/** What is asked, apart from how many pixels there are for the answer. */
export function question(path: string, body: unknown): string {
  return `${path} ${JSON.stringify(body, (key, value: unknown) => (key === "px" ? undefined : sorted(value)))}`;
}

function sorted(value: unknown): unknown {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
}
