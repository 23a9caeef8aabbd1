/** The alert rules of a project: a viewer sees them, an editor makes and removes them. */

import { useSignal } from "@preact/signals";
import { change, get, useAnswer } from "../api";
import type { Condition, KeysAnswer, Rule, Severity, When } from "../model";
import { mayEdit } from "../session";
import { SeverityMark } from "../ui/marks";
import { Answered, Problem } from "../ui/notices";
import { say } from "../ui/toast";

const CONDITIONS: [Condition, string][] = [
  ["above", "a metric is above"],
  ["below", "a metric is below"],
  ["not_finite", "a metric is not finite"],
  ["absent", "a metric is not logged"],
  ["ended", "a run fails, crashes or is lost"],
  ["finding", "the stability rules find something"],
  ["matches", "a run fits the filter"],
];
const OF_A_METRIC: Condition[] = ["above", "below", "not_finite", "absent"];
const LASTING: Condition[] = ["above", "below", "absent"];
const SEVERITIES: Severity[] = ["critical", "warning", "info"];

export function Rules({ project, targets }: { project: string; targets: string[] }) {
  const version = useSignal(0);
  const answer = useAnswer(`rules ${project} ${version.value}`, (signal) => get<Rule[]>(`alert-rules?project=${encodeURIComponent(project)}`, signal));
  const may = mayEdit(project);
  const remove = async (rule: Rule) => {
    try {
      await change("DELETE", `alert-rules/${rule.id}`);
      say(`${rule.name} fires no more`);
    } catch (error) {
      say((error as Error).message);
    }
    version.value += 1;
  };
  const rules = answer.value.data;
  return (
    <details class="card rules">
      <summary>
        <strong>Rules</strong> <span class="quiet">{rules ? `· ${rules.length === 0 ? "none yet" : rules.length}` : ""} · {targets.length > 0 ? `sent to ${targets.join(", ")}` : "shown here, sent to nobody"}</span>
      </summary>
      <Answered answer={answer.value}>
        {(all) =>
          all.length === 0 ? (
            <p class="quiet">A rule fires when something holds in a run: a loss that is not finite, a run that fails. It fires once until that is over.</p>
          ) : (
            <ul aria-label="rules">
              {all.map((rule) => (
                <li key={rule.id}>
                  <SeverityMark severity={rule.severity} word /> <strong>{rule.name}</strong>
                  <span>{rule.says}</span>
                  {rule.filter && <code>{rule.filter}</code>}
                  <span class="quiet">by {rule.by}</span>
                  {may && <button type="button" aria-label={`remove ${rule.name}`} onClick={() => void remove(rule)}>Remove</button>}
                </li>
              ))}
            </ul>
          )
        }
      </Answered>
      {may && <NewRule project={project} onMade={() => { version.value += 1; }} />}
      {targets.length === 0 && <p class="quiet">To send them to Slack, mail or a webhook, start the server with <code>TORCHTRACK_ALERT_URLS</code>.</p>}
    </details>
  );
}

function NewRule({ project, onMade }: { project: string; onMade: () => void }) {
  const kind = useSignal<Condition>("above");
  const metric = useSignal("");
  const value = useSignal("");
  const lasts = useSignal("");
  const unit = useSignal<"for_steps" | "for_s">("for_steps");
  const least = useSignal<Severity>("critical");
  const filter = useSignal("");
  const name = useSignal("");
  const severity = useSignal<Severity>("critical");
  const problem = useSignal<Error | null>(null);
  const keys = useAnswer(`keys ${project}`, (signal) => get<KeysAnswer>(`projects/${encodeURIComponent(project)}/keys`, signal));
  const of = (kinds: Condition[]) => kinds.includes(kind.value);
  const when = (): When => ({
    kind: kind.value,
    ...(of(OF_A_METRIC) && { metric: metric.value }),
    ...(of(["above", "below"]) && { value: Number(value.value) }),
    ...(of(LASTING) && lasts.value && { [unit.value]: Number(lasts.value) }),
    ...(of(["finding"]) && { least: least.value }),
  });
  const make = async () => {
    try {
      await change<Rule>("POST", "alert-rules", { project, name: name.value, filter: filter.value, severity: severity.value, when: when() });
      problem.value = null;
      name.value = "";
      onMade();
    } catch (error) {
      problem.value = error as Error;
    }
  };
  return (
    <form class="bar" aria-label="a new rule" onSubmit={(event) => { event.preventDefault(); void make(); }}>
      <label>
        When
        <select value={kind.value} onChange={(event) => { kind.value = event.currentTarget.value as Condition; }}>
          {CONDITIONS.map(([one, text]) => <option key={one} value={one}>{text}</option>)}
        </select>
      </label>
      {of(OF_A_METRIC) && (
        <label>
          Metric
          <input required maxLength={1024} list="rule-metrics" value={metric.value} placeholder="loss" onInput={(event) => { metric.value = event.currentTarget.value; }} />
          <datalist id="rule-metrics">{keys.value.data?.metric.map(({ key }) => <option key={key} value={key} />)}</datalist>
        </label>
      )}
      {of(["above", "below"]) && <label>Limit <input required type="number" step="any" value={value.value} placeholder="10" onInput={(event) => { value.value = event.currentTarget.value; }} /></label>}
      {of(LASTING) && (
        <span class="lasting">
          <label for="rule-lasts">for</label>
          <input id="rule-lasts" type="number" min={unit.value === "for_steps" ? "1" : "0"} step={unit.value === "for_steps" ? "1" : "any"} required={kind.value === "absent"} value={lasts.value} placeholder={kind.value === "absent" ? "600" : "at once"} onInput={(event) => { lasts.value = event.currentTarget.value; }} />
          <select aria-label="unit" value={unit.value} onChange={(event) => { unit.value = event.currentTarget.value as "for_steps" | "for_s"; }}>
            <option value="for_steps">steps</option>
            <option value="for_s">seconds</option>
          </select>
        </span>
      )}
      {of(["finding"]) && <Severities label="at least" value={least.value} onChange={(one) => { least.value = one; }} />}
      <label>in runs <input maxLength={1000} required={kind.value === "matches"} value={filter.value} placeholder={kind.value === "matches" ? "summary.loss > 5" : "all"} onInput={(event) => { filter.value = event.currentTarget.value; }} /></label>
      <Severities label="is" value={severity.value} onChange={(one) => { severity.value = one; }} />
      <label>Name <input required maxLength={256} value={name.value} placeholder="loss diverged" onInput={(event) => { name.value = event.currentTarget.value; }} /></label>
      <button type="submit">Save the rule</button>
      {problem.value && <Problem error={problem.value} />}
    </form>
  );
}

function Severities({ label, value, onChange }: { label: string; value: Severity; onChange: (severity: Severity) => void }) {
  return (
    <label>
      {label}
      <select value={value} onChange={(event) => onChange(event.currentTarget.value as Severity)}>
        {SEVERITIES.map((one) => <option key={one} value={one}>{one}</option>)}
      </select>
    </label>
  );
}
