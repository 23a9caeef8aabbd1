/** What a chart says in numbers: at the pointer, or all of it as a table. */

import type { Line } from "../charts/line";
import { number } from "../format";
import { cursor } from "../state";
import { type Axis, placeOn } from "./look";

const NEAREST = 6;
const MOST_ROWS = 500;

/** The values at the cursor: of many lines those nearest to the pointer, from the highest. */
export function Reading({ axis, steps, lines, height }: { axis: Axis; steps: ArrayLike<number>; lines: Line[]; height: number | null }) {
  const at = cursor.value;
  if (at === null || steps.length === 0) return <div class="reading">&nbsp;</div>;
  const i = lastBefore(steps, at);
  const there = nearest(lines, i, height);
  return (
    <div class="reading">
      <span class="quiet">{placeOn(axis, steps[i] ?? Number.NaN)}</span>
      {there.map((line) => (
        <span key={line.label} title={line.label}>
          <i class="swatch" style={{ background: line.colour }} />
          {line.nonfinite?.[i] ? <b class="nonfinite">not finite </b> : null}
          {number(line.mean[i] ?? null)}
          {line.min[i] !== line.max[i] && !Number.isNaN(line.min[i]) && (
            <small>
              {" "}
              {number(line.min[i] ?? null)} … {number(line.max[i] ?? null)}
              {line.members && `, ${line.members[i]} of them`}
            </small>
          )}
        </span>
      ))}
    </div>
  );
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
