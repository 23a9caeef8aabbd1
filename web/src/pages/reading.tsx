/** What a chart says in numbers: at the pointer, or all of it as a table. */

import type { Signal } from "@preact/signals";
import type { Line } from "../charts/line";
import { number, quantity } from "../format";
import { type Axis, placeOn } from "./look";

const NEAREST = 6;
const MOST_ROWS = 500;

/** The values at the cursor, else the last ones: of many lines those nearest to the pointer, from the highest. */
export function Reading({ metric, cursor, axis, steps, lines, height }: { metric: string; cursor: Signal<number | null>; axis: Axis; steps: ArrayLike<number>; lines: Line[]; height: Signal<number | null> }) {
  const at = cursor.value;
  if (steps.length === 0) return <div class="reading">&nbsp;</div>;
  const i = at === null ? steps.length - 1 : lastBefore(steps, at);
  const there = at === null ? lines.filter((line) => endOf(line) >= 0).slice(0, NEAREST) : nearest(lines, i, height.value);
  return (
    <div class="reading">
      <span class="quiet">{at === null ? "last" : placeOn(axis, steps[i] ?? Number.NaN)}</span>
      {there.map((line, place) => {
        const here = at === null ? endOf(line) : i;
        // By their place: elements stay where they are while the pointer moves, and their texts change.
        return (
          <span key={place} title={line.label}>
            <i class="swatch" style={{ background: line.colour }} />
            <strong class="nonfinite">{line.nonfinite?.[here] ? "not finite " : ""}</strong>
            {value(metric, at === null ? line.last : line.mean, here)}
            <small>{at === null ? "" : spread(metric, line, i)}</small>
          </span>
        );
      })}
    </div>
  );
}

/** Where a line ends, which others may go on beyond; -1 for one that has nothing. */
function endOf({ last, nonfinite }: Line): number {
  let i = last.length - 1;
  while (i >= 0 && Number.isNaN(last[i]) && !nonfinite?.[i]) i -= 1;
  return i;
}

/** What is not finite is said in words. */
function value(metric: string, column: ArrayLike<number>, i: number): string {
  const there = column[i] ?? Number.NaN;
  return Number.isNaN(there) ? "" : quantity(metric, there);
}

/** From where to where the values of a bucket go, and how many there are behind a group's. */
function spread(metric: string, { min, max, members }: Line, i: number): string {
  const [low = Number.NaN, high = Number.NaN] = [min[i], max[i]];
  if (low === high || Number.isNaN(low)) return "";
  return ` ${quantity(metric, low)} … ${quantity(metric, high)}${members ? `, ${members[i]} of them` : ""}`;
}

export function nearest(lines: readonly Line[], i: number, height: number | null): Line[] {
  const value = (line: Line) => line.mean[i] ?? Number.NaN;
  const there = lines.filter((line) => !Number.isNaN(value(line)) || line.nonfinite?.[i]);
  const far = (line: Line) => (height === null || Number.isNaN(value(line)) ? 0 : Math.abs(value(line) - height));
  return there
    .toSorted((a, b) => far(a) - far(b))
    .slice(0, NEAREST)
    .sort((a, b) => value(b) - value(a));
}

/** The place of the last step that is not behind `at`. */
export function lastBefore(steps: ArrayLike<number>, at: number): number {
  let low = 0;
  let high = steps.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((steps[middle] ?? 0) <= at) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** The same as rows, for who reads rather than looks. */
export function Data({ x, lines, title }: { x: ArrayLike<number>; lines: Line[]; title: string }) {
  const rows = Math.min(x.length, MOST_ROWS);
  return (
    <div class="data" tabIndex={0} role="region" aria-label={`values of ${title}`}>
      <table>
        <thead>
          <tr>
            <th scope="col">step</th>
            {lines.map((line) => (
              <th key={line.label} scope="col">{line.label}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {Array.from({ length: rows }, (_, i) => (
            <tr key={i}>
              <th scope="row">{number(x[i] ?? null)}</th>
              {lines.map((line) => (
                <td key={line.label}>{line.nonfinite?.[i] ? "NaN" : number(Number.isNaN(line.mean[i]) ? null : line.mean[i])}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {rows < x.length && <p class="quiet">The first {rows} of {x.length}: save them as CSV for all.</p>}
    </div>
  );
}
