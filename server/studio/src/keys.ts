/** Keyboard shortcuts of the page, inactive in form fields. */

export type Keys = Record<string, () => void>;

/** Registers shortcuts, named by key with the prefixes "Ctrl+", "Alt+" and "Shift+", in this order. */
export function listen(keys: Keys): void {
  document.addEventListener("mousedown", (event) => {
    if (!(event.target as HTMLElement).closest("button")) return;
    event.preventDefault(); // a mouse click must not focus the button, or it would handle shortcuts such as Space
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
