/** Keys of the page. Those of form fields stay theirs. */

export type Keys = Record<string, () => void>;

/** `keys` by the name of the key, after "Ctrl+", "Alt+" and "Shift+" where they are held. */
export function listen(keys: Keys): void {
  document.addEventListener("mousedown", (event) => {
    if (!(event.target as HTMLElement).closest("button")) return;
    event.preventDefault(); // who clicks a button with the mouse leaves the keys, Space among them, to the page
    (document.activeElement as HTMLElement | null)?.blur();
  });
  document.addEventListener("keydown", (event) => {
    const target = event.target as HTMLElement;
    if (target.matches("input:not([type=checkbox]), select, textarea") || document.querySelector("dialog[open]")) return;
    const held = `${event.ctrlKey || event.metaKey ? "Ctrl+" : ""}${event.altKey ? "Alt+" : ""}`;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = keys[`${held}${event.shiftKey ? "Shift+" : ""}${key}`] ?? (event.shiftKey && event.key.length === 1 ? keys[held + key] : undefined);
    if (!action || (event.key === " " && target.matches("button, label, input"))) return;
    event.preventDefault();
    action();
  });
}
