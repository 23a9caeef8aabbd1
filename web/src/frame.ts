/** Binary frames: a JSON header, then columns as they lie in memory, which become typed arrays without a copy. */

type Numbers = Float64Array | Float32Array | Uint32Array | Uint8Array;

const KINDS = { f8: Float64Array, f4: Float32Array, u4: Uint32Array, u1: Uint8Array } as const;

interface Column {
  name: string;
  dtype: keyof typeof KINDS | "u8";
  n: number;
}

export interface Frame<Header> {
  header: Header;
  columns: Map<string, Numbers>;
}

/** `u32 length of the header | header | columns one after the other, each padded to a multiple of 8`. */
export function decode<Header>(buffer: ArrayBuffer): Frame<Header> {
  return decodeAt<Header>(buffer, 0)[0];
}

/** Frames that follow each other. */
export function decodeAll<Header>(buffer: ArrayBuffer): Frame<Header>[] {
  const found: Frame<Header>[] = [];
  for (let at = 0; at < buffer.byteLength; ) {
    const [frame, end] = decodeAt<Header>(buffer, at);
    found.push(frame);
    at = end;
  }
  return found;
}

/** The frame that begins there, and where it ends. */
function decodeAt<Header>(buffer: ArrayBuffer, from: number): [Frame<Header>, number] {
  const length = new DataView(buffer).getUint32(from, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, from + 4, length))) as Header & {
    columns: Column[];
  };
  const columns = new Map<string, Numbers>();
  let at = from + 4 + length;
  for (const { name, dtype, n } of header.columns) {
    const bytes = n * Number(dtype.slice(1));
    columns.set(name, dtype === "u8" ? counts(buffer, at, n) : new KINDS[dtype](buffer, at, n));
    at += bytes + ((8 - (bytes % 8)) % 8);
  }
  return [{ header, columns }, at];
}

/** 64-bit counts as numbers: exact up to 2^53, which is more than any tensor has elements. */
function counts(buffer: ArrayBuffer, at: number, n: number): Float64Array {
  const halves = new Uint32Array(buffer, at, 2 * n);
  const values = new Float64Array(n);
  for (let i = 0; i < n; i++) values[i] = (halves[2 * i] ?? 0) + (halves[2 * i + 1] ?? 0) * 2 ** 32;
  return values;
}
