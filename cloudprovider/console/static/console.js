// What htmx does not do: tabs by arrow keys, fields that belong to a choice, marks of what is wrong, the end of a
// session. Without it all fields are shown, and the server says what is wrong when a form is sent.
"use strict";
(() => {
  // Tabs as https://www.w3.org/WAI/ARIA/apg/patterns/tabs/ has them: arrows, Home and End move, the panel follows.
  function show(form, tab, focus) {
    for (const each of form.querySelectorAll("[role=tab]")) {
      const chosen = each === tab;
      each.setAttribute("aria-selected", String(chosen));
      each.tabIndex = chosen ? 0 : -1;
      document.getElementById(each.getAttribute("aria-controls")).hidden = !chosen;
    }
    form.elements.tab.value = tab.id.replace("tab-", "");
    if (focus) tab.focus();
  }

  function furnish() {
    for (const form of document.querySelectorAll("form[data-tabs]")) {
      form.querySelector("[role=tablist]").hidden = false;
      show(form, document.getElementById(`tab-${form.elements.tab.value}`), false);
    }
    reveal();
    mark();
  }

  // Fields that only some kinds of health check read, or none.
  function reveal() {
    const kind = document.getElementById("f-healthCheck-protocol");
    for (const part of document.querySelectorAll("[data-for-kind]"))
      part.hidden = !part.dataset.forKind.split(" ").includes(kind.value);
    for (const box of document.querySelectorAll("[data-reveals]"))
      document.getElementById(box.dataset.reveals).hidden = !box.checked;
  }

  // An input is marked while something is told about it.
  function mark() {
    for (const told of document.querySelectorAll(".problem[data-slot]")) {
      const input = told.dataset.slot && document.querySelector(`[name="${CSS.escape(told.dataset.slot)}"]`);
      if (!input) continue;
      if (told.textContent) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
    }
  }

  document.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) show(tab.form, tab, true);
  });
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (!tab) return;
    const all = [...tab.form.querySelectorAll("[role=tab]")];
    const at = all.indexOf(tab);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    show(tab.form, all.at(next % all.length), true);
  });
  document.addEventListener("change", reveal);
  document.addEventListener("htmx:after:swap", (event) => {
    if (document.getElementById("editor")) event.target.id === "preview" ? mark() : furnish();
  });

  // While a form is on its way nothing is typed into it, which the answer would take away, and it is not sent twice.
  for (const [name, inert] of [["before", true], ["finally", false]])
    document.addEventListener(`htmx:${name}:request`, (event) => {
      if (event.target.id === "editor") event.target.inert = inert;
    });

  // A stream that is over: the session has ended (the page then shows the sign-in), or the API server refuses to tell
  // of changes. (Loading anew then would go round in a circle for who may list and not watch.)
  document.addEventListener("over", (event) => {
    if (event.detail.data === "signed out") window.location.reload();
    else document.getElementById("refused").hidden = false;
  });

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", furnish);
  else furnish();
})();
