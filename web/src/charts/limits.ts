/** From which value to which the colours go. */

/** The middle of the values, without the hundredth part at the bottom and the thousandth at the top; at least a decade. */
export function robust(values: ArrayLike<number>): [number, number] {
  const finite: number[] = [];
  const stride = Math.max(1, Math.floor(values.length / 20_000));
  for (let i = 0; i < values.length; i += stride) {
    const value = values[i] ?? Number.NaN;
    if (Number.isFinite(value)) finite.push(value);
  }
  if (finite.length === 0) return [0, 1];
  finite.sort((a, b) => a - b);
  const at = (share: number) => finite[Math.min(finite.length - 1, Math.floor(share * finite.length))] ?? 0;
  const low = at(0.01);
  return [low, Math.max(at(0.999), low + 1)];
}

/** What the number of a cell says: itself, or how often a base is multiplied with itself. */
export interface Scale {
  base?: 2 | 10;
  unit: string;
}

/** Of the elements of a tensor, those in one bucket. */
export const SHARE: Scale = { base: 10, unit: "of the elements" };

/** The value that a cell stands for. */
export function valueOf({ base }: Scale, cell: number): number {
  return base ? base ** cell : cell;
}
