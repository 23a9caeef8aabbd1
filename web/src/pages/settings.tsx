/** Who one is, the keys that let programs in, and for admins who else may what. */

import { useSignal } from "@preact/signals";
import { change, get, useAnswer } from "../api";
import { ago } from "../format";
import type { Key, Me, Role, Scope, User } from "../model";
import { Answered, Empty, Problem } from "../ui/notices";
import { say } from "../ui/toast";

const SCOPES: [Scope, string][] = [["read", "read: looks at runs"], ["write", "write: uploads and edits runs"], ["admin", "admin: gives keys and roles too"]];
const KINDS: Record<Me["kind"], string> = {
  owner: "You have the token of this server itself, which may do everything.",
  anyone: "This server asks nobody for a key: whoever reaches it may do everything.",
  key: "You came in with a key.",
  user: "You are logged in.",
};

export function Settings() {
  const me = useAnswer("me", (signal) => get<Me>("me", signal));
  return (
    <div class="page">
      <h1>Settings</h1>
      <Answered answer={me.value}>
        {(who) => {
          const admin = Object.values(who.roles).includes("admin");
          return (
            <>
              <WhoIAm me={who} />
              <Keys me={who} />
              {admin && <Users />}
            </>
          );
        }}
      </Answered>
    </div>
  );
}

function WhoIAm({ me }: { me: Me }) {
  return (
    <section class="card settings" aria-label="who I am">
      <h2>{me.name}</h2>
      <p>{KINDS[me.kind]}</p>
      <p>{roles(me.roles) || "You have no role in any project yet: ask an admin of this server for one."}</p>
      {me.kind !== "user" && me.kind !== "key" && (
        <p class="quiet">On the page of <code>torchtrack ui</code> that is all there is to set: it shows the runs of one folder to one person. Keys and users are of use with <code>torchtrack server</code>.</p>
      )}
    </section>
  );
}

function roles(held: Record<string, Role>): string {
  return Object.entries(held).map(([project, role]) => `${role} of ${project === "*" ? "all projects" : project}`).join(", ");
}

function Keys({ me }: { me: Me }) {
  const version = useSignal(0);
  const answer = useAnswer(`keys ${version.value}`, (signal) => get<Key[]>("keys", signal));
  const fresh = useSignal<Key | null>(null);
  const revoke = async (key: Key) => {
    try {
      await change("DELETE", `keys/${key.id}`);
      say(`${key.name} lets nobody in any more`);
      if (fresh.value?.id === key.id) fresh.value = null;
    } catch (error) {
      say((error as Error).message);
    }
    version.value += 1;
  };
  const made = (key: Key) => {
    fresh.value = key;
    version.value += 1;
  };
  return (
    <section class="card settings" aria-label="keys">
      <h2>Keys</h2>
      <p class="quiet">A key lets a program in: one that trains, <code>torchtrack sync</code>, <code>Api</code>. Its scope says what it may do, which is never more than its owner may.</p>
      <NewKey me={me} onMade={made} />
      {fresh.value && <Fresh key={fresh.value.id} made={fresh.value} onDone={() => { fresh.value = null; }} />}
      <Answered answer={answer.value}>
        {(keys) =>
          keys.length === 0 ? (
            <Empty title="No key yet">
              <p>Make one above, then on the machine that trains: <code>torchtrack login {location.origin}</code></p>
            </Empty>
          ) : (
            <table class="plain-table">
              <thead>
                <tr>
                  {["Name", "Begins", "Scope", "Project", "Whose", "Made", "Used", "Ends"].map((name) => <th scope="col" key={name}>{name}</th>)}
                  <th scope="col"><span class="unseen">Revoke</span></th>
                </tr>
              </thead>
              <tbody>
                {keys.map((key) => (
                  <tr key={key.id}>
                    <td class="strong">{key.name}</td>
                    <td><code>{key.start}…</code></td>
                    <td>{key.scope}</td>
                    <td>{key.project ?? "all"}</td>
                    <td>{key.person ?? "nobody's"}</td>
                    <td class="quiet">{ago(key.created)}</td>
                    <td class="quiet">{key.used ? ago(key.used) : "never"}</td>
                    <td class="quiet">{key.revoked ? "revoked" : key.expires ? key.expires.slice(0, 10) : "never"}</td>
                    <td>{!key.revoked && <button type="button" aria-label={`revoke ${key.name}`} onClick={() => void revoke(key)}>Revoke</button>}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          )
        }
      </Answered>
    </section>
  );
}

function NewKey({ me, onMade }: { me: Me; onMade: (key: Key) => void }) {
  const name = useSignal("");
  const scope = useSignal<Scope>("write");
  const project = useSignal("");
  const days = useSignal("");
  const problem = useSignal<Error | null>(null);
  const make = async () => {
    const wanted = { name: name.value, scope: scope.value, project: project.value || null, user: me.user, expires_days: days.value ? Number(days.value) : null };
    try {
      const key = await change<Key>("POST", "keys", wanted);
      problem.value = null;
      name.value = "";
      if (key) onMade(key);
    } catch (error) {
      problem.value = error as Error;
    }
  };
  return (
    <form class="bar" aria-label="a new key" onSubmit={(event) => { event.preventDefault(); void make(); }}>
      <label>Name <input required maxLength={200} value={name.value} placeholder="cluster" onInput={(event) => { name.value = event.currentTarget.value; }} /></label>
      <label>
        Scope
        <select value={scope.value} onChange={(event) => { scope.value = event.currentTarget.value as Scope; }}>
          {SCOPES.map(([value, text]) => <option key={value} value={value}>{text}</option>)}
        </select>
      </label>
      <label>Project <input maxLength={256} value={project.value} placeholder="all" onInput={(event) => { project.value = event.currentTarget.value; }} /></label>
      <label>Days <input type="number" min="1" max="3650" value={days.value} placeholder="for ever" onInput={(event) => { days.value = event.currentTarget.value; }} /></label>
      <button type="submit">Make a key</button>
      {problem.value && <Problem error={problem.value} />}
    </form>
  );
}

function Fresh({ made, onDone }: { made: Key; onDone: () => void }) {
  const copy = () =>
    navigator.clipboard.writeText(made.key ?? "").then(
      () => say("Copied"),
      () => say("The browser does not let this page copy: choose the key and copy it yourself"),
    );
  return (
    <div class="fresh" role="status" aria-label="the new key">
      <p>This is <strong>{made.name}</strong>. It is shown this once: copy it now.</p>
      <code>{made.key}</code>
      <button type="button" onClick={() => void copy()}>Copy</button>
      <button type="button" onClick={onDone}>I have it</button>
    </div>
  );
}

function Users() {
  const version = useSignal(0);
  const answer = useAnswer(`users ${version.value}`, (signal) => get<User[]>("users", signal));
  const name = useSignal("");
  const role = useSignal<Role>("viewer");
  const project = useSignal("");
  const problem = useSignal<Error | null>(null);
  const tell = async (work: Promise<unknown>) => {
    try {
      await work;
      problem.value = null;
    } catch (error) {
      problem.value = error as Error;
    }
    version.value += 1;
  };
  const add = () => void tell(change("POST", "users", { name: name.value, roles: { [project.value || "*"]: role.value } }));
  return (
    <section class="card settings" aria-label="users">
      <h2>Users</h2>
      <form class="bar" aria-label="a new user" onSubmit={(event) => { event.preventDefault(); add(); }}>
        <label>Name <input required maxLength={200} value={name.value} placeholder="ann" onInput={(event) => { name.value = event.currentTarget.value; }} /></label>
        <label>
          Role
          <select value={role.value} onChange={(event) => { role.value = event.currentTarget.value as Role; }}>
            {["viewer", "editor", "admin"].map((one) => <option key={one} value={one}>{one}</option>)}
          </select>
        </label>
        <label>of project <input maxLength={256} value={project.value} placeholder="all" onInput={(event) => { project.value = event.currentTarget.value; }} /></label>
        <button type="submit">Add</button>
        {problem.value && <Problem error={problem.value} />}
      </form>
      <Answered answer={answer.value}>
        {(users) =>
          users.length === 0 ? (
            <Empty title="No user yet"><p>Add the people who share this server. They come in with a key that is made for them, or by the identity provider.</p></Empty>
          ) : (
            <table class="plain-table">
              <thead>
                <tr>{["Name", "Roles", "Since"].map((one) => <th scope="col" key={one}>{one}</th>)}<th scope="col"><span class="unseen">Let in</span></th></tr>
              </thead>
              <tbody>
                {users.map((user) => (
                  <tr key={user.id}>
                    <td class="strong">{user.name} {user.disabled && <span class="chip">disabled</span>}</td>
                    <td>{roles(user.roles) || "none"}</td>
                    <td class="quiet">{ago(user.created)}</td>
                    <td>
                      <button type="button" aria-label={`${user.disabled ? "enable" : "disable"} ${user.name}`} onClick={() => void tell(change("PATCH", `users/${user.id}`, { disabled: !user.disabled }))}>
                        {user.disabled ? "Enable" : "Disable"}
                      </button>
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          )
        }
      </Answered>
    </section>
  );
}
