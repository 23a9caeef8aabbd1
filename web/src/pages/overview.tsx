/** What a run is: its configuration, its results, where it ran. */

import { number } from "../format";
import type { RunAnswer } from "../model";

export function Overview({ run }: { run: RunAnswer }) {
  return (
    <div class="columns">
      <Values title="Configuration" values={pinnedFirst(run.config, run.pinned)} none="init(config={...}) puts it here." />
      <Values title="Summary" values={own(run.summary)} none="The last value of every metric comes here." />
      <Values title="Environment" values={run.environment} none="Nothing is known of the machine." />
      {run.notes && (
        <section class="card">
          <h2>Notes</h2>
          <p>{run.notes}</p>
        </section>
      )}
    </div>
  );
}

/** The configuration with the keys in front that the user has pinned. */
export function pinnedFirst(config: Record<string, unknown>, pinned: readonly string[]): Record<string, unknown> {
  const first = pinned.filter((key) => key in config).map((key) => [key, config[key]]);
  return { ...Object.fromEntries(first), ...config };
}

/** Without what the System tab shows. */
function own(summary: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(summary).filter(([name]) => !/^(system|_tt)\//.test(name)));
}

function Values({ title, values, none }: { title: string; values: Record<string, unknown>; none: string }) {
  const rows = flat(values);
  return (
    <section class="card">
      <h2>
        {title} <small>{rows.length || ""}</small>
      </h2>
      {rows.length === 0 ? (
        <p class="quiet">{none}</p>
      ) : (
        <table class="values">
          <tbody>
            {rows.map(([name, value]) => (
              <tr key={name}>
                <th scope="row">{name}</th>
                <td title={value}>{value}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}

/** `{"model": {"depth": 3}}` as model.depth 3. */
export function flat(values: Record<string, unknown>, prefix = ""): [string, string][] {
  return Object.entries(values).flatMap(([key, value]): [string, string][] => {
    const name = prefix + key;
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      return flat(value as Record<string, unknown>, `${name}.`);
    }
    return [[name, typeof value === "number" ? number(value) : typeof value === "string" ? value : JSON.stringify(value)]];
  });
}
