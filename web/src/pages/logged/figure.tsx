/** A figure of plotly that was logged: not drawn, but what it holds is said, and there to be read and saved. */

import { useMemo } from "preact/hooks";
import { get, useAnswer } from "../../api";
import { bytes, number } from "../../format";
import { points, type Trace } from "./plotly";

interface Figure {
  data?: Trace[];
  layout?: { title?: string | { text?: string } };
}

/** Larger ones are not read. */
const MOST_BYTES = 2_000_000;
const MOST_LETTERS = 20_000;
const MOST_TRACES = 50;

export function PlotlyFigure({ path, size, height }: { path: string; size: number | null; height: number }) {
  const small = (size ?? 0) <= MOST_BYTES;
  const answer = useAnswer(small ? path : null, (signal) => get<Figure>(path, signal));
  const { data, error } = answer.value;
  const text = useMemo(() => (data ? JSON.stringify(data, null, 1) : ""), [data]);
  if (error) return <p class="tone-warn">{error.message}</p>;
  if (!small) return <p class="quiet">A figure of plotly of {bytes(size)}, which is not drawn here.</p>;
  if (!data) return <div class="waiting" aria-busy="true" />;
  const traces = data.data ?? [];
  return (
    <div class="held" style={{ maxHeight: `${height}px` }} tabIndex={0} role="region" aria-label="what the figure holds">
      <p class="quiet">A figure of plotly, which is not drawn here{title(data)}.</p>
      <table>
        <thead>
          <tr>
            <th scope="col">Trace</th>
            <th scope="col">Kind</th>
            <th scope="col" class="num">Points</th>
          </tr>
        </thead>
        <tbody>
          {traces.slice(0, MOST_TRACES).map((trace, i) => (
            <tr key={i}>
              <td>{typeof trace.name === "string" ? trace.name : i + 1}</td>
              <td>{typeof trace.type === "string" ? trace.type : "scatter"}</td>
              <td class="num">{number(points(trace))}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {traces.length > MOST_TRACES && <p class="quiet">and {traces.length - MOST_TRACES} more</p>}
      <details>
        <summary>JSON</summary>
        <pre class="text">{text.slice(0, MOST_LETTERS)}{text.length > MOST_LETTERS ? "…" : ""}</pre>
      </details>
    </div>
  );
}

function title({ layout }: Figure): string {
  const said = typeof layout?.title === "string" ? layout.title : layout?.title?.text;
  return said ? `: ${said}` : "";
}
