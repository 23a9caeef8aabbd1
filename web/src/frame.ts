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
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) as Header & {
    columns: Column[];
  };
  const columns = new Map<string, Numbers>();
  let at = 4 + length;
  for (const { name, dtype, n } of header.columns) {
    const bytes = n * Number(dtype.slice(1));
    columns.set(name, dtype === "u8" ? counts(buffer, at, n) : new KINDS[dtype](buffer, at, n));
    at += bytes + ((8 - (bytes % 8)) % 8);
  }
  return { header, columns };
}

/** 64-bit counts as numbers: exact up to 2^53, which is more than any tensor has elements. */
function counts(buffer: ArrayBuffer, at: number, n: number): Float64Array {
  const halves = new Uint32Array(buffer, at, 2 * n);
  const values = new Float64Array(n);
  for (let i = 0; i < n; i++) values[i] = (halves[2 * i] ?? 0) + (halves[2 * i + 1] ?? 0) * 2 ** 32;
  return values;
}
